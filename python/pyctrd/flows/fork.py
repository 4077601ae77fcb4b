"""A container's files kept as they are: for another container that begins with them, or to set them back to."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyctrd.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError, UnsupportedError
from pyctrd.flows.freeze import held_still
from pyctrd.flows.image_mounts import fork_images
from pyctrd.flows.mount import remove_frozen, rootfs_lock
from pyctrd.flows.run import (
    SHORT_ID_CHARS,
    USERNS,
    bundle_path,
    check_name,
    container_status,
    delete_container,
    make_bundle_directory,
    mount_rootfs,
    start_container,
    stop_container,
)
from pyctrd.flows.settle import JOINS
from pyctrd.metadata.snapshots import ContainerSnapshot, SnapshotRecord
from pyctrd.runtime.life import read_life, write_life

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.metadata.database import Tables
    from pyctrd.snapshots.protocol import Snapshotter

# Each is a directory that the kernel looks through for every name; it takes 500 with an image's layers.
FROZEN_MAX = 100
NAME_MAX_CHARS = 128
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def fork_container(rooms: Rooms, source: ContainerRecord, *, name: str = "") -> ContainerRecord:
    """Make a container that begins with what another one has written; see ``Container.fork``."""
    if name:
        check_name(name)
    container_id = os.urandom(32).hex()
    record = source._replace(
        id=container_id,
        name=name or container_id[:SHORT_ID_CHARS],
        snapshot_key=f"container-{container_id}",
        created_ns=time.time_ns(),
    )
    with rooms.making_lock(shared=True), _standing_still(rooms, source) as in_use:
        snapshotter, known = _snapshot_of(rooms, source)
        frozen, new = _frozen_of(snapshotter, source)
        copies = in_use or not snapshotter.stacks
        if not copies and new is not None:
            frozen = (*frozen, new)
        with rooms.database.write() as tx:
            if not copies:
                tx.snapshots.set_frozen(source.snapshot_key, frozen)
            _record_fork(rooms, tx, known, source, record, frozen if snapshotter.stacks else ())
        try:
            if copies:
                snapshotter.duplicate(source.snapshot_key, record.snapshot_key)
            else:
                if new is not None:
                    snapshotter.freeze(source.snapshot_key, new)
                snapshot = snapshotter.find(source.snapshot_key)
                assert snapshot is not None  # noqa: S101 - it is held
                snapshotter.prepare(record.snapshot_key, snapshot.layers, frozen=frozen)
            _make_bundle(rooms, source, record)
        except BaseException:
            delete_container(rooms, record, force=True)
            raise
    return record


def snapshot_container(rooms: Rooms, record: ContainerRecord, *, name: str = "") -> str:
    """Keep a container's files as they are now under a name; see ``Container.snapshot``."""
    name = name or os.urandom(6).hex()
    if len(name) > NAME_MAX_CHARS or not _NAME.issuperset(name) or not name[0].isalnum():
        raise InvalidError(
            f"invalid snapshot name: {name!r}: expected letters, digits, dots, dashes and underscores",
            field="name",
            value=name,
        )
    with _standing_still(rooms, record) as in_use:
        snapshotter, _ = _snapshot_of(rooms, record)
        frozen, new = _frozen_of(snapshotter, record)
        copies = in_use or not snapshotter.stacks
        if copies:
            new = os.urandom(8).hex()
        lies_on = frozen if new is None else (*frozen, new)
        with rooms.database.write() as tx:
            _refuse_taken(tx, record, name)
            tx.snapshots.set_frozen(record.snapshot_key, lies_on)
        if copies and new is not None:
            snapshotter.save(record.snapshot_key, new)
        elif new is not None:
            snapshotter.freeze(record.snapshot_key, new)
        kept = lies_on if snapshotter.stacks else lies_on[-1:]
        with rooms.database.write() as tx:
            _refuse_taken(tx, record, name)
            tx.snapshots.add_named(record.namespace, record.id, ContainerSnapshot(name, time.time_ns(), kept))
            if copies:
                tx.snapshots.set_frozen(record.snapshot_key, frozen)
    return name


def rollback_container(rooms: Rooms, record: ContainerRecord, name: str, *, restart: bool = False) -> None:
    """Set a container's files back to what they were; see ``Container.rollback``."""
    wanted = get_snapshot(rooms, record, name)
    state = container_status(rooms, record).state
    was_running = state in ("running", "paused", "restarting")
    if was_running and not restart:
        raise _must_be_stopped(record, state)
    if was_running:
        stop_container(rooms, record, timeout=0)
    with _standing_still(rooms, record) as in_use:
        if in_use:  # somebody has started it just now
            raise _must_be_stopped(record, "running")
        snapshotter, _ = _snapshot_of(rooms, record)
        found = snapshotter.find(record.snapshot_key)
        before = () if found is None else found.frozen
        with rooms.database.write() as tx:
            tx.snapshots.set_frozen(record.snapshot_key, tuple(dict.fromkeys((*before, *wanted.frozen))))
        snapshotter.reset(record.snapshot_key, wanted.frozen)
        with rooms.database.write() as tx:
            tx.snapshots.set_frozen(record.snapshot_key, wanted.frozen if snapshotter.stacks else ())
    remove_frozen(rooms)
    rooms.removal.begin()
    if was_running:
        from pyctrd.flows.policies import made_streams

        terminal, stdin = made_streams(rooms, record)
        start_container(rooms, record, terminal=terminal, stdin=stdin)


def _must_be_stopped(record: ContainerRecord, state: str) -> ConflictError:
    return ConflictError(
        f"container {record.name}: is {state}, must be stopped",
        kind="container",
        name=record.name,
        state=state,
        allowed="stopped",
        hint=f"stop it first: pyctrd stop {record.name}",
    )


def list_snapshots(rooms: Rooms, record: ContainerRecord) -> list[ContainerSnapshot]:
    """What a container can be set back to, the oldest first."""
    return rooms.database.snapshots.list_named(record.namespace, record.id)


def get_snapshot(rooms: Rooms, record: ContainerRecord, name: str) -> ContainerSnapshot:
    """One of them.

    Raises:
        NotFoundError: There is none of that name.
    """
    found = rooms.database.snapshots.find_named(record.namespace, record.id, name)
    if found is None:
        raise NotFoundError(
            f"snapshot not found: {name}: of container {record.name}",
            kind="snapshot",
            name=name,
            hint=f"list them: pyctrd snapshot ls {record.name}",
        )
    return found


def delete_snapshot(rooms: Rooms, record: ContainerRecord, name: str) -> None:
    """Forget one, and remove what only it needed; again is a no-op."""
    with rooms.database.write() as tx:
        tx.snapshots.delete_named(record.namespace, record.id, name)
    remove_frozen(rooms)


@contextmanager
def _standing_still(rooms: Rooms, record: ContainerRecord) -> Iterator[bool]:
    """Keep everybody from a container's files; whether they are in use.

    Where they are, its processes are frozen meanwhile. Where not, they are mounted nowhere, and nobody starts it.

    Raises:
        ConflictError: Somebody else writes to its mounted root file system.
    """
    with rootfs_lock(rooms, record, shared=False):
        state = container_status(rooms, record).state
        if state == "restarting":  # its shim may start it at any time, and takes no lock
            raise _must_be_stopped(record, state)
        if state in ("running", "paused"):
            with held_still(rooms, record):
                yield True
            return
        snapshotter, _ = _snapshot_of(rooms, record)
        held = snapshotter.retire(bundle_path(rooms, record) / "rootfs")
        if held is not None:
            _close_behind(held)
        yield False


def _close_behind(held: int) -> None:
    """End a mount beside whoever waits: it takes as long as writing all that its file system has to write."""
    try:
        threading.Thread(target=os.close, args=(held,), name="pyctrd-unmount", daemon=True).start()
    except RuntimeError:  # no more threads
        os.close(held)


def _snapshot_of(rooms: Rooms, record: ContainerRecord) -> tuple[Snapshotter, SnapshotRecord]:
    known = rooms.database.snapshots.find(record.snapshot_key)
    snapshotter = rooms.snapshotter_of(record.snapshot_key)
    if known is None or snapshotter is None or snapshotter.find(record.snapshot_key) is None:
        raise NotFoundError(
            f"snapshot not found: {record.snapshot_key}",
            kind="snapshot",
            name=record.snapshot_key,
            hint=f"the container cannot be used any more: pyctrd rm {record.name}",
        )
    return snapshotter, known


def _frozen_of(snapshotter: Snapshotter, record: ContainerRecord) -> tuple[tuple[str, ...], str | None]:
    """What a container lies on, and the id of what is to be frozen now; None where nothing was written since.

    Raises:
        UnsupportedError: There is too much beneath it already.
    """
    found = snapshotter.find(record.snapshot_key)
    frozen = () if found is None else found.frozen
    if snapshotter.is_unchanged(record.snapshot_key):
        return frozen, None
    if len(frozen) >= FROZEN_MAX:
        raise UnsupportedError(
            f"unsupported: more than {FROZEN_MAX} snapshots on one another: container {record.name}: needs a commit",
            feature=f"more than {FROZEN_MAX} snapshots on one another",
            needs="a commit",
            hint=f"go on with a container of its image: pyctrd commit {record.name} NAME",
        )
    return frozen, os.urandom(8).hex()


def _record_fork(
    rooms: Rooms,
    tx: Tables,
    known: SnapshotRecord,
    source: ContainerRecord,
    record: ContainerRecord,
    frozen: tuple[str, ...],
) -> None:
    tx.snapshots.add(
        record.snapshot_key,
        namespace=record.namespace,
        snapshotter=known.snapshotter,
        kind="active",
        diff_ids=known.diff_ids,
        target=str(bundle_path(rooms, record) / "rootfs"),
        frozen=frozen,
    )
    tx.containers.add(record)
    for volume in tx.volumes.of_container(record.namespace, source.id):
        tx.volumes.attach(record.namespace, record.id, volume)


def _refuse_taken(tx: Tables, record: ContainerRecord, name: str) -> None:
    if tx.containers.find(record.namespace, record.id) is None:
        raise NotFoundError(f"container not found: {record.name}", kind="container", name=record.name)
    if tx.snapshots.find_named(record.namespace, record.id, name) is not None:
        raise AlreadyExistsError(
            f"snapshot already exists: {name}: of container {record.name}", kind="snapshot", name=name
        )


def _make_bundle(rooms: Rooms, source: ContainerRecord, record: ContainerRecord) -> None:
    """The source's bundle again, for another id: its spec, its files that this shows it, and what its shim is told."""
    spec = _spec_of(rooms, source, renamed=record.id)
    bundle = make_bundle_directory(rooms, record)
    if (bundle_path(rooms, source) / USERNS).exists():
        from pyctrd.flows.userns import fork_userns

        fork_userns(rooms, bundle_path(rooms, source), bundle, record, spec)
    if (joins := bundle_path(rooms, source) / JOINS).exists():
        shutil.copy2(joins, bundle / JOINS)
    for mount in spec.get("mounts", ()):
        to = str(mount.get("source", ""))
        if to.startswith(f"{bundle}/") and not to.startswith(f"{bundle}/images/"):
            shutil.copy2(to.replace(record.id, source.id), to)
    mount_rootfs(rooms, record)
    fork_images(rooms, source, record)
    write_life(bundle, read_life(bundle_path(rooms, source)))
    short = source.id[:SHORT_ID_CHARS]
    if spec.get("hostname") == short:
        spec["hostname"] = record.id[:SHORT_ID_CHARS]
        env = spec["process"].get("env", [])
        named = f"HOSTNAME={record.id[:SHORT_ID_CHARS]}"
        spec["process"]["env"] = [named if text == f"HOSTNAME={short}" else text for text in env]
    rooms.runtime(record.runtime).create_bundle(bundle, spec, transient=record.auto_remove)


def _spec_of(rooms: Rooms, record: ContainerRecord, *, renamed: str = "") -> dict[str, Any]:
    """A container's spec; for another id, wherever it says its own: paths of the bundle, the control group."""
    import orjson

    path: Path = bundle_path(rooms, record) / "config.json"
    body = path.read_bytes()
    spec: dict[str, Any] = orjson.loads(body.replace(record.id.encode(), renamed.encode()) if renamed else body)
    return spec
