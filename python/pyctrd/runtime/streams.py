"""The foreground: this process's streams and signals, joined to a container's."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from pyctrd.errors import DetachedError, naming
from pyctrd.runtime import terminal as terminals
from pyctrd.runtime.shim import Connection, Kind, encode

STDIN_READ_BYTES = 32 << 10

# What a user or a supervisor sends to a program to make it do something; SIGWINCH is told apart.
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

# A container's init that handles no signal ignores them all; a user who insists is let go, as by Docker.
INSISTING = (signal.SIGINT, signal.SIGTERM)
INSISTED_TIMES = 3


@contextlib.contextmanager
def forward_signals(control: Connection | None, *, size_of: int | None) -> Iterator[None]:
    """Pass signals on to the container's init while the block runs.

    Only in the main thread, where Python takes signals; elsewhere nothing is done. The third SIGINT or
    SIGTERM raises KeyboardInterrupt instead.

    Args:
        control: Not the connection of the streams: that one may be waiting for the container to read.
        size_of: The terminal whose later sizes are the container's; None is none.
    """
    if control is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    insisted = 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal insisted
        insisted += number in INSISTING
        if insisted >= INSISTED_TIMES:
            raise KeyboardInterrupt
        _send(control, Kind.SIGNAL, bytes((number,)))

    def resize(_number: int = 0, _frame: FrameType | None = None) -> None:
        found = None if size_of is None else terminals.size(size_of)
        if found:
            _send(control, Kind.RESIZE, terminals.encode_size(*found))

    before = {number: signal.signal(number, pass_on) for number in FORWARDED}
    if size_of is not None:
        before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: it was set by C code, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _send(control: Connection, kind: Kind, payload: bytes) -> None:
    try:
        control.send(kind, payload)
    except ConnectionError:
        return  # the container has just ended: there is nobody to tell


def copy_streams(
    connection: Connection,
    *,
    stdin: int | None,
    stdout: int,
    stderr: int,
    detach: bytes = b"",
    size_of: int | None = None,
) -> bytes | None:
    """Copy until the container ends: the exit record, or None where the shim went first.

    Args:
        connection: To the shim.
        stdin: Read from; None is no input.
        stdout: Written to.
        stderr: Written to.
        detach: Keys among the input at which it is left; b"" for none.
        size_of: The terminal whose size the container's has before it gets any input; None is none.

    Raises:
        DetachedError: ``detach`` was among the input.
        OSError: Output cannot be written; the container runs on.
    """
    found = None if size_of is None else terminals.size(size_of)
    if found:
        _send(connection, Kind.RESIZE, terminals.encode_size(*found))
    return _Copier(connection, stdin, {Kind.STDOUT: stdout, Kind.STDERR: stderr}, detach).run()


class _Copier:
    """One attachment. Input never waits for output, nor output for input: either may be stuck."""

    def __init__(self, connection: Connection, stdin: int | None, outputs: dict[int, int], detach: bytes) -> None:
        self._keys = terminals.Keys(detach)
        self._connection = connection
        self._stdin = stdin
        self._outputs = outputs
        self._unsent = memoryview(b"")

    def run(self) -> bytes | None:
        while True:
            poll = select.poll()
            flags = select.POLLIN | (select.POLLOUT if self._unsent else 0)
            poll.register(self._connection, flags)
            if self._stdin is not None and not self._unsent:
                poll.register(self._stdin, select.POLLIN)
            events = dict(poll.poll())
            record = self._serve(events.get(self._connection.fileno(), 0))
            if record is not None:
                return record or None
            if self._stdin is not None and events.get(self._stdin, 0):
                self._read_stdin(self._stdin)

    def _serve(self, event: int) -> bytes | None:
        """Send and receive; the record at the end, b"" where there is none, None to go on."""
        if event & select.POLLOUT and self._unsent:
            self._send()
        if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
            more = self._connection.receive()
            for kind, payload in self._connection.frames():
                if kind == Kind.EXIT:
                    return payload
                if kind in self._outputs:
                    with naming("standard output" if kind == Kind.STDOUT else "standard error"):
                        _write_all(self._outputs[kind], payload)
            return None if more else b""
        return None

    def _read_stdin(self, fd: int) -> None:
        try:
            data = os.read(fd, STDIN_READ_BYTES)
        except BlockingIOError:
            return  # another process that shares it was quicker
        except OSError:
            data = b""  # a terminal that hung up, or one that this process may not read in the background
        if not data:
            self._stdin = None
        else:
            data, is_left = self._keys.pass_on(data)
            if is_left:
                with contextlib.suppress(ConnectionError):  # it has just ended: there is nobody to tell
                    if data:
                        self._connection.send(Kind.STDIN, data)
                    self._connection.send(Kind.DETACH)
                raise DetachedError("detached by keys; it runs on")
            if not data:
                return  # what may be the beginning of the keys
        self._unsent = memoryview(encode(Kind.STDIN, data) if data else encode(Kind.STDIN_EOF))
        self._send()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._connection.send_some(self._unsent) :]
        except ConnectionError:
            self._unsent = memoryview(b"")  # what the shim still said can be read
            self._stdin = None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
