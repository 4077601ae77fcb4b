"""A blob's bytes on their way from a registry into buffers of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pyctrd.errors import RegistryError, UnavailableError
from pyctrd.registry.connection import ProtocolError

if TYPE_CHECKING:
    from types import TracebackType

    from pyctrd.registry.connection import Answer


class BlobBody:
    """One answer's body. ``readinto`` in one thread; ``close`` from any.

    Attributes:
        offset: Which byte of the blob comes first: 0 where the server ignored the range that was asked for.
        length: Bytes that will come, None where the server did not say.
    """

    def __init__(self, answer: Answer, *, offset: int, length: int | None, url: str) -> None:
        self._answer = answer
        self._url = url
        self._came = 0
        self._ended = False
        self.offset = offset
        self.length = length

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; 0 at the end.

        Raises:
            UnavailableError: The connection broke, or ended before the last byte.
        """
        if self._ended:
            return 0
        try:
            count = self._answer.readinto(buffer)
        except ProtocolError as error:
            raise self._broken(str(error)) from error
        except OSError as error:
            raise self._broken(type(error).__name__) from error
        self._came += count
        self._ended = count == 0
        return count

    def _broken(self, how: str) -> UnavailableError:
        expected = f" of {self.length}" if self.length is not None else ""
        return UnavailableError(
            f"connection broke: {self._url}: {how} after {self._came}{expected} bytes", method="GET", url=self._url
        )

    def close(self) -> None:
        """End it; a read that waits in another thread returns at once. Idempotent."""
        self._ended = True
        self._answer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def body_offset(answer: Answer, wanted: int, url: str) -> tuple[int, int | None] | None:
    """From which byte an answer starts, and how many come; None where it has another range than was asked for.

    Raises:
        RegistryError: All was asked for, and only a range came.
    """
    length_text = answer.headers.get("content-length", "")
    length = int(length_text) if length_text.isascii() and length_text.isdigit() else None
    if answer.status != 206:
        return 0, length
    content_range = answer.headers.get("content-range", "")
    unit, _, spans = content_range.partition(" ")
    first = spans.partition("-")[0]
    if unit != "bytes" or not (first.isascii() and first.isdigit()) or int(first) != wanted:
        if wanted:
            return None
        raise RegistryError(
            f"wrong range: {url}: asked for bytes from {wanted}, got {content_range[:80]!r}",
            method="GET",
            url=url,
            status=206,
        )
    return wanted, length


def check_range(answer: Answer, start: int, end: int, url: str) -> None:
    """See that an answer has the range that was asked for: these bytes, no more and no fewer.

    Raises:
        RegistryError: It has all of the blob, or another range.
    """
    span = answer.headers.get("content-range", "").partition("/")[0] if answer.status == 206 else "all"
    if span != f"bytes {start}-{end - 1}" or answer.headers.get("content-length", str(end - start)) != str(end - start):
        raise RegistryError(
            f"wrong range: {url}: asked for bytes {start} to {end - 1}, got {span[:80]!r}",
            method="GET",
            url=url,
            status=answer.status,
        )
