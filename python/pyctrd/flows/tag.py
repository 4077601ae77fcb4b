"""Tag: another name for an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.oci.reference import Reference


def tag_image(rooms: Rooms, record: ImageRecord, target: Reference) -> ImageRecord:
    """Record the name, durable when it returns.

    Raises:
        InvalidError: It has a digest: that is no name to give.
        NotFoundError: The image was removed meanwhile.
    """
    if target.digest is not None:
        raise InvalidError(
            f"invalid reference: {target}: a name to give has a tag and no digest", field="target", value=str(target)
        )
    with rooms.database.write() as tx:
        # Looked at in the same transaction: what an image needs must not have been collected when it is named again.
        found = tx.images.find(rooms.namespace, record.name)
        if found is None:
            raise NotFoundError(f"image not found: {record.name}", kind="image", name=record.name)
        return tx.images.put(found._replace(name=str(target)), by="tag")
