"""``engine.content``: blobs by digest, as one namespace sees them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.errors import NotFoundError

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms


class Content:
    """The blobs that the engine's namespace has; others do not exist for it."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def info(self, digest: str) -> pyctrd.ContentRecord:
        """Size, media type and where it came from.

        Raises:
            NotFoundError: This namespace has no such blob.
        """
        record = self._rooms.database.content.find(self._rooms.namespace, digest)
        if record is None:
            raise NotFoundError(f"blob not found: {digest}", kind="blob", name=digest)
        return record

    def open(self, digest: str) -> BinaryIO:
        """The blob as an unbuffered binary file, as it came from the registry.

        Raises:
            NotFoundError: This namespace has no such blob, or its bytes are not kept.
        """
        self._refuse_not_kept(digest)
        return self._rooms.blobs.open(digest)

    def rebuild(self, diff_id: str, dest: str | os.PathLike[str]) -> int:
        """Write an unpacked layer's tar as it was before it was compressed, bit for bit, without its blob.

        Args:
            diff_id: A layer of an image of this namespace.
            dest: A file that is made, or replaced when all of it is there and hashes to ``diff_id``.

        Returns:
            Bytes of the tar.

        Raises:
            NotFoundError: This namespace has no such layer, or it is not unpacked.
            DiffIDMismatchError: Its tree was changed.
        """
        from pyctrd.flows.rebuild import rebuild_layer

        return rebuild_layer(self._rooms, diff_id, Path(dest))

    def list(self) -> list[pyctrd.ContentRecord]:
        """All blobs of this namespace, by digest."""
        return list(self._rooms.database.content.walk(self._rooms.namespace))

    def usage(self) -> pyctrd.ContentUsage:
        """What this namespace is charged for: every blob that it has, whoever has it too, in bytes as it came.

        Those whose bytes are not kept are charged as well: they stand for their layers. Unpacked layers and containers'
        own files are not charged. What is on its way in counts against the quota, when it begins and again when it is
        recorded.
        """
        usage, namespace = self._rooms.database.usage, self._rooms.namespace
        return pyctrd.ContentUsage(usage.charged(namespace), usage.reserved(namespace), usage.quota(namespace))

    def check(self, digest: str) -> None:
        """Hash one blob.

        Raises:
            NotFoundError: This namespace has no such blob, or its bytes are not kept.
            IntegrityError: It is damaged.
        """
        self._refuse_not_kept(digest)
        self._rooms.blobs.verify(digest)

    def _refuse_not_kept(self, digest: str) -> None:
        # By this namespace's own record: that the store has the bytes for another must not show.
        if not self.info(digest).is_stored:
            raise NotFoundError(
                f"blob not kept: {digest}: its layer was unpacked, and the blob not stored",
                kind="blob",
                name=digest,
                hint="pull its image again with its blobs; or make the layer's tar by content.rebuild",
            )
