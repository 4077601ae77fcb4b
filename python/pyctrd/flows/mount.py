"""An image's merged view on a directory."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import AlreadyExistsError, NotFoundError
from pyctrd.flows.load import ensure_unpacked, image_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.runtime.idmaps import IdRange
    from pyctrd.snapshots.protocol import LayerRef, Snapshotter


def mount_image(
    rooms: Rooms,
    record: ImageRecord,
    target: Path,
    *,
    uids: Sequence[IdRange] | None = None,
    gids: Sequence[IdRange] | None = None,
) -> None:
    """Mount an image read-only; the view's key is the target's path, so that it can be found again.

    Args:
        rooms: The engine's rooms.
        record: The image.
        target: Where.
        uids: What the owners of its files are to be; None for what they are.
        gids: Likewise their groups; as ``uids`` where only that is given, and the other way round.

    Raises:
        NotFoundError: The target is no directory, or a layer was not unpacked.
    """
    if not target.is_dir():
        raise NotFoundError(
            f"mount point not found: {target}",
            kind="directory",
            name=str(target),
            hint="make the directory first",
        )
    key = view_key(target)
    ensure_unpacked(rooms, record)
    with _user_namespace(uids, gids) as ids, rooms.making_lock(shared=True):
        with rooms.collection_lock(shared=True):
            layers = image_layers(rooms, record)
            snapshotter = record_snapshot(rooms, key, kind="view", layers=layers, target=target.resolve())
        try:
            snapshotter.mount(snapshotter.view(key, layers), target.resolve(), ids=ids)
        except BaseException:
            forget_snapshot(rooms, key)
            raise


@contextmanager
def _user_namespace(uids: Sequence[IdRange] | None, gids: Sequence[IdRange] | None) -> Iterator[int | None]:
    """One that maps ids so, for as long as somebody mounts by it; None where nothing is to be mapped."""
    if uids is None and gids is None:
        yield None
        return
    from pyctrd.flows.mapped import open_user_namespace
    from pyctrd.runtime.idmaps import check_ranges

    users = check_ranges("uids", uids or gids or ())
    groups = check_ranges("gids", gids or uids or ())
    descriptor = open_user_namespace(users, groups)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def unmount_image(rooms: Rooms, target: Path) -> None:
    """Undo ``mount_image``.

    Raises:
        NotFoundError: No image is mounted there.
    """
    key = view_key(target)
    snapshotter = rooms.snapshotter_for(key)
    if snapshotter.find(key) is None:
        raise NotFoundError(f"no image mounted: {target}", kind="mount", name=str(target))
    snapshotter.unmount(target.resolve())
    forget_snapshot(rooms, key)


def record_snapshot(
    rooms: Rooms,
    key: str,
    *,
    kind: str,
    layers: Sequence[LayerRef],
    target: Path,
    container: ContainerRecord | None = None,
    snapshotter: Snapshotter | None = None,
) -> Snapshotter:
    """Say durably what is about to be made and mounted where: from here on its layers stay.

    Args:
        rooms: The engine's rooms.
        key: Of the snapshot.
        kind: "active" or "view".
        layers: What it is made of.
        target: Where it is going to be mounted.
        container: Whose root file system it is: recorded with it, or a crash between the two would keep the layers
            for ever.
        snapshotter: What is to make it; None chooses one for its layers.

    Returns:
        What is to make it.

    Raises:
        AlreadyExistsError: The key or the container's name is taken; nothing is recorded then.
    """
    from pyctrd.flows.choose import DIRECTORY, choose_for

    diff_ids = tuple(layer.diff_id for layer in layers if layer.diff_id != DIRECTORY)
    snapshotter = snapshotter or choose_for(rooms, layers)
    with rooms.database.write() as tx:
        if tx.snapshots.find(key) is not None:
            raise AlreadyExistsError(
                f"snapshot already exists: {key}: {target} is in use", kind="snapshot", name=str(target)
            )
        tx.snapshots.add(
            key,
            namespace=rooms.namespace,
            snapshotter=snapshotter.name,
            kind=kind,
            diff_ids=diff_ids,
            target=str(target),
        )
        if container is not None:
            tx.containers.add(container)
    return snapshotter


def forget_snapshot(rooms: Rooms, key: str) -> None:
    """Remove an unmounted snapshot, then its record; again is a no-op."""
    rooms.snapshotter_for(key).delete(key)
    with rooms.database.write() as tx:
        tx.snapshots.delete(key)


@contextmanager
def rootfs_lock(rooms: Rooms, record: ContainerRecord, *, shared: bool) -> Iterator[None]:
    """The lock between those that mount and start a container (shared) and whoever freezes or resets its files."""
    from pyctrd.snapshots.store import SnapshotStore

    store = SnapshotStore(rooms.root)
    if not store.holds(record.snapshot_key):
        yield  # there is nothing to be locked: whoever needs it says so
        return
    with store.held(record.snapshot_key, shared=shared):
        yield


def remove_frozen(rooms: Rooms) -> None:
    """Remove what was frozen and nothing lies on any more, nor can be set back to.

    Whoever freezes records it before, so what no record names is needed by nobody.
    """
    from pyctrd.snapshots.store import SnapshotStore

    store = SnapshotStore(rooms.root)
    if not (found := list(store.walk_frozen())):
        return
    needed = rooms.database.snapshots.needed()
    if unneeded := [frozen for frozen in found if frozen not in needed]:
        for frozen in unneeded:
            store.discard(store.frozen_path(frozen))
        rooms.removal.begin()


def view_key(target: Path) -> str:
    """The snapshot key of what is mounted at a path."""
    return "view-" + _core.digest_bytes(os.fsencode(target.resolve())).partition(":")[2][:32]
