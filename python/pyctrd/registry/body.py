"""A blob's bytes on their way from a registry into buffers of ours."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from pyctrd.errors import InvalidError, RegistryError, UnavailableError
from pyctrd.oci.hold import waiting
from pyctrd.registry.connection import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from pyctrd.registry.connection import Answer


# A server that brings less than 1 KiB a second is taken for one that brings nothing.
SLOW_SECONDS = 30.0
SLOW_BYTES = 30 * 1024


class RangeRefusedError(Exception):
    """A server that does not give parts of a blob as they are asked for; never gets to a caller."""


class Ranges:
    """Asks a registry for parts of one blob.

    Args:
        ask: Has an answer to a request with this value of ``Range``, whatever it answers with.
        registry: Its host.
        refusing: Registries that were seen to give no parts, or wrong ones.
    """

    def __init__(self, ask: Callable[[str], Answer], registry: str, refusing: set[str]) -> None:
        self.ask = ask
        self._registry = registry
        self._refusing = refusing

    @property
    def is_refused(self) -> bool:
        """Whether the registry is known not to give them."""
        return self._registry in self._refusing

    def refuse(self) -> None:
        """Ask this registry for none again, of whatever blob."""
        self._refusing.add(self._registry)


class BlobBody:
    """One answer's body. ``readinto`` in one thread; ``close`` from any.

    Args:
        answer: Its body is unread.
        offset: See below.
        length: See below.
        url: For messages.
        ranges: Asks for its parts.

    Attributes:
        offset: Which byte of the blob comes first: 0 where the server ignored the range that was asked for.
        length: Bytes that will come, None where the server did not say.
        ranges: What ``open_range`` asks.
        source: Whom it comes from: a registry's or mirror's host, not that of a blob server behind it.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        offset: int,
        length: int | None,
        url: str,
        ranges: Ranges,
    ) -> None:
        self._answer = answer
        self._url = url
        self._came = 0
        self._ended = False
        self._waited, self._window = 0.0, 0
        self.offset = offset
        self.length = length
        self.ranges = ranges
        self.source = answer.source

    def open_range(self, start: int, end: int, size: int) -> BlobBody:
        """Ask for bytes of the same blob, on another connection.

        Args:
            start: The first that is wanted.
            end: The first behind them.
            size: The blob's.

        Returns:
            A body of exactly these bytes, or of fewer if the connection breaks.

        Raises:
            RangeRefusedError: All came, or other bytes, or from another host than this body, or of another blob.
            RegistryError, NotFoundError: As ``Client.open_blob``; nothing is tried again here.

        Spec:
            RFC 9110, sections 14.2 and 14.4 (ranges), 8.8.3 (entity tags).
        """
        asked = f"bytes={start}-{end - 1}"
        try:
            answer = self.ranges.ask(asked)
        except RegistryError as error:
            if error.status != 416:
                raise
            self.ranges.refuse()
            raise RangeRefusedError(f"{self._url}: asked for {asked}, got status 416") from error
        if (why := self._difference(answer, start, end, size)) is not None:
            answer.close()
            self.ranges.refuse()
            raise RangeRefusedError(f"{self._url}: asked for {asked}, got {why:.160}")
        return BlobBody(answer, offset=start, length=end - start, url=self._url, ranges=self.ranges)

    def _difference(self, answer: Answer, start: int, end: int, size: int) -> str | None:
        """In what an answer is not the part of this body's blob that it should be."""
        headers = answer.headers
        spans = {f"bytes {start}-{end - 1}/{total}" for total in (size, "*")}
        hosts = [urlsplit(url).netloc for url in (self._answer.url, answer.url)]
        found: list[tuple[str, object, Collection[object]]] = [
            ("status", answer.status, {206}),
            ("range", headers.get("content-range"), spans),
            ("length", headers.get("content-length"), {str(end - start)}),
            ("encoding", headers.get("content-encoding", "identity"), {"", "identity"}),
            ("host", hosts[1], {hosts[0]}),
        ]
        found += [  # not all answers have them: those of blob servers have no digest
            (name, headers[name], {self._answer.headers[name]})
            for name in ("etag", "docker-content-digest")
            if name in headers and name in self._answer.headers
        ]
        return next((f"{name} {is_!r}" for name, is_, allowed in found if is_ not in allowed), None)

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; 0 at the end.

        Raises:
            UnavailableError: The connection broke, or ended before the last byte.
        """
        if self._ended:
            return 0
        began = time.monotonic()
        try:
            count = self._answer.readinto(buffer)
        except ProtocolError as error:
            raise self._broken(str(error)) from error
        except OSError as error:
            raise self._broken(type(error).__name__) from error
        self._came += count
        self._ended = count == 0
        self._check_pace(count, time.monotonic() - began)
        return count

    def _check_pace(self, count: int, waited: float) -> None:
        """Only the time is counted in which we wait for the server, not that in which it waits for us."""
        self._waited += waited
        self._window += count
        if self._waited >= SLOW_SECONDS:
            if self._window < SLOW_BYTES and not self._ended:
                raise self._broken(f"too slow: {self._window} bytes in {self._waited:.0f} seconds")
            self._waited, self._window = 0.0, 0

    def _broken(self, how: str) -> UnavailableError:
        if self._answer.broke is not None:
            self._answer.broke()
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


def read_limited(answer: Answer, most: int, what: str) -> bytes:
    """A body of at most ``most`` bytes; a larger one is refused unread where its length is announced."""
    announced = answer.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise InvalidError(
            f"too large: {what}: {announced} bytes: expected at most {most}", field=what, value=announced
        )
    try:
        with waiting(answer.close):
            body = answer.read(most + 1)
    except (ProtocolError, OSError) as error:
        raise UnavailableError(f"connection broke: {what}: {type(error).__name__}") from error
    if len(body) > most:
        raise InvalidError(f"too large: {what}: expected at most {most} bytes", field=what, value=len(body))
    return body
