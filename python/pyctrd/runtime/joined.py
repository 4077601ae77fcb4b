"""A process's streams as file objects, all over one connection to its shim; for any number of threads."""

from __future__ import annotations

import contextlib
import io
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyctrd.errors import DeadlineError
from pyctrd.oci.hold import current_hold, waiting
from pyctrd.runtime.shim import Kind, encode

if TYPE_CHECKING:
    from pyctrd.runtime.shim import Connection

# Of one frame: half of what the shim takes, so that input and output take turns.
FRAME_BYTES = 32 << 10
# What waits here to be read, while somebody waits for the end. With more, the process has to wait as well.
UNREAD_MAX_BYTES = 16 << 20
Buffer = bytes | bytearray | memoryview
_COME = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL


class Joined:
    """The streams of one process, until it has ended and all that it wrote is here.

    Whoever waits for one stream takes what comes for the other meanwhile, so that no reader waits for another one; what
    nobody reads is kept in memory, until that stream is closed.

    Args:
        connection: Of its streams; closed when all has come.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._unread: dict[int, bytearray | None] = {Kind.STDOUT: bytearray(), Kind.STDERR: bytearray()}
        self._unsent: deque[memoryview] = deque()
        self._bells: set[int] = set()
        self._is_receiving = False
        self._is_over = False
        self._record: bytes | None = None

    @property
    def record(self) -> bytes | None:
        """The exit record; None before, and where the shim ended without one."""
        return self._record

    def take(self, kind: Kind, size: int) -> bytes:
        """What is there of an output, at most so many bytes, waiting for it; b"" at its end."""
        self._receive(lambda: self._unread[kind] != bytearray(), None)
        with self._changed:
            unread = self._unread[kind]
            if unread is None:
                return b""
            taken = bytes(unread[:size])
            del unread[:size]
            return taken

    def drop(self, kind: Kind) -> None:
        """Nobody reads an output any more."""
        with self._changed:
            self._unread[kind] = None
            self._changed.notify_all()

    def wait(self, deadline: float | None, *, is_bounded: bool = True) -> bool:
        """Wait until all has come, whether it has; with a bound also until so much is unread that the process waits.

        Raises:
            DeadlineError: The deadline, by the monotonic clock, has passed.
        """
        self._receive(self._is_full if is_bounded else lambda: False, deadline)
        return self._is_over

    def look(self) -> bool:
        """Take what has come already; whether that is all."""
        while not self._is_over and not self._is_full() and self._turn(select.POLLIN, 0):
            pass
        return self._is_over

    def send(self, data: Buffer = b"", *, is_end: bool = False, deadline: float | None = None) -> int:
        """Send input, all of it, taking what comes meanwhile: how many bytes that were.

        What a deadline or an interrupt cut off is sent before the next.

        Raises:
            BrokenPipeError: The process has ended.
            DeadlineError: The deadline has passed.
        """
        view = memoryview(data).cast("B")
        with self._writing:
            self._unsent += _frames(view, is_end=is_end)
            try:
                with waiting(self._wake):
                    self._send_unsent(deadline)
            finally:
                if self._is_over:
                    self._connection.close()
        return len(view)

    def close(self) -> None:
        """Let go: the process's input ends, and its outputs are closed. Idempotent."""
        self._connection.interrupt()  # who waits in another thread
        with self._changed:
            self._is_over = True
            self._unread = dict.fromkeys(self._unread)
            self._changed.notify_all()
            while self._is_receiving:
                self._changed.wait()
        with self._writing:
            self._connection.close()

    def _is_full(self) -> bool:
        return sum(len(unread) for unread in self._unread.values() if unread) >= UNREAD_MAX_BYTES

    def _send_unsent(self, deadline: float | None) -> None:
        hold = current_hold()
        while self._unsent and not (hold and hold.is_stopped):
            if self._is_over:
                self._unsent.clear()
                raise BrokenPipeError("the process has ended")
            try:
                sent = self._connection.send_some(self._unsent[0])
            except ConnectionError:
                # What the shim still said can be read, and it is at its end.
                self._unsent.clear()
                raise BrokenPipeError("the process has ended") from None
            if sent == len(self._unsent[0]):
                self._unsent.popleft()
            elif sent:
                self._unsent[0] = self._unsent[0][sent:]
            elif not self._turn(select.POLLIN | select.POLLOUT, deadline):
                _refuse_late(deadline)

    def _receive(self, is_ready: Callable[[], bool], deadline: float | None) -> None:
        hold = current_hold()
        with waiting(self._wake):
            while not (is_ready() or self._is_over or (hold and hold.is_stopped)):
                if not self._turn(select.POLLIN, deadline):
                    _refuse_late(deadline)

    def _turn(self, flags: int, deadline: float | None) -> bool:
        """Wait for the connection once, and take what has come where nobody else does; whether something happened."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        with self._changed:
            if self._is_over:
                return True
            takes = not self._is_receiving
            if not takes and flags == select.POLLIN:
                # Looked at under the lock: who gives this thread up sets it first, and then takes the lock to wake it.
                return _is_given_up() or self._changed.wait(left)
            self._is_receiving = True
        try:
            events = self._poll(flags if takes else flags & ~select.POLLIN, left)
            if takes and events & _COME:
                self._take_in()
        finally:
            if takes:
                with self._changed:
                    self._is_receiving = False
                    self._changed.notify_all()
        return bool(events)

    def _poll(self, flags: int, seconds: float | None) -> int:
        poll = select.poll()
        poll.register(self._connection, flags)
        bell = -1
        try:
            if current_hold() is not None:
                bell = os.eventfd(0, os.EFD_CLOEXEC)
                with self._changed:
                    self._bells.add(bell)
                poll.register(bell, select.POLLIN)
                if _is_given_up():  # before there was a bell
                    seconds = 0
            events = dict(poll.poll(None if seconds is None else seconds * 1000))
        finally:
            if bell >= 0:
                with self._changed:
                    self._bells.discard(bell)
                os.close(bell)
        return events.get(self._connection.fileno(), 0) or (select.POLLPRI if events else 0)

    def _wake(self) -> None:
        """Let those look again that wait here: one of them is given up."""
        with self._changed:
            self._changed.notify_all()
            for bell in self._bells:
                os.eventfd_write(bell, 1)

    def _take_in(self) -> None:
        more = self._connection.receive()
        with self._changed:
            for kind, payload in self._connection.frames():
                if kind == Kind.EXIT:
                    self._record, more = payload, False
                elif (unread := self._unread.get(kind)) is not None:
                    unread += payload
            self._is_over = self._is_over or not more
        if self._is_over and self._writing.acquire(blocking=False):  # else who writes closes it
            try:
                self._connection.close()
            finally:
                self._writing.release()


class Output(io.RawIOBase):
    """One output of a process, to be read; for a buffered reader."""

    def __init__(self, joined: Joined, kind: Kind) -> None:
        super().__init__()
        self._joined = joined
        self._kind = kind

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Wait for some bytes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self._joined.take(self._kind, len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """What the process writes from now on is dropped."""
        if not self.closed:
            self._joined.drop(self._kind)
        super().close()


class Input(io.RawIOBase):
    """The input of a process; what is written is sent at once."""

    def __init__(self, joined: Joined) -> None:
        super().__init__()
        self._joined = joined
        self._has_ended = False

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any, /) -> int:
        """Send all of it, waiting for the process to read."""
        if self.closed:
            raise ValueError("write to closed file")
        return self._joined.send(data)

    def finish(self, data: Buffer, deadline: float | None) -> None:
        """Send the last bytes, and close; a process that ends without reading them is no error.

        Raises:
            DeadlineError: The deadline has passed; once more, with no bytes, goes on.
        """
        if self.closed:
            return
        is_end, self._has_ended = not self._has_ended, True
        with contextlib.suppress(BrokenPipeError):
            self._joined.send(data, is_end=is_end, deadline=deadline)
        super().close()

    def close(self) -> None:
        """The process reads the end of its input; on a terminal, the key for that."""
        self.finish(b"", None)

    def let_go(self) -> None:
        """Close it, and tell the process nothing."""
        super().close()

    def __del__(self) -> None:
        # Collecting garbage waits for nobody; where the connection goes too, the process is told by that.
        self.let_go()


def _is_given_up() -> bool:
    hold = current_hold()
    return hold is not None and hold.is_stopped


def _frames(data: memoryview, *, is_end: bool) -> Iterator[memoryview]:
    for start in range(0, len(data), FRAME_BYTES):
        yield memoryview(encode(Kind.STDIN, bytes(data[start : start + FRAME_BYTES])))
    if is_end:
        yield memoryview(encode(Kind.STDIN_EOF))


def _refuse_late(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineError("end of the process: not in time", operation="wait")
