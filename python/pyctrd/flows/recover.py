"""What a killed process left, finished or undone when the next engine opens the root."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.content import INGESTS
from pyctrd.flows.directories import entries_of
from pyctrd.metadata.containers import ContainerRecord
from pyctrd.snapshots import FROZEN, TRIAL

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.database import Database
    from pyctrd.metadata.ingests import IngestRecord
    from pyctrd.metadata.snapshots import SnapshotRecord

MOUNTS = Path("/proc/self/mounts")
_ESCAPED = r"\\([0-7]{3})"
# Some tens of milliseconds: opening a root is no collection.
DOOMED_AT_OPENING = 500
# Likewise; what is left of the trash then is for the next, or for `gc`.
REMOVAL_AT_OPENING_SECONDS = 0.05
# As long as a pull that broke off: somebody who pushes may come back the next morning.
UPLOAD_KEPT_NS = 24 * 3600 * 10**9


def recover(rooms: Rooms) -> None:
    """Bring the root back to what its records say; milliseconds where nothing is to be done.

    Nothing of a live process is touched: whatever it works on has a lock that it holds.
    """
    undo_unrecorded(rooms)
    _finish_collection(rooms)
    _undo_unfinished(rooms)
    _thaw(rooms)
    _unmount_trash(rooms)
    database = rooms.database
    if entries_of(rooms.root / INGESTS):
        end_old_uploads(database)
    _core.sweep_ingests(str(rooms.root), keep=database.ingests.staged(), seconds=REMOVAL_AT_OPENING_SECONDS)
    if entries_of(rooms.root / "volumes"):
        from pyctrd.flows.volumes import sweep_volumes

        sweep_volumes(rooms)
    if any(map(entries_of, entries_of(rooms.settings.state / "mounts"))):
        from pyctrd.snapshots.images import ImageMounts

        ImageMounts(rooms.settings.state, rooms.root).collect()
    if any(path.name.startswith(TRIAL) for path in entries_of(rooms.root / "snapshots")):
        # Imported only where there is work: every command opens the root.
        from pyctrd.snapshots.store import SnapshotStore

        SnapshotStore(rooms.root).sweep()
    if any(path.name.startswith(FROZEN) for path in entries_of(rooms.root / "snapshots")):
        from pyctrd.flows.mount import remove_frozen

        remove_frozen(rooms)


def end_old_uploads(database: Database) -> int:
    """End the uploads to which nothing came for a day: how many. Their bytes go with the sweep that follows."""
    now = time.time_ns()
    # Of a clock that was set back the age is negative: what seems to come from the future is as old.
    old = [upload.id for upload in database.uploads.list() if abs(now - upload.updated_ns) > UPLOAD_KEPT_NS]
    if old:
        with database.write() as tx:
            for upload_id in old:
                tx.uploads.delete(upload_id)
    return len(old)


def _unmount_trash(rooms: Rooms) -> None:
    """Unmount what is on its way out with something still mounted in it: no directory can be removed from under it."""
    trash = rooms.root / "trash"
    if not trash.is_dir() or not any(trash.iterdir()):
        return
    # The kernel names them by their real paths, with what is blank as a backslash and three octal digits.
    beneath = f"{trash.resolve()}/"
    for line in reversed(MOUNTS.read_text(errors="surrogateescape").splitlines()):
        target = re.sub(_ESCAPED, lambda escaped: chr(int(escaped[1], 8)), line.split(" ")[1])
        if target.startswith(beneath):
            _core.unmount(target, lazy=True)


def undo_unrecorded(rooms: Rooms) -> None:
    """Remove blobs and layers that were published by a process that died before it recorded them.

    Of what did not come to its end, the bytes may be kept for a while.
    """
    for reserved in rooms.database.ingests.list():
        from pyctrd.flows.resume import keep

        names = reserved.digest, reserved.diff_id
        with ExitStack() as held:
            if take_locks(transfer_locks(rooms, reserved.namespace, *names), held) is not None:
                continue  # its process lives
            if take_locks(digest_locks(rooms, *names), held) is not None:
                continue  # somebody is publishing the same
            # Looked up again: its process may have ended well in the meantime.
            left = rooms.database.ingests.find(reserved.id)
            if left is not None and not keep(rooms, left):
                undo(rooms, left)


def _finish_collection(rooms: Rooms) -> None:
    """Remove what a collection wrote down and did not come to; of very much, the next collection does the rest."""
    if rooms.database.doomed.list(1):
        from pyctrd.flows.remove import remove_doomed

        remove_doomed(rooms, limit=DOOMED_AT_OPENING)


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
                delete_container(rooms, left, force=True, volumes=True)
            else:
                forget_snapshot(rooms, left.key)
    finally:
        making.release()


def _thaw(rooms: Rooms) -> None:
    """Let containers go on that a process froze which was killed then."""
    if entries_of(rooms.root / "containers") and any((rooms.root / "containers").glob("*/*/freezer")):
        from pyctrd.flows.freeze import thaw_all

        thaw_all(rooms)


def _unfinished(rooms: Rooms) -> Iterator[ContainerRecord | SnapshotRecord]:
    database = rooms.database
    for namespace in database.namespaces.list():
        for container in database.containers.list(namespace.name):
            # The bundle's spec is written last, and its directory goes before the record does.
            if not _has_bytes(rooms.bundle(container.namespace, container.id) / "config.json"):
                yield container
    views = [snapshot for snapshot in database.snapshots.list() if snapshot.kind == "view"]
    if views:
        from pyctrd.snapshots.store import SnapshotStore

        store = SnapshotStore(rooms.root)
        # Recorded and not there. One that is there may be mounted where this process cannot see it.
        yield from (view for view in views if not store.holds(view.key))


def _has_bytes(path: Path) -> bool:
    """Of a file that was not flushed a power cut may leave the name alone."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def undo(rooms: Rooms, reserved: IngestRecord) -> None:
    """Remove what an ingest published and nobody recorded, then its reservation; its digest locks are held."""
    unpublish(rooms, reserved)
    with rooms.database.write() as tx:
        tx.ingests.delete(reserved.id)
    discard(rooms, reserved.id)


def unpublish(rooms: Rooms, reserved: IngestRecord) -> None:
    """Remove what an ingest published and nobody recorded; its digest locks are held."""
    database = rooms.database
    if not database.content.is_stored(reserved.digest):
        rooms.blobs.delete(reserved.digest, missing_ok=True)
    if reserved.diff_id is not None and database.layers.find(reserved.diff_id) is None:
        rooms.layers.delete(reserved.diff_id, missing_ok=True)
        _core.empty_trash(rooms.root, seconds=REMOVAL_AT_OPENING_SECONDS)


def discard(rooms: Rooms, ingest_id: str) -> None:
    """Remove what an ingest has in staging, if anything; nobody writes to it."""
    directory = rooms.root / INGESTS
    if (directory / ingest_id).exists():
        _core.remove_tree(directory, ingest_id)


def digest_locks(rooms: Rooms, *names: str | None) -> list[_core.FileLock]:
    """The locks, in their order, under which blobs and layers get their names and records, or lose them.

    They are everybody's, so they are held for milliseconds: who brings something in slowly must not hold up others, who
    could tell by it as well what he does.
    """
    return [rooms.lock("digest", name) for name in _file_names(names)]


def transfer_locks(rooms: Rooms, namespace: str, *names: str | None) -> list[_core.FileLock]:
    """The locks, in their order, of those who bring a blob and its layer into a namespace: each comes once."""
    return [rooms.lock("transfer", f"{namespace}.{name}") for name in _file_names(names)]


def is_written(rooms: Rooms, ingest_id: str) -> bool:
    """Whether a process has an ingest's directory; whoever asks keeps others from taking it over."""
    path = rooms.root / INGESTS / ingest_id / "lock"
    if not path.exists():
        return False
    lock = _core.FileLock(path)
    if not lock.acquire(timeout=0):
        return True
    lock.release()
    return False


def is_held(rooms: Rooms, reserved: IngestRecord) -> bool:
    """Whether the process that made a reservation lives, and works on it."""
    with ExitStack() as held:
        locks = transfer_locks(rooms, reserved.namespace, reserved.digest, reserved.diff_id)
        return take_locks(locks, held) is not None


def _file_names(names: Iterable[str | None]) -> list[str]:
    return sorted({name.replace(":", "-") for name in names if name is not None})


def take_locks(locks: Iterable[_core.FileLock], held: ExitStack) -> _core.FileLock | None:
    """Take all of some locks without waiting; where one is not free, none is kept and it is returned."""
    taken: list[_core.FileLock] = []
    for lock in locks:
        held.callback(lock.release)  # before it is taken: see hold()
        if not lock.acquire(timeout=0):
            for other in taken:
                other.release()
            return lock
        taken.append(lock)
    return None


def hold(locks: Iterable[_core.FileLock], held: ExitStack) -> None:
    """Take all of some locks, waiting for each, to be let go of with ``held``.

    What lets go stands there before a lock is taken: Ctrl-C may come between the two, and the error's frames would keep
    the lock, for which whoever cleans up in this same process would wait for ever.
    """
    for lock in locks:
        held.callback(lock.release)
        lock.acquire()
