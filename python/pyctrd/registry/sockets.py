"""TCP, by the type of socket that is CPython's own in C.

The module ``socket`` makes enumerations of four hundred constants when it is loaded: 2 ms, in every pull. What it adds
to this type is wanted in one place here, and TLS, which loads it anyway, takes either.
"""

from __future__ import annotations

import contextlib
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    SHUT_RDWR,
    SOCK_STREAM,
    TCP_NODELAY,
    gaierror,
    getaddrinfo,
    inet_pton,
    socket,
)
from typing import IO

__all__ = ["AF_INET", "AF_INET6", "ResolverError", "TcpSocket", "connect", "end", "inet_pton", "send_file"]

TcpSocket = socket
ResolverError = gaierror


def connect(host: str, port: int, seconds: float) -> TcpSocket:
    """A connection to the first address of a name that takes one.

    Args:
        host: A name in ASCII, or an address.
        port: Of TCP.
        seconds: What each address may take, and each wait on the connection afterwards.

    Raises:
        ResolverError: There is no such name, or no resolver.
        OSError: No address took it; the last one's reason.
    """
    last: OSError | None = None
    # As bytes: of a str, the resolver's call would load the codec of names beyond ASCII.
    for family, kind, protocol, _, address in getaddrinfo(host.encode("ascii"), port, 0, SOCK_STREAM):
        made = socket(family, kind, protocol)
        try:
            made.settimeout(seconds)
            made.connect(address)
            made.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        except OSError as error:
            made.close()
            last = error
        except BaseException:
            made.close()
            raise
        else:
            return made
    try:
        raise last or OSError("the resolver has no address")
    finally:
        del last  # with its frames it would be in a cycle


def end(descriptor: int) -> None:
    """End what is sent and received on a connection, in whatever thread; its socket stays open."""
    with contextlib.suppress(OSError):
        same = socket(fileno=descriptor)
        try:
            same.shutdown(SHUT_RDWR)
        finally:
            same.detach()


def send_file(connection: TcpSocket, file: IO[bytes], offset: int, count: int) -> int:
    """Send bytes of a file, which do not pass through this process; how many there were.

    Raises:
        OSError: As ``sendfile`` (2); TimeoutError where the other side took nothing in the connection's time.
    """
    from socket import socket as whole

    with whole(fileno=connection.fileno()) as same:
        try:
            same.settimeout(connection.gettimeout())
            return same.sendfile(file, offset, count)
        finally:
            same.detach()
