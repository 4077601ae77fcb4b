"""A relay in front of a server, which tells what the server was asked."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from types import TracebackType
from typing import NamedTuple, Self

_HEAD = re.compile(rb"(\w+) (\S+) HTTP/1\.1\r\n(.*?)\r\n\r\n", re.DOTALL)
_RANGE = re.compile(rb"^range: *(.*)$", re.IGNORECASE | re.MULTILINE)
_PIECE_BYTES = 1 << 16
# A connection that said nothing for so long is not one of those at work.
_SILENCE_SECONDS = 0.2
# Threads wake up late: what they were to pass on in so long they may make up for.
_BURST_SECONDS = 0.05


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    range: str | None


class Relay:
    """Passes on what comes on a port of loopback, for the length of a ``with`` block.

    Args:
        server: ``host:port``.

    Attributes:
        host: The same of the relay.
    """

    def __init__(self, server: str) -> None:
        name, _, port = server.rpartition(":")
        self._server = (name, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Condition()
        self._left: float = float("inf")
        self._told = 0
        self._said: list[bytearray] = []
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="relay")]
        self._threads[0].start()

    def asked(self) -> list[Asked]:
        """All requests since the last look, connection by connection."""
        found = []
        with self._lock:
            for said in self._said:
                for method, path, headers in _HEAD.findall(said):
                    wanted = _RANGE.search(headers)
                    found.append(
                        Asked(method.decode(), path.decode(), None if wanted is None else wanted[1].decode().strip())
                    )
                said.clear()
        return found

    def told_bytes(self) -> int:
        """What the server said since the last look, on all connections: heads, documents and blobs."""
        with self._lock:
            told, self._told = self._told, 0
        return told

    def let_through(self, count: float) -> None:
        """Pass on so many bytes of what the server says from now on, and then no more until it is called again."""
        with self._lock:
            self._left = count
            self._lock.notify_all()

    def is_spent(self) -> bool:
        """Whether all of them were passed on."""
        with self._lock:
            return self._left == 0

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            said = bytearray()
            with self._lock:
                self._said.append(said)
                self._sockets += [client, server]
            for pair in ((client, server, said), (server, client, None)):
                thread = threading.Thread(target=self._carry, args=pair, name="relay")
                self._threads.append(thread)
                thread.start()

    def _carry(self, source: socket.socket, target: socket.socket, said: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE_BYTES):
                if said is None:
                    self._answer(target, piece)
                    continue
                with self._lock:
                    said += piece
                self._ask(target, piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _ask(self, server: socket.socket, piece: bytes) -> None:
        server.sendall(piece)

    def _answer(self, client: socket.socket, piece: bytes) -> None:
        while piece:
            with self._lock:
                self._lock.wait_for(lambda: self._left > 0)
                count = int(min(len(piece), self._left))
                self._left -= count
                self._told += count
            client.sendall(piece[:count])
            piece = piece[count:]

    def close(self) -> None:
        """End every connection."""
        self.let_through(float("inf"))
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for open_socket in self._sockets:
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for open_socket in self._sockets:
            open_socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class SlowRelay(Relay):
    """A network between: of a rate, a latency and connections that break.

    Args:
        server: ``host:port``.
        rate: Bytes a second of each connection, at the most.
        total: Of all of them together.
        latency: Seconds that a request takes to be heard.
        breaks_after: Bytes of answers after which each connection breaks.

    Attributes:
        connections_most: Connections on which answers came at once.
    """

    def __init__(
        self,
        server: str,
        *,
        rate: float = float("inf"),
        total: float = float("inf"),
        latency: float = 0.0,
        breaks_after: float = float("inf"),
    ) -> None:
        self._rate = rate
        self._total = total
        self._latency = latency
        self._breaks_after = breaks_after
        self._closed = threading.Event()
        self._turn = threading.Lock()
        self._total_due = 0.0
        self._dues: dict[socket.socket, float] = {}
        self._passed: dict[socket.socket, int] = {}
        self._spoke: dict[socket.socket, float] = {}
        self.connections_most = 0
        super().__init__(server)

    def _ask(self, server: socket.socket, piece: bytes) -> None:
        self._closed.wait(self._latency)
        super()._ask(server, piece)

    def _answer(self, client: socket.socket, piece: bytes) -> None:
        now = time.monotonic()
        with self._turn:
            due = self._dues[client] = max(now - _BURST_SECONDS, self._dues.get(client, 0.0)) + len(piece) / self._rate
            self._total_due = max(now - _BURST_SECONDS, self._total_due) + len(piece) / self._total
            due = max(due, self._total_due)
            self._spoke[client] = now
            at_once = sum(spoke > now - _SILENCE_SECONDS for spoke in self._spoke.values())
            self.connections_most = max(self.connections_most, at_once)
            left = self._breaks_after - self._passed.get(client, 0)
            self._passed[client] = self._passed.get(client, 0) + len(piece)
        self._closed.wait(max(0.0, due - time.monotonic()))
        super()._answer(client, piece[: int(min(left, len(piece)))])
        if left <= len(piece):
            raise ConnectionAbortedError

    def close(self) -> None:
        """End every connection."""
        self._rate = self._total = float("inf")
        self._closed.set()
        super().close()
