"""Starting a container's shim, and talking to it: frames of one byte kind, four bytes length, payload."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from pyctrd import _core
from pyctrd.errors import ConflictError, DeadlineError, PyctrdError, UnsupportedError

SOCKET = "attach.sock"
SHIM = Path(__file__).parents[1] / "pyctrd-shim"
HEADER_BYTES = 5
PAYLOAD_MAX_BYTES = 1 << 20
READ_BYTES = 64 << 10
REPORT_MAX_BYTES = 16 << 10
# struct ucred: process, user, group.
_PEER = struct.Struct("iII")


class Kind(IntEnum):
    """What a frame is; the numbers are those of ``rust/src/shim/frame.rs``."""

    STDIN = 0
    STDIN_EOF = 1
    STDOUT = 2
    STDERR = 3
    RESIZE = 4
    SIGNAL = 5
    EXIT = 6
    HELLO = 7
    LOG_GREW = 8
    DETACH = 9
    PROBE = 10


class Mode(IntEnum):
    """What a connection is for."""

    CONTROL = 0
    STREAMS = 1
    LOG = 2


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame."""
    return bytes((kind,)) + len(payload).to_bytes(4, "big") + payload


class Connection:
    """One connection to a shim. Not for two threads at once, but for ``send``."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._inbox = bytearray()

    @classmethod
    def open(cls, directory: Path, mode: Mode) -> Self | None:
        """Connect; None where no shim listens any more, or not yet.

        Args:
            directory: The container's own in the state directory. Its name may be longer than a socket's
                address can: the kernel is shown the way through a descriptor.
            mode: What for.
        """
        try:
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(f"/proc/self/fd/{fd}/{SOCKET}")
            _refuse_stranger(sock, directory)
            sock.sendall(encode(Kind.HELLO, bytes((mode,))))
        except (FileNotFoundError, ConnectionError):
            sock.close()
            return None
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(fd)
        return cls(sock)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send one small frame, whole.

        Raises:
            ConnectionError: The shim has ended.
        """
        self._socket.sendall(encode(kind, payload))

    def request(self, kind: Kind, payload: bytes, timeout: float) -> None:
        """Send one small frame, the last, and wait until the shim has done what it says; or has ended.

        Raises:
            DeadlineError: ``timeout`` seconds went by.
        """
        try:
            self.send(kind, payload)
            # The shim reads the end in another turn than the frame, and hangs up then.
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return
        self.wait_closed(timeout)

    def send_some(self, data: bytes | memoryview) -> int:
        """Send what fits now of frames already encoded; 0 where nothing does."""
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def receive(self) -> bool:
        """Take what has come, waiting for it; False at the end."""
        try:
            data = self._socket.recv(READ_BYTES)
        except ConnectionError:
            return False
        self._inbox += data
        return bool(data)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """The whole frames among what has come.

        Raises:
            UnsupportedError: The other side speaks something else.
        """
        while len(self._inbox) >= HEADER_BYTES:
            length = int.from_bytes(self._inbox[1:HEADER_BYTES], "big")
            if length > PAYLOAD_MAX_BYTES:
                raise UnsupportedError(
                    f"attach: frame of {length} bytes", feature="attach protocol", needs="a shim of this version"
                )
            end = HEADER_BYTES + length
            if len(self._inbox) < end:
                return
            kind, payload = self._inbox[0], bytes(self._inbox[HEADER_BYTES:end])
            del self._inbox[:end]
            yield kind, payload

    def wait_exit(self, timeout: float | None) -> bytes | None:
        """The exit record; None where the shim ended without one.

        Raises:
            DeadlineError: ``timeout`` seconds went by.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            for kind, payload in self.frames():
                if kind == Kind.EXIT:
                    return payload
            wait_readable(self.fileno(), deadline, timeout, "exit of the container")
            if not self.receive():
                return None

    def wait_closed(self, timeout: float) -> None:
        """Wait until the shim has done everything.

        Raises:
            DeadlineError: ``timeout`` seconds went by.
        """
        deadline = time.monotonic() + timeout
        wait_readable(self.fileno(), deadline, timeout, "end of the shim")
        while self.receive():
            self._inbox.clear()
            wait_readable(self.fileno(), deadline, timeout, "end of the shim")

    def interrupt(self) -> None:
        """End what another thread waits for: there is nothing more to receive."""
        with contextlib.suppress(OSError):  # the shim has ended
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_stranger(sock: socket.socket, directory: Path) -> None:
    """See that the process that listens is this user's: what it says is believed, and it is given input."""
    _, user, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if user != os.geteuid():
        raise ConflictError(
            f"attach socket of a stranger: {directory / SOCKET}: user {user} listens: expected user {os.geteuid()}",
            kind="socket",
            name=str(directory / SOCKET),
            state=f"of user {user}",
            allowed=f"of user {os.geteuid()}",
        )


class ShimFailedError(PyctrdError):
    """The shim, or the runtime that it ran, gave up before the container ran.

    Attributes:
        status: Exit status of the runtime.
        text: What it said.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"shim: {text.strip() or 'ended without a word'}")
        self.status = status
        self.text = text


class Start:
    """A shim being started. Closing it before ``wait_started`` has returned takes the start back."""

    def __init__(self, argv: Sequence[bytes]) -> None:
        self._report, write = os.pipe2(os.O_CLOEXEC)
        self._text = bytearray()
        try:
            _core.spawn_shim(list(argv), report=write)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(write)

    def wait_ready(self, timeout: float) -> None:
        """Wait until the attach socket can be connected to.

        Raises:
            ShimFailedError: It will not be.
            DeadlineError: ``timeout`` seconds went by.
        """
        self._wait_for(b"ready ", timeout)

    def wait_started(self, timeout: float) -> int:
        """Wait until the container runs: init's process id on the host.

        Raises:
            ShimFailedError: It will not.
            DeadlineError: ``timeout`` seconds went by.
        """
        return int(self._wait_for(b"started ", timeout))

    def _wait_for(self, word: bytes, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while True:
            line, newline, rest = self._text.partition(b"\n")
            if newline and line.startswith(word):
                self._text = rest
                return bytes(line[len(word) :])
            wait_readable(self._report, deadline, timeout, "start of the container")
            data = os.read(self._report, READ_BYTES)
            if not data:
                raise self._failure()
            self._text = (self._text + data)[:REPORT_MAX_BYTES]

    def _failure(self) -> ShimFailedError:
        text = self._text.decode("utf-8", "replace")
        head, _, rest = text.partition("\n")
        word, _, status = head.partition(" ")
        if word == "failed" and status.isdigit():
            return ShimFailedError(int(status), rest)
        return ShimFailedError(0, text)

    def close(self) -> None:
        """Stop listening."""
        if self._report >= 0:
            os.close(self._report)
            self._report = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait_readable(fd: int, deadline: float | None, timeout: float | None, operation: str) -> None:
    """Wait for bytes, or the end.

    Raises:
        DeadlineError: The deadline, by the monotonic clock, has passed.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    if not poll.poll(left):
        raise DeadlineError(
            f"{operation}: not within {timeout:g} seconds", operation=operation, timeout_seconds=timeout
        )
