"""Check: what is recorded against what is on disk. Reads only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import IntegrityError, InvalidError, NotFoundError
from pyctrd.flows.freeze import is_left_frozen
from pyctrd.flows.load import load_config, load_manifest
from pyctrd.flows.objects import named_objects, object_path
from pyctrd.flows.recover import is_held
from pyctrd.flows.resume import is_kept
from pyctrd.flows.share import has_content
from pyctrd.metadata import DATABASE
from pyctrd.oci.value import NamedTuple
from pyctrd.snapshots import FROZEN
from pyctrd.snapshots.imaged import Stacks

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.oci.manifest import Manifest

# What ``repair`` does about a kind of thing and what is wrong with it.
REPAIRS = {
    ("database", "damaged"): "it is built anew from what can be read of it and from what is on disk",
    ("blob", "missing"): "it is fetched again from where it came, else its record is dropped",
    ("blob", "damaged"): "it is moved to quarantine and fetched again from where it came, else its record is dropped",
    ("blob", "unrecorded"): "it is moved to quarantine",
    ("layer", "missing"): "it is unpacked again from its blob, else its record is dropped",
    ("layer", "damaged"): "it is moved to quarantine and unpacked again from its blob, else its record is dropped",
    ("layer", "unrecorded"): "it is moved to quarantine",
    ("object", "missing"): "a layer that names it is unpacked again from its blob",
    ("object", "damaged"): "it is moved to quarantine, and a layer that names it is unpacked again from its blob",
    ("stack", "damaged"): "it is removed, and made anew when it is needed",
    ("file", "foreign"): "it is moved to quarantine",
    ("image", "incomplete"): "what it needs is recorded or fetched again; without its documents its name is dropped",
    ("manifest", "incomplete"): "what it needs is recorded again; what is lost for good is dropped from its repository",
    ("ingest", "left"): "it is undone",
    ("snapshot", "unrecorded"): "it is moved to quarantine",
    ("volume", "unrecorded"): "it is moved to quarantine",
    ("container", "lost"): "it is deleted, if it does not run",
    ("container", "frozen"): "it goes on",
    ("container", "orphaned"): "it is ended, and that is recorded",
}


class Finding(NamedTuple):
    """One thing that is not as it should be.

    Attributes:
        kind: "database", "blob", "layer", "object", "stack" for the image of one, "image", "manifest" for one of a
            repository, "ingest", "snapshot", "volume", "container", or "file" for what is not pyctrd's.
        name: Which one: a digest, a reference, an id, a path.
        problem: What is wrong.
        cause: The same in a word: "missing", "damaged", "unrecorded", "foreign", "incomplete", "left", "lost",
            "frozen" or "orphaned".
        repair: What ``check(repair=True)`` would do about it, or what it did, or why it could not.
        repaired: Whether it is as it should be now.
        namespace: Whose, for images, manifests and containers.
    """

    kind: str
    name: str
    problem: str
    cause: str
    repair: str = ""
    repaired: bool = False
    namespace: str = ""


def check(rooms: Rooms, *, digests: bool = False) -> list[Finding]:
    """Every finding, by kind; see ``Engine.check``."""
    with rooms.collection_lock(shared=True):
        # What a damaged database says of the rest is worth nothing.
        found = check_database(rooms) or [finding for stage in STAGES for finding in stage(rooms, digests)]
    return [finding._replace(repair=REPAIRS[finding.kind, finding.cause]) for finding in found]


def check_database(rooms: Rooms) -> list[Finding]:
    """What is wrong with the database's own file."""
    name = str(rooms.root / DATABASE)
    return [Finding("database", name, problem, "damaged") for problem in rooms.database.find_damage()]


def _check_blobs(rooms: Rooms, digests: bool) -> Iterator[Finding]:  # noqa: FBT001 - a stage
    recorded: dict[str, int] = {item.digest: item.size for item in rooms.database.content.walk_all() if item.is_stored}
    whole: list[str] = []
    for digest, size in sorted(recorded.items()):
        try:
            actual = rooms.blobs.stat(digest).size
        except NotFoundError:
            yield Finding("blob", digest, "recorded and not on disk", "missing")
            continue
        if actual != size:
            yield Finding("blob", digest, f"has {actual} bytes, {size} are recorded", "damaged")
        else:
            whole.append(digest)
    if digests:
        whole.sort(key=recorded.__getitem__, reverse=True)
        yield from sorted(side_by_side(lambda digest: _check_digest(rooms, digest), whole))


def side_by_side(look: Callable[[str], Finding | None], names: Iterable[str]) -> list[Finding]:
    """What a look at each thing finds, on all processors: hashing leaves the interpreter to others."""
    names = list(names)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="pyctrd-check") as workers:
        try:
            found = workers.map(look, names)
        except RuntimeError:  # not one thread can be started: one after the other, then
            found = map(look, names)
        return [finding for finding in found if finding is not None]


def _check_digest(rooms: Rooms, digest: str) -> Finding | None:
    try:
        rooms.blobs.verify(digest)
    except IntegrityError as error:
        return Finding("blob", digest, f"damaged: hashes to {error.actual}", "damaged")
    except OSError as error:
        return Finding("blob", digest, f"cannot be read: {error.strerror}", "damaged")
    return None


def _check_layers(rooms: Rooms, digests: bool) -> Iterator[Finding]:  # noqa: FBT001 - a stage
    recorded = {layer.diff_id: layer.bytes for layer in rooms.database.layers.list()}

    def look(diff_id: str) -> Finding | None:
        try:
            rooms.layers.verify(diff_id)
            if digests:
                rooms.layers.rebuild(diff_id)
        except NotFoundError as error:
            return Finding("layer", diff_id, str(error), "missing")
        except (IntegrityError, InvalidError, OSError) as error:
            return Finding("layer", diff_id, str(error), "damaged")
        return None

    largest_first = sorted(recorded, key=recorded.__getitem__, reverse=True)
    yield from sorted(side_by_side(look, largest_first))


def _check_objects(rooms: Rooms, digests: bool) -> Iterator[Finding]:  # noqa: FBT001 - a stage
    if not (rooms.root / "objects").is_dir():
        return
    named = {ref.key: ref for ref in named_objects(rooms)}

    def look(key: str) -> Finding | None:
        ref = named[key]
        try:
            size = object_path(rooms, key).stat().st_size
        except FileNotFoundError:
            return Finding("object", key, "named by a layer and not on disk", "missing")
        if size != ref.size:
            return Finding("object", key, f"has {size} bytes, expected {ref.size}", "damaged")
        if digests and not _core.verify_object(rooms.root, ref):
            return Finding("object", key, "has other bytes than its name says", "damaged")
        return None

    yield from sorted(side_by_side(look, sorted(named, key=lambda key: named[key].size, reverse=True)))


def _check_stacks(rooms: Rooms, digests: bool) -> Iterator[Finding]:  # noqa: FBT001 - a stage
    for image, digest in Stacks(rooms.root).walk_images():
        name = image.parent.name
        try:
            if not digest or (digests and _core.digest_file(image) != digest):
                yield Finding("stack", name, "its image has other bytes than were written", "damaged")
            elif not image.stat().st_size:
                yield Finding("stack", name, "its image is empty", "damaged")
        except OSError as error:
            yield Finding("stack", name, str(error), "damaged")


def _is_under_way(rooms: Rooms, name: str) -> bool:
    """Whether a live process has published it and is about to record it, or a collection is about to remove it."""
    database = rooms.database
    if any(name in (reserved.digest, reserved.diff_id) for reserved in database.ingests.list()):
        return True
    return database.doomed.holds("blob", name) or database.doomed.holds("layer", name)


def _check_images(rooms: Rooms, digests: bool) -> Iterator[Finding]:  # noqa: ARG001, FBT001 - a stage
    for namespace in rooms.database.namespaces.list():
        for record in rooms.database.images.list(namespace.name):
            try:
                yield from check_image(rooms, record)
            except (NotFoundError, IntegrityError, ValueError, OSError) as error:
                yield Finding("image", record.name, str(error), "incomplete", namespace=record.namespace)


def check_image(rooms: Rooms, record: ImageRecord) -> Iterator[Finding]:
    """What an image lacks; it raises where its documents cannot be read."""
    manifest = load_manifest(rooms, record)
    diff_ids = diff_ids_of(rooms, record, manifest)
    for descriptor in (manifest.config, *manifest.layers):
        digest = str(descriptor.digest)
        if not has_content(rooms.database, record.namespace, digest, diff_ids.get(digest)):
            problem = f"needs {descriptor.digest}, which is not recorded"
            yield Finding("image", record.name, problem, "incomplete", namespace=record.namespace)


def diff_ids_of(rooms: Rooms, record: ImageRecord, manifest: Manifest) -> dict[str, str]:
    """Of an image that belongs together, what its config says that each layer's blob is."""
    if not manifest.is_image:
        return {}
    config = load_config(rooms, record)
    manifest.check_config(config)
    return {str(blob.digest): str(d) for blob, d in zip(manifest.layers, config.rootfs.diff_ids, strict=True)}


def _check_repositories(rooms: Rooms, digests: bool) -> Iterator[Finding]:  # noqa: ARG001, FBT001 - a stage
    """Manifests that were sent: each has its bytes, and what it must have."""
    tables = rooms.database
    for row in tables.repositories.walk():
        refs = tables.repositories.refs(row.namespace, row.repository, row.digest)
        for name in (row.digest, *(ref.name for ref in refs if ref.required)):
            if tables.content.find(row.namespace, name) is None:
                problem = f"needs {name}, which is not recorded"
                name_of = f"{row.repository}@{row.digest}"
                yield Finding("manifest", name_of, problem, "incomplete", namespace=row.namespace)


def _check_leftovers(rooms: Rooms, digests: bool) -> Iterator[Finding]:  # noqa: ARG001, FBT001 - a stage
    """Ingests whose process is gone; opening the root removes them, so these came since, or were kept for too long."""
    for reserved in rooms.database.ingests.list():
        if is_held(rooms, reserved):
            continue
        left = rooms.database.ingests.find(reserved.id)
        if left is not None and not is_kept(rooms, left):
            yield Finding("ingest", reserved.id, f"left behind by a process that is gone: {reserved.digest}", "left")


def _check_strays(rooms: Rooms, digests: bool) -> Iterator[Finding]:  # noqa: ARG001, FBT001 - a stage
    """What no record names. An image that lacks a record has got it back by then, if this is a repair."""
    blobs = {item.digest for item in rooms.database.content.walk_all() if item.is_stored}
    for name in map(str, rooms.blobs.walk()):
        if name not in blobs and not _is_under_way(rooms, name):
            yield Finding("blob", name, "on disk and not recorded", "unrecorded")
    layers = {layer.diff_id for layer in rooms.database.layers.list()}
    for name in map(str, rooms.layers.walk()):
        if name not in layers and not _is_under_way(rooms, name):
            yield Finding("layer", name, "on disk and not recorded", "unrecorded")
    yield from _stray_snapshots(rooms)
    yield from _stray_volumes(rooms)
    for path in rooms.blobs.strays():
        yield Finding("file", str(path), "is no blob, and not pyctrd's", "foreign")
    for path in rooms.layers.strays():
        yield Finding("file", str(path), "is no layer, and not pyctrd's", "foreign")


def _stray_volumes(rooms: Rooms) -> Iterator[Finding]:
    if not (rooms.root / "volumes").is_dir():
        return
    from pyctrd.flows.volumes import volume_path, walk_volumes

    for namespace, name in list(walk_volumes(rooms)):
        # The record comes before the directory, and goes after it.
        if rooms.database.volumes.find(namespace, name) is None and volume_path(rooms, namespace, name).exists():
            yield Finding("volume", name, "on disk and not recorded", "unrecorded", namespace=namespace)


def _stray_snapshots(rooms: Rooms) -> Iterator[Finding]:
    snapshots = rooms.root / "snapshots"
    found = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
    needed = rooms.database.snapshots.needed()
    for path in found:
        if path.name.startswith(FROZEN) and path.name.removeprefix(FROZEN) in needed:
            continue
        # The record comes before the directory, and goes after it.
        if path.name.startswith(("fixup-", "stack-", "trial-")) or rooms.database.snapshots.find(path.name) is not None:
            continue
        if path.exists():  # it was not deleted just now
            yield Finding("snapshot", path.name, "on disk and not recorded", "unrecorded")


def _check_containers(rooms: Rooms, digests: bool) -> Iterator[Finding]:  # noqa: ARG001, FBT001 - a stage
    for namespace in rooms.database.namespaces.list():
        for container in rooms.database.containers.list(namespace.name):
            snapshot = rooms.snapshotter.find(container.snapshot_key)
            if snapshot is None or not all(
                (rooms.root / "snapshots" / f"{FROZEN}{frozen}").is_dir() for frozen in snapshot.frozen
            ):
                yield Finding(
                    "container", container.name, "its snapshot is gone", "lost", namespace=container.namespace
                )
            if is_left_frozen(rooms, container):
                problem = "is frozen by a process that is gone"
                yield Finding("container", container.name, problem, "frozen", namespace=container.namespace)
            bundle = rooms.bundle(container.namespace, container.id)
            if rooms.runtime(container.runtime).is_orphan(container.id, bundle):
                problem = "its shim was killed: its output goes nowhere, and nobody would see its end"
                yield Finding("container", container.name, problem, "orphaned", namespace=container.namespace)


# In this order: what a later one looks at, an earlier one has looked after.
STAGES: tuple[Callable[[Rooms, bool], Iterator[Finding]], ...] = (
    _check_leftovers,
    _check_blobs,
    _check_objects,
    _check_layers,
    _check_stacks,
    _check_images,
    _check_repositories,
    _check_strays,
    _check_containers,
)
