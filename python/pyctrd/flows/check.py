"""Check: what is recorded against what is on disk. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pyctrd.errors import IntegrityError, InvalidError, NotFoundError
from pyctrd.flows.freeze import is_left_frozen
from pyctrd.flows.load import load_config, load_manifest

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord


class Finding(NamedTuple):
    """One thing that is not as it should be.

    Attributes:
        kind: "blob", "layer", "image", "ingest", "snapshot", "container", or "file" for what is not pyctrd's.
        name: Which one: a digest, a reference, an id.
        problem: What is wrong.
    """

    kind: str
    name: str
    problem: str


def check(rooms: Rooms, *, digests: bool = False) -> list[Finding]:
    """Every finding, by kind; see ``Engine.check``."""
    with rooms.collection_lock(shared=True):
        return [
            *_check_blobs(rooms, digests=digests),
            *_check_layers(rooms, digests=digests),
            *_check_images(rooms),
            *_check_leftovers(rooms),
            *_check_containers(rooms),
        ]


def _check_blobs(rooms: Rooms, *, digests: bool) -> Iterator[Finding]:
    recorded: dict[str, int] = {item.digest: item.size for item in rooms.database.content.walk_all()}
    for digest, size in sorted(recorded.items()):
        try:
            actual = rooms.blobs.stat(digest).size
        except NotFoundError:
            yield Finding("blob", digest, "recorded and not on disk")
            continue
        if actual != size:
            yield Finding("blob", digest, f"has {actual} bytes, {size} are recorded")
        elif digests:
            yield from _check_digest(rooms, digest)
    for digest in rooms.blobs.walk():
        if digest not in recorded and not _is_under_way(rooms, digest):
            yield Finding("blob", digest, "on disk and not recorded")
    for path in rooms.blobs.strays():
        yield Finding("file", str(path), "is no blob, and not pyctrd's")


def _check_digest(rooms: Rooms, digest: str) -> Iterator[Finding]:
    try:
        rooms.blobs.verify(digest)
    except IntegrityError as error:
        yield Finding("blob", digest, f"damaged: hashes to {error.actual}")
    except OSError as error:
        yield Finding("blob", digest, f"cannot be read: {error.strerror}")


def _check_layers(rooms: Rooms, *, digests: bool) -> Iterator[Finding]:
    recorded = {layer.diff_id for layer in rooms.database.layers.list()}
    for diff_id in sorted(recorded):
        try:
            rooms.layers.verify(diff_id)
            if digests:
                rooms.layers.rebuild(diff_id)
        except (NotFoundError, IntegrityError, InvalidError, OSError) as error:
            yield Finding("layer", diff_id, str(error))
    for diff_id in rooms.layers.walk():
        if diff_id not in recorded and not _is_under_way(rooms, diff_id):
            yield Finding("layer", diff_id, "on disk and not recorded")
    for path in rooms.layers.strays():
        yield Finding("file", str(path), "is no layer, and not pyctrd's")


def _is_under_way(rooms: Rooms, name: str) -> bool:
    """Whether a live process has published it and is about to record it."""
    return any(name in (reserved.digest, reserved.diff_id) for reserved in rooms.database.ingests.list())


def _check_images(rooms: Rooms) -> Iterator[Finding]:
    for namespace in rooms.database.namespaces.list():
        for record in rooms.database.images.list(namespace.name):
            try:
                yield from _check_image(rooms, record)
            except (NotFoundError, IntegrityError, ValueError, OSError) as error:
                yield Finding("image", record.name, str(error))


def _check_image(rooms: Rooms, record: ImageRecord) -> Iterator[Finding]:
    manifest = load_manifest(rooms, record)
    if manifest.is_image:
        manifest.check_config(load_config(rooms, record))
    for descriptor in (manifest.config, *manifest.layers):
        if rooms.database.content.find(record.namespace, str(descriptor.digest)) is None:
            yield Finding("image", record.name, f"needs {descriptor.digest}, which is not recorded")


def _check_leftovers(rooms: Rooms) -> Iterator[Finding]:
    """Ingests whose process is gone; opening the root removes them, so these came since."""
    for reserved in rooms.database.ingests.list():
        lock = rooms.lock("digest", reserved.digest.replace(":", "-"))
        if lock.acquire(timeout=0):
            lock.release()
            if rooms.database.ingests.find(reserved.id) is not None:
                yield Finding("ingest", reserved.id, f"left behind by a process that is gone: {reserved.digest}")


def _check_containers(rooms: Rooms) -> Iterator[Finding]:
    for namespace in rooms.database.namespaces.list():
        for container in rooms.database.containers.list(namespace.name):
            if rooms.snapshotter.find(container.snapshot_key) is None:
                yield Finding("container", container.name, "its snapshot is gone")
            if is_left_frozen(rooms, container):
                yield Finding("container", container.name, "is frozen by a process that is gone")
