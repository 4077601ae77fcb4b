"""HTTP/1.1 over one socket: a request goes out, a head comes in, and the body in the framing that the head names.

Strict where leniency has been an attack: whatever leaves is visible ASCII, an answer whose length can be read in two
ways is refused, and a connection whose last body was not read to its end carries no other.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Protocol, Self

from pyctrd._core import parse_response_head
from pyctrd.errors import InvalidError
from pyctrd.registry.sockets import TcpSocket, end, send_file

if TYPE_CHECKING:
    from types import TracebackType

HEAD_MAX_BYTES = 64 * 1024  # as Python's own client allows for one field
INTERIM_MAX = 8  # answers 1xx before the real one; a server that has more to say of its progress says nothing
CHUNK_LINE_MAX_BYTES = 4 * 1024  # a size has 16 digits; the rest is for extensions, which nobody uses
TRAILERS_MAX_BYTES = 16 * 1024  # they are passed over
DRAIN_MAX_BYTES = 64 * 1024  # what is read of an unwanted body so that its connection can be used again
_PIECE_BYTES = 8 * 1024  # read at once where the sort of the next byte is not known: heads and lines of chunks
_SIZE_DIGITS_MAX = 18  # sizes below 2^63, decimal or hexadecimal
_CHUNK_DIGITS_MAX = 15
_HEX = frozenset(b"0123456789abcdefABCDEF")
_BODILESS = frozenset({204, 304})


class ProtocolError(Exception):
    """What came is no HTTP/1.1, or not all of it."""


class NoAnswerError(ProtocolError):
    """The connection ended before the first byte of an answer."""


class Socket(Protocol):
    """What is needed of a socket; ``ssl.SSLSocket`` and TLS within TLS are others."""

    def recv(self, count: int, /) -> bytes:
        """Some bytes; none at the end."""
        ...

    def recv_into(self, buffer: memoryview, /) -> int:
        """Some bytes into a buffer; 0 at the end."""
        ...

    def sendall(self, content: bytes | memoryview, /) -> None:
        """All of the bytes."""
        ...

    def settimeout(self, seconds: float, /) -> None:
        """How long each of these may wait."""
        ...

    def fileno(self) -> int:
        """Its descriptor."""
        ...

    def close(self) -> None:
        """Give the descriptor back."""
        ...


class Payload(Protocol):
    """A request's body that is sent from where it lies; from its start again, where that must be.

    Attributes:
        length: Its bytes.
    """

    length: int

    def write_to(self, connection: Connection) -> bool:
        """Send it; False where the server answered before it had all."""
        ...


def write_request(method: str, target: str, fields: Mapping[str, str], body: bytes = b"") -> bytes:
    """The bytes of a request.

    Raises:
        ProtocolError: A character would end a line, or is none that HTTP has.
    """
    for text in (target, *fields, *fields.values()):
        if not (text.isascii() and text.isprintable()):  # of ASCII, all but control characters are printable
            raise ProtocolError("a character that cannot be sent")
    if " " in target or not target:
        raise ProtocolError("a target that cannot be sent")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("ascii") + body


class Connection:
    """A socket, and what came on it that was not asked for yet. One thread at a time, but for ``interrupt``.

    Args:
        made: Connected; belongs to the connection from now on.
    """

    def __init__(self, made: Socket) -> None:
        self._socket = made
        self._came = bytearray()
        self._is_cut = False

    def send(self, content: bytes, payload: Payload | None = None) -> None:
        """Send a whole request, or as much of it as the server waits for before it answers."""
        # A server may answer and close before it has read everything: then its answer tells.
        with contextlib.suppress(BrokenPipeError):
            self._socket.sendall(content)
            if payload is not None:
                self._is_cut = True  # until all of it is sent, nothing else may follow
                self._is_cut = not payload.write_to(self)

    def write(self, piece: memoryview) -> None:
        """Send a piece of a request's body."""
        self._socket.sendall(piece)

    def send_file(self, file: IO[bytes], offset: int, count: int) -> int:
        """Send bytes of a file as a piece of a request's body; how many there were."""
        if type(self._socket) is TcpSocket:  # an SSLSocket is one too, and has to encrypt
            return send_file(self._socket, file, offset, count)
        piece = os.pread(file.fileno(), count, offset)
        self._socket.sendall(piece)
        return len(piece)

    def has_answer(self) -> bool:
        """Whether something came while a request is still being sent: an answer, or the end."""
        return not self.is_idle()

    def head(self) -> tuple[int, str, int, dict[str, str]]:
        """The next answer's status, reason, minor version and fields; fields of one name are joined by commas.

        Raises:
            NoAnswerError: The connection ended before its first byte.
            ProtocolError: It is no HTTP, or longer than ``HEAD_MAX_BYTES``.
        """
        looked = 0
        while True:
            # A whole head ends in an empty line; until there is one, nothing needs to be parsed again.
            if self._came.find(b"\n\r\n", max(0, looked - 2)) >= 0 or self._came.find(b"\n\n", max(0, looked - 1)) >= 0:
                try:
                    head = parse_response_head(bytes(self._came))
                except InvalidError as error:
                    raise ProtocolError(str(error)) from error
                if head is not None:
                    del self._came[: head.size]
                    return head.status, head.reason, head.minor_version, _join(head.fields)
            looked = len(self._came)
            if looked > HEAD_MAX_BYTES:
                raise ProtocolError(f"no end of its head in {HEAD_MAX_BYTES} bytes")
            if not self._more():
                raise ProtocolError("closed within its head") if looked else NoAnswerError("closed without an answer")

    def line(self, most: int) -> bytes:
        """The next line without its end, which is CR LF and nothing else."""
        looked = 0
        while (end := self._came.find(b"\r\n", max(0, looked - 1))) < 0:
            looked = len(self._came)
            if looked > most + 1:
                break
            if not self._more():
                raise ProtocolError("closed")
        if end < 0 or end > most:
            raise ProtocolError("a line that is too long")
        found = bytes(self._came[:end])
        del self._came[: end + 2]
        return found

    def receive_into(self, buffer: memoryview) -> int:
        """Some bytes into the front of a buffer; 0 at the end."""
        if not self._came:
            return self._socket.recv_into(buffer)
        count = min(len(buffer), len(self._came))
        buffer[:count] = self._came[:count]
        del self._came[:count]
        return count

    @property
    def is_cut(self) -> bool:
        """Whether a request was answered before all of it was sent: it can carry no other."""
        return self._is_cut

    def is_idle(self) -> bool:
        """Whether it stands open and silent; what comes without a question, an end among it, makes it useless."""
        pending = getattr(self._socket, "pending", None)  # TLS may have decrypted more than was asked for
        if self._came or (pending is not None and pending()):
            return False
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    def settimeout(self, seconds: float) -> None:
        """How long to wait for each next byte."""
        self._socket.settimeout(seconds)

    def interrupt(self) -> None:
        """End what waits in another thread; that thread closes then."""
        # Of the descriptor alone: an SSLSocket's own would go on as a plain one.
        end(self._socket.fileno())

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _more(self) -> bool:
        piece = self._socket.recv(_PIECE_BYTES)
        self._came += piece
        return bool(piece)


class Answer:
    """One answer: its head, and its body unread. Read in one thread; ``close`` from any.

    Attributes:
        status: Of HTTP.
        reason: The server's words for it.
        headers: By names in lower case.
        url: Who answered: where the last redirect led.
        source: Who was asked: a registry's name, or a mirror's host; "" where that is nobody's to know.
        tries: How often it was asked for; with more than one, all before failed.
        broke: Told when its body ends early, or comes too slowly; says whether others are asked next. None where there
            are no others.
    """

    def __init__(self, connection: Connection, method: str, *, keep: Callable[[Connection], None]) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = connection
        self._keep = keep
        self._reading = False
        self.url = ""
        self.source = ""
        self.tries = 1
        self.broke: Callable[[], bool] | None = None
        self.status, self.reason, minor, self.headers = _final_head(connection)
        self._again = _may_be_used_again(minor, self.headers) and not connection.is_cut
        self._chunked, self._left = _framing(method, self.status, minor, self.headers)
        self._begun = False  # of a chunked body: whether a chunk's end has to come before the next one
        self._ended = False
        if self._left == 0 and not self._chunked:
            self._end(connection)

    def readinto(self, buffer: memoryview) -> int:
        """Fill the front of ``buffer`` with what is there; 0 at the body's end.

        Raises:
            OSError: The connection broke, or nothing came in time.
            ProtocolError: It ended too early, or was closed from here.
        """
        with self._lock:
            connection = self._connection
            if connection is None:
                if self._ended:
                    return 0
                raise ProtocolError("closed")
            self._reading = True
        try:
            return self._read(connection, buffer)
        finally:
            with self._lock:
                self._reading = False
                interrupted = self._connection is None and not self._ended
            if interrupted:
                connection.close()

    def read(self, most: int) -> bytes:
        """The body, or its first ``most`` bytes."""
        content = bytearray()
        block = memoryview(bytearray(min(most, DRAIN_MAX_BYTES)))
        while len(content) < most and (count := self.readinto(block[: most - len(content)])):
            content += block[:count]
        return bytes(content)

    def drain(self) -> None:
        """Read what is left if that is little, so that the connection can be used again; end it otherwise."""
        with contextlib.suppress(OSError, ProtocolError):
            self.read(DRAIN_MAX_BYTES + 1)
        self.close()

    def close(self) -> None:
        """End it; a read that waits in another thread returns at once. Idempotent."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is None:
                return
            # The reader closes it: the descriptor's number must not be another file's while it waits on it.
            if self._reading:
                connection.interrupt()
                return
        connection.close()

    def _read(self, connection: Connection, buffer: memoryview) -> int:
        if self._chunked and self._left == 0:
            self._left = self._next_chunk(connection)
            if self._left == 0:
                self._end(connection)
                return 0
        count = connection.receive_into(buffer if self._left is None else buffer[: self._left])
        if self._left is None:
            if count == 0:
                self._end(connection)
            return count
        if count == 0 and buffer:
            raise ProtocolError("closed")
        self._left -= count
        if self._left == 0 and not self._chunked:
            self._end(connection)
        return count

    def _next_chunk(self, connection: Connection) -> int:
        """The size of the next chunk; 0 behind the last one, its trailers read (RFC 9112, section 7.1)."""
        if self._begun:
            connection.line(0)
        digits = connection.line(CHUNK_LINE_MAX_BYTES).partition(b";")[0].rstrip(b" \t")
        if not 0 < len(digits) <= _CHUNK_DIGITS_MAX or not _HEX.issuperset(digits):
            raise ProtocolError("no size of a chunk")
        size = int(digits, 16)
        self._begun = True
        if size == 0:
            left = TRAILERS_MAX_BYTES
            while line := connection.line(left):
                left = max(0, left - len(line))
        return size

    def _end(self, connection: Connection) -> None:
        """The body is whole: give the connection back."""
        with self._lock:
            if self._connection is None:
                return  # closed meanwhile: the reader closes it
            self._connection = None
            self._ended = True
        if self._again and self._left is not None and connection.is_idle():
            self._keep(connection)
        else:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _final_head(connection: Connection) -> tuple[int, str, int, dict[str, str]]:
    """The head of the answer proper, behind those that only say that one will come."""
    for _ in range(INTERIM_MAX + 1):
        head = connection.head()
        if head[0] >= 200:
            return head
        if head[0] == 101:
            raise ProtocolError("another protocol than was asked for")
    raise ProtocolError(f"more than {INTERIM_MAX} interim answers")


def _join(fields: list[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in fields:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _may_be_used_again(minor: int, headers: Mapping[str, str]) -> bool:
    said = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    return "close" not in said and (minor == 1 or "keep-alive" in said)


def _framing(method: str, status: int, minor: int, headers: dict[str, str]) -> tuple[bool, int | None]:
    """Whether the body comes in chunks, and how many bytes come; None until the connection's end.

    Raises:
        ProtocolError: It can be read in two ways, or in none: the start of every smuggled answer.

    Spec:
        RFC 9112, section 6.3.
    """
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None:
        lengths = {value.strip() for value in length.split(",")}
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()) or len(length) > _SIZE_DIGITS_MAX:
            raise ProtocolError("no length that can be relied on")
        headers["content-length"] = length
    if coding is not None and (length is not None or minor == 0 or coding.strip().lower() != "chunked"):
        raise ProtocolError("a transfer coding that cannot be relied on")
    if method == "HEAD" or status in _BODILESS:
        return False, 0
    if coding is not None:
        return True, 0
    return False, None if length is None else int(length)
