"""Copy: an image goes from one registry to another, unpacked nowhere and stored nowhere on the way."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError
from pyctrd.flows.push import from_registry, mounts_between
from pyctrd.flows.resolve import MAX_INDEX_DEPTH, choose_child
from pyctrd.flows.send import Sending, Source, put_documents, send_blobs
from pyctrd.oci.digest import Digest
from pyctrd.oci.index import Index
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index

if TYPE_CHECKING:
    from pyctrd.flows.progress import Telling
    from pyctrd.flows.rooms import Rooms
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.oci.platform import Platform
    from pyctrd.oci.reference import Reference
    from pyctrd.registry.client import FetchedManifest

# What one image may bring along: its platforms, and what tells of each of them.
DOCUMENTS_MAX = 10_000


def copy_image(
    rooms: Rooms,
    source: Reference,
    target: Reference,
    *,
    platform: Platform | None,
    referrers: bool,
    told: Telling,
    chunk_bytes: int = 0,
) -> Descriptor:
    """Copy what a reference names, with all that it names in turn; every digest stays what it is.

    Args:
        rooms: The engine's rooms.
        source: What.
        target: Where to, with a tag; with a digest alone it gets no name.
        platform: This one's manifest alone in place of an index; None for all of them.
        referrers: What tells of any of it too: signatures and the like, and what tells of these.
        told: Told a few times a second, in the calling thread.
        chunk_bytes: Blobs in requests of so many bytes; 0 for one request each.

    Returns:
        What the target names now.

    Raises:
        NotFoundError: The source has no such image, or none for the platform.
        InvalidError: A document is wrong; ``target`` has the digest of something else.
        RegistryError, IntegrityError: One of the registries refused, or the target got other bytes than the digest's.

    Spec:
        distribution-spec v1.1, "Pull", "Push", "Listing Referrers".
    """
    copying = _Copying(rooms, source, target, referrers=referrers)
    fetched = rooms.registry.manifest(source)
    if platform is not None:
        fetched = _of_platform(rooms, source, fetched, platform)
    top = fetched.descriptor
    if target.digest not in (None, top.digest):
        raise InvalidError(
            f"invalid reference: {target}: the image is {top.digest}", field="reference", value=str(target)
        )
    copying.add(fetched, depth=1)
    told.begin(str(top.digest), lambda: [sending.progress() for sending in copying.sendings.values()])
    send_blobs(
        rooms.registry,
        target,
        list(copying.sendings.values()),
        concurrency=rooms.settings.concurrency,
        chunk_bytes=chunk_bytes,
        told=told,
    )
    documents = {str(digest): document for digest, document in copying.documents.items()}
    if target.tag is not None:  # in place of its digest, and last of all: who finds the name finds all of it
        documents.pop(str(top.digest), None)
        documents[target.tag] = copying.top(top.digest)
    put_documents(rooms.registry, target, [(name, *document) for name, document in documents.items()])
    return top


def _of_platform(rooms: Rooms, source: Reference, fetched: FetchedManifest, platform: Platform) -> FetchedManifest:
    for _ in range(MAX_INDEX_DEPTH):
        if not is_index(fetched.descriptor.media_type):
            break
        child = choose_child(Index.parse(fetched.body), source, platform)
        fetched = rooms.registry.manifest(source.with_digest(child.digest))
    return fetched


class _Copying:
    """What has to be copied: documents, each behind those that it names, and blobs.

    What the target has of the documents is left out, and with it all that those name.
    """

    def __init__(self, rooms: Rooms, source: Reference, target: Reference, *, referrers: bool) -> None:
        self.documents: dict[Digest, tuple[str, bytes]] = {}
        self.sendings: dict[Digest, Sending] = {}
        self._registry = rooms.registry
        self._rooms = rooms
        self._source = source
        self._target = target
        self._referrers = referrers
        self._seen: dict[Digest, tuple[str, bytes]] = {}
        self._there = rooms.registry.repository(target)

    def add(self, fetched: FetchedManifest, *, depth: int) -> None:
        """A manifest or index, all that it names, and what tells of it.

        Raises:
            InvalidError: Indexes are in one another without end, or there are too many.
        """
        digest, media_type = fetched.descriptor.digest, fetched.descriptor.media_type
        if digest in self._seen:
            return
        if depth > MAX_INDEX_DEPTH + 1 or len(self._seen) >= DOCUMENTS_MAX:
            raise InvalidError(
                f"invalid index: {self._source}: too many documents, or too many in one another",
                field="manifests",
                value=str(digest),
            )
        self._seen[digest] = (media_type, fetched.body)
        is_there = self._there.find_manifest(digest, at="push") is not None
        if is_index(media_type):
            if self._referrers or not is_there:  # where it is there, what tells of its parts may not be
                for entry in Index.parse(fetched.body).manifests:
                    self.add(self._fetch(entry.digest), depth=depth + 1)
        elif not is_there:
            self._add_blobs(Manifest.parse(fetched.body))
        if not is_there:
            self.documents[digest] = self._seen[digest]
        if self._referrers:
            for entry in self._registry.repository(self._source).referrers(digest):
                self.add(self._fetch(entry.digest), depth=depth)

    def top(self, digest: Digest) -> tuple[str, bytes]:
        """The media type and the bytes of a document that was added."""
        return self._seen[digest]

    def _fetch(self, digest: Digest) -> FetchedManifest:
        return self._registry.manifest(self._source.with_digest(digest))

    def _add_blobs(self, manifest: Manifest) -> None:
        for blob in (manifest.config, *manifest.layers):
            if not blob.stays_away:
                self.sendings.setdefault(blob.digest, Sending(blob, partial(self._find, blob)))

    def _find(self, blob: Descriptor) -> Source:
        mounts = mounts_between(self._source, self._target)
        return Source(from_registry(self._rooms, self._source, blob), mounts)
