"""``checkpoint`` and ``restore``."""

from __future__ import annotations

import click

from pyctrd.cli.containers import names_argument
from pyctrd.cli.globals import Globals
from pyctrd.cli.group import pass_globals

_tcp_option = click.option("--tcp-established", is_flag=True, help="Also with TCP connections that are established.")
_locks_option = click.option("--file-locks", is_flag=True, help="Also with locks of files.")


@click.command("checkpoint")
@names_argument
@click.option("-R", "--leave-running", is_flag=True, help="Let it run on.")
@_tcp_option
@_locks_option
@click.option("-k", "--keep", is_flag=True, help="Keep CRIU's logs.")
@pass_globals
def checkpoint_command(
    options: Globals,
    names: tuple[str, ...],
    *,
    leave_running: bool,
    tcp_established: bool,
    file_locks: bool,
    keep: bool,
) -> None:
    """Write containers' processes to disk, and end them; needs CRIU."""
    with options.engine() as engine:
        for name in names:
            engine.containers.get(name).checkpoint(
                leave_running=leave_running, tcp_established=tcp_established, file_locks=file_locks, keep=keep
            )
            click.echo(name)


@click.command("restore")
@names_argument
@_tcp_option
@_locks_option
@click.option("-k", "--keep", is_flag=True, help="Keep what was written, and CRIU's logs.")
@pass_globals
def restore_command(
    options: Globals, names: tuple[str, ...], *, tcp_established: bool, file_locks: bool, keep: bool
) -> None:
    """Let containers go on from where checkpoint ended them; needs CRIU."""
    with options.engine() as engine:
        for name in names:
            engine.containers.get(name).restore(tcp_established=tcp_established, file_locks=file_locks, keep=keep)
            click.echo(name)
