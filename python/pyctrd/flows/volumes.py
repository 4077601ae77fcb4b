"""Volumes: made, filled from an image, given to containers, removed.

``<root>/volumes/<namespace>/<name>/`` is what containers see. A record comes before the directory and goes after it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import ConflictError, InvalidError
from pyctrd.flows.removal import take_away
from pyctrd.metadata.namespaces import check_labels
from pyctrd.metadata.salvage import flush_directory
from pyctrd.snapshots.copies import TreeCopy, opened
from pyctrd.snapshots.store import make_root

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.metadata.volumes import VolumeRecord
    from pyctrd.runtime.mounts import Bind, Mount, Volume
    from pyctrd.runtime.userns import IdMappings

PRIVATE_MODE = 0o700
NAME_MAX_CHARS = 128
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
# What is being filled: no volume's name begins so.
FILLING = ".filling-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def create_volume(rooms: Rooms, name: str = "", *, labels: Mapping[str, str] | None = None) -> VolumeRecord:
    """Make an empty volume; see ``Volumes.create``."""
    name = name or os.urandom(32).hex()
    check_name(name)
    found = check_labels(labels or {})
    with _locked(rooms):
        with rooms.database.write() as tx:
            record = tx.volumes.add(rooms.namespace, name, labels=found)
        _ensure(volume_path(rooms, rooms.namespace, name))
    return record


def remove_volume(rooms: Rooms, name: str) -> None:
    """Remove a volume with what is in it; see ``Volumes.remove``."""
    with _locked(rooms):
        rooms.database.volumes.get(rooms.namespace, name)
        if users := rooms.database.volumes.users(rooms.namespace, name):
            raise ConflictError(
                f"volume in use: {name}: by container {users[0]}",
                kind="volume",
                name=name,
                state="in use",
                allowed="unused",
                hint=f"delete the container first: pyctrd rm {users[0]}",
            )
        _remove(rooms, rooms.namespace, name)
    rooms.removal.begin()


def prune_volumes(rooms: Rooms, *, named: bool) -> list[str]:
    """Remove what no container has; see ``Volumes.prune``."""
    gone = []
    with _locked(rooms):
        for record in rooms.database.volumes.list(rooms.namespace):
            if (record.anonymous or named) and not rooms.database.volumes.users(record.namespace, record.name):
                _remove(rooms, record.namespace, record.name)
                gone.append(record.name)
    rooms.removal.begin()
    return gone


def remove_anonymous(rooms: Rooms, namespace: str, names: Sequence[str]) -> None:
    """Remove those among some volumes that were made for one container, and that no container has any more."""
    if not names:
        return
    with _locked(rooms):
        for name in names:
            record = rooms.database.volumes.find(namespace, name)
            if record is not None and record.anonymous and not rooms.database.volumes.users(namespace, name):
                _remove(rooms, namespace, name)
    rooms.removal.begin()


def remove_all(rooms: Rooms, namespace: str) -> None:
    """Remove what a namespace has, which has no containers any more."""
    with _locked(rooms):
        for record in rooms.database.volumes.list(namespace):
            _remove(rooms, namespace, record.name)
    with suppress(FileNotFoundError):
        (rooms.root / "volumes" / namespace).rmdir()
    rooms.removal.begin()


def resolve_volumes(
    rooms: Rooms,
    record: ContainerRecord,
    mounts: Sequence[Mount],
    *,
    rootfs: Path,
    declared: Sequence[str] = (),
    ids: IdMappings | None = None,
) -> tuple[Mount, ...]:
    """A container's mounts, with the directories that its volumes are: made where they are missing, and filled.

    Args:
        rooms: The engine's rooms.
        record: The container, which is recorded: its volumes become its own in the same step.
        mounts: As they were asked for.
        rootfs: Its root file system, not yet running: what an empty volume is filled with is there.
        declared: Where its image wants volumes: one for it alone, unless something else is there.
        ids: What its ids are on the host: a new volume belongs to its root.

    Raises:
        InvalidError: A name is none.
        OSError: The disk.
    """
    from pyctrd.runtime.mounts import Volume

    taken = {os.path.normpath(mount.destination) for mount in mounts}
    wanted = [*mounts, *(Volume("", path) for path in declared if os.path.normpath(path) not in taken)]
    with _locked(rooms):
        return tuple(
            _resolve(rooms, record, mount, rootfs=rootfs, ids=ids) if isinstance(mount, Volume) else mount
            for mount in wanted
        )


def volume_path(rooms: Rooms, namespace: str, name: str) -> Path:
    """Where a volume's files are."""
    return rooms.root / "volumes" / namespace / name


def check_name(name: str) -> None:
    """Refuse what is no volume's name.

    Raises:
        InvalidError: It has other characters than letters, digits, dots, dashes and underscores, or begins with one of
            the last three.
    """
    if not 0 < len(name) <= NAME_MAX_CHARS or not _NAME.issuperset(name) or not name[0].isalnum():
        raise InvalidError(
            f"invalid volume name: {name!r}: expected letters, digits, dots, dashes and underscores",
            field="volume",
            value=name,
        )


def sweep_volumes(rooms: Rooms) -> None:
    """Remove what killed processes were filling; where somebody is at it, it is left to the next."""
    lock = rooms.lock("store", "volumes")
    if not any((rooms.root / "volumes").glob(f"*/{FILLING}*")) or not lock.acquire(timeout=0):
        return
    try:
        for path in (rooms.root / "volumes").glob(f"*/{FILLING}*"):
            take_away(rooms.root, path)
    finally:
        lock.release()


def walk_volumes(rooms: Rooms) -> Iterator[tuple[str, str]]:
    """Namespace and name of all that are on disk."""
    for path in sorted((rooms.root / "volumes").glob("*/*")):
        if not path.name.startswith(FILLING):
            yield path.parent.name, path.name


def _resolve(rooms: Rooms, record: ContainerRecord, volume: Volume, *, rootfs: Path, ids: IdMappings | None) -> Bind:
    name = volume.name or os.urandom(32).hex()
    check_name(name)
    namespace = record.namespace
    with rooms.database.write() as tx:
        if tx.volumes.find(namespace, name) is None:
            tx.volumes.add(namespace, name, labels={}, anonymous=not volume.name)
        tx.volumes.attach(namespace, record.id, name)
        is_own = tx.volumes.users(namespace, name) == [record.name]
    path = volume_path(rooms, namespace, name)
    _ensure(path)
    # One that others have may be mounted: it would be another directory to them.
    if is_own and not any(path.iterdir()):
        if ids is not None:
            os.chown(path, *ids.outside(0, 0))
        if volume.copy:
            _fill(rooms, path, rootfs, volume.destination)
    return volume.at(str(path))


def _fill(rooms: Rooms, path: Path, rootfs: Path, destination: str) -> None:
    """Give an empty volume what the image has at a path, in one step: all of it, or nothing."""
    with opened(os.fspath(rootfs), os.O_PATH | os.O_DIRECTORY) as root:
        try:
            node = _core.open_node(root, destination)
        except (FileNotFoundError, NotADirectoryError):
            return
    try:
        if not stat.S_ISDIR(os.fstat(node).st_mode):
            return
        staged = path.with_name(f"{FILLING}{path.name}")
        take_away(rooms.root, staged)
        staged.mkdir(mode=PRIVATE_MODE)
        with opened(b".", _DIRECTORY, node) as source, opened(os.fspath(staged), _DIRECTORY) as target:
            copy = TreeCopy(target)
            copy.run(source)
            copy.copy_attributes(source, target)
        _core.flush_tree(staged)
        _core.exchange(path, staged)
        flush_directory(path.parent)
        take_away(rooms.root, staged)
    finally:
        os.close(node)


def _ensure(path: Path) -> None:
    if path.is_dir():
        return
    for directory in (path.parents[1], path.parent):
        if not directory.is_dir():
            directory.mkdir(mode=PRIVATE_MODE, exist_ok=True)
            flush_directory(directory.parent)
    make_root(path)
    flush_directory(path.parent)


def _remove(rooms: Rooms, namespace: str, name: str) -> None:
    """Take one away: its files first, or the next of its name would have them."""
    take_away(rooms.root, volume_path(rooms, namespace, name))
    try:
        with rooms.database.write() as tx:
            tx.volumes.delete(namespace, name)
    except BaseException:
        rooms.removal.begin()  # what was taken goes all the same
        raise


@contextmanager
def _locked(rooms: Rooms) -> Iterator[None]:
    """One at a time: who looks whether a volume is used, or empty, must find it so until he is done."""
    lock = rooms.lock("store", "volumes")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
