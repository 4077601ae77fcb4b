"""What running containers use, and which processes are in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from pyctrd.errors import ConflictError, PyctrdError, UnsupportedError
from pyctrd.flows.run import mount_rootfs
from pyctrd.flows.runs import notice
from pyctrd.runtime.processes import ProcessInfo, list_processes
from pyctrd.runtime.stats import ContainerStats, read_stats, stream_stats
from pyctrd.runtime.users import user_names

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord

ALIVE = ("running", "paused")


def container_stats(rooms: Rooms, record: ContainerRecord) -> ContainerStats:
    """See ``Container.stats``."""
    pid = _pid(rooms, record, "read statistics")
    found = _sample(rooms, record, pid)
    if found is None:
        raise _not_running(record, "read statistics", "stopped")
    return found


def follow_stats(rooms: Rooms, record: ContainerRecord, interval: float) -> Iterator[ContainerStats]:
    """See ``Container.stats_stream``."""
    pid = _pid(rooms, record, "read statistics")
    return stream_stats(pid, interval, partial(_sample, rooms, record, pid))


def stats_of_all(rooms: Rooms, namespace: str) -> list[ContainerStats]:
    """A sample of each container of a namespace that runs; one that ends meanwhile is left out."""
    found = []
    for record in rooms.database.containers.list(namespace):
        status = notice(rooms, record)
        if status.state in ALIVE and (sample := _sample(rooms, record, status.pid)) is not None:
            found.append(sample)
    return found


def container_processes(rooms: Rooms, record: ContainerRecord) -> list[ProcessInfo]:
    """See ``Container.top``."""
    pid = _pid(rooms, record, "list processes")
    names: dict[int, str] = {}
    with suppress(PyctrdError, OSError):  # numbers do as well
        names = user_names(mount_rootfs(rooms, record))
    try:
        return list_processes(pid, record.id, names)
    except (FileNotFoundError, ProcessLookupError):
        raise _not_running(record, "list processes", "stopped") from None


def _sample(rooms: Rooms, record: ContainerRecord, pid: int) -> ContainerStats | None:
    """One of the run whose init has this process id; None where it has ended."""
    try:
        found = read_stats(pid, record.id, record.name)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except UnsupportedError:
        # Also of a process that has ended, or was given its number, no group is the container's.
        if _is(rooms, record, pid):
            raise
        return None
    return found if _is(rooms, record, pid) else None


def _is(rooms: Rooms, record: ContainerRecord, pid: int) -> bool:
    status = rooms.runtime(record.runtime).status(record.id, rooms.bundle(record.namespace, record.id))
    return status.state in ALIVE and status.pid == pid


def _pid(rooms: Rooms, record: ContainerRecord, operation: str) -> int:
    status = notice(rooms, record)
    if status.state not in ALIVE:
        raise _not_running(record, operation, status.state)
    return status.pid


def _not_running(record: ContainerRecord, operation: str, state: str) -> ConflictError:
    return ConflictError(
        f"container {record.name}: cannot {operation}: is {state}, must be running",
        kind="container",
        name=record.name,
        state=state,
        allowed="running,paused",
        hint=f"start it first: pyctrd start {record.name}",
    )
