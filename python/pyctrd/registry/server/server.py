"""The server: a loop in a thread of its own, from the socket that it listens on to its orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError
from pyctrd.registry.server.api import Api
from pyctrd.registry.server.call import Threads
from pyctrd.registry.server.connections import MAX_CONNECTIONS, Listener
from pyctrd.registry.server.metrics import Metrics

if TYPE_CHECKING:
    from pyctrd.registry.server.access import Access
    from pyctrd.registry.server.store import Tenants

logger = logging.getLogger("pyctrd.registry")
# Clients that come faster than they are let in.
BACKLOG = 1024
# What is being answered when the server is to end may go on for so long.
STOP_SECONDS = 30.0
PORT_MAX = 65535


def parse_listen(text: str) -> tuple[str, int]:
    """``ADDRESS:PORT``, ``[ADDRESS]:PORT`` or ``:PORT``, for every address.

    Raises:
        InvalidError: It is none of them.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > PORT_MAX:
        raise InvalidError(f"invalid address: {text[:80]!r}: expected ADDRESS:PORT", field="listen", value=text[:80])
    return host, int(port)


def listen_on(text: str) -> socket.socket:
    """A socket that listens.

    Raises:
        InvalidError: The address is none.
        OSError: It is not to be had.
    """
    host, port = parse_listen(text)
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise InvalidError(f"invalid address: {text[:80]!r}: {error}", field="listen", value=text[:80]) from error
    # Of no address, the one that takes both kinds of clients.
    family, kind, protocol, _, address = min(found, key=lambda item: not host and item[0] != socket.AF_INET6)
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(host)))
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        error.filename = error.filename or text
        raise
    return listening


def load_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """What the server shows of itself.

    Raises:
        InvalidError: The files are no certificate and its key.
        OSError: They cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise InvalidError(
            f"invalid certificate: {certificate}, {key}: {error.reason or error}", field="tls", value=str(certificate)
        ) from error
    return context


class Server:
    """A registry that listens, in a thread of its own.

    Args:
        listening: Its socket, which it closes.
        tls: What it shows of itself; None for plain HTTP.
        tenants: What it serves.
        make_access: Makes its policy; given what runs a function beside the loop.
        public_url: How clients reach it, "" for as they ask for it.
        connections: How many at once.
    """

    def __init__(
        self,
        listening: socket.socket,
        *,
        tls: ssl.SSLContext | None,
        tenants: Tenants,
        make_access: Callable[[Callable[..., asyncio.Future[bool]]], Access],
        public_url: str = "",
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._listening = listening
        self._tls = tls
        self._tenants = tenants
        self._make_access = make_access
        self._public_url = public_url
        self._connections = connections
        self._metrics = Metrics()
        self._threads = Threads()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pyctrd-registry", daemon=True)
        self.address = _address_of(listening)

    def start(self) -> None:
        """Begin to answer.

        Raises:
            InvalidError, OSError: What it is to be made of is wrong.
        """
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """Take no more requests, let those under way come to their end for a while, and end. Again is a no-op."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and not self._ended.is_set():
            try:
                loop.call_soon_threadsafe(stop.set)
            except RuntimeError:
                return  # it is over
        if self._thread.is_alive():
            self._thread.join()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        return self._ended.wait(timeout)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to who started it
            self._failure = error
        finally:
            self._listening.close()
            self._threads.close()
            self._ended.set()
            self._started.set()

    async def _serve(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._stop = stop = asyncio.Event()

        def beside(act: Callable[..., bool], *args: object) -> asyncio.Future[bool]:
            return loop.run_in_executor(self._threads.workers, act, *args)

        access = self._make_access(beside)
        api = Api(self._tenants, access, self._threads, self._metrics, public_url=self._public_url)
        listener = Listener(api.handle, most=self._connections, loop=loop)
        api.listener = listener
        server = await loop.create_server(listener, sock=self._listening, ssl=self._tls, backlog=BACKLOG)
        self._started.set()
        try:
            await stop.wait()
        finally:
            server.close()
            listener.pre_shutdown()  # who asks for nothing is let go at once
            await listener.shutdown(STOP_SECONDS)


def _address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
