"""A container held still while its files are read; and let go of, where whoever held it was killed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyctrd.errors import ConflictError, NotFoundError, PyctrdError, naming
from pyctrd.flows.log import logger
from pyctrd.runtime.cgroup import require

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.runtime.state import ContainerStatus

# In a container's bundle. Whoever freezes it has the file locked, and a mark in it for as long as it may be frozen; the
# kernel lets go of the lock with the process. The file stays: to remove a lock's file is a race.
FREEZER = "freezer"
MARK = b"frozen\n"


@contextmanager
def held_still(rooms: Rooms, record: ContainerRecord) -> Iterator[None]:
    """Freeze a container that runs, for the length of a ``with`` block; one at a time, others wait.

    One that is not running, or that its user has paused, stays as it is.

    Raises:
        RuncError: The runtime refused.
        UnsupportedError: This user may make no control groups: nothing can be frozen.
    """
    runtime = rooms.runtime(record.runtime)
    freezer = _freezer(rooms, record)
    with _locked(freezer, wait=True) as fd:
        assert fd is not None  # noqa: S101 - it was waited for
        _let_go(rooms, record, fd)
        frozen = False
        if _status(rooms, record).state == "running":
            require("holding a container still", otherwise="stop it first, or commit and export it with --no-pause")
            with naming(freezer):
                os.pwrite(fd, MARK, 0)
            try:
                # The runtime holds the lock too: killed halfway, we may be gone before it has frozen anything.
                runtime.pause(record.id, holding=fd)
                frozen = True
            except PyctrdError:
                if _status(rooms, record).state == "running":
                    _unmark(freezer, fd)
                    raise
        try:
            yield
        finally:
            # It may have been killed in the meantime, or resumed by somebody else.
            if frozen and _status(rooms, record).state == "paused":
                runtime.resume(record.id)
            _unmark(freezer, fd)


def thaw(rooms: Rooms, record: ContainerRecord) -> bool:
    """Let a container go on that a process froze which was killed; whether there was anything to do.

    Where nothing was frozen this costs one look at a file.

    Raises:
        RuncError: The runtime refused.
    """
    freezer = _freezer(rooms, record)
    if not is_marked(freezer):
        return False
    with _locked(freezer, wait=False) as fd:
        return fd is not None and _let_go(rooms, record, fd)


def thaw_all(rooms: Rooms) -> None:
    """As ``thaw``, for every container there is. What the runtime refuses is logged, and ``check`` tells it."""
    for namespace in rooms.database.namespaces.list():
        for record in rooms.database.containers.list(namespace.name):
            try:
                thaw(rooms, record)
            except (PyctrdError, OSError) as error:
                logger.debug("container %s stays frozen: %s", record.id, error)


def is_left_frozen(rooms: Rooms, record: ContainerRecord) -> bool:
    """Whether a container is frozen by a process that is gone."""
    freezer = _freezer(rooms, record)
    if not is_marked(freezer) or _status(rooms, record).state != "paused":
        return False
    with _locked(freezer, wait=False) as fd:
        return fd is not None and is_marked(freezer)


def is_marked(freezer: Path) -> bool:
    """Whether somebody froze the container, and has not let go, or was killed."""
    try:
        return freezer.stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False


def _let_go(rooms: Rooms, record: ContainerRecord, fd: int) -> bool:
    """Undo what the mark says that a dead process did; the lock is held."""
    if os.fstat(fd).st_size == 0:
        return False
    found = _status(rooms, record).state
    if found == "created":
        return False  # or started under another state directory, where this engine does not see it
    if found == "paused":
        try:
            rooms.runtime(record.runtime).resume(record.id)
        except (ConflictError, NotFoundError):
            if _status(rooms, record).state == "paused":
                raise
    _unmark(_freezer(rooms, record), fd)
    return found == "paused"


def _unmark(freezer: Path, fd: int) -> None:
    with naming(freezer):
        os.ftruncate(fd, 0)


@contextmanager
def _locked(freezer: Path, *, wait: bool) -> Iterator[int | None]:
    """The freezer's descriptor, locked; None where somebody has it and is not waited for."""
    fd = os.open(freezer, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            with naming(freezer):
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield fd
    finally:
        os.close(fd)


def _freezer(rooms: Rooms, record: ContainerRecord) -> Path:
    return rooms.bundle(record.namespace, record.id) / FREEZER


def _status(rooms: Rooms, record: ContainerRecord) -> ContainerStatus:
    return rooms.runtime(record.runtime).status(record.id, rooms.bundle(record.namespace, record.id))
