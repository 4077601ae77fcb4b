"""``lease ls create add rm``."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.labels import read_labels
from pyctrd.cli.output import age_text, print_json, print_json_lines, print_table

if TYPE_CHECKING:
    from pyctrd.leases import Lease

# As ctr's: long enough for whoever forgets it, short enough for the disk.
DEFAULT_EXPIRES = "24h"
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,10})([smhd]?)")


def _read_duration(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r}: expected a number of seconds, or one with s, m, h or d")
    return int(match[1]) * _SECONDS[match[2]]


@click.group("lease")
def lease_command() -> None:
    """Keep images, blobs and layers, whatever becomes of their names."""


@lease_command.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print the ids only.")
@json_option
@pass_globals
def lease_ls(options: Globals, *, quiet: bool, as_json: bool) -> None:
    """List the leases of the namespace."""
    with options.engine() as engine:
        leases = engine.leases.list()
        if as_json or options.json:
            print_json_lines(_describe(lease) for lease in leases)
        elif quiet:
            for lease in leases:
                click.echo(lease.id)
        else:
            print_table(
                ("LEASE", "CREATED", "EXPIRES", "KEEPS", "LABELS"),
                (
                    (
                        lease.id,
                        age_text(lease.created_ns),
                        _left_text(lease.expires_ns),
                        str(len(lease.resources())),
                        ",".join(f"{name}={value}" for name, value in lease.labels.items()),
                    )
                    for lease in leases
                ),
            )


@lease_command.command("create")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--expires",
    metavar="TIME",
    default=DEFAULT_EXPIRES,
    show_default=True,
    callback=_read_duration,
    help="How long it lives: seconds, or 90s, 30m, 12h, 7d.",
)
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, callback=read_labels, help="A label of yours.")
@json_option
@pass_globals
def lease_create(
    options: Globals, names: tuple[str, ...], *, expires: int, labels: dict[str, str], as_json: bool
) -> None:
    """Make a lease, of images, blobs or layers; prints its id."""
    with options.engine() as engine:
        lease = engine.leases.create(expires=expires, labels=labels)
        try:
            for name in names:
                lease.add(name)
        except BaseException:
            lease.delete()
            raise
        if as_json or options.json:
            print_json(_describe(lease))
        else:
            click.echo(lease.id)


@lease_command.command("add")
@click.argument("lease_id", metavar="LEASE")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_globals
def lease_add(options: Globals, lease_id: str, names: tuple[str, ...]) -> None:
    """Let a lease keep more: images, blobs or layers."""
    with options.engine() as engine:
        lease = engine.leases.get(lease_id)
        for name in names:
            lease.add(name)


@lease_command.command("rm")
@click.argument("lease_ids", metavar="LEASE...", nargs=-1, required=True)
@pass_globals
def lease_rm(options: Globals, lease_ids: tuple[str, ...]) -> None:
    """End leases; ``gc`` frees what nothing else keeps."""
    with options.engine() as engine:
        for lease_id in lease_ids:
            engine.leases.delete(lease_id)
            click.echo(lease_id)


def _describe(lease: Lease) -> dict[str, Any]:
    return {
        "id": lease.id,
        "labels": dict(lease.labels),
        "created_ns": lease.created_ns,
        "expires_ns": lease.expires_ns,
        "resources": [resource._asdict() for resource in lease.resources()],
    }


def _left_text(expires_ns: int | None) -> str:
    if expires_ns is None:
        return "with its holder"
    seconds = max(0, (expires_ns - time.time_ns()) // 1_000_000_000)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"in {seconds // length}{unit}"
    return f"in {seconds}s"
