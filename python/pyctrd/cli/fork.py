"""``fork``, and ``snapshot create ls rollback rm``: a container's files kept, and begun with again."""

from __future__ import annotations

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.output import age_text, print_json, print_json_lines, print_table

name_argument = click.argument("container")


@click.command("fork")
@name_argument
@click.option("--name", metavar="NAME", default="", help="Unique in the namespace.")
@click.option("--start", is_flag=True, help="Start it, detached.")
@json_option
@pass_globals
def fork_command(options: Globals, container: str, *, name: str, start: bool, as_json: bool) -> None:
    """Make a container that begins with what another one has written, and print its id."""
    with options.engine() as engine:
        made = engine.containers.get(container).fork(name=name)
        if start:
            made.start()
    if as_json or options.json:
        print_json({"id": made.id, "name": made.name})
    else:
        click.echo(made.id)


@click.group("snapshot")
def snapshot_command() -> None:
    """Keep a container's files as they are, and set them back."""


@snapshot_command.command("create")
@name_argument
@click.argument("name", required=False, default="")
@pass_globals
def snapshot_create(options: Globals, container: str, name: str) -> None:
    """Keep the files as they are now, and print the snapshot's name."""
    with options.engine() as engine:
        click.echo(engine.containers.get(container).snapshot(name))


@snapshot_command.command("ls")
@name_argument
@json_option
@pass_globals
def snapshot_ls(options: Globals, container: str, *, as_json: bool) -> None:
    """List what a container can be set back to, the oldest first."""
    with options.engine() as engine:
        found = engine.containers.get(container).snapshots()
    if as_json or options.json:
        print_json_lines({"name": one.name, "created_ns": one.created_ns} for one in found)
    else:
        print_table(("SNAPSHOT", "CREATED"), ((one.name, age_text(one.created_ns)) for one in found))


@snapshot_command.command("rollback")
@name_argument
@click.argument("name")
@click.option("--restart", is_flag=True, help="Kill it first, if it runs, and start it again.")
@pass_globals
def snapshot_rollback(options: Globals, container: str, name: str, *, restart: bool) -> None:
    """Set a container's files back; what was written since is lost."""
    with options.engine() as engine:
        engine.containers.get(container).rollback(name, restart=restart)
    click.echo(name)


@snapshot_command.command("rm")
@name_argument
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_globals
def snapshot_rm(options: Globals, container: str, names: tuple[str, ...]) -> None:
    """Forget snapshots, and free what only they needed."""
    with options.engine() as engine:
        found = engine.containers.get(container)
        for name in names:
            found.delete_snapshot(name)
            click.echo(name)
