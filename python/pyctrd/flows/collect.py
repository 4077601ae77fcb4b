"""Removal: a name goes first, then what no name reaches."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from pyctrd.errors import ConflictError
from pyctrd.flows.load import get_image
from pyctrd.flows.objects import sweep_objects
from pyctrd.metadata.events import STORE
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.index import Index
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord

logger = logging.getLogger("pyctrd.flows")
# A pull under way holds the lock; waiting longer for it would make `rmi` seem to hang.
COLLECTION_WAIT_SECONDS = 2.0


def remove_image(rooms: Rooms, name: str, *, force: bool = False) -> None:
    """Take an image's name away, then free what nothing reaches.

    Raises:
        NotFoundError: There is no such image.
        ConflictError: A container was made from it, and ``force`` is not set.
    """
    record = get_image(rooms, name)
    users = [c for c in rooms.database.containers.list(rooms.namespace) if c.image_digest == record.manifest_digest]
    if users and not force:
        raise ConflictError(
            f"image in use: {record.name}: by container {users[0].name}",
            kind="image",
            name=record.name,
            state="in use",
            allowed="unused",
            hint=f"delete the container first: pyctrd rm {users[0].name}",
        )
    with rooms.database.write() as tx:
        tx.images.delete(rooms.namespace, record.name)
    collect(rooms)


def collect(rooms: Rooms) -> None:
    """Free what no image or container of any namespace reaches; skipped while a pull is under way."""
    lock = rooms.collection_lock(shared=False)
    if not lock.acquire(timeout=COLLECTION_WAIT_SECONDS):
        logger.debug("collection skipped: %s is held by %s", "store", lock.holder)
        return
    try:
        _sweep(rooms)
    finally:
        lock.release()


def _sweep(rooms: Rooms) -> None:
    """Mark from images and containers, remove the records in one transaction, then the files."""
    content, layers = _mark(rooms)
    with rooms.database.write() as tx:
        blobs = Counter[str]()
        for item in list(tx.content.walk_all()):
            if (item.namespace, item.digest) not in content:
                tx.content.delete(item.namespace, item.digest)
                blobs[item.namespace] += 1
        tx.layers.forget_blobs()
        unreached = [layer.diff_id for layer in tx.layers.list() if layer.diff_id not in layers]
        for diff_id in unreached:
            tx.layers.delete(diff_id)
        # A namespace hears of its own blobs; layers are the store's.
        for namespace, count in blobs.items():
            tx.events.add(namespace, "gc", "freed", "", {"blobs": count})
        if unreached:
            tx.events.add(STORE, "gc", "freed", "", {"layers": len(unreached)})
    # Pulls hold the collection lock shared: nothing that is under way can be among these.
    kept = {digest for _, digest in content}
    for digest in list(rooms.blobs.walk()):
        if digest not in kept:
            rooms.blobs.delete(digest, missing_ok=True)
    for diff_id in list(rooms.layers.walk()):
        if diff_id not in layers:
            rooms.layers.delete(diff_id, missing_ok=True)
    rooms.snapshotter.collect(layers)
    sweep_objects(rooms, layers)


def _mark(rooms: Rooms) -> tuple[set[tuple[str, str]], set[str]]:
    """What must stay: blobs by namespace, and layers."""
    database = rooms.database
    content: set[tuple[str, str]] = set()
    layers = {diff_id for snapshot in database.snapshots.list() for diff_id in snapshot.diff_ids}
    for namespace in database.namespaces.list():
        for record in database.images.list(namespace.name):
            digests, diff_ids = reachable(rooms, record)
            content.update((namespace.name, digest) for digest in digests)
            layers.update(diff_ids)
    return content, layers


def reachable(rooms: Rooms, record: ImageRecord) -> tuple[set[str], set[str]]:
    """The blobs and layers that an image needs."""
    digests = {record.target_digest, record.manifest_digest, record.config_digest}
    if is_index(record.target_media_type):
        # An index in between is kept as well: the chain from the name to the manifest stays whole.
        digests.update(_indexes_between(rooms, record))
    manifest = Manifest.parse(rooms.blobs.read(record.manifest_digest))
    digests.update(str(layer.digest) for layer in manifest.layers)
    if not manifest.is_image:
        return digests, set()
    config = ImageConfig.parse(rooms.blobs.read(record.config_digest))
    return digests, {str(diff_id) for diff_id in config.rootfs.diff_ids}


def _indexes_between(rooms: Rooms, record: ImageRecord) -> set[str]:
    found: set[str] = set()
    pending = [record.target_digest]
    while pending:
        index = Index.parse(rooms.blobs.read(pending.pop()))
        for child in index.manifests:
            digest = str(child.digest)
            if is_index(child.media_type) and digest not in found and rooms.blobs.exists(digest):
                found.add(digest)
                pending.append(digest)
    return found
