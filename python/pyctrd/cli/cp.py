"""``cp export``: files of a container, in and out."""

from __future__ import annotations

import sys

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import pass_globals
from pyctrd.errors import InvalidError

STDIO = "-"


@click.command("cp")
@click.argument("source", metavar="[CONTAINER:]SOURCE|-")
@click.argument("target", metavar="[CONTAINER:]TARGET|-")
@click.option("-a", "--archive", is_flag=True, help="Keep the files' owners.")
@pass_globals
def cp_command(options: Globals, source: str, target: str, *, archive: bool) -> None:
    """Copy files into a container, or out of it; "-" is a tar on standard input or output."""
    from_name, from_path = _split(source)
    to_name, to_path = _split(target)
    if bool(from_name) == bool(to_name):
        raise InvalidError(
            f"invalid paths: {source} {target}: expected one of a container, as NAME:PATH, and one of the host",
            field="source",
            value=source,
        )
    with options.engine() as engine:
        container = engine.containers.get(from_name or to_name)
        if to_name and source == STDIO:
            container.copy_to(to_path, sys.stdin.buffer, archive=archive)
        elif to_name:
            container.copy_file_to(source, to_path, archive=archive)
        elif target == STDIO:
            for chunk in container.copy_from(from_path):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        else:
            container.copy_file_from(from_path, target, archive=archive)


@click.command("export")
@click.argument("container")
@click.option("-o", "--output", metavar="FILE", default=STDIO, help="Standard output by default.")
@click.option("--no-pause", is_flag=True, help="Let the container run on while its files are read.")
@pass_globals
def export_command(options: Globals, container: str, *, output: str, no_pause: bool) -> None:
    """Write a container's whole root file system as a tar."""
    if output == STDIO and sys.stdout.isatty():
        raise InvalidError("invalid output: a terminal: expected -o FILE, or a pipe", field="output", value=output)
    with options.engine() as engine:
        target = sys.stdout.buffer if output == STDIO else output
        engine.containers.get(container).export(target, pause=not no_pause)
        sys.stdout.flush()


def _split(text: str) -> tuple[str, str]:
    """Container and path, as docker tells them: a path of the host with a colon begins with "/" or "."."""
    name, colon, path = text.partition(":")
    if not colon or not name or text.startswith(("/", ".")):
        return "", text
    return name, path or "/"
