"""What of images is handed over: their documents, and where the bytes of their blobs are."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd.errors import IntegrityError, NotFoundError
from pyctrd.flows.reach import needs_of
from pyctrd.flows.resolve import MAX_INDEX_DEPTH
from pyctrd.metadata.leases import LeaseResource
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.document import DOCUMENT_MAX_BYTES
from pyctrd.oci.index import NOBODY, Index
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index, is_manifest
from pyctrd.oci.reference import Reference
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.oci.platform import Platform


class Part(NamedTuple):
    """A blob, and what its bytes are read from.

    Attributes:
        descriptor: Its own.
        path: Its file in the store; None where that was not kept.
        layer: What it was unpacked to, where the blob is that layer's tar.
        diff_id: Of that layer, or of the one that the blob is said to be; "" for a document.
        is_layer: Whether a manifest lists it among its layers, which an artifact's may be as well.
    """

    descriptor: Descriptor
    path: Path | None
    layer: Path | None = None
    diff_id: str = ""
    is_layer: bool = False

    @property
    def is_here(self) -> bool:
        """Whether it can be had, bit for bit."""
        return self.path is not None or (self.layer is not None and self.diff_id == self.descriptor.digest)


class Selected(NamedTuple):
    """One image under one name.

    Attributes:
        reference: What it is called.
        target: What its name means: an index, or a manifest.
        manifest_descriptor: Of the manifest of one platform.
        manifest: The same, decoded.
        config: The image's config, as it stands in the store; b"" of an artifact that is no image.
        parts: The target and all beneath it: of an index, the manifests that are there with all that they name.
        layers: Of them, the manifest's layers, lowest first.
    """

    reference: Reference
    target: Descriptor
    manifest_descriptor: Descriptor
    manifest: Manifest
    config: bytes
    parts: Sequence[Part]
    layers: Sequence[Part]


def resources_for(rooms: Rooms, records: Iterable[ImageRecord]) -> list[LeaseResource]:
    """What must stay while images are read: what each needs, and what else of its index is there.

    Raises:
        IntegrityError: A document that an image needs is missing or damaged.
    """
    found: set[LeaseResource] = set()
    for record in records:
        needs = needs_of(rooms, record)
        found |= {LeaseResource("blob", digest) for digest in needs.blobs}
        found |= {LeaseResource("layer", diff_id) for diff_id in needs.layers}
        target = Descriptor(record.target_media_type, Digest(record.target_digest), record.target_size)
        for part in _walk(rooms, target, set()):
            found.add(LeaseResource("blob", str(part.descriptor.digest)))
            if part.diff_id:
                found.add(LeaseResource("layer", part.diff_id))
    return sorted(found)


def select(
    rooms: Rooms, record: ImageRecord, *, platforms: Sequence[Platform] = (), all_platforms: bool = False
) -> Selected:
    """What of an image goes out, looked up while it is kept.

    Args:
        rooms: The engine's rooms.
        record: The image's.
        platforms: Of one its manifest goes, alone; of several the index, with theirs. None for whatever of what the
            image's name means is there.
        all_platforms: Whether all that the index names must be there.

    Raises:
        NotFoundError: The image was removed meanwhile; a platform is not in the store, or the image has none such.
        IntegrityError: A document is missing or damaged.
    """
    if rooms.database.images.find(record.namespace, record.name) != record:
        raise NotFoundError(f"image not found: {record.name}: it was removed meanwhile", kind="image", name=record.name)
    reference = Reference.parse(record.name)
    target = Descriptor(record.target_media_type, Digest(record.target_digest), record.target_size)
    chosen = Digest(record.manifest_digest)
    only = [choose_stored(rooms, record, platform) for platform in platforms]
    if only:
        chosen = only[0].digest
    if len(only) == 1:
        target = only[0]
        if reference.digest is not None:  # it may be the index's, which does not go
            tagless = Reference(reference.registry, reference.repository, reference.tag)
            reference = tagless if reference.tag else reference.with_digest(target.digest)
    described = _describe(rooms, chosen)
    manifest = Manifest.parse(_read(rooms, described))
    own = {part.descriptor.digest: part for part in _parts_of(rooms, manifest)}
    walked = _walk(rooms, target, set(), only={manifest.digest for manifest in only})
    parts = {part.descriptor.digest: part for part in walked}
    if all_platforms:
        _check_whole(rooms, record, target, parts.keys() | own.keys() | {chosen})
    return Selected(
        reference=reference,
        target=target,
        manifest_descriptor=described,
        manifest=manifest,
        config=_read(rooms, manifest.config) if manifest.is_image else b"",
        parts=list((parts | own).values()),
        layers=[own[layer.digest] for layer in manifest.layers],
    )


def _walk(
    rooms: Rooms, target: Descriptor, seen: set[Digest], depth: int = 0, *, only: Collection[Digest] = ()
) -> Iterator[Part]:
    """A document and all that it names, as far as it is there: of an index, the manifests that are there whole.

    Of an index only some manifests, where they are given: whether these are there whole is for the caller to see.
    """
    seen.add(target.digest)
    document = Part(target, rooms.blobs.path(target.digest))
    if is_index(target.media_type):
        yield document
        for child in Index.parse(_read(rooms, target)).manifests if depth < MAX_INDEX_DEPTH else ():
            known = is_index(child.media_type) or is_manifest(child.media_type)
            if known and child.digest not in seen and _has(rooms, child):
                yield from _walk(rooms, child, seen, depth + 1, only=only)
        return
    if only and target.digest not in only:
        return
    parts = _parts_of(rooms, Manifest.parse(_read(rooms, target)))
    if depth == 0 or only or all(part.is_here for part in parts):
        yield document
        yield from parts


def _parts_of(rooms: Rooms, manifest: Manifest) -> list[Part]:
    """A manifest's blobs, the config first."""
    if not _has(rooms, manifest.config):
        return [Part(manifest.config, None)]
    diff_ids: Sequence[str] = [""] * len(manifest.layers)
    if manifest.is_image:
        config = ImageConfig.parse(_read(rooms, manifest.config))
        manifest.check_config(config)
        diff_ids = [str(diff_id) for diff_id in config.rootfs.diff_ids]
    layers = [_layer(rooms, layer, diff_id) for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)]
    return [Part(manifest.config, rooms.blobs.path(manifest.config.digest)), *layers]


def _layer(rooms: Rooms, layer: Descriptor, diff_id: str) -> Part:
    path = rooms.blobs.path(layer.digest) if _has(rooms, layer) else None
    unpacked = None
    if path is None and diff_id and rooms.database.layers.belongs_to(rooms.namespace, diff_id):
        unpacked = rooms.layers.path(diff_id) if rooms.layers.exists(diff_id) else None
    return Part(layer, path, unpacked, diff_id, is_layer=True)


def _has(rooms: Rooms, blob: Descriptor) -> bool:
    """Whether the namespace has a blob's bytes; that the store has them for another does not count."""
    record = rooms.database.content.find(rooms.namespace, str(blob.digest))
    return record is not None and record.is_stored


def _describe(rooms: Rooms, digest: Digest) -> Descriptor:
    record = rooms.database.content.find(rooms.namespace, str(digest))
    if record is None:
        raise NotFoundError(f"blob not found: {digest}", kind="blob", name=str(digest))
    return Descriptor(record.media_type, digest, record.size)


@contextmanager
def open_stored(rooms: Rooms, described: Descriptor) -> Iterator[int]:
    """A blob's file, by a descriptor; nothing of it is verified.

    Raises:
        IntegrityError: It is missing.
    """
    try:
        file = rooms.blobs.open(described.digest)
    except NotFoundError as error:
        raise blob_missing(described) from error
    with file:
        yield file.fileno()


def blob_missing(described: Descriptor) -> IntegrityError:
    """The error for a blob that the namespace has, and whose file is not there."""
    return IntegrityError(
        f"blob missing: {described.digest}",
        subject=str(described.digest),
        hint="have it fetched again: pyctrd check --repair",
    )


def _read(rooms: Rooms, described: Descriptor) -> bytes:
    """A document, checked: what it names is about to be written down as the image's."""
    with open_stored(rooms, described) as fd:
        body = os.pread(fd, DOCUMENT_MAX_BYTES + 1, 0)
    described.digest.check(body, subject=str(described.digest))
    return body


def _check_whole(rooms: Rooms, record: ImageRecord, target: Descriptor, here: Collection[Digest]) -> None:
    """Raise unless all that an index names is there.

    Raises:
        NotFoundError: Something is not; the message names the platforms.
    """
    missing = {}
    pending = [target] if is_index(target.media_type) else []
    while pending:
        for child in Index.parse(_read(rooms, pending.pop())).manifests:
            if not (is_index(child.media_type) or is_manifest(child.media_type)):
                continue
            if child.digest not in here:
                missing[child.digest] = describe_entry(child)
            elif is_index(child.media_type):
                pending.append(child)
    if missing:
        raise platform_missing(record, ", ".join(sorted(set(missing.values()))))


def describe_entry(entry: Descriptor) -> str:
    """What an index's entry is called where it is missing: by its platform, or where it has none by its digest."""
    platform = "" if entry.platform is None else str(entry.platform)
    return platform if platform and entry.platform != NOBODY else f"manifest {entry.digest}"


def platform_missing(record: ImageRecord, which: str, why: str = "") -> NotFoundError:
    """The error for what an image's index names and the store does not have."""
    return NotFoundError(
        f"platform not in the store: {record.name}: {which}{why and ': '}{why}",
        kind="platform",
        name=which,
        hint=f"bring it in: pyctrd pull --all-platforms {record.name}",
    )


def choose_stored(rooms: Rooms, record: ImageRecord, platform: Platform) -> Descriptor:
    """The manifest for a platform, beneath what an image's name means.

    Raises:
        NotFoundError: The image has none, or the store.
    """
    target = Descriptor(record.target_media_type, Digest(record.target_digest), record.target_size)
    while is_index(target.media_type):
        index = Index.parse(_read(rooms, target))
        child = index.choose(platform)
        if child is None or not _has(rooms, child):
            known = ", ".join(sorted({str(entry.platform) for entry in index.manifests if entry.platform}))
            why = "it is not in the store" if child is not None else f"the image has {known or 'none named'}"
            raise NotFoundError(
                f"no matching platform: {record.name}: wanted {platform}: {why}",
                kind="platform",
                name=str(platform),
                hint=f"pyctrd pull --platform {platform} {record.name}" if child is not None else "",
            )
        target = child
    manifest = Manifest.parse(_read(rooms, target))
    if manifest.is_image:
        made_for = ImageConfig.parse(_read(rooms, manifest.config)).platform
        if made_for.architecture and platform.rank(made_for) is None:
            raise NotFoundError(
                f"no matching platform: {record.name}: wanted {platform}, the image is for {made_for}",
                kind="platform",
                name=str(platform),
            )
    return target


def check_all_here(selected: Selected) -> None:
    """Raise unless every blob can be written as it came.

    Raises:
        NotFoundError: The bytes of one were not kept, and what was unpacked of it does not tell them.
    """
    for part in selected.parts:
        if not part.is_here:
            raise NotFoundError(
                f"blob not kept: {selected.reference}: {part.descriptor.digest}: its layer was unpacked, and the blob "
                "not stored; what a compressor made of it cannot be made again",
                kind="blob",
                name=str(part.descriptor.digest),
                hint="pull the image again with its blobs, make another one of it with pyctrd convert, "
                "or save it as a docker-archive",
            )


def check_is_image(selected: Selected) -> ImageConfig:
    """The config of what a docker-archive can hold.

    Raises:
        InvalidError: It is no image but another artifact.
        NotFoundError: A layer is neither stored nor unpacked.
    """
    selected.manifest.check_is_image(str(selected.reference))
    selected.manifest.check_layers()
    for part in selected.layers:
        if part.path is None and part.layer is None:
            raise NotFoundError(
                f"layer not found: {selected.reference}: {part.descriptor.digest}: neither its blob is stored nor is "
                "it unpacked",
                kind="layer",
                name=str(part.descriptor.digest),
                hint=f"bring it in again: pyctrd pull {str(selected.reference).partition('@')[0]}",
            )
    return ImageConfig.parse(selected.config)
