"""Several platforms of one image: beside the manifest that is run, what else of an index is brought in.

The others are stored and verified as the blobs of an image that is not unpacked: which of an index's platforms this
host could run is one, and what is for others goes on to other hosts. ``ctr images pull --all-platforms`` unpacks them
all, nerdctl none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from pyctrd.errors import InvalidError
from pyctrd.flows.resolve import Document, Resolved, check_depth, read_document, resolve_top, with_config
from pyctrd.oci.index import NOBODY, Index, is_attestation
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index, is_manifest

if TYPE_CHECKING:
    from pyctrd.flows.bodies import Body
    from pyctrd.flows.resolve import Origin
    from pyctrd.flows.rooms import Rooms
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.oci.digest import Digest
    from pyctrd.oci.platform import Platform

# Whose manifests are wanted beside the one that is run.
Others: TypeAlias = "Sequence[Platform] | Literal['all']"
# All are held in memory until they are stored. An index of 10,000 manifests, the most that one may have, fits with
# manifests and configs of 1,600 bytes each; the largest image that was seen, of 20 platforms, has 150 KB.
DOCUMENTS_MAX_BYTES = 32 * 1024 * 1024

Item = TypeVar("Item")
Result = TypeVar("Result")


def with_others(rooms: Rooms, origin: Origin, resolved: Resolved, others: Others, *, at_once: int = 1) -> Resolved:
    """Add what else of an image's index is wanted to what was resolved.

    Args:
        rooms: The engine's rooms.
        origin: Where the image comes from.
        resolved: The image, of the platform that is run.
        others: More platforms; "all" for whatever the index names: artifacts, such as attestations, as well.
        at_once: Documents that are asked for at a time.

    Raises:
        NotFoundError: There is none for one of the platforms.
        InvalidError: A document is wrong; they are too many, or too deep in one another.
        RegistryError: The registry refused, or was not reached.
    """
    reading = _Reading(origin, resolved)
    if others == "all":
        found = list(_resolve_all(rooms, reading, resolved, at_once))
    else:
        top = resolved.documents[0]
        found = [resolve_top(rooms, reading, resolved.reference, top, platform=platform) for platform in others]
    distinct = {other.manifest_descriptor.digest: other for other in found}
    distinct.pop(resolved.manifest_descriptor.digest, None)
    return replace(resolved, others=tuple(distinct.values()))


def _resolve_all(rooms: Rooms, reading: _Reading, resolved: Resolved, at_once: int) -> Iterator[Resolved]:
    """All manifests beneath a target, level by level."""

    def read(chain: tuple[Document, ...]) -> tuple[Document, ...]:
        child = chain[-1].descriptor
        return (*chain[:-1], Document(child, read_document(rooms, child, reading.read_manifest)))

    level = [resolved.documents[:1]]
    seen: set[Digest] = set()
    with _workers(at_once) as run:
        while indexes := [chain for chain in level if is_index(chain[-1].descriptor.media_type)]:
            wanted = []
            for chain in indexes:
                check_depth(chain)
                for child in Index.parse(chain[-1].body).manifests:
                    known = is_index(child.media_type) or is_manifest(child.media_type)
                    if known and child.digest not in seen:  # others are to be ignored: image-spec, "manifests"
                        seen.add(child.digest)
                        wanted.append((*chain, Document(child, b"")))
            level = list(run(read, wanted))
            manifests = [chain for chain in level if is_manifest(chain[-1].descriptor.media_type)]
            yield from run(partial(_resolve_one, rooms, reading, resolved), manifests)


def _resolve_one(rooms: Rooms, reading: _Reading, resolved: Resolved, chain: tuple[Document, ...]) -> Resolved:
    """What a manifest of an index is: an image whose diff_ids are checked, or an artifact that is stored as it is."""
    described = chain[-1].descriptor
    manifest = Manifest.parse(chain[-1].body)
    if manifest.is_unpackable and not is_attestation(described) and described.platform != NOBODY:
        return with_config(rooms, reading, resolved.reference, chain)
    return Resolved(
        reference=resolved.reference,
        target=resolved.target,
        manifest_descriptor=described,
        manifest=manifest,
        config=None,
        documents=chain,
    )


class _Reading:
    """An origin each of whose documents is asked for once, and which gives no more of them than memory is for.

    Args:
        origin: Where they come from.
        resolved: What was read already.
    """

    def __init__(self, origin: Origin, resolved: Resolved) -> None:
        self.is_local = origin.is_local
        self._origin = origin
        self._bodies = {document.descriptor.digest: document.body for document in resolved.documents}
        self._total = 0

    def read_manifest(self, descriptor: Descriptor) -> bytes:
        """See ``Origin``."""
        return self._read(descriptor, self._origin.read_manifest)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """See ``Origin``."""
        return self._read(descriptor, self._origin.read_blob)

    def open_blob(self, descriptor: Descriptor, offset: int) -> Body:
        """See ``Origin``."""
        return self._origin.open_blob(descriptor, offset)

    def _read(self, descriptor: Descriptor, read: Callable[[Descriptor], bytes]) -> bytes:
        known = self._bodies.get(descriptor.digest)
        if known is None:
            known = self._bodies[descriptor.digest] = read(descriptor)
            self._total += len(known)
            if self._total > DOCUMENTS_MAX_BYTES:
                raise InvalidError(
                    f"invalid index: its manifests and configs have more than {DOCUMENTS_MAX_BYTES} bytes",
                    field="manifests",
                    value=str(descriptor.digest),
                    hint="choose platforms with --platform",
                )
        return known


@contextmanager
def _workers(count: int) -> Iterator[Callable[[Callable[[Item], Result], Iterable[Item]], Iterator[Result]]]:
    """Something like ``map``, by so many threads; the first failure ends the others."""
    if count == 1:
        yield map
        return
    pool = ThreadPoolExecutor(count, thread_name_prefix="pyctrd-documents")
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
