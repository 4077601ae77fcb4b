"""Copy: an image goes from one registry to another, unpacked nowhere and stored nowhere on the way."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError
from pyctrd.flows.push import check_reduced, from_registry, mounts_between, refused_part
from pyctrd.flows.resolve import MAX_INDEX_DEPTH, choose_child
from pyctrd.flows.send import Sending, Source, put_documents, send_blobs
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.index import Index
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pyctrd.flows.progress import Telling
    from pyctrd.flows.rooms import Rooms
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
    platforms: Sequence[Platform] = (),
    reduced: bool = False,
    referrers: bool,
    told: Telling,
    chunk_bytes: int = 0,
) -> Descriptor:
    """Copy what a reference names, with all that it names in turn; every digest stays what it is.

    Args:
        rooms: The engine's rooms.
        source: What.
        target: Where to, with a tag; with a digest alone it gets no name.
        platforms: Of one its manifest alone in place of an index, of several the index with theirs; all of them where
            none is named.
        reduced: The index is written anew, with the chosen platforms' entries alone.
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
    check_reduced(platforms, reduced=reduced)
    fetched = rooms.registry.manifest(source)
    found = [_choose(rooms, source, fetched, platform) for platform in platforms]
    chosen = {entry.digest: entry for entry, _ in found}
    reduced = reduced and is_index(fetched.descriptor.media_type)
    if len(chosen) == 1 and not reduced:
        fetched = found[0][1]
        chosen.clear()
    copying = _Copying(rooms, source, target, referrers=referrers, only=chosen.keys())
    top = copying.add_reduced(fetched, chosen.values()) if reduced else fetched.descriptor
    if target.digest not in (None, top.digest):
        raise InvalidError(
            f"invalid reference: {target}: the image is {top.digest}", field="reference", value=str(target)
        )
    if not reduced:
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
    named = [(name, *document) for name, document in documents.items()]
    with refused_part(is_part=bool(chosen) and not reduced):
        put_documents(rooms.registry, target, named)
    return top


def _choose(
    rooms: Rooms, source: Reference, fetched: FetchedManifest, platform: Platform
) -> tuple[Descriptor, FetchedManifest]:
    """A platform's manifest, as the index names it that has it, and itself; what there is where there is no index."""
    entry = fetched.descriptor
    for _ in range(MAX_INDEX_DEPTH):
        if not is_index(fetched.descriptor.media_type):
            break
        entry = choose_child(Index.parse(fetched.body), source, platform)
        fetched = rooms.registry.manifest(source.with_digest(entry.digest))
    return entry, fetched


class _Copying:
    """What has to be copied: documents, each behind those that it names, and blobs.

    What the target has of the documents is left out, and with it all that those name.

    Args:
        rooms: The engine's rooms.
        source: What.
        target: Where to.
        referrers: With what tells of any of it.
        only: The manifests of an index that go; all where it is empty.
    """

    def __init__(
        self, rooms: Rooms, source: Reference, target: Reference, *, referrers: bool, only: Collection[Digest]
    ) -> None:
        self.documents: dict[Digest, tuple[str, bytes]] = {}
        self.sendings: dict[Digest, Sending] = {}
        self._registry = rooms.registry
        self._rooms = rooms
        self._source = source
        self._target = target
        self._referrers = referrers
        self._only = only
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
            # Where it is there, what tells of its parts may not be, nor any part that was not chosen before.
            if self._referrers or self._only or not is_there:
                for entry in filter(self._goes, Index.parse(fetched.body).manifests):
                    self.add(self._fetch(entry.digest), depth=depth + 1)
        elif not is_there:
            self._add_blobs(Manifest.parse(fetched.body))
        if not is_there:
            self.documents[digest] = self._seen[digest]
        if self._referrers:
            for entry in self._registry.repository(self._source).referrers(digest):
                self.add(self._fetch(entry.digest), depth=depth)

    def _goes(self, entry: Descriptor) -> bool:
        return not self._only or entry.digest in self._only or is_index(entry.media_type)

    def add_reduced(self, fetched: FetchedManifest, chosen: Collection[Descriptor]) -> Descriptor:
        """In place of an index one that names these alone, also where others stood in between; what it is.

        Raises:
            InvalidError: As ``add``.
        """
        from pyctrd.oci.derived import reduced_index

        for entry in chosen:
            self.add(self._fetch(entry.digest), depth=2)
        media_type = fetched.descriptor.media_type
        body = reduced_index(Index.parse(fetched.body), chosen)
        digest = Digest.of(body, fetched.descriptor.digest.algorithm)
        self._seen[digest] = self.documents[digest] = (media_type, body)
        return Descriptor(media_type, digest, len(body))

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
