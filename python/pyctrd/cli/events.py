"""``events``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.output import print_json, printable
from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from pyctrd import Event

FILTERS = ("type", "action", "name", "container", "reason")


@click.command("events")
@click.option("--since", metavar="CURSOR", help='Begin behind this event; "0" begins with the oldest that is kept.')
@click.option("-f", "--follow/--no-follow", default=True, help="Wait for more (the default), or end with the last.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Follow for so long, not for ever.")
@click.option(
    "--filter",
    "filters",
    metavar="KEY=VALUE",
    multiple=True,
    help=f"{', '.join(FILTERS)}; several times.",
)
@click.option("-A", "--all-namespaces", is_flag=True, help="Of every namespace, and of the store itself.")
@json_option
@pass_globals
def events_command(
    options: Globals,
    *,
    since: str | None,
    follow: bool,
    timeout: float | None,
    filters: tuple[str, ...],
    all_namespaces: bool,
    as_json: bool,
) -> None:
    """Print what happens to images and containers, by whichever process."""
    wanted = _filters(filters)
    with options.engine() as engine:
        for event in engine.events(
            since=since,
            follow=follow,
            timeout=timeout,
            all_namespaces=all_namespaces,
            types=wanted["type"],
            actions=wanted["action"],
            names=wanted["name"],
            containers=wanted["container"],
            reasons=wanted["reason"],
        ):
            if as_json or options.json:
                print_json(_describe(event))
            else:
                click.echo(_text(event))
                sys.stdout.flush()  # whoever follows through a pipe wants it now


def _filters(texts: tuple[str, ...]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {key: [] for key in FILTERS}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or key not in wanted:
            raise InvalidError(
                f"invalid --filter: {text!r}: expected {'=…, '.join(FILTERS)}=…", field="filter", value=text
            )
        wanted[key].append(value)
    return wanted


def _describe(event: Event) -> dict[str, Any]:
    return {**event._asdict(), "attributes": dict(event.attributes)}


def _text(event: Event) -> str:
    seconds, nanoseconds = divmod(event.time_ns, 1_000_000_000)
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    more = ", ".join(f"{key}={value}" for key, value in event.attributes.items() if value != "")
    words = [event.cursor, f"{when}.{nanoseconds:09}Z", event.namespace or "-", event.type, event.action, event.name]
    return printable(" ".join(word for word in words if word) + (f" ({more})" if more else ""))
