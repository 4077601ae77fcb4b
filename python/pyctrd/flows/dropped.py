"""Blobs that were not kept, and can be had again from the layer that they were unpacked to."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, BinaryIO

from pyctrd import _core
from pyctrd.errors import DiffIDMismatchError, NotFoundError

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms

# A tar that is made again takes the disk for as long as somebody reads it, and a processor while it is made.
MADE_AT_ONCE = threading.Semaphore(2)


def may_be_made(rooms: Rooms, digest: str) -> bool:
    """Whether a blob is the tar of an unpacked layer itself, so that it can be made again."""
    tables = rooms.database.layers
    return tables.is_layer_of(digest, digest) and tables.belongs_to(rooms.namespace, digest)


def open_dropped(rooms: Rooms, digest: str) -> BinaryIO | None:
    """An uncompressed layer's blob, bit for bit; None where it is no such layer, or that is not unpacked.

    Of a compressed blob a tar does not say what its compressor made of it.
    """
    if not may_be_made(rooms, digest):
        return None
    with (
        MADE_AT_ONCE,
        rooms.collection_lock(shared=True),
        _core.Workspace(str(rooms.root), os.urandom(16).hex()) as workspace,
    ):
        if not may_be_made(rooms, digest):  # looked at again, now that nobody removes it
            return None
        made = workspace.path / "layer.tar"
        try:
            rooms.layers.rebuild(digest, made)
        except (NotFoundError, DiffIDMismatchError):
            return None  # its tree is gone, or was changed
        return made.open("rb", buffering=0)  # the name goes with the workspace, the bytes when it is closed
