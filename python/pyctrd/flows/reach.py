"""What an image needs, read from its documents once and written down.

Of an index that is the image's own manifest, and each other that its namespace has with all that it names: what came
in for more platforms stays as long as the name does. What another namespace has makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import IntegrityError, InvalidError, NotFoundError
from pyctrd.flows.resolve import MAX_INDEX_DEPTH
from pyctrd.flows.share import has_content
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.document import DOCUMENT_MAX_BYTES
from pyctrd.oci.index import Index
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index, is_manifest
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.database import Tables
    from pyctrd.metadata.images import ImageRecord

# Whether a document is stored; or, with a diff_id, "" for none, a layer's blob, or the layer in place of it.
Has = Callable[[str, str | None], bool]
# Images whose needs are written down in one transaction: a few milliseconds of one.
PAGE = 100


class Held(NamedTuple):
    """A manifest that an image's name leads to and that is there, with all that it names.

    Attributes:
        digest: Its own.
        manifest: Decoded.
        diff_ids: Of its layers; empty for what is no image, or says of itself what cannot be.
        platform: ``os/architecture[/variant]``; "" where it is no image.
    """

    digest: str
    manifest: Manifest
    diff_ids: tuple[str, ...]
    platform: str


class Needs(NamedTuple):
    """What an image needs.

    Attributes:
        blobs: Digests: its documents and its layers' blobs.
        layers: diff_ids; empty for an artifact that is no image.
        manifests: The manifest whose blobs those are, or where there are several a digest of their list.
    """

    blobs: frozenset[str]
    layers: frozenset[str]
    manifests: str


def learn_needs(rooms: Rooms) -> dict[str, str]:
    """Write down what every image needs of which it is not known yet.

    Returns:
        For each namespace that has an image whose documents are missing or damaged, what is wrong with it: nobody knows
        what that image needs, so nothing of the namespace can be told to be needless, and no layer.
    """
    database = rooms.database
    damaged: dict[str, str] = {}
    unknown = _unknown(database)
    while page := list(islice(unknown, PAGE)):
        found = []
        for record in page:
            try:
                found.append((record, needs_of(rooms, record)))
            except IntegrityError as error:
                if database.images.find(record.namespace, record.name) == record:  # else it was removed meanwhile
                    damaged.setdefault(record.namespace, str(error))
        if found:
            with database.write() as tx:
                for record, needs in found:
                    _add(tx, record, needs)
    return damaged


def learn_new_needs(rooms: Rooms, tx: Tables) -> dict[str, str]:
    """As ``learn_needs``, in a transaction: for the few images that got their names since then."""
    damaged: dict[str, str] = {}
    for record in _unknown(tx):
        try:
            _add(tx, record, needs_of(rooms, record, has=partial(is_had, tx, record.namespace)))
        except IntegrityError as error:
            damaged.setdefault(record.namespace, str(error))
    return damaged


def needs_of(rooms: Rooms, record: ImageRecord, *, has: Has | None = None) -> Needs:
    """The blobs and layers that an image needs, from its documents.

    Args:
        rooms: The engine's rooms.
        record: The image's.
        has: What of its index is there; what its namespace has by default.

    Raises:
        IntegrityError: A document is missing or damaged.
    """
    indexes, held = walk_held(rooms, record, has=has)
    blobs = {record.target_digest, record.manifest_digest, record.config_digest, *indexes}
    layers: set[str] = set()
    for each in held:
        blobs |= {each.digest, *(str(blob.digest) for blob in (each.manifest.config, *each.manifest.layers))}
        layers.update(each.diff_ids)
    names = sorted(each.digest for each in held)
    manifests = names[0] if len(names) == 1 else _core.digest_bytes(" ".join(names).encode())
    return Needs(frozenset(blobs), frozenset(layers), manifests)


def walk_held(rooms: Rooms, record: ImageRecord, *, has: Has | None = None) -> tuple[list[str], list[Held]]:
    """What of an image's documents is there: indexes, its target first; and manifests, its own first.

    Others than its own count where they are there whole, the others in the order of the index.

    Raises:
        IntegrityError: As ``needs_of``.
    """
    try:
        own = _read_own(rooms, record)
        if not is_index(record.target_media_type):
            return [], [own]
        found = _Index(rooms, has or partial(is_had, rooms.database, record.namespace), seen=own.digest)
        found.add(record.target_digest, Index.parse(rooms.blobs.read(record.target_digest)), depth=1)
    except (NotFoundError, InvalidError) as error:
        raise IntegrityError(
            f"image damaged: {record.name}: {error}",
            subject=record.name,
            hint=f"pull it again, or remove it: pyctrd -n {record.namespace} rmi {record.name}",
        ) from error
    return found.indexes, [own, *found.held]


def is_had(tables: Tables, namespace: str, digest: str, diff_id: str | None) -> bool:
    """Whether a namespace has something; see ``Has``."""
    if diff_id is None:
        record = tables.content.find(namespace, digest)
        return record is not None and record.is_stored
    return has_content(tables, namespace, digest, diff_id or None)


def _read_own(rooms: Rooms, record: ImageRecord) -> Held:
    manifest = Manifest.parse(rooms.blobs.read(record.manifest_digest))
    if not manifest.is_image:
        return Held(record.manifest_digest, manifest, (), "")
    config = ImageConfig.parse(rooms.blobs.read(record.config_digest))
    return Held(record.manifest_digest, manifest, _diff_ids(config), record.platform)


class _Index:
    """What is there of an index, beside the manifest that is known already.

    Args:
        rooms: The engine's rooms.
        has: What is there.
        seen: The known one's digest.
    """

    def __init__(self, rooms: Rooms, has: Has, *, seen: str) -> None:
        self.indexes: list[str] = []
        self.held: list[Held] = []
        self._rooms = rooms
        self._has = has
        self._seen = {seen}

    def add(self, digest: str, index: Index, *, depth: int) -> None:
        """An index and what is there of all that it names.

        Raises:
            NotFoundError: A document is recorded, and not on disk.
        """
        self.indexes.append(digest)
        for child in index.manifests:
            name = str(child.digest)
            if name in self._seen or not self._has(name, None):
                continue
            self._seen.add(name)
            # An index may name anything by any type: who could send a layer as a manifest must not stop collections.
            if self._rooms.blobs.stat(name).size > DOCUMENT_MAX_BYTES:
                continue
            body = self._rooms.blobs.read(name)
            try:
                nested = Index.parse(body) if is_index(child.media_type) and depth < MAX_INDEX_DEPTH else None
                manifest = Manifest.parse(body) if is_manifest(child.media_type) else None
            except InvalidError:
                continue
            if nested is not None:
                self.add(name, nested, depth=depth + 1)
            elif manifest is not None and (held := self._hold(name, manifest)) is not None:
                self.held.append(held)

    def _hold(self, digest: str, manifest: Manifest) -> Held | None:
        """A manifest, None where it is not there whole."""
        if not self._has(str(manifest.config.digest), None):
            return None
        config = self._read_config(manifest)
        diff_ids: tuple[str, ...] = () if config is None else _diff_ids(config)
        claims = dict(zip((str(layer.digest) for layer in manifest.layers), diff_ids, strict=False))
        if not all(self._has(str(layer.digest), claims.get(str(layer.digest), "")) for layer in manifest.layers):
            return None
        return Held(digest, manifest, diff_ids, "" if config is None else str(config.platform))

    def _read_config(self, manifest: Manifest) -> ImageConfig | None:
        """The config of what can be unpacked, None of all else."""
        stat = self._rooms.blobs.stat(manifest.config.digest)
        if not manifest.is_unpackable or stat.size > DOCUMENT_MAX_BYTES:
            return None
        try:
            config = ImageConfig.parse(self._rooms.blobs.read(manifest.config.digest))
            manifest.check_config(config)
        except InvalidError:
            return None
        return config


def _diff_ids(config: ImageConfig) -> tuple[str, ...]:
    return tuple(str(diff_id) for diff_id in config.rootfs.diff_ids)


def _unknown(tables: Tables) -> Iterator[ImageRecord]:
    for namespace, name in tables.reachability.unknown_images():
        if (record := tables.images.find(namespace, name)) is not None:
            yield record


def _add(tx: Tables, record: ImageRecord, needs: Needs) -> None:
    tx.reachability.add(record, needs.manifests, blobs=needs.blobs, layers=needs.layers)
