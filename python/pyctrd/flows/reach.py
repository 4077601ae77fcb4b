"""What an image needs, read from its documents once and written down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyctrd.errors import IntegrityError, InvalidError, NotFoundError
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.index import Index
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.database import Tables
    from pyctrd.metadata.images import ImageRecord


class Needs(NamedTuple):
    """What an image needs.

    Attributes:
        blobs: Digests: its documents and its layers' blobs.
        layers: diff_ids; empty for an artifact that is no image.
    """

    blobs: frozenset[str]
    layers: frozenset[str]


def learn_needs(rooms: Rooms) -> dict[str, str]:
    """Write down what every image needs of which it is not known yet.

    Returns:
        For each namespace that has an image whose documents are missing or damaged, what is wrong with it: nobody knows
        what that image needs, so nothing of the namespace can be told to be needless, and no layer.
    """
    database = rooms.database
    damaged: dict[str, str] = {}
    for record in _unknown(database):
        try:
            needs = needs_of(rooms, record)
        except IntegrityError as error:
            if database.images.find(record.namespace, record.name) == record:  # else it was removed while it was read
                damaged.setdefault(record.namespace, str(error))
            continue
        with database.write() as tx:
            _add(tx, record, needs)
    return damaged


def learn_new_needs(rooms: Rooms, tx: Tables) -> dict[str, str]:
    """As ``learn_needs``, in a transaction: for the few images that got their names since then."""
    damaged: dict[str, str] = {}
    for record in _unknown(tx):
        try:
            _add(tx, record, needs_of(rooms, record))
        except IntegrityError as error:
            damaged.setdefault(record.namespace, str(error))
    return damaged


def needs_of(rooms: Rooms, record: ImageRecord) -> Needs:
    """The blobs and layers that an image needs, from its documents.

    Raises:
        IntegrityError: One of them is missing or damaged.
    """
    try:
        return _read_needs(rooms, record)
    except (NotFoundError, InvalidError) as error:
        raise IntegrityError(
            f"image damaged: {record.name}: {error}",
            subject=record.name,
            hint=f"pull it again, or remove it: pyctrd -n {record.namespace} rmi {record.name}",
        ) from error


def _read_needs(rooms: Rooms, record: ImageRecord) -> Needs:
    digests = {record.target_digest, record.manifest_digest, record.config_digest}
    if is_index(record.target_media_type):
        # An index in between is kept as well: the chain from the name to the manifest stays whole.
        digests.update(_indexes_between(rooms, record))
    manifest = Manifest.parse(rooms.blobs.read(record.manifest_digest))
    digests.update(str(layer.digest) for layer in manifest.layers)
    if not manifest.is_image:
        return Needs(frozenset(digests), frozenset())
    config = ImageConfig.parse(rooms.blobs.read(record.config_digest))
    return Needs(frozenset(digests), frozenset(str(diff_id) for diff_id in config.rootfs.diff_ids))


def _indexes_between(rooms: Rooms, record: ImageRecord) -> set[str]:
    found: set[str] = set()
    pending = [record.target_digest]
    while pending:
        index = Index.parse(rooms.blobs.read(pending.pop()))
        for child in index.manifests:
            digest = str(child.digest)
            if is_index(child.media_type) and digest not in found and rooms.blobs.exists(digest):
                found.add(digest)
                pending.append(digest)
    return found


def _unknown(tables: Tables) -> Iterator[ImageRecord]:
    for namespace, name in tables.reachability.unknown_images():
        if (record := tables.images.find(namespace, name)) is not None:
            yield record


def _add(tx: Tables, record: ImageRecord, needs: Needs) -> None:
    tx.reachability.add(record.target_digest, record.manifest_digest, blobs=needs.blobs, layers=needs.layers)
