"""A container's processes written to files in its bundle, by CRIU, and brought back from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import ConflictError, NotFoundError
from pyctrd.flows.run import KILL_SECONDS, bundle_path, container_status, require_state, start_container
from pyctrd.flows.runs import notice
from pyctrd.runtime.criu import check_criu
from pyctrd.runtime.life import flush_directory, read_life

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord

# What CRIU wrote; it has this name when all of it is on disk.
CHECKPOINT = "checkpoint"
STAGED = "checkpoint.new"
# CRIU's own logs and statistics.
WORK = "criu"


def checkpoint_container(
    rooms: Rooms, record: ContainerRecord, *, leave_running: bool, tcp_established: bool, file_locks: bool, keep: bool
) -> None:
    """See ``Container.checkpoint``."""
    require_state(container_status(rooms, record), record, "checkpoint", "running")
    if record.auto_remove and not leave_running:
        raise ConflictError(
            f"container {record.name}: cannot checkpoint: it is auto-removed",
            kind="container",
            name=record.name,
            state="auto-removed",
            allowed="any that is not",
            hint="leave it running: --leave-running",
        )
    check_criu()
    bundle = bundle_path(rooms, record)
    runtime = rooms.runtime(record.runtime)
    for name in (STAGED, WORK):
        _remove(bundle, name)
        (bundle / name).mkdir(mode=0o700)
    flags = [f"--{flag}" for flag, wanted in _flags(leave_running, tcp_established, file_locks).items() if wanted]
    try:
        if not leave_running:
            # It is ended on purpose: its policy must not start it anew beside what was written.
            runtime.give_up_restarts(record.id, bundle)
        runtime.checkpoint(record.id, bundle / STAGED, bundle / WORK, flags)
    except BaseException:
        _remove(bundle, STAGED)
        raise
    _core.flush_tree(bundle / STAGED)
    _remove(bundle, CHECKPOINT)
    (bundle / STAGED).rename(bundle / CHECKPOINT)
    flush_directory(bundle)
    if not keep:
        _remove(bundle, WORK)
    if not leave_running:
        runtime.wait(record.id, bundle, KILL_SECONDS)
        notice(rooms, record)


def restore_container(
    rooms: Rooms, record: ContainerRecord, *, tcp_established: bool, file_locks: bool, keep: bool
) -> None:
    """See ``Container.restore``."""
    require_state(container_status(rooms, record), record, "restore", "created", "stopped")
    bundle = bundle_path(rooms, record)
    images = bundle / CHECKPOINT
    if not images.is_dir():
        raise NotFoundError(
            f"container {record.name}: has no checkpoint",
            kind="checkpoint",
            name=record.name,
            hint=f"make one while it runs: pyctrd checkpoint {record.name}",
        )
    check_criu()
    (bundle / WORK).mkdir(mode=0o700, exist_ok=True)
    flags = [f"--{flag}" for flag, wanted in _flags(False, tcp_established, file_locks).items() if wanted]  # noqa: FBT003 - by its place
    words = ["--work-path", str(bundle / WORK), *flags]
    from pyctrd.flows.alter import read_spec

    terminal = bool(read_spec(record, bundle).get("process", {}).get("terminal"))
    start_container(rooms, record, terminal=terminal, stdin=read_life(bundle).stdin, restore=(images, words))
    if not keep:
        _remove(bundle, WORK)
        _remove(bundle, CHECKPOINT)


def _flags(leave_running: bool, tcp_established: bool, file_locks: bool) -> dict[str, bool]:  # noqa: FBT001 - by their names below
    return {"leave-running": leave_running, "tcp-established": tcp_established, "file-locks": file_locks}


def _remove(bundle: Path, name: str) -> None:
    if (bundle / name).exists():
        _core.remove_tree(bundle, name)
