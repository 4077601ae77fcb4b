"""TLS: what is trusted, and a layer of it over a connection. Loaded by who talks HTTPS alone: it takes 6 ms."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from pyctrd.errors import InvalidError
from pyctrd.registry.connection import Socket
from pyctrd.registry.hosts import Trust

_PIECE_BYTES = 16 * 1024 + 512  # a record of TLS with what is around it
_T = TypeVar("_T")


def make_context(ca: Path | None, trust: Trust) -> ssl.SSLContext:
    """The system's trust, the caller's own authorities, and what a registry has of its own.

    Raises:
        InvalidError: A file holds no certificates, or no key that fits its certificate.
        OSError: It cannot be read.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for authority in (*((ca,) if ca is not None else ()), *trust.authorities):
        with _reading(authority, "certificates"):
            context.load_verify_locations(authority)
    for certificate, key in trust.client:
        with _reading(certificate if key is None else key, "client certificate"):
            context.load_cert_chain(certificate, key)
    if not trust.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise InvalidError(
            f"invalid {what}: {path}: no PEM that can be used: {error.reason or type(error).__name__}",
            field="ca",
            value=str(path),
        ) from error
    except OSError as error:
        error.filename = str(path)  # ssl does not say which file
        raise


def wrap(made: Socket, context: ssl.SSLContext, host: str) -> Socket:
    """A layer of TLS over a connection, which may be one of TLS itself: a proxy's.

    Raises:
        OSError: The handshake failed; ``ssl.SSLError`` is one.
    """
    # As bytes: a str would load the codec of names beyond ASCII. A zone is this machine's, the final dot DNS'.
    name: Any = host.partition("%")[0].rstrip(".").encode("ascii")
    if isinstance(made, ssl.SSLSocket | _Inner):
        return _Inner(made, context, name)
    return cast("Socket", context.wrap_socket(cast("Any", made), server_hostname=name))


class _Inner:
    """TLS whose records are carried in another TLS connection: a socket can have one layer only."""

    def __init__(self, outer: Socket, context: ssl.SSLContext, name: bytes) -> None:
        self._outer = outer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=cast("Any", name))
        self._run(self._tls.do_handshake)
        self.settimeout, self.fileno, self.close = outer.settimeout, outer.fileno, outer.close

    def recv(self, count: int, /) -> bytes:
        """Some bytes; none at the end."""
        return self._read(lambda: self._tls.read(count), b"")

    def recv_into(self, buffer: memoryview, /) -> int:
        """Some bytes into a buffer; 0 at the end."""
        read: Any = self._tls.read  # which with a buffer returns a count
        return self._read(lambda: int(read(len(buffer), buffer)), 0)

    def sendall(self, content: bytes | memoryview, /) -> None:
        """All of the bytes."""
        self._run(lambda: self._tls.write(content))

    def pending(self) -> int:
        """Bytes that came and were not asked for."""
        return self._tls.pending() + self._in.pending

    def _read(self, call: Callable[[], _T], end: _T) -> _T:
        try:
            return self._run(call)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return end

    def _run(self, call: Callable[[], _T]) -> _T:
        """Do what TLS is asked for, carrying its records until it can."""
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                self._flush()
                if piece := self._outer.recv(_PIECE_BYTES):
                    self._in.write(piece)
                else:
                    self._in.write_eof()
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        if content := self._out.read():
            self._outer.sendall(content)
