"""``commit diff``: what a container changed."""

from __future__ import annotations

from typing import Literal

import click

from pyctrd.cli.describe import describe_image
from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.output import print_json, print_json_lines, printable


@click.command("commit")
@click.argument("container")
@click.argument("image")
@click.option("-a", "--author", default="", help="Who made it.")
@click.option("-m", "--message", default="", help="What for.")
@click.option(
    "-c",
    "--change",
    "changes",
    metavar="INSTRUCTION",
    multiple=True,
    help="As in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR.",
)
@click.option(
    "--compression",
    type=click.Choice(["gzip", "zstd", "none"]),
    default="gzip",
    show_default=True,
    help="Of the new layer.",
)
@click.option("--no-pause", is_flag=True, help="Let the container run on while its files are read.")
@click.option(
    "--timestamp",
    metavar="SECONDS",
    type=click.IntRange(min=0),
    envvar="SOURCE_DATE_EPOCH",
    help="No time in the image is after this one, since 1970 [SOURCE_DATE_EPOCH].",
)
@json_option
@pass_globals
def commit_command(
    options: Globals,
    container: str,
    image: str,
    *,
    author: str,
    message: str,
    changes: tuple[str, ...],
    compression: Literal["gzip", "zstd", "none"],
    no_pause: bool,
    timestamp: int | None,
    as_json: bool,
) -> None:
    """Make an image of a container: its image, and what it changed."""
    with options.engine() as engine:
        made = engine.containers.get(container).commit(
            image,
            author=author,
            message=message,
            changes=changes,
            compression=compression,
            pause=not no_pause,
            clamp_mtime=timestamp,
        )
        if as_json or options.json:
            print_json(describe_image(made))
        else:
            click.echo(made.digest)


@click.command("diff")
@click.argument("container")
@json_option
@pass_globals
def diff_command(options: Globals, container: str, *, as_json: bool) -> None:
    """List what a container added (A), changed (C) and deleted (D)."""
    with options.engine() as engine:
        found = engine.containers.get(container).diff()
    if as_json or options.json:
        print_json_lines({"kind": change.kind, "path": change.path} for change in found)
    else:
        for change in found:
            click.echo(f"{change.kind} {printable(change.path)}")
