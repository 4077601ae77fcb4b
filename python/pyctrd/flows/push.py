"""Push: an image of the store becomes one of a registry; what that has already is not sent."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from typing import IO, TYPE_CHECKING

from pyctrd.errors import InvalidError, NotFoundError, RegistryError
from pyctrd.flows.lease import kept
from pyctrd.flows.selection import choose_stored, describe_entry, platform_missing
from pyctrd.flows.send import Make, Part, Sending, Source, put_documents, send_blobs
from pyctrd.metadata.leases import LeaseResource
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.index import Index, detect
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index
from pyctrd.oci.reference import Reference
from pyctrd.registry.payload import BodyPayload, FilePayload

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pyctrd.flows.convert import Packing
    from pyctrd.flows.progress import Telling
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.oci.platform import Platform
    from pyctrd.registry.body import BlobBody
    from pyctrd.registry.connection import Payload

# A registry that takes no index of which it has not everything says so.
_REFUSED = frozenset({400, 404})
_NOT_WHOLE = "a registry may want all of an index: push it with --reduced, or with --all-platforms"


def push(
    rooms: Rooms,
    record: ImageRecord,
    target: Reference,
    *,
    all_platforms: bool,
    told: Telling,
    platforms: Sequence[Platform] = (),
    reduced: bool = False,
    chunk_bytes: int = 0,
) -> Descriptor:
    """Send an image to a registry.

    Args:
        rooms: The engine's rooms.
        record: The image.
        target: Where to, with a tag; with a digest alone it gets no name.
        all_platforms: The index that was pulled, with all that it names, in place of this platform's manifest.
        platforms: Of one its manifest, in place of the image's own; of several the index, with theirs alone. What of
            them is not in the store is not sent.
        reduced: The index is written anew, with the chosen platforms' entries alone.
        told: Told a few times a second, in the calling thread.
        chunk_bytes: Blobs in requests of so many bytes; 0 for one request each.

    Returns:
        What the target names now.

    Raises:
        NotFoundError: Something of the image is neither here nor where it came from.
        InvalidError: ``target`` has the digest of something else.
        RegistryError, IntegrityError: The registry refused, or got other bytes.

    Spec:
        distribution-spec v1.1, "Push".
    """
    only = [choose_stored(rooms, record, platform).digest for platform in platforms]
    reduced = reduced and is_index(record.target_media_type)
    is_part = len(only) > 1 and not reduced
    top = only[0] if len(only) == 1 else Digest.parse(record.manifest_digest)
    if all_platforms or reduced or is_part:
        top = Digest.parse(record.target_digest)
    with ExitStack() as files:
        image = _Image(rooms, record, target, files, only=only)
        if reduced:
            top = image.add_reduced(top)
        else:
            image.add(top)
        if target.digest not in (None, top):
            raise InvalidError(f"invalid reference: {target}: the image is {top}", field="reference", value=str(target))
        told.begin(str(top), lambda: [sending.progress() for sending in image.sendings.values()])
        resources = [LeaseResource("blob", str(digest)) for digest in (*image.documents, *image.sendings)]
        with kept(rooms, "push", resources):
            send_blobs(
                rooms.registry,
                target,
                list(image.sendings.values()),
                concurrency=rooms.settings.concurrency,
                chunk_bytes=chunk_bytes,
                told=told,
            )
            named = [(str(digest), *document) for digest, document in image.documents.items()]
            if target.tag is not None:
                named[-1] = (target.tag, *image.documents[top])
            try:
                put_documents(rooms.registry, target, named)
            except RegistryError as error:
                if is_part and error.status in _REFUSED:
                    error.hint = error.hint or _NOT_WHOLE
                raise
    media_type, body = image.documents[top]
    return Descriptor(media_type=media_type, digest=top, size=len(body))


def push_packed(
    rooms: Rooms,
    record: ImageRecord,
    target: Reference,
    *,
    compression: Packing,
    told: Telling,
    chunk_bytes: int = 0,
) -> Descriptor:
    """As ``push``, of the image with its layers compressed otherwise; that image is gone from the store afterwards.

    What is told is first of the layers that are compressed, then of the blobs that are sent.

    Raises:
        As ``push`` and ``convert_image``.
    """
    from pyctrd.flows.collect import remove_image
    from pyctrd.flows.convert import convert_image

    made = Reference.parse(f"localhost/pyctrd/push:{os.urandom(16).hex()}")
    converted = convert_image(rooms, record, made, compression=compression, level=None, told=told)
    try:
        return push(rooms, converted, target, all_platforms=False, told=told, chunk_bytes=chunk_bytes)
    finally:
        remove_image(rooms, str(made), force=False, collect_after=True)


class _Image:
    """An image's documents, each behind those that it names, and its blobs.

    Args:
        rooms: The engine's rooms.
        record: The image.
        target: Where to.
        files: Closes what is opened.
        only: The manifests of an index that go; all where it is empty.
    """

    def __init__(
        self, rooms: Rooms, record: ImageRecord, target: Reference, files: ExitStack, *, only: Collection[Digest]
    ) -> None:
        self.documents: dict[Digest, tuple[str, bytes]] = {}
        self.sendings: dict[Digest, Sending] = {}
        self._rooms = rooms
        self._target = target
        self._files = files
        self._record = record
        self._origin = Reference.parse(record.name)
        self._only = only

    def add(self, digest: Digest, entry: Descriptor | None = None) -> None:
        """A manifest or index, and all that it names; ``entry``: of the index that names it.

        Raises:
            NotFoundError: It is neither in the store nor where the image came from; its platform is named.
        """
        if digest in self.documents:
            return
        body = self._read(digest, entry)
        media_type = detect(body)
        if is_index(media_type):
            for child in Index.parse(body).manifests:
                if not self._only or child.digest in self._only or is_index(child.media_type):
                    self.add(child.digest, child)
        else:
            manifest = Manifest.parse(body)
            for blob in (manifest.config, *manifest.layers):
                if not blob.stays_away:
                    self.sendings.setdefault(blob.digest, Sending(blob, partial(self._find, blob)))
        self.documents[digest] = (media_type, body)

    def add_reduced(self, digest: Digest) -> Digest:
        """In place of an index one that names what goes alone, without others in between.

        Returns:
            Its digest.

        Raises:
            NotFoundError: As ``add``.
        """
        from pyctrd.oci.derived import reduced_index

        index = Index.parse(self._read(digest, None))
        chosen = {child.digest: child for child in self._chosen(index)}
        for child in chosen.values():
            self.add(child.digest, child)
        body = reduced_index(index, chosen.values())
        reduced = Digest.of(body, digest.algorithm)
        self.documents[reduced] = (index.media_type, body)
        return reduced

    def _chosen(self, index: Index) -> Iterator[Descriptor]:
        for child in index.manifests:
            if child.digest in self._only:
                yield child
            elif is_index(child.media_type) and self._has(child.digest):
                yield from self._chosen(Index.parse(self._read(child.digest, child)))

    def _has(self, digest: Digest) -> bool:
        return self._rooms.database.content.find(self._rooms.namespace, str(digest)) is not None

    def _read(self, digest: Digest, entry: Descriptor | None) -> bytes:
        """A document, from the store or from where the image came from."""
        if self._has(digest):
            return self._rooms.blobs.read(digest)
        try:
            return self._rooms.registry.manifest(self._origin.with_digest(digest)).body
        except (NotFoundError, RegistryError) as error:
            if entry is None:
                raise
            raise platform_missing(self._record, describe_entry(entry), f"and not to be had: {error}") from error

    def _find(self, blob: Descriptor) -> Source:
        """Where a blob can be had: in the store, else where it came from."""
        rooms, digest = self._rooms, str(blob.digest)
        record = rooms.database.content.find(rooms.namespace, digest)
        came_from = Reference.parse(record.source) if record is not None and record.source else None
        if record is None:  # another platform's: only the registry has it
            came_from = self._origin
        mounts = () if came_from is None else mounts_between(came_from, self._target)
        if record is not None and record.is_stored:
            file = self._files.enter_context(rooms.blobs.open(blob.digest))

            return Source(from_file(file), mounts)
        return Source(None if came_from is None else from_registry(rooms, came_from, blob), mounts)


def mounts_between(source: Reference, target: Reference) -> tuple[str, ...]:
    """Repositories that the target's registry may take a blob from by itself."""
    is_elsewhere = source.registry != target.registry or source.repository == target.repository
    return () if is_elsewhere else (source.repository,)


def from_file(file: IO[bytes]) -> Make:
    """A blob as a file has it."""

    def make(part: Part) -> Payload:
        part.comes("store")
        return FilePayload(file, offset=part.offset, length=part.length, sent=part.sent)

    return make


def from_registry(rooms: Rooms, reference: Reference, blob: Descriptor) -> Make:
    """A blob as another repository sends it."""

    def make(part: Part) -> Payload:
        def opens(offset: int) -> BlobBody:
            body = rooms.registry.open_blob(reference, blob, offset=offset, hold=part.hold)
            part.comes(body.source)
            return body

        return BodyPayload(opens, offset=part.offset, length=part.length, sent=part.sent, hold=part.hold)

    return make
