"""``ps start stop kill wait logs rm pause unpause``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.life import detach_keys_option
from pyctrd.cli.output import age_text, complain, print_json_lines, print_table, size_text
from pyctrd.cli.template import fill
from pyctrd.cli.times import parse_time
from pyctrd.errors import DetachedError, InvalidError

if TYPE_CHECKING:
    from pyctrd.container import Container
    from pyctrd.engine import Engine

SHORT_ID_CHARS = 12
COMMAND_CHARS = 30

names_argument = click.argument("names", metavar="CONTAINER...", nargs=-1, required=True)


@click.command("ps")
@click.option("-a", "--all", "everything", is_flag=True, help="Those that do not run, too.")
@click.option("-q", "--quiet", is_flag=True, help="Print the ids only.")
@click.option(
    *("-f", "--filter", "filters"), metavar="KEY=VALUE", multiple=True,
    help="name, id, label, status, health, exited, ancestor, since or before; several times.",
)  # fmt: skip
@click.option(
    "-n", "--last", type=click.IntRange(min=1), metavar="N", help="The last N that were made, running or not."
)
@click.option("-l", "--latest", is_flag=True, help="The last one that was made.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@click.option("--format", "template", metavar="json|TEMPLATE", help="Lines of your own, as '{name} {state}'.")
@click.option("-s", "--size", is_flag=True, help="What each wrote, on disk.")
@json_option
@pass_globals
def ps_command(
    options: Globals,
    *,
    everything: bool,
    quiet: bool,
    filters: tuple[str, ...],
    last: int | None,
    latest: bool,
    no_trunc: bool,
    template: str | None,
    size: bool,
    as_json: bool,
) -> None:
    """List containers."""
    last = 1 if latest else last
    with options.engine() as engine:
        found = engine.containers.list(all=everything or last is not None, filters=read_filters(filters))[:last]
        shown = [describe_container(container) for container in found]
        if size:
            sizes = {one.name: one.bytes for one in engine.df().containers}
            for facts in shown:
                facts["size_bytes"] = sizes.get(facts["name"])
    if as_json or options.json or template == "json":
        print_json_lines(shown)
    elif template is not None:
        for facts in shown:
            click.echo(fill(template, facts))
    elif quiet:
        for facts in shown:
            click.echo(facts["id"] if no_trunc else facts["id"][:SHORT_ID_CHARS])
    else:
        _print_containers(shown, no_trunc=no_trunc, size=size)


@click.command("start")
@click.argument("names", metavar="CONTAINER...", nargs=-1)
@click.option("-a", "--attach", is_flag=True, help="Show what it writes, and end with its status.")
@click.option("-i", "--interactive", is_flag=True, help="As -a, and send it this command's input.")
@detach_keys_option
@click.option("--policy", is_flag=True, help="Those that their restart policy wants to run, after a reboot.")
@click.option("-A", "--all-namespaces", is_flag=True, help="With --policy: those of every namespace.")
@pass_globals
@click.pass_context
def start_command(
    context: click.Context,
    options: Globals,
    names: tuple[str, ...],
    *,
    attach: bool,
    interactive: bool,
    detach_keys: str,
    policy: bool,
    all_namespaces: bool,
) -> None:
    """Start containers that were made, or have ended; with a terminal those that were made with one.

    With --policy, what a unit does at boot: the containers of this namespace that run always, and those that run unless
    they were stopped and were not. One that cannot be started is told, and the others are started all the same.
    """
    attach = attach or interactive
    if policy == bool(names) or (all_namespaces and not policy):
        raise click.UsageError("name the containers to start, or give --policy")
    if attach and len(names) != 1:
        raise click.UsageError("-a and -i are for one container")
    with options.engine() as engine:
        if policy:
            _restore(engine, all_namespaces=all_namespaces)
        elif attach:
            context.exit(_start_attached(engine.containers.get(names[0]), detach_keys, interactive=interactive))
        for name in names:
            engine.containers.get(name).start()
            click.echo(name)


def _restore(engine: Engine, *, all_namespaces: bool) -> None:
    restored = engine.containers.restore_policies(all_namespaces=all_namespaces)
    for name in restored.started:
        click.echo(name)
    for error in restored.failed.values():
        complain(error, status=1)
    if restored.failed:
        raise click.exceptions.Exit(1)


def _start_attached(container: Container, detach_keys: str, *, interactive: bool) -> int:
    try:
        # Where input is not asked for, none is sent; a terminal stays one for what it shows.
        return container.start_attached(stdin=interactive, detach_keys=detach_keys).exit_code
    except DetachedError:
        return 0


@click.command("stop")
@names_argument
@click.option("-t", "--time", "timeout", type=float, help="Seconds before SIGKILL [--stop-timeout, 10].")
@pass_globals
def stop_command(options: Globals, names: tuple[str, ...], *, timeout: float | None) -> None:
    """Ask containers to end, and kill those that do not."""
    with options.engine() as engine:
        for name in names:
            engine.containers.get(name).stop(timeout)
            click.echo(name)


@click.command("kill")
@names_argument
@click.option("-s", "--signal", default="SIGKILL", show_default=True, help="Name or number.")
@pass_globals
def kill_command(options: Globals, names: tuple[str, ...], *, signal: str) -> None:
    """Send a signal to containers' first process."""
    with options.engine() as engine:
        for name in names:
            engine.containers.get(name).kill(signal)
            click.echo(name)


@click.command("pause")
@names_argument
@pass_globals
def pause_command(options: Globals, names: tuple[str, ...]) -> None:
    """Freeze containers' processes."""
    with options.engine() as engine:
        for name in names:
            engine.containers.get(name).pause()
            click.echo(name)


@click.command("unpause")
@names_argument
@pass_globals
def unpause_command(options: Globals, names: tuple[str, ...]) -> None:
    """Let frozen containers go on."""
    with options.engine() as engine:
        for name in names:
            engine.containers.get(name).resume()
            click.echo(name)


@click.command("wait")
@names_argument
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after this long.")
@click.option(
    "--condition", type=click.Choice(["stopped", "healthy"]), default="stopped", show_default=True, help="For what."
)
@pass_globals
def wait_command(options: Globals, names: tuple[str, ...], *, timeout: float | None, condition: str) -> None:
    """Wait until containers end, and print their exit codes; or until they are healthy, and print that."""
    with options.engine() as engine:
        for name in names:
            container = engine.containers.get(name)
            if condition == "healthy":
                click.echo(container.wait_healthy(timeout).status)
            else:
                click.echo(container.wait(timeout).exit_code)


@click.command("logs")
@click.argument("name", metavar="CONTAINER")
@click.option("-f", "--follow", is_flag=True, help="Go on until it ends.")
@click.option("--tail", metavar="N", help='Only the last N lines, or "all".')
@click.option("--since", metavar="TIME", help="Only what was written since: RFC 3339, seconds since 1970, or 10m ago.")
@click.option("--until", metavar="TIME", help="Only what was written before; a follower ends then.")
@click.option("-t", "--timestamps", is_flag=True, help="Print the time of each line.")
@json_option
@pass_globals
def logs_command(
    options: Globals,
    name: str,
    *,
    follow: bool,
    tail: str | None,
    since: str | None,
    until: str | None,
    timestamps: bool,
    as_json: bool,
) -> None:
    """Print what a container wrote: its output to standard output, its errors to standard error."""
    with options.engine() as engine:
        lines = engine.containers.get(name).log_lines(
            follow=follow,
            since_ns=parse_time(since, field="since") or 0,
            until_ns=parse_time(until, field="until"),
            tail=None if tail in (None, "all") else _count(tail),
        )
        for line in lines:
            if as_json or options.json:
                print_json_lines([{"text": line.text, "stream": line.stream, "time": line.time}])
                continue
            to = sys.stderr if line.stream == "stderr" else sys.stdout
            to.write(f"{line.time} {line.text}" if timestamps else line.text)
            to.flush()


@click.command("rm")
@names_argument
@click.option("-f", "--force", is_flag=True, help="Kill them first, if they run.")
@click.option("-v", "--volumes", is_flag=True, help="Remove the volumes that were made for them alone.")
@pass_globals
def rm_command(options: Globals, names: tuple[str, ...], *, force: bool, volumes: bool) -> None:
    """Delete containers."""
    with options.engine() as engine:
        for name in names:
            engine.containers.get(name).delete(force=force, volumes=volumes)
            click.echo(name)


def read_filters(texts: Sequence[str]) -> dict[str, list[str]]:
    """What ``--filter KEY=VALUE`` said, by key."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not value:
            raise InvalidError(f"invalid --filter: {text!r}: expected KEY=VALUE", field="filter", value=text)
        found.setdefault(key, []).append(value)
    return found


def _print_containers(shown: Sequence[dict[str, Any]], *, no_trunc: bool, size: bool) -> None:
    id_chars, command_chars = (None, None) if no_trunc else (SHORT_ID_CHARS, COMMAND_CHARS)
    print_table(
        ("ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", *(("SIZE",) if size else ())),
        (
            (
                facts["id"][:id_chars],
                facts["name"],
                facts["image"],
                " ".join(facts["command"])[:command_chars],
                age_text(facts["created_ns"]),
                _status_text(facts),
                *((size_text(facts["size_bytes"] or 0),) if size else ()),
            )
            for facts in shown
        ),
    )


def describe_container(container: Container) -> dict[str, Any]:
    """The JSON form of a container."""
    status = container.status
    return {
        "id": container.id,
        "name": container.name,
        "image": container.image_name,
        "command": list(container.command),
        "labels": dict(container.labels),
        "created_ns": container.created_ns,
        "state": status.state,
        "pid": status.pid,
        "started_ns": status.started_ns,
        "health": None if (health := container.health) is None else health.status,
        "restart_policy": container.restart_policy,
        "restart_count": status.restart_count,
        "exit_code": status.exit.exit_code if status.exit else None,
        "exited_ns": status.exit.exited_ns if status.exit else None,
        "oom": status.exit.oom if status.exit else None,
        "reason": status.exit.reason if status.exit else None,
    }


def _status_text(facts: dict[str, Any]) -> str:
    if facts["exit_code"] is not None:
        why = ", out of memory" if facts["reason"] == "oom" else ""
        return f"exited ({facts['exit_code']}{why}) {age_text(facts['exited_ns'])}"
    if facts["state"] == "restarting":
        return f"restarting ({facts['restart_count']})"
    if not facts["started_ns"]:
        return str(facts["state"])
    health = facts["health"] if facts["state"] == "running" else None
    shown = "" if health is None else f" ({'health: starting' if health == 'starting' else health})"
    return f"{facts['state']} since {age_text(facts['started_ns'])}{shown}"


def _count(text: str) -> int:
    if not text.isdigit():
        raise InvalidError(f'invalid --tail: {text!r}: expected a number or "all"', field="tail", value=text)
    return int(text)
