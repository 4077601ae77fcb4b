"""``update``, ``restart`` and ``rename``."""

from __future__ import annotations

import click

from pyctrd.cli.containers import names_argument
from pyctrd.cli.globals import Globals
from pyctrd.cli.group import pass_globals
from pyctrd.cli.sizes import SizeType
from pyctrd.errors import InvalidError


class _LimitType(SizeType):
    """A number of bytes, or -1 for no limit."""

    def __init__(self) -> None:
        super().__init__("-1")


def _bytes(value: int | str | None) -> int | None:
    return None if value is None else int(value)


@click.command("update")
@names_argument
@click.option("-m", "--memory", type=_LimitType(), metavar="BYTES[kmg]", help="Memory limit.")
@click.option("--memory-swap", type=_LimitType(), metavar="BYTES[kmg]", help="Limit of memory and swap together.")
@click.option("--memory-reservation", type=_LimitType(), metavar="BYTES[kmg]", help="Where the host is short.")
@click.option("--cpus", type=float, metavar="N", help="Processors' worth of time.")
@click.option("-c", "--cpu-shares", type=int, metavar="N", help="Weight among others; 1024 is usual.")
@click.option("--cpuset-cpus", metavar="LIST", help="Processors that it may use, as 0-2,4.")
@click.option("--cpuset-mems", metavar="LIST", help="Memory nodes, likewise.")
@click.option("--pids-limit", type=int, metavar="N", help="Processes and threads.")
@pass_globals
def update_command(
    options: Globals,
    names: tuple[str, ...],
    *,
    memory: int | str | None,
    memory_swap: int | str | None,
    memory_reservation: int | str | None,
    cpus: float | None,
    cpu_shares: int | None,
    cpuset_cpus: str | None,
    cpuset_mems: str | None,
    pids_limit: int | None,
) -> None:
    """Change containers' limits, at once where they run. 0 and -1 take a limit away."""
    given = (memory, memory_swap, memory_reservation, cpus, cpu_shares, cpuset_cpus, cpuset_mems, pids_limit)
    if all(value is None for value in given):
        raise InvalidError("nothing to update: expected a limit", field="limits", hint="see pyctrd update --help")
    with options.engine() as engine:
        for name in names:
            engine.containers.get(name).update(
                memory_bytes=_bytes(memory),
                memory_swap_bytes=_bytes(memory_swap),
                memory_reservation_bytes=_bytes(memory_reservation),
                cpus=cpus,
                cpu_shares=cpu_shares,
                cpuset_cpus=cpuset_cpus,
                cpuset_mems=cpuset_mems,
                pids=pids_limit,
            )
            click.echo(name)


@click.command("restart")
@names_argument
@click.option("-t", "--time", "timeout", type=float, help="Seconds before SIGKILL [--stop-timeout, 10].")
@pass_globals
def restart_command(options: Globals, names: tuple[str, ...], *, timeout: float | None) -> None:
    """Stop containers, if they run, and start them again."""
    with options.engine() as engine:
        for name in names:
            engine.containers.get(name).restart(timeout)
            click.echo(name)


@click.command("rename")
@click.argument("name", metavar="CONTAINER")
@click.argument("new", metavar="NAME")
@pass_globals
def rename_command(options: Globals, name: str, new: str) -> None:
    """Give a container another name."""
    with options.engine() as engine:
        engine.containers.get(name).rename(new)
