"""A container's runs as events: whoever first sees that one has begun or ended tells it, and nobody tells it again.

A container begins and ends outside of any transaction: the shim, which knows no database, writes down when. So the
container's record says which run events have told of, and is compared with the shim's files by all who look at them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.metadata.database import Tables
    from pyctrd.runtime.health import HealthChange
    from pyctrd.runtime.state import ContainerStatus, ExitStatus


def notice(rooms: Rooms, record: ContainerRecord) -> ContainerStatus:
    """What a container is doing now; a start or an end that nobody has told becomes an event.

    Returns:
        Its state, as the runtime's files have it.
    """
    rooms.runtime(record.runtime).end_orphan(record.id, rooms.bundle(record.namespace, record.id))
    status = _status(rooms, record)
    told = rooms.database.containers.told(record.namespace, record.id)
    if told is not None and (
        _is_news(status, told) or _untold(rooms, record, status, told[1]) or _untold_health(rooms, record)
    ):
        try:
            return _tell_news(rooms, record)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # It ended all the same, and whoever asks is told so; the event is told by a look when there is room.
    return status


def _tell_news(rooms: Rooms, record: ContainerRecord) -> ContainerStatus:
    with rooms.database.note() as tx:
        # Looked at again: who waited for the transaction may have seen a run that is not the last one any more.
        status = _status(rooms, record)
        told = tx.containers.told(record.namespace, record.id) or (0, 0)
        changes = _untold_health(rooms, record)
        for ended in _untold(rooms, record, status, told[1]):
            _tell_end(tx, record, ended, changes)
        if status.exit is not None and status.started_ns:
            _tell_end(tx, record, status.exit, changes)
        elif status.started_ns and status.state != "restarting":
            tx.containers.tell_start(record.namespace, record.id, status.started_ns)
        _tell_health(tx, record, changes)
    return status


def _untold_health(rooms: Rooms, record: ContainerRecord) -> list[HealthChange]:
    """Changes of its health that no event has told."""
    from pyctrd.runtime.life import HEALTH

    bundle = rooms.bundle(record.namespace, record.id)
    if not (bundle / HEALTH).exists():
        return []
    from pyctrd.runtime.health import read_changes

    told_ns = rooms.database.containers.told_health(record.namespace, record.id)
    return [change for change in read_changes(bundle) if change.time_ns > told_ns]


def _tell_health(tx: Tables, record: ContainerRecord, changes: list[HealthChange], until_ns: int | None = None) -> None:
    """Tell of changes, which are not to be told any more then; those after ``until_ns`` are left."""
    while changes and (until_ns is None or changes[0].time_ns <= until_ns):
        change = changes.pop(0)
        tx.containers.tell_health(record.namespace, record.id, change.status, change.time_ns)


def _untold(rooms: Rooms, record: ContainerRecord, status: ContainerStatus, told_end: int) -> list[ExitStatus]:
    """The ends of runs that a restart policy let others follow, after the last one that was told."""
    if not status.restart_count:
        return []
    from pyctrd.runtime.state import read_runs

    runs = read_runs(rooms.bundle(record.namespace, record.id))
    return [ended for ended in runs if ended.started_ns > told_end]


def _tell_end(tx: Tables, record: ContainerRecord, ended: ExitStatus, changes: list[HealthChange]) -> None:
    """Tell how a run ended, and before that how its health had changed."""
    tx.containers.tell_start(record.namespace, record.id, ended.started_ns)
    _tell_health(tx, record, changes, ended.exited_ns)
    tx.containers.tell_end(
        record.namespace,
        record.id,
        ended.started_ns,
        exit_code=ended.exit_code,
        signal=ended.signal,
        exited_ns=ended.exited_ns,
        oom=ended.oom,
        reason=ended.reason,
    )


def notice_all(rooms: Rooms, namespace: str | None) -> None:
    """Tell of all runs that began or ended and were not told; ``namespace``: whose, None for everybody's."""
    for known in rooms.database.namespaces.list():
        if namespace in (None, known.name):
            for record in rooms.database.containers.list(known.name):
                notice(rooms, record)


def notice_ends(rooms: Rooms, namespace: str | None, seen: dict[str, int]) -> None:
    """Tell of runs that were told to have begun, and have news by now: a look at three files for each.

    Args:
        rooms: The engine's rooms.
        namespace: Whose, None for everybody's.
        seen: By the container's id, when the file of its changes of health was made that this has looked at; kept up.
    """
    from pyctrd.runtime.life import HEALTH, RUNS
    from pyctrd.runtime.state import EXIT_RECORD

    for record in rooms.database.containers.list_untold():
        if namespace not in (None, record.namespace):
            continue
        bundle = rooms.bundle(record.namespace, record.id)
        try:
            # The shim replaces the file.
            changed = (bundle / HEALTH).stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        if changed != seen.get(record.id, 0) or (bundle / EXIT_RECORD).exists() or (bundle / RUNS).exists():
            seen[record.id] = changed
            notice(rooms, record)


def tell(rooms: Rooms, record: ContainerRecord, action: str) -> None:
    """Tell what was just done with a container: "paused", "resumed"."""
    with rooms.database.note() as tx:
        tx.containers.tell(record.namespace, record.id, action)


def _is_news(status: ContainerStatus, told: tuple[int, int]) -> bool:
    told_start, told_end = told
    if status.state == "restarting":
        return False  # its run has ended, which is among the runs
    return status.started_ns not in (0, told_start if status.exit is None else told_end)


def _status(rooms: Rooms, record: ContainerRecord) -> ContainerStatus:
    return rooms.runtime(record.runtime).status(record.id, rooms.bundle(record.namespace, record.id))
