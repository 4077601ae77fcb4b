"""What changes of a container that there is: its limits, its name, and its run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyctrd.errors import ConflictError, InvalidError, NotFoundError, PyctrdError, naming
from pyctrd.flows.run import bundle_path, check_name, container_status, start_container, stop_container
from pyctrd.flows.runs import tell
from pyctrd.runtime.cgroup import require
from pyctrd.runtime.update import Changes, change_resources, check_use

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord

ALIVE = ("running", "paused")


def update_container(rooms: Rooms, record: ContainerRecord, changes: Changes) -> None:
    """See ``Container.update``."""
    bundle = bundle_path(rooms, record)
    with updating(record, bundle):
        spec = read_spec(record, bundle)
        linux = spec.setdefault("linux", {})
        before = linux.get("resources", {})
        linux["resources"], told = change_resources(before, changes)
        if told:
            require("limits")
        status = container_status(rooms, record)
        runtime = rooms.runtime(record.runtime)
        if status.state in ALIVE:
            _refuse_below_use(record, status.pid, changes)
        # Staged first, so that a full disk is told before the kernel knows anything.
        with runtime.staged_spec(bundle, spec, transient=record.auto_remove) as take:
            if status.state in ALIVE:
                _tell_kernel(rooms, record, told, change_resources(before, Changes())[1])
            take()
    tell(rooms, record, "updated")


def _tell_kernel(rooms: Rooms, record: ContainerRecord, told: dict[str, Any], before: dict[str, Any]) -> None:
    """Set a running container's limits, or leave them as they were."""
    runtime = rooms.runtime(record.runtime)
    try:
        runtime.update(record.id, told)
    except (ConflictError, NotFoundError):
        if container_status(rooms, record).state in ALIVE:
            raise
        # It has just ended: the next start takes what its file says.
    except BaseException:
        # runc takes back what it had set, crun does not; the first error is the one to tell.
        with suppress(PyctrdError, OSError):
            runtime.update(record.id, before)
        raise


def rename_container(rooms: Rooms, record: ContainerRecord, name: str) -> ContainerRecord:
    """See ``Container.rename``."""
    check_name(name)
    with rooms.database.write() as tx:
        renamed = tx.containers.rename(record.namespace, record.id, name)
    if renamed is None:
        raise NotFoundError(f"container not found: {record.name}", kind="container", name=record.name)
    return renamed


def restart_container(rooms: Rooms, record: ContainerRecord, *, timeout: float | None, stdin: bool | None) -> None:
    """See ``Container.restart``."""
    if record.auto_remove:
        raise ConflictError(
            f"container {record.name}: cannot restart: it is deleted when it ends",
            kind="container",
            name=record.name,
            state="auto-removed",
            allowed="any that is not",
            hint="make it without --rm",
        )
    status = container_status(rooms, record)
    if status.state not in ("created", "stopped"):
        stop_container(rooms, record, timeout=timeout)
    from pyctrd.flows.policies import made_streams

    terminal, takes_input = made_streams(rooms, record)
    start_container(rooms, record, terminal=terminal, stdin=takes_input if stdin is None else stdin)


def read_spec(record: ContainerRecord, bundle: Path) -> dict[str, Any]:
    """A container's ``config.json``.

    Raises:
        NotFoundError: It is being made, or deleted.
        InvalidError: It is damaged.
    """
    import orjson

    try:
        found = orjson.loads((bundle / "config.json").read_bytes())
    except FileNotFoundError:
        raise NotFoundError(
            f"container not found: {record.name}: it is being made or deleted", kind="container", name=record.name
        ) from None
    except orjson.JSONDecodeError as error:
        raise InvalidError(f"container {record.name}: config.json: {error}", field="config.json") from error
    if not isinstance(found, dict):
        raise InvalidError(f"container {record.name}: config.json: expected an object", field="config.json")
    return found


@contextmanager
def updating(record: ContainerRecord, bundle: Path) -> Iterator[None]:
    """One update of a container at a time, or one would undo another's."""
    try:
        fd = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"container not found: {record.name}", kind="container", name=record.name) from None
    try:
        with naming(bundle):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _refuse_below_use(record: ContainerRecord, pid: int, changes: Changes) -> None:
    try:
        why = check_use(pid, record.id, changes)
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended: the runtime tells so
    if why:
        raise ConflictError(
            f"container {record.name}: cannot update: {why}",
            kind="container",
            name=record.name,
            state="uses more",
            allowed="a higher limit",
            hint="give a higher limit, or stop it first",
        )
