"""What the store knows of an image, read back and decoded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyctrd.errors import ConflictError, InvalidError, NotFoundError
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.reference import Reference
from pyctrd.snapshots.protocol import LayerRef

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord

_DIGEST_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")


def find_image(rooms: Rooms, name: str) -> ImageRecord | None:
    """The record of a reference or of a digest's beginning, None where there is none.

    Raises:
        ConflictError: A beginning that several images share.
    """
    if match := _DIGEST_PREFIX.fullmatch(name):
        return _find_by_digest(rooms, name, match[1])
    try:
        reference = Reference.parse(name)
    except InvalidError:
        return None
    return rooms.database.images.find(rooms.namespace, str(reference))


def get_image(rooms: Rooms, name: str) -> ImageRecord:
    """As ``find_image``.

    Raises:
        NotFoundError: There is none.
    """
    record = find_image(rooms, name)
    if record is None:
        raise NotFoundError(
            f"image not found: {name}", kind="image", name=name, hint=f"pull it first: pyctrd pull {name}"
        )
    return record


def _find_by_digest(rooms: Rooms, name: str, prefix: str) -> ImageRecord | None:
    found = [
        record
        for record in rooms.database.images.list(rooms.namespace)
        if any(
            digest.partition(":")[2].startswith(prefix)
            for digest in (record.target_digest, record.manifest_digest, record.config_digest)
        )
    ]
    if len({record.manifest_digest for record in found}) > 1:
        names = ", ".join(record.name for record in found)
        raise ConflictError(
            f"ambiguous image: {name}: could be {names}", kind="image", name=name, hint="give more digits"
        )
    return found[0] if found else None


def load_manifest(rooms: Rooms, record: ImageRecord) -> Manifest:
    """The image's manifest, from its blob."""
    return Manifest.parse(rooms.blobs.read(record.manifest_digest))


def load_config(rooms: Rooms, record: ImageRecord) -> ImageConfig:
    """The image's config, from its blob.

    Raises:
        InvalidError: It is no image but another kind of artifact.
    """
    load_manifest(rooms, record).check_is_image(record.name)
    return ImageConfig.parse(rooms.blobs.read(record.config_digest))


def ensure_unpacked(rooms: Rooms, record: ImageRecord) -> None:
    """Unpack an image that was sent to the store and that nobody used yet; no lock of the store may be held."""
    repository, _, tag = record.name.rpartition(":")
    if rooms.database.repositories.find_tag(rooms.namespace, repository, tag) is not None:
        from pyctrd.flows.first_use import unpack_sent

        unpack_sent(rooms, record)


def image_layers(rooms: Rooms, record: ImageRecord) -> list[LayerRef]:
    """The image's unpacked layers, lowest first.

    Raises:
        NotFoundError: A layer was not unpacked: the image was pulled with ``unpack=False``.
    """
    diff_ids = [str(diff_id) for diff_id in load_config(rooms, record).rootfs.diff_ids]
    # No blob is asked for: one may be lost, and dropped by a repair, and the layer serves as before.
    there = rooms.database.layers.unpacked_for(rooms.namespace, diff_ids)
    if (missing := next((diff_id for diff_id in diff_ids if diff_id not in there), None)) is not None:
        raise NotFoundError(
            f"layer not unpacked: {record.name}: {missing}",
            kind="layer",
            name=missing,
            hint=f"unpack it: pyctrd pull {record.name}",
        )
    return [LayerRef(diff_id, rooms.layers.path(diff_id)) for diff_id in diff_ids]
