"""TCP, by the type of socket that is CPython's own in C.

The module ``socket`` makes enumerations of four hundred constants when it is loaded: 2 ms, in every pull. What it adds
to this type is wanted in one place here, and TLS, which loads it anyway, takes either.
"""

from __future__ import annotations

import contextlib
import threading
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
from functools import partial
from typing import IO, TYPE_CHECKING

from pyctrd.oci.hold import waiting

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from pyctrd.oci.hold import Hold

    # Family, kind, protocol, name and where that is, as ``getaddrinfo`` (3) has them.
    _Address: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]

__all__ = ["ResolverError", "TcpSocket", "connect", "end", "packed", "send_file"]

_LOOK_SECONDS = 1.0

TcpSocket = socket
ResolverError = gaierror


def packed(host: str) -> bytes | None:
    """The bytes of an address, IPv4's or IPv6's with or without a zone; None for a name."""
    # Not by ipaddress: it takes 2 ms to load, in every pull.
    for family, text in ((AF_INET, host), (AF_INET6, host.partition("%")[0])):
        try:
            return inet_pton(family, text)
        except (OSError, ValueError):  # ValueError: it has a NUL, or is not ASCII
            continue
    return None


def connect(host: str, port: int, seconds: float, hold: Hold | None = None) -> TcpSocket:
    """A connection to the first address of a name that takes one.

    Args:
        host: A name in ASCII, or an address.
        port: Of TCP.
        seconds: What each address may take, and each wait on the connection afterwards.
        hold: Ends the wait for the resolver and for the other side.

    Raises:
        CancelledError: ``hold`` was stopped.
        ResolverError: There is no such name, or no resolver.
        OSError: No address took it; the last one's reason.
    """
    last: OSError | None = None
    for family, kind, protocol, _, address in _resolve(host, port, hold):
        made = socket(family, kind, protocol)
        try:
            made.settimeout(seconds)
            with waiting(partial(end, made.fileno()), hold):
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


def _resolve(host: str, port: int, hold: Hold | None) -> list[_Address]:
    """A name's addresses.

    The resolver asks for up to half a minute and hears neither signals nor threads: one of its own waits for it, which
    is left behind where it is given up. An address needs no resolver.
    """
    # As bytes: of a str, the resolver's call would load the codec of names beyond ASCII.
    ask = partial(getaddrinfo, host.encode("ascii"), port, 0, SOCK_STREAM)
    if packed(host) is not None:
        return ask()
    found: list[_Address] = []
    failed: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            found.extend(ask())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            failed.append(error)
        ended.set()

    try:
        threading.Thread(target=run, name="pyctrd-resolver", daemon=True).start()
    except RuntimeError:  # there is no memory for a stack, or no more processes for this user
        return ask()
    with waiting(ended.set, hold):
        while not ended.wait(_LOOK_SECONDS):  # of the main thread: Ctrl-C ends no wait that is just to begin
            pass
    try:
        if failed:
            raise failed[0]
    finally:
        failed.clear()  # with its frames it would be in a cycle
    return found


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
