"""From a reference to the documents of one platform's image: index, manifest, config."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from pyctrd.errors import InvalidError, NotFoundError, PyctrdError
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.index import Index
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index, is_manifest
from pyctrd.oci.value import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyctrd.flows.bodies import Body
    from pyctrd.flows.rooms import Rooms
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.oci.digest import Digest
    from pyctrd.oci.platform import Platform
    from pyctrd.oci.reference import Reference

# An index in an index in an index: nobody makes more, and a registry could make them without end.
MAX_INDEX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON document and the descriptor that it was checked against."""

    descriptor: Descriptor
    body: bytes


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means on one platform.

    Attributes:
        reference: As asked for.
        target: What the reference itself names: an index or a manifest.
        manifest_descriptor: The chosen manifest.
        manifest: The same, decoded.
        config: The image config, decoded; None for an artifact that is no image.
        documents: Every document on the way: indexes, the manifest, the image config.
        others: What else of the index is wanted beside it, to be stored: each with its own manifest.
    """

    reference: Reference
    target: Descriptor
    manifest_descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig | None
    documents: tuple[Document, ...]
    others: tuple[Resolved, ...] = ()


class Origin(Protocol):
    """Where an image's documents and blobs come from: a registry, or files that somebody handed over.

    Attributes:
        is_local: What was read can be read again at no cost.
    """

    is_local: bool

    def read_manifest(self, descriptor: Descriptor) -> bytes:
        """A manifest or index, checked against its digest."""
        ...

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """A config, checked against its digest and size."""
        ...

    def open_blob(self, descriptor: Descriptor, offset: int) -> Body:
        """A blob's bytes from an offset on, or from before it; nothing of them is verified."""
        ...


class RegistryOrigin:
    """A repository.

    Args:
        rooms: The engine's rooms.
        reference: Names it.
    """

    is_local = False

    def __init__(self, rooms: Rooms, reference: Reference) -> None:
        self._registry = rooms.registry
        self._reference = reference
        self._ahead: dict[Digest, Body] = {}

    def read_manifest(self, descriptor: Descriptor) -> bytes:
        """See ``Origin``."""
        return self._registry.manifest(self._reference.with_digest(descriptor.digest)).body

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """See ``Origin``."""
        return self._registry.read_blob(self._reference, descriptor)

    def open_blob(self, descriptor: Descriptor, offset: int) -> Body:
        """See ``Origin``."""
        if offset == 0 and (body := self._ahead.pop(descriptor.digest, None)) is not None:
            return body
        return self._registry.open_blob(self._reference, descriptor, offset=offset, retry=False)  # `fetch` tries again

    def ask_ahead(self, descriptor: Descriptor) -> None:
        """Ask for a blob that is wanted in any case, before anything is there that could take its bytes.

        What goes wrong is not told: it is asked for again when it is opened.
        """
        with suppress(PyctrdError):
            self._ahead[descriptor.digest] = self.open_blob(descriptor, 0)

    def close(self) -> None:
        """Close what was asked for ahead and not opened since."""
        while self._ahead:
            self._ahead.popitem()[1].close()

    def open_range(self, descriptor: Descriptor, start: int, end: int) -> Body:
        """A part of a blob, from one byte to before another."""
        return self._registry.open_range(self._reference, descriptor, start, end)


def resolve(
    rooms: Rooms, reference: Reference, *, platform: Platform, origin: RegistryOrigin | None = None
) -> Resolved:
    """Ask the registry what ``reference`` is, down to the config of one platform's manifest.

    Documents that this namespace already has are read from the store: only the top one is asked for.

    Args:
        rooms: The engine's rooms.
        reference: With a tag, a digest or both.
        platform: Whose manifest is taken from an index.
        origin: The repository, where the caller goes on with it.

    Returns:
        The decoded documents and their bytes, each checked against its descriptor.

    Raises:
        RegistryError: The registry refused or could not be reached.
        NotFoundError: There is no such image, or none for ``platform``.
        InvalidError: A document is wrong.
    """
    fetched = rooms.registry.manifest(reference)
    top = Document(fetched.descriptor, fetched.body)
    return resolve_top(rooms, origin or RegistryOrigin(rooms, reference), reference, top, platform=platform)


def resolve_top(rooms: Rooms, origin: Origin, reference: Reference, top: Document, *, platform: Platform) -> Resolved:
    """As ``resolve``, from the document that a reference names."""
    documents = [top]
    while is_index(documents[-1].descriptor.media_type):
        check_depth(documents)
        child = choose_child(Index.parse(documents[-1].body), reference, platform)
        documents.append(Document(child, read_document(rooms, child, origin.read_manifest)))
    resolved = with_config(rooms, origin, reference, documents)
    made_for = resolved.config.platform if resolved.config is not None else None
    if made_for is not None and made_for.architecture and platform.rank(made_for) is None:
        raise _no_platform(reference, platform, str(made_for))
    return resolved


def check_depth(documents: Sequence[Document]) -> None:
    """Raise where the last of some documents, each in the one before, is an index too deep.

    Raises:
        InvalidError: It is.
    """
    if len(documents) > MAX_INDEX_DEPTH:
        top = documents[0].descriptor.digest
        raise InvalidError(
            f"invalid index: {top}: more than {MAX_INDEX_DEPTH} indexes in one another",
            field="manifests",
            value=str(top),
        )


def choose_child(index: Index, reference: Reference, platform: Platform) -> Descriptor:
    """The entry of an index that fits a platform best.

    Raises:
        NotFoundError: None fits; the message names those that there are.
    """
    child = index.choose(platform)
    if child is None:
        known = ", ".join(sorted({str(entry.platform) for entry in index.manifests if entry.platform}))
        raise _no_platform(reference, platform, known or "none named")
    return child


def _no_platform(reference: Reference, platform: Platform, known: str) -> NotFoundError:
    return NotFoundError(
        f"no matching platform: {reference}: wanted {platform}, the image has {known}",
        kind="platform",
        name=str(platform),
        hint="choose one with --platform",
    )


def with_config(rooms: Rooms, origin: Origin, reference: Reference, documents: Sequence[Document]) -> Resolved:
    """What a chain of documents means whose last is a manifest: with the config, where it is an image's.

    Raises:
        InvalidError: It is no manifest; a layer is none, or without a diff_id.
    """
    last = documents[-1]
    if not is_manifest(last.descriptor.media_type):
        raise InvalidError(
            f"unknown media type: {reference}: {last.descriptor.media_type} is no image manifest",
            field="mediaType",
            value=last.descriptor.media_type,
        )
    manifest = Manifest.parse(last.body)
    config = None
    if manifest.is_image:
        manifest.check_layers()  # before anything else is fetched
        body = read_document(rooms, manifest.config, origin.read_blob)
        config = ImageConfig.parse(body)
        manifest.check_config(config)
        documents = [*documents, Document(manifest.config, body)]
    return Resolved(
        reference=reference,
        target=documents[0].descriptor,
        manifest_descriptor=last.descriptor,
        manifest=manifest,
        config=config,
        documents=tuple(documents),
    )


def read_document(rooms: Rooms, descriptor: Descriptor, fetch: Callable[[Descriptor], bytes]) -> bytes:
    """A document that this namespace has, that its descriptor has itself, or that is fetched."""
    if not rooms.is_new and rooms.database.content.find(rooms.namespace, str(descriptor.digest)) is not None:
        with suppress(NotFoundError):  # nothing keeps it yet: a collection may have come in between
            return rooms.blobs.read(descriptor.digest)
    embedded = descriptor.data
    return fetch(descriptor) if embedded is None else embedded
