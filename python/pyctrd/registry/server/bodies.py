"""Bodies: files that are sent by the kernel, and what comes, handed on in blocks."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO

from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from pyctrd.oci.value import NamedTuple
from pyctrd.registry.server.answers import VERSION_HEADER, RefusedError
from pyctrd.registry.server.senders import send_without_pause

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

# Up to so many bytes one write is cheaper than what has the kernel send a file.
SMALL_BYTES = 64 << 10
# Who does not take so many bytes in so long is slower than any line of today (35 KB a second), and is let go.
SLICE_BYTES = 16 << 20
SLICE_SECONDS = 480.0
# What comes is written in blocks of this size, one while the next one comes.
BLOCK_BYTES = 256 << 10
# In each such time so many bytes must come, or the client is gone, or wants to hold a place.
PROGRESS_SECONDS = 60.0
PROGRESS_BYTES = 4096
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


class Span(NamedTuple):
    """A part of some bytes: the first, and how many."""

    start: int
    length: int


def find_span(header: str | None, size: int) -> Span | None:
    """The part that a Range header asks for; None for all: what is no single range of bytes may be passed over.

    Raises:
        RefusedError: There is no such part.

    Spec:
        RFC 9110, section 14.
    """
    if header is None or (match := _RANGE.fullmatch(header.strip())) is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
    if start >= end:
        raise RefusedError(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            "RANGE_INVALID",
            "there is no such part",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return Span(start, end - start)


async def send_file(
    request: web.BaseRequest, file: BinaryIO, span: Span, *, status: int, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Send a part of a file. It is not read here, but where it is short."""
    headers = {**VERSION_HEADER, **headers}
    if span.length <= SMALL_BYTES:
        file.seek(span.start)
        content = file.read(span.length)
        if len(content) != span.length:
            raise OSError(errno.EIO, "blob is shorter than its record says")
        return web.Response(body=content, status=status, headers=headers)
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = span.length
    await response.prepare(request)
    try:
        if request.secure:  # what is encrypted has to be read
            await _send_blocks(response, file, span)
        else:
            await _send_slices(request, file, span)
        await response.write_eof()
    except (OSError, TimeoutError, RuntimeError) as error:
        # Whatever came next would be taken for more of the blob. RuntimeError is a transport's that is closed.
        raise ConnectionResetError(f"a blob was not sent to its end: {error}") from error
    return response


async def _send_slices(request: web.BaseRequest, file: BinaryIO, span: Span) -> None:
    loop, start, end = asyncio.get_running_loop(), span.start, span.start + span.length
    while start < end:
        if (transport := request.transport) is None:
            raise ConnectionResetError("the client is gone")
        start += await send_without_pause(transport, file, start, end - start)
        count = min(SLICE_BYTES, end - start)
        if not count:
            break
        async with asyncio.timeout(SLICE_SECONDS):
            sent = await loop.sendfile(transport, file, start, count)
        if sent != count:
            raise OSError(errno.EIO, "blob is shorter than its record says")
        start += count


async def _send_blocks(response: web.StreamResponse, file: BinaryIO, span: Span) -> None:
    file.seek(span.start)
    left = span.length
    while left:
        block = file.read(min(BLOCK_BYTES, left))
        if not block:
            raise OSError(errno.EIO, "blob is shorter than its record says")
        async with asyncio.timeout(SLICE_SECONDS):
            await response.write(block)
        left -= len(block)


async def go_on(request: web.BaseRequest) -> None:
    """Tell a client that waits for it that its body is wanted.

    Spec:
        RFC 9110, section 10.1.1.
    """
    if request.headers.get("Expect", "").lower() == "100-continue":
        writer: AbstractStreamWriter = request.writer
        await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.output_size = 0  # it is no part of the answer


async def receive(request: web.BaseRequest, take: Callable[[bytes], Awaitable[None]]) -> int:
    """Hand on what comes, a block after the other; how many bytes that were.

    What came before a client left is handed on too.

    Raises:
        RefusedError: It comes too slowly.
        ConnectionResetError: The client is gone.
    """
    await go_on(request)
    blocks = _Blocks(take)
    progress = _Progress()
    try:
        while not request.content.at_eof():
            try:
                async with asyncio.timeout(progress.left()):
                    data = await request.content.readany()
            except TimeoutError as error:
                raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", "too slow") from error
            progress.note(len(data))
            await blocks.add(data)
    except (ClientError, HttpProcessingError, ConnectionError) as error:
        await blocks.end()
        raise ConnectionResetError("the client is gone") from error
    except RefusedError:
        await blocks.end()
        raise
    await blocks.end()
    return blocks.total


async def read_limited(request: web.BaseRequest, most: int) -> bytes:
    """A document that comes.

    Raises:
        RefusedError: It is larger, or comes too slowly.
    """
    too_large = RefusedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "SIZE_INVALID", f"expected a manifest of at most {most} bytes"
    )
    if (request.content_length or 0) > most:
        raise too_large
    content = bytearray()

    async def take(data: bytes) -> None:
        content.extend(data)
        if len(content) > most:
            raise too_large

    await receive(request, take)
    return bytes(content)


class _Progress:
    """Whether enough comes."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._until = self._clock() + PROGRESS_SECONDS
        self._came = 0

    def left(self) -> float:
        """Seconds in which more must come."""
        return self._until - self._clock()

    def note(self, count: int) -> None:
        """Something came."""
        self._came += count
        if self._came >= PROGRESS_BYTES:
            self._came = 0
            self._until = self._clock() + PROGRESS_SECONDS


class _Blocks:
    """Collects what comes in small pieces. One block is taken while the next is collected."""

    def __init__(self, take: Callable[[bytes], Awaitable[None]]) -> None:
        self._take = take
        self._parts: list[bytes] = []
        self._size = 0
        self._taking: asyncio.Task[None] | None = None
        self.total = 0

    async def add(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= BLOCK_BYTES:
            await self._hand_on()

    async def _hand_on(self) -> None:
        await self._wait()
        block = b"".join(self._parts)
        self._parts, self._size = [], 0
        self._taking = asyncio.ensure_future(self._counted(block))

    async def _counted(self, block: bytes) -> None:
        await self._take(block)
        self.total += len(block)

    async def _wait(self) -> None:
        taking, self._taking = self._taking, None
        if taking is not None:
            await taking

    async def end(self) -> None:
        """All is handed on and taken when this returns."""
        if self._parts:
            await self._hand_on()
        await self._wait()
