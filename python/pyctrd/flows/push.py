"""Push: an image of the store becomes one of a registry; what that has already is not sent."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING

from pyctrd.errors import InvalidError, NotFoundError, RegistryError
from pyctrd.flows.lease import kept
from pyctrd.flows.load import get_image
from pyctrd.flows.progress import telling
from pyctrd.flows.selection import choose_stored, describe_entry, platform_missing
from pyctrd.flows.send import Make, Part, Sending, Source, put_documents, send_blobs
from pyctrd.metadata.leases import LeaseResource
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.index import Index, detect
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index
from pyctrd.oci.platform import Platform
from pyctrd.oci.reference import Reference
from pyctrd.oci.transports import is_transport
from pyctrd.registry.payload import BodyPayload, FilePayload

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pyctrd.flows.convert import Packing
    from pyctrd.flows.progress import ProgressCallback, Telling
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.registry.body import BlobBody
    from pyctrd.registry.connection import Payload


def push_image(
    rooms: Rooms,
    name: str,
    target: str | None,
    *,
    platform: str | Sequence[str] | None,
    all_platforms: bool,
    reduced: bool,
    compression: Packing | None,
    chunk_bytes: int,
    progress: ProgressCallback | None,
) -> str:
    """An image goes to a registry, or into a layout or an archive; see ``Images.push``."""
    record, platforms = get_image(rooms, name), Platform.parse_all(platform)
    if all_platforms and platforms:
        raise InvalidError("invalid platform: all of them are wanted", field="platform", value=platform)
    if compression is not None and (all_platforms or platforms):
        raise InvalidError("invalid compression: the image's own platform is converted", field="compression")
    if is_transport(target or ""):
        if compression is not None or reduced:
            raise InvalidError(
                f"invalid target: {target}: layers and an index are written as they are",
                field="target",
                value=target,
                hint="convert the image first: pyctrd convert" if compression is not None else "push without reduced",
            )
        from pyctrd.flows.save import save_to

        written = save_to(
            rooms, record, str(target), platforms=platforms, all_platforms=all_platforms, progress=progress
        )
        return str(written)
    parsed = Reference.parse(target or record.name)
    with telling(str(parsed), progress) as told:
        if compression is not None:
            sent = _push_packed(rooms, record, parsed, compression=compression, told=told, chunk_bytes=chunk_bytes)
        else:
            sent = push(
                rooms,
                record,
                parsed,
                all_platforms=all_platforms,
                platforms=platforms,
                reduced=reduced,
                told=told,
                chunk_bytes=chunk_bytes,
            )
    return str(sent.digest)


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
    check_reduced(platforms, reduced=reduced)
    chosen = {entry.digest: entry for entry in (choose_stored(rooms, record, platform) for platform in platforms)}
    reduced = reduced and is_index(record.target_media_type)
    is_part = len(chosen) > 1 and not reduced
    top = next(iter(chosen)) if len(chosen) == 1 else Digest.parse(record.manifest_digest)
    if all_platforms or reduced or is_part:
        top = Digest.parse(record.target_digest)
    with ExitStack() as files:
        image = _Image(rooms, record, target, files, only=chosen.keys())
        if reduced:
            top = image.add_reduced(top, chosen.values())
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
            with refused_part(is_part=is_part):
                put_documents(rooms.registry, target, named)
    media_type, body = image.documents[top]
    return Descriptor(media_type=media_type, digest=top, size=len(body))


def _push_packed(
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


def check_reduced(platforms: Sequence[Platform], *, reduced: bool) -> None:
    """Raise where an index is to be reduced, and nobody says to what.

    Raises:
        InvalidError: No platform is named.
    """
    if reduced and not platforms:
        raise InvalidError("invalid reduced: an index is reduced to platforms", field="reduced", value=reduced)


@contextmanager
def refused_part(*, is_part: bool) -> Iterator[None]:
    """Around the documents that are put: where of an index a part alone goes, and is refused, say what may help."""
    try:
        yield
    except (NotFoundError, RegistryError) as error:
        # MANIFEST_BLOB_UNKNOWN or the like, by 404 or 400.
        if is_part and (isinstance(error, NotFoundError) or error.status == 400):
            error.hint = "the registry may want all of an index: reduce it to what goes, with --reduced"
        raise


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

    def add_reduced(self, digest: Digest, chosen: Collection[Descriptor]) -> Digest:
        """In place of an index one that names these alone, also where others stood in between.

        Returns:
            Its digest.

        Raises:
            NotFoundError: As ``add``.
        """
        from pyctrd.oci.derived import reduced_index

        index = Index.parse(self._read(digest, None))
        for child in chosen:
            self.add(child.digest, child)
        body = reduced_index(index, chosen)
        reduced = Digest.of(body, digest.algorithm)
        self.documents[reduced] = (index.media_type, body)
        return reduced

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
