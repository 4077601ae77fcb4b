"""A server that says what it is told to, byte by byte, whatever it is asked."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from types import TracebackType
from typing import Self


class RawServer:
    """Listens on loopback for the length of a ``with`` block.

    Args:
        answers: One for each request, whichever connection it comes on; the pieces of one are sent one by one. None
            closes the connection unanswered; so does the end of the list.
        close: Whether each answer ends its connection.

    Attributes:
        requests: The heads that came.
        connections: How many were made.
    """

    def __init__(self, *answers: bytes | tuple[bytes, ...] | None, close: bool = False) -> None:
        self._answers = deque(answers)
        self._close = close
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.requests: list[bytes] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, name="raw server")]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Its URL, without a path."""
        return f"http://{self.host}"

    def hang_up(self) -> None:
        """End every connection, as a server does with those that are idle."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), name="raw server")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (head := _read_head(connection)) and self._answer(connection, head):
                pass
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def _answer(self, connection: socket.socket, head: bytes) -> bool:
        with self._lock:
            self.requests.append(head)
            answer = self._answers.popleft() if self._answers else None
        if answer is None:
            return False
        for piece in (answer,) if isinstance(answer, bytes) else answer:
            connection.sendall(piece)
        return not self._close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.hang_up()
        for thread in self._threads:
            thread.join()


def _read_head(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            return b""
        head += byte
    return head
