"""Tenants made, changed and taken away with all that is theirs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Literal

from pyctrd.errors import ConflictError
from pyctrd.flows.collect import collect, let_go
from pyctrd.flows.lease import is_alive
from pyctrd.flows.recover import is_written
from pyctrd.flows.resume import find_left, forget
from pyctrd.flows.run import container_status, delete_container
from pyctrd.flows.volumes import remove_all
from pyctrd.metadata.namespaces import Namespace, check_labels, check_namespace, check_policy, check_quota

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.metadata.database import Tables
    from pyctrd.metadata.ingests import IngestRecord

_IDLE = ("created", "stopped")


def create_namespace(
    rooms: Rooms, name: str, *, labels: Mapping[str, str], policy: str, quota: int | None
) -> Namespace:
    """Make one; see ``Namespaces.create``."""
    record = Namespace(
        name=check_namespace(name),
        created_ns=time.time_ns(),
        labels=check_labels(labels),
        policy=check_policy(policy),
        quota_bytes=None if quota is None else check_quota(quota),
    )
    with rooms.database.write() as tx:
        tx.namespaces.add(record)
    return record


def change_namespace(
    rooms: Rooms,
    name: str,
    *,
    labels: Mapping[str, str] | None,
    policy: str | None,
    quota: int | Literal["unlimited"] | None,
) -> Namespace:
    """Change what is given; see ``Namespaces.set``."""
    changes: dict[str, object] = {}
    if labels is not None:
        changes["labels"] = check_labels(labels)
    if policy is not None:
        changes["policy"] = check_policy(policy)
    if quota is not None:
        changes["quota_bytes"] = None if quota == "unlimited" else check_quota(quota)
    with rooms.database.write() as tx:
        record = tx.namespaces.get(name)._replace(**changes)  # type: ignore[arg-type] # each was checked for its field
        tx.namespaces.put(record)
    return record


def remove_namespace(rooms: Rooms, name: str, *, force: bool) -> None:
    """Take one away; see ``Namespaces.remove``.

    What would have to be ended first, and what was come upon half-way, are errors: the namespace stays then.
    """
    database = rooms.database
    database.namespaces.get(name)
    containers = database.containers.list(name)
    if force:
        for container in containers:
            _refuse_running(rooms, container)
        _refuse_mounted(database, name)
        for container in containers:
            delete_container(rooms, container)
        remove_all(rooms, name)
    elif not (containers or database.images.list(name)):
        collect(rooms)  # what no image needs any more is no reason to keep it
    with ExitStack() as held:
        forget(rooms, _remove_records(rooms, name, held, force=force))
    with suppress(FileNotFoundError):
        (rooms.root / "containers" / name).rmdir()
    collect(rooms)


def _remove_records(rooms: Rooms, name: str, held: ExitStack, *, force: bool) -> list[IngestRecord]:
    """Take the name away with all records; what is left of broken-off pulls is still on disk then, and locked."""
    with rooms.database.write() as tx:
        left = _refuse_under_way(rooms, tx, name, held)
        if not force or tx.containers.list(name) or tx.volumes.list(name):
            _refuse_content(tx, name)
        _refuse_mounted(tx, name)
        for reserved in left:
            tx.ingests.delete(reserved.id)
        for image in tx.images.list(name):
            tx.images.delete(name, image.name)
        for blob in list(tx.content.walk(name)):
            let_go(tx, name, blob.digest)
        tx.leases.delete_all(name)
        tx.namespaces.delete(name)
    return left


def _refuse_running(rooms: Rooms, container: ContainerRecord) -> None:
    state = container_status(rooms, container).state
    if state not in _IDLE:
        raise _in_use(
            container.namespace,
            f"container {container.name} is {state}",
            hint=f"stop it first: pyctrd -n {container.namespace} stop {container.name}",
        )


def _refuse_mounted(tables: Tables, name: str) -> None:
    for snapshot in tables.snapshots.list():
        if snapshot.namespace == name and snapshot.kind == "view":
            raise _in_use(
                name,
                f"an image is mounted at {snapshot.target}",
                hint=f"unmount it first: pyctrd umount {snapshot.target}",
            )


def _refuse_under_way(rooms: Rooms, tables: Tables, name: str, held: ExitStack) -> list[IngestRecord]:
    """Otherwise what there is of reservations that nobody is at, their locks taken."""
    flows = [lease for lease in tables.leases.list() if lease.namespace == name and lease.purpose]
    left = find_left(rooms, tables, name, held)
    uploads = [upload.id for upload in tables.uploads.list() if upload.namespace == name]
    if left is None or any(is_alive(rooms, lease) for lease in flows) or any(is_written(rooms, one) for one in uploads):
        raise _in_use(name, "content is on its way into it", hint="wait for the pull, or end it")
    return left


def _refuse_content(tables: Tables, name: str) -> None:
    """For those who did not ask for its end with all that it has."""
    held = {
        "containers": len(tables.containers.list(name)),
        "images": len(tables.images.list(name)),
        "volumes": len(tables.volumes.list(name)),
        "blobs": sum(1 for _ in tables.content.walk(name)),
    }
    if any(held.values()):
        counted = ", ".join(f"{what}: {count}" for what, count in held.items() if count)
        raise _in_use(name, f"it is not empty: {counted}", hint=f"remove them too: pyctrd namespace rm --force {name}")


def _in_use(name: str, why: str, *, hint: str) -> ConflictError:
    return ConflictError(
        f"namespace in use: {name}: {why}", kind="namespace", name=name, state="in use", allowed="unused", hint=hint
    )
