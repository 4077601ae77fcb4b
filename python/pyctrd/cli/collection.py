"""``gc``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.output import print_json_lines, printable, size_text

if TYPE_CHECKING:
    from pyctrd import Collected

all_namespaces_option = click.option(
    "--all-namespaces", is_flag=True, help="Tell of all namespaces, and of what belongs to none."
)


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Remove nothing; list each thing with why it would stay or go.")
@all_namespaces_option
@json_option
@pass_globals
def gc_command(options: Globals, *, dry_run: bool, all_namespaces: bool, as_json: bool) -> None:
    """Free what nothing needs, of every namespace, and what killed processes left."""
    with options.engine() as engine:
        done = engine.gc(dry_run=dry_run, all_namespaces=all_namespaces)
    if as_json or options.json:
        print_json_lines(item._asdict() for item in done.items)
        print_json_lines([{"freed_bytes": done.freed_bytes, "skipped": done.skipped}])
        return
    for item in done.items:
        click.echo(_line(item, dry_run=dry_run))
    click.echo(f"{'would free' if dry_run else 'freed'} {size_text(done.freed_bytes)}")
    if done.skipped:
        click.echo(f"not done: {printable(done.skipped)}", err=True)


def _line(item: Collected, *, dry_run: bool) -> str:
    verb = "keep" if item.kept else ("free" if dry_run else "freed")
    return f"{verb} {item.kind} {item.name} {size_text(item.bytes)}: {printable(item.reason)}"
