"""Rebuild: an unpacked layer becomes the tar again that it came from."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd.errors import NotFoundError
from pyctrd.oci.digest import Digest

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms


def rebuild_layer(rooms: Rooms, diff_id: str, dest: Path) -> int:
    """Write a layer's tar into a file that has its name only when it is whole; see ``Content.rebuild``."""
    parsed = Digest.parse(diff_id, field="diff_id")
    with rooms.collection_lock(shared=True):
        if not rooms.database.layers.belongs_to(rooms.namespace, str(parsed)):  # whatever the store has
            raise NotFoundError(
                f"layer not found: {diff_id}", kind="layer", name=diff_id, hint="pull its image, and unpack it"
            )
        staged = dest.with_name(f".{dest.name}.{os.urandom(8).hex()}")
        try:
            size = rooms.layers.rebuild(parsed, staged)
            staged.replace(dest)
        except BaseException:
            with suppress(FileNotFoundError):
                staged.unlink()
            raise
    return size
