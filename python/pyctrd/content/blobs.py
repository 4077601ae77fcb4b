"""Blobs on disk, by digest: ``content/blobs/<alg>/<hex>``, the shape of an OCI layout's ``blobs/``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pyctrd import _core
from pyctrd.content.names import scan_digests, walk_digests, walk_strays
from pyctrd.errors import NotFoundError
from pyctrd.oci.digest import Digest
from pyctrd.oci.value import dataclass


@dataclass(frozen=True, slots=True)
class BlobStat:
    """What is known of a blob without reading it.

    Attributes:
        digest: ``algorithm:hex``.
        size: Bytes.
    """

    digest: str
    size: int


class Blobs:
    """The blobs of a root, whoever they belong to: visibility is the database's business.

    Args:
        root: The engine's root directory.
    """

    def __init__(self, root: Path) -> None:
        self._blobs = root / "content" / "blobs"

    def path(self, digest: str | Digest) -> Path:
        """Where a blob is, or would be.

        Raises:
            InvalidError: The digest is none; so no path can leave the store.
        """
        parsed = Digest.parse(str(digest))
        return self._blobs / parsed.algorithm / parsed.hex

    def exists(self, digest: str | Digest) -> bool:
        """Whether it is there."""
        return self.path(digest).is_file()

    def stat(self, digest: str | Digest) -> BlobStat:
        """Its size.

        Raises:
            NotFoundError: It is not there.
        """
        try:
            return BlobStat(str(digest), self.path(digest).stat().st_size)
        except FileNotFoundError as error:
            raise _missing(digest) from error

    def open(self, digest: str | Digest) -> BinaryIO:
        """It, as an unbuffered binary file.

        Raises:
            NotFoundError: It is not there.
        """
        try:
            return self.path(digest).open("rb", buffering=0)
        except FileNotFoundError as error:
            raise _missing(digest) from error

    def read(self, digest: str | Digest) -> bytes:
        """All of it: for documents, whose size was limited when they came in.

        Raises:
            NotFoundError: It is not there.
        """
        with self.open(digest) as file:
            return file.read()

    def walk(self) -> Iterator[Digest]:
        """The digests of all blobs, sorted."""
        return walk_digests(self._blobs)

    def scan(self) -> Iterator[str]:
        """As ``walk``, in no order and with no list of all."""
        return scan_digests(self._blobs)

    def strays(self) -> Iterator[Path]:
        """What somebody else put among them; it is never touched."""
        return walk_strays(self._blobs)

    def delete(self, digest: str | Digest, *, missing_ok: bool = False) -> None:
        """Remove it; one step, so that a crash leaves it whole or gone.

        Raises:
            NotFoundError: It is not there, and ``missing_ok`` is not set.
        """
        try:
            self.path(digest).unlink(missing_ok=missing_ok)
        except FileNotFoundError as error:
            raise _missing(digest) from error

    def verify(self, digest: str | Digest) -> None:
        """Hash it.

        Raises:
            DigestMismatchError: It is damaged.
            NotFoundError: It is not there.
        """
        try:
            _core.verify_file(self.path(digest), str(digest))
        except FileNotFoundError as error:
            raise _missing(digest) from error


def _missing(digest: str | Digest) -> NotFoundError:
    return NotFoundError(f"blob not found: {digest}", kind="blob", name=str(digest))
