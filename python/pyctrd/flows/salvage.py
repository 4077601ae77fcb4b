"""A database that is lost or damaged, built anew: from rows that can still be read, and from what is on disk.

Bytes say what they are, since they have digests; whose they are and what they were called, only the database knew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd.errors import ConflictError, InvalidError, PyctrdError
from pyctrd.flows.bodies import Body, FileBody
from pyctrd.flows.check import side_by_side
from pyctrd.flows.choose import SNAPSHOTTERS
from pyctrd.flows.fetch import Fetch
from pyctrd.flows.image_mounts import owner_of
from pyctrd.flows.pull import image_record, is_present, note_unpacked, record_content, wants_of
from pyctrd.flows.reach import needs_of, walk_held
from pyctrd.flows.resolve import Document, resolve_top
from pyctrd.flows.rooms import PRIVATE_MODE, REBUILDING, Rooms
from pyctrd.flows.runtimes import program_of
from pyctrd.metadata import DATABASE
from pyctrd.metadata.containers import ContainerRecord
from pyctrd.metadata.database import Database
from pyctrd.metadata.events import STORE
from pyctrd.metadata.namespaces import check_namespace
from pyctrd.metadata.salvage import find_users, flush_directory, salvage, set_aside
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.document import DOCUMENT_MAX_BYTES
from pyctrd.oci.index import detect
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_manifest
from pyctrd.oci.reference import Reference
from pyctrd.snapshots.directory import DIRECTORY
from pyctrd.snapshots.store import SnapshotStore, read_record, write_record

if TYPE_CHECKING:
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.snapshots.protocol import LayerRef

RECOVERED = "localhost/recovered"
NAME_DIGITS = 12


def build_anew(rooms: Rooms) -> str:
    """Move the database away and make a new one; the collection lock is held alone.

    Stopped half-way, it is begun again by the next repair, from the same old files; nothing opens the root till then.

    Returns:
        What came of it, in one line.

    Raises:
        ConflictError: Another process has the old one open, and would go on writing to it.
    """
    path = rooms.root / DATABASE
    rooms.use_database(None)
    if users := find_users(path):
        raise ConflictError(
            f"database in use: {path}: by process {', '.join(map(str, users))}",
            kind="database",
            name=str(path),
            state="open",
            hint="end those processes; containers may go on",
        )
    aside = _set_aside(rooms.root, path)
    rooms.use_database(Database(path))
    rows = salvage(aside / path.name, path)
    with rooms.database.write() as tx:
        tx.namespaces.ensure(rooms.namespace)
    containers = _restore_containers(rooms)
    whole = _whole_blobs(rooms)
    for record in _all_images(rooms):
        _restore_content(rooms, record, whole)
    recovered = len(list(_recover_images(rooms, whole)))
    with rooms.database.write() as tx:
        tx.events.add(STORE, "store", "rebuilt", "", {"rows": rows, "containers": containers, "images": recovered})
    (rooms.root / REBUILDING).unlink()
    flush_directory(rooms.root)
    named = f", called {RECOVERED}:…" if recovered else ""
    return (
        f"built anew: {rows} rows were read, {containers} containers and {recovered} images found on disk{named}; "
        f"the old one is in {aside}"
    )


def _set_aside(root: Path, path: Path) -> Path:
    """Move the old files away, or find where an earlier repair has put them: where they are."""
    mark = root / REBUILDING
    quarantined = root / "quarantine"
    quarantined.mkdir(mode=PRIVATE_MODE, exist_ok=True)
    if not mark.exists():
        staged = root / f"{REBUILDING}.tmp"
        write_record(staged, f"{time.time_ns()}-database")
        staged.rename(mark)
        flush_directory(root)
    aside = quarantined / str(read_record(mark))
    if (aside / path.name).exists():  # what has the name now is what was built then
        set_aside(path, quarantined / f"{time.time_ns()}-unfinished")
    else:
        set_aside(path, aside)
    return aside


def _whole_blobs(rooms: Rooms) -> dict[str, int]:
    """The blobs on disk whose bytes are theirs, with their sizes."""
    from pyctrd.flows.check import Finding

    def look(digest: str) -> Finding | None:
        try:
            rooms.blobs.verify(digest)
        except (PyctrdError, OSError) as error:
            return Finding("blob", digest, str(error), "damaged")
        return None

    found = [str(digest) for digest in rooms.blobs.walk()]
    damaged = {finding.name for finding in side_by_side(look, found)}
    return {digest: rooms.blobs.stat(digest).size for digest in found if digest not in damaged}


def _all_images(rooms: Rooms) -> list[ImageRecord]:
    database = rooms.database
    return [record for known in database.namespaces.list() for record in database.images.list(known.name)]


def _restore_content(rooms: Rooms, record: ImageRecord, whole: dict[str, int]) -> None:
    """Record what an image needs for its namespace: that it has the name says that it had all of it."""
    try:
        _, (own, *others) = walk_held(rooms, record)
        needed = needs_of(rooms, record)
    except (PyctrdError, OSError):
        return  # the check that follows tells
    # Of its other platforms it is known to have had what is recorded already: others on disk may be another tenant's.
    kept = {str(blob.digest) for other in others for blob in (other.manifest.config, *other.manifest.layers)}
    types = {str(blob.digest): blob.media_type for blob in (own.manifest.config, *own.manifest.layers)}
    types[record.target_digest] = record.target_media_type
    with rooms.database.write() as tx:
        for digest in (needed.blobs - kept | types.keys()) & whole.keys():
            kind = types.get(digest) or detect(rooms.blobs.read(digest))
            tx.content.add(record.namespace, digest, size=whole[digest], media_type=kind, source="")
        tx.layers.note_unpacked(record.namespace, own.diff_ids)


def _recover_images(rooms: Rooms, whole: dict[str, int]) -> Iterator[ImageRecord]:
    """Name the images on disk whose names are lost."""
    named = {digest for record in _all_images(rooms) for digest in _manifests_of(rooms, record)}
    owners = {item.digest: item.namespace for item in rooms.database.content.walk_all()}
    for digest, size in whole.items():
        if size > DOCUMENT_MAX_BYTES or digest in named:
            continue
        body = rooms.blobs.read(digest)
        try:
            if not body.startswith(b"{") or not is_manifest(media_type := detect(body)):
                continue
            target = Descriptor(media_type, Digest.parse(digest), size)
            namespace = owners.get(digest, rooms.namespace)
            with closing(Rooms(replace(rooms.settings, namespace=namespace))) as own:
                own.use_database(Database(rooms.root / DATABASE))
                yield _recover_image(own, target, body, whole)
        except (PyctrdError, OSError):
            continue  # no manifest, or one whose parts are gone


def _manifests_of(rooms: Rooms, record: ImageRecord) -> set[str]:
    """The manifests that an image's name stands for."""
    try:
        return {record.manifest_digest, *(held.digest for held in walk_held(rooms, record)[1])}
    except (PyctrdError, OSError):
        return {record.manifest_digest}


def _recover_image(rooms: Rooms, target: Descriptor, body: bytes, whole: dict[str, int]) -> ImageRecord:
    """As a load of what is in the store already: layers that had a tree are unpacked again, for their records."""
    manifest = Manifest.parse(body)
    manifest.check_is_image(str(target.digest))
    blobs = [target, manifest.config, *manifest.layers]
    if lost := [str(blob.digest) for blob in blobs if str(blob.digest) not in whole]:
        raise InvalidError(f"lost blob: {lost[0]}", field="layers", value=lost[0])
    config = ImageConfig.parse(rooms.blobs.read(manifest.config.digest))
    with rooms.database.write() as tx:
        for blob in blobs:
            tx.content.add(rooms.namespace, str(blob.digest), size=blob.size, media_type=blob.media_type, source="")
    reference = Reference.parse(f"{RECOVERED}:{target.digest.hex[:NAME_DIGITS]}")
    origin = _Stored(rooms)
    resolved = resolve_top(rooms, origin, reference, Document(target, body), platform=config.platform)
    unpack = all(rooms.layers.exists(diff_id) for diff_id in config.rootfs.diff_ids)
    wants = wants_of(rooms, resolved, origin, unpack=unpack)
    Fetch(rooms, is_present=partial(is_present, rooms), record=partial(record_content, rooms, "")).run(wants)
    with rooms.database.write() as tx:
        note_unpacked(rooms, tx, wants)
        return tx.images.put(image_record(rooms, resolved), by="repair")


class _Stored:
    """This store itself as the origin of an image: see ``Origin``."""

    is_local = True

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def read_manifest(self, descriptor: Descriptor) -> bytes:
        return self._rooms.blobs.read(descriptor.digest)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        return self._rooms.blobs.read(descriptor.digest)

    def open_blob(self, descriptor: Descriptor, offset: int) -> Body:
        return FileBody(self._rooms.blobs.path(descriptor.digest), offset)


def _restore_containers(rooms: Rooms) -> int:
    """Record the snapshots on disk, and the containers: what ran in them is known, their names are not.

    Returns:
        How many containers had no record.
    """
    store = SnapshotStore(rooms.root)
    bundles = {bundle.name: bundle for bundle in sorted((rooms.root / "containers").glob("*/*"))}
    count = 0
    with rooms.database.write() as tx:
        for key in store.walk_keys():
            owner, number = owner_of(key)
            bundle = bundles.get(owner)
            found = None if bundle is None else _container_in(bundle, key, runtime=program_of(rooms.settings).text)
            namespace = rooms.namespace if found is None else found.namespace
            record = None if number else found
            tx.namespaces.ensure(namespace)
            if tx.snapshots.find(key) is None:
                kind, layers = store.get(key)
                tx.snapshots.add(
                    key,
                    namespace=namespace,
                    snapshotter=_snapshotter_of(rooms, store.path(key), layers),
                    kind=kind,
                    diff_ids=tuple(layer.diff_id for layer in layers if layer.diff_id != DIRECTORY),
                    target="" if bundle is None else str(bundle / (f"images/{number}" if number else "rootfs")),
                    frozen=store.frozen(key),
                )
            if record is not None and tx.containers.find(namespace, record.id) is None:
                tx.containers.add(record)
                count += 1
    return count


def _snapshotter_of(rooms: Rooms, path: Path, layers: Sequence[LayerRef]) -> str:
    """Which snapshotter made a snapshot, by what it left."""
    if any(layer.diff_id == DIRECTORY for layer in layers):
        return "directory-overlay" if (path / "upper").is_dir() else "directory"
    if (path / "rootfs").is_dir():
        return "native"
    for name, kind in SNAPSHOTTERS.items():
        if name != "native" and all(rooms.layers.has_form(layer.diff_id, kind.form) for layer in layers):
            return name
    return "overlayfs"


def _container_in(bundle: Path, key: str, *, runtime: str) -> ContainerRecord | None:
    """What a bundle says of its container; None where it is none."""
    import orjson

    try:
        namespace = check_namespace(bundle.parent.name)
        command = tuple(str(word) for word in orjson.loads((bundle / "config.json").read_bytes())["process"]["args"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ContainerRecord(
        namespace=namespace,
        id=bundle.name,
        name=bundle.name[:NAME_DIGITS],
        image_name="",
        image_digest="",
        snapshot_key=key,
        command=command,
        labels={},
        runtime=runtime,
        created_ns=bundle.stat().st_mtime_ns,
    )
