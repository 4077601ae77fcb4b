"""``stats``, ``top`` and ``metrics``: what running containers use."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.output import print_json_lines, print_table, printable, size_text
from pyctrd.errors import ConflictError, InvalidError, NotFoundError

if TYPE_CHECKING:
    from pyctrd import ContainerStats, Engine, ProcessInfo

SHORT_ID_CHARS = 12
# Between the two looks of one that is asked for alone: a share is of a time.
FIRST_SECONDS = 0.2
HEADINGS = ("ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS")
# To the upper left, and all below goes: the table is drawn over the last one.
_CLEAR = "\x1b[H\x1b[J"
COLUMNS = ("user", "pid", "container_pid", "ppid", "cpu", "rss", "threads", "state", "command")


@click.command("stats")
@click.argument("names", metavar="[CONTAINER...]", nargs=-1)
@click.option("--no-stream", is_flag=True, help="Look once, and end.")
@click.option("--interval", type=float, metavar="SECONDS", default=1.0, show_default=True, help="Between two looks.")
@json_option
@pass_globals
def stats_command(options: Globals, names: tuple[str, ...], *, no_stream: bool, interval: float, as_json: bool) -> None:
    """Show what running containers use, all of them by default, until they end."""
    as_json = as_json or options.json
    if not interval >= 0.01:
        raise InvalidError(
            f"invalid --interval: {interval}: expected at least 0.01 seconds", field="interval", value=interval
        )
    with options.engine() as engine:
        for name in names:
            engine.containers.get(name).stats()  # what cannot be read is told now
        before: dict[str, ContainerStats] = {}
        if no_stream:
            before = {sample.id: sample for sample in _look(engine, names)}
            time.sleep(min(interval, FIRST_SECONDS))
        while samples := _look(engine, names):
            rows = [_describe(sample, before.get(sample.id)) for sample in samples]
            _show(rows, as_json=as_json, redraw=not no_stream and sys.stdout.isatty())
            if no_stream:
                return
            before = {sample.id: sample for sample in samples}
            time.sleep(interval)
        if no_stream or not before:
            _show([], as_json=as_json, redraw=False)


@click.command("top")
@click.argument("name", metavar="CONTAINER")
@click.option(
    "-o", "--columns", metavar="NAME,...", help=f"Which: {', '.join(COLUMNS)}; all but container_pid and threads."
)
@json_option
@pass_globals
def top_command(options: Globals, name: str, *, columns: str | None, as_json: bool) -> None:
    """List a container's processes, with their ids on the host."""
    chosen = [column for column in COLUMNS if column not in ("container_pid", "threads")]
    if columns is not None:
        chosen = columns.split(",")
        if unknown := [column for column in chosen if column not in COLUMNS]:
            raise InvalidError(
                f"invalid --columns: {unknown[0]!r}: expected some of {', '.join(COLUMNS)}",
                field="columns",
                value=columns,
            )
    with options.engine() as engine:
        found = engine.containers.get(name).top()
    if as_json or options.json:
        print_json_lines([process._asdict() for process in found])
    else:
        texts = [_process_texts(process) for process in found]
        print_table([column.upper() for column in chosen], [[text[column] for column in chosen] for text in texts])


@click.command("metrics")
@click.option("-A", "--all-namespaces", is_flag=True, help="Containers of every namespace.")
@pass_globals
def metrics_command(options: Globals, *, all_namespaces: bool) -> None:
    """Print containers' states and use as Prometheus reads it, as for its node exporter's textfile collector."""
    with options.engine() as engine:
        click.echo(engine.metrics(all_namespaces=all_namespaces), nl=False)


def _look(engine: Engine, names: Sequence[str]) -> list[ContainerStats]:
    """A sample of each; of those that are named, without those that have ended."""
    if not names:
        return engine.containers.stats()
    found = []
    for name in names:
        try:
            found.append(engine.containers.get(name).stats())
        except (ConflictError, NotFoundError):
            continue  # it was there at the beginning
    return found


def _describe(sample: ContainerStats, before: ContainerStats | None) -> dict[str, Any]:
    """The JSON form of a sample; the share of processors is None where there is none to compare with."""
    memory = sample.memory
    limit = memory.limit_bytes
    return {
        "id": sample.id,
        "name": sample.name,
        "time_ns": sample.time_ns,
        "cpu_percent": None if before is None else round(sample.cpu_percent(before), 2),
        "memory_percent": round(memory.working_set_bytes / limit * 100, 2)
        if limit and memory.working_set_bytes is not None
        else None,
        "cpu": sample.cpu._asdict(),
        "memory": memory._asdict(),
        "io": sample.io._asdict(),
        "pids": sample.pids,
        "pids_limit": sample.pids_limit,
        "network": [interface._asdict() for interface in sample.network],
    }


def _show(rows: list[dict[str, Any]], *, as_json: bool, redraw: bool) -> None:
    if as_json:
        print_json_lines(rows)
    else:
        if redraw:
            sys.stdout.write(_CLEAR)
        print_table(HEADINGS, map(_texts, rows))
    sys.stdout.flush()  # whoever follows through a pipe wants it now


def _texts(row: dict[str, Any]) -> tuple[str, ...]:
    memory, io = row["memory"], row["io"]
    outside = [one for one in row["network"] if one["name"] != "lo"]
    return (
        row["id"][:SHORT_ID_CHARS],
        row["name"],
        _percent(row["cpu_percent"]),
        f"{_size(memory['working_set_bytes'])} / {_size(memory['limit_bytes'])}",
        _percent(row["memory_percent"]),
        f"{size_text(sum(one['rx_bytes'] for one in outside))} / {size_text(sum(one['tx_bytes'] for one in outside))}",
        f"{_size(io['read_bytes'])} / {_size(io['write_bytes'])}",
        "-" if row["pids"] is None else str(row["pids"]),
    )


def _size(value: int | None) -> str:
    return "-" if value is None else size_text(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}%"


def _process_texts(process: ProcessInfo) -> dict[str, str]:
    seconds = process.cpu_ns // 1_000_000_000
    return {
        **{key: str(value) for key, value in process._asdict().items()},
        "cpu": f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        "rss": size_text(process.rss_bytes),
        "command": printable(process.command),
    }
