"""Bodies of requests: bytes of a file, or of another registry's answer, on their way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from pyctrd.errors import RegistryError, UnavailableError

if TYPE_CHECKING:
    from pyctrd.oci.hold import Hold
    from pyctrd.registry.body import BlobBody
    from pyctrd.registry.connection import Connection

# Between two pieces it is seen whether the registry has answered already: then it wants no more.
PIECE_BYTES = 4 * 1024 * 1024
BLOCK_BYTES = 256 * 1024


def ignore_sent(_: int) -> None:
    """For who does not count."""


class FilePayload:
    """A part of a file, sent by the kernel where the connection is plain.

    Args:
        file: Open for reading; its position is not used, so that threads may share it.
        offset: The first byte.
        length: How many.
        sent: Told how many more are on their way.
    """

    def __init__(self, file: IO[bytes], *, offset: int, length: int, sent: Callable[[int], None] = ignore_sent) -> None:
        self._file = file
        self._offset = offset
        self._sent = sent
        self.length = length

    def write_to(self, connection: Connection) -> bool:
        """Send it, from its start; False where the registry answered before it had all.

        Raises:
            OSError: The connection broke.
            RegistryError: The file has fewer bytes than it should.
        """
        left, offset = self.length, self._offset
        while left:
            if connection.has_answer():
                return False
            count = connection.send_file(self._file, offset, min(left, PIECE_BYTES))
            if not count:
                raise RegistryError(f"not sent: {self._file.name}: it has fewer bytes than it should")
            offset += count
            left -= count
            self._sent(count)
        return True


class BodyPayload:
    """What another registry sends, handed on as it comes.

    Args:
        opens: Asks for it, from an offset on; each time that it has to be sent.
        offset: Its first byte that is wanted.
        length: How many.
        sent: Told how many more are on their way.
        hold: Ends the wait for more of it.
    """

    def __init__(
        self,
        opens: Callable[[int], BlobBody],
        *,
        offset: int,
        length: int,
        sent: Callable[[int], None] = ignore_sent,
        hold: Hold | None = None,
    ) -> None:
        self._opens = opens
        self._offset = offset
        self._sent = sent
        self._hold = hold
        self.length = length

    def write_to(self, connection: Connection) -> bool:
        """See ``FilePayload``.

        Raises:
            RegistryError: The source's connection broke, or it has fewer bytes than it should.
        """
        body = self._opens(self._offset)
        try:
            if self._hold is not None:
                self._hold.begin(body.close)
            return self._hand_on(body, connection)
        finally:
            if self._hold is not None:
                self._hold.over(body.close)
            body.close()

    def _hand_on(self, body: BlobBody, connection: Connection) -> bool:
        left = self.length
        block = memoryview(bytearray(BLOCK_BYTES))
        skip = self._offset - body.offset
        while left:
            if connection.has_answer():
                return False
            count = body.readinto(block)
            if not count:
                raise UnavailableError("source ended early", hint="its blob is shorter than its manifest says")
            piece = block[min(skip, count) : count][:left]
            skip -= min(skip, count)
            connection.write(piece)
            left -= len(piece)
            self._sent(len(piece))
        return True
