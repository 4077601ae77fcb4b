"""``volume create ls inspect rm prune``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.labels import read_labels
from pyctrd.cli.output import age_text, print_json, print_json_lines, print_table

if TYPE_CHECKING:
    from pyctrd.volumes import Volume


@click.group("volume")
def volume_command() -> None:
    """Directories that containers see, and that outlive them."""


@volume_command.command("create")
@click.argument("name", required=False, default="")
@click.option("-l", "--label", "labels", metavar="KEY=VALUE", multiple=True, callback=read_labels, help="Your own.")
@pass_globals
def volume_create(options: Globals, name: str, *, labels: dict[str, str]) -> None:
    """Make an empty volume, and print its name."""
    with options.engine() as engine:
        click.echo(engine.volumes.create(name, labels=labels).name)


@volume_command.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print the names only.")
@json_option
@pass_globals
def volume_ls(options: Globals, *, quiet: bool, as_json: bool) -> None:
    """List the volumes of the namespace."""
    with options.engine() as engine:
        found = [_describe(volume) for volume in engine.volumes.list()]
    if as_json or options.json:
        print_json_lines(found)
    elif quiet:
        for facts in found:
            click.echo(facts["name"])
    else:
        print_table(
            ("VOLUME", "CREATED", "USED BY"),
            ((facts["name"], age_text(facts["created_ns"]), ",".join(facts["users"])) for facts in found),
        )


@volume_command.command("inspect")
@click.argument("names", metavar="VOLUME...", nargs=-1, required=True)
@pass_globals
def volume_inspect(options: Globals, names: tuple[str, ...]) -> None:
    """Print all about volumes, as JSON."""
    with options.engine() as engine:
        for name in names:
            print_json(_describe(engine.volumes.get(name)))


@volume_command.command("rm")
@click.argument("names", metavar="VOLUME...", nargs=-1, required=True)
@pass_globals
def volume_rm(options: Globals, names: tuple[str, ...]) -> None:
    """Remove volumes with all that is in them."""
    with options.engine() as engine:
        for name in names:
            engine.volumes.remove(name)
            click.echo(name)


@volume_command.command("prune")
@click.option("-a", "--all", "named", is_flag=True, help="Those with a name of somebody's, too.")
@pass_globals
def volume_prune(options: Globals, *, named: bool) -> None:
    """Remove the volumes that no container has, and print their names."""
    with options.engine() as engine:
        for name in engine.volumes.prune(named=named):
            click.echo(name)


def _describe(volume: Volume) -> dict[str, Any]:
    return {
        "name": volume.name,
        "labels": dict(volume.labels),
        "anonymous": volume.is_anonymous,
        "created_ns": volume.created_ns,
        "path": str(volume.path),
        "users": volume.users(),
    }
