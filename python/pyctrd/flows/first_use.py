"""First use: an image that was sent to the store as a registry is unpacked when somebody wants its files."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pyctrd.flows.fetch import Fetch
from pyctrd.flows.lease import kept, resources_of
from pyctrd.flows.load import load_config, load_manifest
from pyctrd.flows.pull import is_present, note_unpacked, record_content, settle, settling, swept_after_failure, wants_of
from pyctrd.flows.repositories import unknown_blob
from pyctrd.flows.resolve import Resolved
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.reference import Reference

if TYPE_CHECKING:
    from pyctrd.flows.bodies import Body
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord


class StoreOrigin:
    """The namespace's own blobs: what it lacks is nowhere else to be had."""

    is_local = True

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def read_manifest(self, descriptor: Descriptor) -> bytes:
        """See ``Origin``."""
        return self.read_blob(descriptor)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """See ``Origin``."""
        return self._rooms.blobs.read(descriptor.digest)

    def open_blob(self, descriptor: Descriptor, offset: int) -> Body:
        """See ``Origin``; what the namespace has is opened before it is asked for here."""
        del offset
        raise unknown_blob(str(descriptor.digest))


def unpack_sent(rooms: Rooms, record: ImageRecord) -> None:
    """Unpack an image that was sent here, unless it is.

    Raises:
        UnsafeArchiveError, IntegrityError: A layer is not what its image says.
        NotFoundError: A blob of it is not here.
        OSError: The disk.
    """
    config = load_config(rooms, record)
    diff_ids = config.rootfs.diff_ids
    if rooms.database.layers.unpacked_for(rooms.namespace, diff_ids) == set(map(str, diff_ids)):
        return
    manifest = load_manifest(rooms, record)
    resolved = Resolved(
        reference=Reference.parse(record.name),
        target=Descriptor(record.target_media_type, Digest.parse(record.target_digest), record.target_size),
        manifest_descriptor=Descriptor(manifest.media_type, Digest.parse(record.manifest_digest), 0),
        manifest=manifest,
        config=config,
        documents=(),
    )
    wants = wants_of(rooms, resolved, StoreOrigin(rooms), unpack=True)
    with swept_after_failure(rooms), kept(rooms, "unpack", resources_of(wants)) as lease:
        Fetch(
            rooms,
            is_present=partial(is_present, rooms),
            record=partial(record_content, rooms, ""),
            flushes=False,
            publishing=partial(settling, rooms, [diff_ids]),
        ).run(wants)
        settle(rooms, diff_ids)
        with rooms.database.write() as tx:
            lease.end(tx)
            note_unpacked(rooms, tx, wants)
