"""Connections: aiohttp's, with limits on how many there are and how long one may take over a request's head."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

# Each takes a descriptor and some 20 KiB; most processes may have 1,024 descriptors or more, and blobs need some too.
MAX_CONNECTIONS = 4096
# From its beginning, or its first byte, to the end of a request's head: who takes longer sends it byte by byte.
HEAD_SECONDS = 20.0
# Between two requests: clients keep connections for the length of a pull.
KEEP_ALIVE_SECONDS = 75.0
# Of a head's lines and fields: as nginx and docker-registry have it, a token of many scopes has its place.
LINE_MAX_BYTES = 8190
FIELD_MAX_BYTES = 16384
# What a client still sends of a body that was refused is read for so long, so that it sees the answer.
LINGER_SECONDS = 5.0


class Connection(web.RequestHandler):
    """One client's connection: closed when it stands still between requests, or within a head."""

    def __init__(self, server: Listener, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(server, loop=loop, **options)
        self._server = server
        self._timer: asyncio.TimerHandle | None = None
        self._clock = loop
        self._in_head = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, if there are not too many."""
        super().connection_made(transport)
        if len(self._server.connections) > self._server.most:
            self._server.refused += 1
            self._abort()
            return
        self._wait(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Count from a head's first byte on."""
        if self._timer is not None and not self._in_head:
            self._in_head = True
            self._wait(HEAD_SECONDS)
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nothing is waited for any more."""
        self._stop()
        super().connection_lost(exc)

    def begin(self) -> None:
        """A request's head is whole."""
        self._stop()

    def end(self) -> None:
        """Its answer is sent; the next one may come."""
        self._in_head = False
        self._wait(KEEP_ALIVE_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._stop()
        self._timer = self._clock.call_later(seconds, self._abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Listener(web.Server):
    """Makes connections.

    Args:
        handler: Answers a request.
        most: Connections at once.
    """

    def __init__(self, handler: Any, *, most: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(handler, loop=loop)
        self.most = most
        self.refused = 0
        self._options: dict[str, Any] = {
            "access_log": None,  # written with what aiohttp does not know
            "auto_decompress": False,  # a blob is the bytes that are sent
            "keepalive_timeout": KEEP_ALIVE_SECONDS + HEAD_SECONDS,  # the timers here come first
            "max_line_size": LINE_MAX_BYTES,
            "max_field_size": FIELD_MAX_BYTES,
            "lingering_time": LINGER_SECONDS,
            "read_bufsize": 1 << 17,
        }

    def __call__(self) -> Connection:
        """A protocol for a client that has just come."""
        return Connection(self, loop=self._loop, **self._options)
