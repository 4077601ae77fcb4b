"""Files of an image, read with no mount."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.flows.load import image_layers

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord


def read_file(rooms: Rooms, record: ImageRecord, path: bytes) -> bytes:
    """The content of a regular file in an image's merged view; see ``Image.read_file``."""
    with rooms.collection_lock(shared=True):
        view = _core.ImageView([layer.path for layer in image_layers(rooms, record)])
        with os.fdopen(view.open(path), "rb") as file:
            return file.read()
