"""What a killed process left, finished or undone when the next engine opens the root."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.metadata.containers import ContainerRecord

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.ingests import IngestRecord
    from pyctrd.metadata.snapshots import SnapshotRecord


def recover(rooms: Rooms) -> None:
    """Bring the root back to what its records say; milliseconds where nothing is to be done.

    Nothing of a live process is touched: whatever it works on has a lock that it holds.
    """
    undo_unrecorded(rooms)
    _undo_unfinished(rooms)
    _thaw(rooms)
    _core.sweep_ingests(str(rooms.root))
    if any((rooms.settings.state / "mounts").glob("*/*")):
        from pyctrd.snapshots.images import ImageMounts

        ImageMounts(rooms.settings.state, rooms.root).collect()
    if any((rooms.root / "snapshots").glob("trial-*")):
        # Imported only where there is work: every command opens the root.
        from pyctrd.snapshots.store import SnapshotStore

        SnapshotStore(rooms.root).sweep()


def undo_unrecorded(rooms: Rooms) -> None:
    """Remove blobs and layers that were published by a process that died before it recorded them."""
    for reserved in rooms.database.ingests.list():
        with ExitStack() as held:
            if take_locks(rooms, digest_names(reserved.digest, reserved.diff_id), held) is not None:
                continue  # its process lives
            # Looked up again: its process may have ended well in the meantime.
            if (left := rooms.database.ingests.find(reserved.id)) is not None:
                undo(rooms, left)


def _undo_unfinished(rooms: Rooms) -> None:
    """Take apart the containers and views that a process left half made, or half deleted, when it died."""
    if not any(_unfinished(rooms)):
        return
    from pyctrd.flows.mount import forget_snapshot
    from pyctrd.flows.run import delete_container

    making = rooms.making_lock(shared=False)
    if not making.acquire(timeout=0):
        return  # somebody is making one now: the next engine that opens the root looks again
    try:
        # Looked up again: what was half made a moment ago may be whole now.
        for left in list(_unfinished(rooms)):
            if isinstance(left, ContainerRecord):
                delete_container(rooms, left, force=True)
            else:
                forget_snapshot(rooms, left.key)
    finally:
        making.release()


def _thaw(rooms: Rooms) -> None:
    """Let containers go on that a process froze which was killed then."""
    if any((rooms.root / "containers").glob("*/*/freezer")):
        from pyctrd.flows.freeze import thaw_all

        thaw_all(rooms)


def _unfinished(rooms: Rooms) -> Iterator[ContainerRecord | SnapshotRecord]:
    database = rooms.database
    for namespace in database.namespaces.list():
        for container in database.containers.list(namespace.name):
            # The bundle's spec is written last, and its directory goes before the record does.
            if not (rooms.bundle(container.namespace, container.id) / "config.json").exists():
                yield container
    views = [snapshot for snapshot in database.snapshots.list() if snapshot.kind == "view"]
    if views:
        from pyctrd.snapshots.store import SnapshotStore

        store = SnapshotStore(rooms.root)
        # Recorded and not there. One that is there may be mounted where this process cannot see it.
        yield from (view for view in views if not store.holds(view.key))


def undo(rooms: Rooms, reserved: IngestRecord) -> None:
    """Remove what an ingest published and nobody recorded, then its reservation; its locks are held."""
    database = rooms.database
    if not database.content.is_recorded(reserved.digest):
        rooms.blobs.delete(reserved.digest, missing_ok=True)
    if reserved.diff_id is not None and database.layers.find(reserved.diff_id) is None:
        rooms.layers.delete(reserved.diff_id, missing_ok=True)
    with database.write() as tx:
        tx.ingests.delete(reserved.id)


def digest_names(digest: str, diff_id: str | None) -> list[str]:
    """The names of the locks under which a blob and its layer come into the store or are removed."""
    return sorted({name.replace(":", "-") for name in (digest, diff_id) if name is not None})


def take_locks(rooms: Rooms, names: Iterable[str], held: ExitStack) -> _core.FileLock | None:
    """Take all of some digests' locks without waiting; where one is not free, none is kept and it is returned."""
    with ExitStack() as taking:
        for name in names:
            lock = rooms.lock("digest", name)
            if not lock.acquire(timeout=0):
                return lock
            taking.callback(lock.release)
        held.push(taking.pop_all())
    return None
