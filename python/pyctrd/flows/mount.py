"""An image's merged view on a directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import AlreadyExistsError, NotFoundError
from pyctrd.flows.load import image_layers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.snapshots.protocol import LayerRef


def mount_image(rooms: Rooms, record: ImageRecord, target: Path) -> None:
    """Mount an image read-only; the view's key is the target's path, so that it can be found again.

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
    with rooms.making_lock(shared=True):
        with rooms.collection_lock(shared=True):
            layers = image_layers(rooms, record)
            record_snapshot(rooms, key, kind="view", layers=layers, target=target.resolve())
        try:
            rooms.snapshotter.mount(rooms.snapshotter.view(key, layers), target.resolve())
        except BaseException:
            forget_snapshot(rooms, key)
            raise


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
) -> None:
    """Say durably what is about to be made and mounted where: from here on its layers stay.

    Args:
        rooms: The engine's rooms.
        key: Of the snapshot.
        kind: "active" or "view".
        layers: What it is made of.
        target: Where it is going to be mounted.
        container: Whose root file system it is: recorded with it, or a crash between the two would keep the layers
            for ever.

    Raises:
        AlreadyExistsError: The key or the container's name is taken; nothing is recorded then.
    """
    diff_ids = tuple(layer.diff_id for layer in layers)
    with rooms.database.write() as tx:
        if tx.snapshots.find(key) is not None:
            raise AlreadyExistsError(
                f"snapshot already exists: {key}: {target} is in use", kind="snapshot", name=str(target)
            )
        tx.snapshots.add(
            key,
            namespace=rooms.namespace,
            snapshotter=rooms.snapshotter.name,
            kind=kind,
            diff_ids=diff_ids,
            target=str(target),
        )
        if container is not None:
            tx.containers.add(container)


def forget_snapshot(rooms: Rooms, key: str) -> None:
    """Remove an unmounted snapshot, then its record; again is a no-op."""
    rooms.snapshotter_for(key).delete(key)
    with rooms.database.write() as tx:
        tx.snapshots.delete(key)


def view_key(target: Path) -> str:
    """The snapshot key of what is mounted at a path."""
    return "view-" + _core.digest_bytes(os.fsencode(target.resolve())).partition(":")[2][:32]
