"""Connections by where they lead: made, kept while they are silent, and used again."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

from pyctrd.errors import RegistryError, UnavailableError, UnreachableError
from pyctrd.oci.hold import current_hold, waiting
from pyctrd.oci.value import NamedTuple
from pyctrd.registry import sockets
from pyctrd.registry.connection import Answer, Connection, NoAnswerError, ProtocolError, Socket, write_request
from pyctrd.registry.hosts import Trust

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

    from pyctrd.oci.hold import Hold
    from pyctrd.registry.connection import Payload

CONNECT_TIMEOUT_SECONDS = 15.0
# The longest silence of a server that still is at work; distribution's own default is a minute.
READ_TIMEOUT_SECONDS = 60.0
# How long a registry may be silent that was sent a blob: it may hash it once more, or move it, before it answers.
COMMIT_TIMEOUT_SECONDS = 600.0
IDLE_MAX = 16  # connections kept to one place: more bodies at once than any pull has
_BODILESS_METHODS = frozenset({"GET", "HEAD", "DELETE"})  # whose requests need no length to say that there is no body
PORTS = {"http": 80, "https": 443}
PROXY_HINT = "look at HTTPS_PROXY and NO_PROXY"
_TLS_HINT = "give the registry's certificate authority with --ca, or name a host without TLS with --plain-http"


class Proxy(NamedTuple):
    """Where a proxy is, and the value of the header that it lets us in with."""

    scheme: str
    host: str
    port: int
    authorization: str


class Route(NamedTuple):
    """Where a connection leads.

    Attributes:
        scheme: http or https.
        host: A name in ASCII, or an address without brackets.
        port: Of TCP.
        proxy: Through which one.
        trust: Of TLS.
        dial_seconds: How long connecting may take.
    """

    scheme: str
    host: str
    port: int
    proxy: Proxy | None = None
    trust: Trust = Trust()
    dial_seconds: float = CONNECT_TIMEOUT_SECONDS

    @property
    def authority(self) -> str:
        """``host:port`` as requests name it: the port where it is not the scheme's own."""
        return _authority(self.host, None if self.port == PORTS[self.scheme] else self.port)


class Fault(Exception):  # noqa: N818 - it never gets to a caller
    """A request that failed: which error of ours that is, and its words."""

    def __init__(self, kind: type[RegistryError], message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


class Pool:
    """Connections that were used and may be again. Thread-safe.

    Args:
        context: Makes what TLS trusts, when it is first needed.
    """

    def __init__(self, context: Callable[[Trust], ssl.SSLContext]) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._idle: dict[Route, list[Connection]] | None = {}

    def request(
        self,
        route: Route,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: bytes | Payload = b"",
        repeatable: bool,
        hold: Hold | None = None,
    ) -> Answer:
        """Send one request; its answer's body is unread.

        Args:
            route: Where.
            method: Of HTTP.
            target: What is asked for there.
            headers: What goes along.
            body: What else does.
            repeatable: Whether it may be sent twice: then over a connection that was used before, and over a new one
                where the server closed that.
            hold: Ends the wait for a connection, and for its answer.

        Raises:
            CancelledError: ``hold`` was stopped while it was connected.
            Fault: It could not be sent, or what came is no answer.
        """
        fields = {"Host": route.authority, "Accept-Encoding": "identity", **headers}
        whole, payload = (body, None) if isinstance(body, bytes) else (b"", body)
        if method not in _BODILESS_METHODS or body:
            fields["Content-Length"] = str(len(whole) if payload is None else payload.length)
        if route.proxy is not None and route.scheme == "http":
            target = f"http://{route.authority}{target}"
            if route.proxy.authorization:
                fields["Proxy-Authorization"] = route.proxy.authorization
        try:
            content = write_request(method, target, fields, whole)
        except ProtocolError as error:
            raise Fault(RegistryError, f"invalid request: {route.authority}: {error}") from error
        used = self._take(route) if repeatable else None
        if used is not None and payload is None:
            # A server may close what is idle just as it is used again.
            with contextlib.suppress(NoAnswerError, ConnectionResetError):
                return self._exchange(route, used, method, content, payload, hold)
            used = None
        try:
            # Of a blob some may have come: its sender asks how much before it is sent again.
            return self._exchange(route, used or self._open(route, hold), method, content, payload, hold)
        except (NoAnswerError, ConnectionResetError) as error:
            raise Fault(UnavailableError, f"connection broke: {route.authority}: {reason(error)}") from error

    def close(self) -> None:
        """Close those that are idle, and the others when they become it; idempotent."""
        with self._lock:
            idle, self._idle = self._idle or {}, None
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _take(self, route: Route) -> Connection | None:
        """The one that was used last and still stands open."""
        while True:
            with self._lock:
                idle = (self._idle or {}).get(route)
                connection = idle.pop() if idle else None
            if connection is None or connection.is_idle():
                return connection
            connection.close()

    def _keep(self, route: Route, connection: Connection) -> None:
        connection.settimeout(READ_TIMEOUT_SECONDS)
        with self._lock:
            if self._idle is not None and len(kept := self._idle.setdefault(route, [])) < IDLE_MAX:
                kept.append(connection)
                return
        connection.close()

    def _exchange(
        self,
        route: Route,
        connection: Connection,
        method: str,
        content: bytes,
        payload: Payload | None,
        hold: Hold | None,
    ) -> Answer:
        """A request and its answer's head.

        Raises:
            NoAnswerError, ConnectionResetError: The server had closed a connection that was idle, perhaps.
        """
        seconds = READ_TIMEOUT_SECONDS
        hold = hold or current_hold()
        end = connection.interrupt
        try:
            if hold is not None:
                hold.begin(end)
            connection.send(content, payload)
            # Who has taken many bytes may have to copy them to their place before it can say so.
            if payload is not None:
                seconds = COMMIT_TIMEOUT_SECONDS
                connection.settimeout(seconds)
            answer = Answer(connection, method, keep=lambda free: self._keep(route, free))
        except BaseException as error:
            if hold is not None:
                hold.over(end)
            connection.close()
            if isinstance(error, NoAnswerError | ConnectionResetError):
                raise
            if isinstance(error, ProtocolError | OSError):
                raise _exchange_fault(error, route.authority, seconds) from error
            raise
        if hold is not None:
            hold.over(end)
        return answer

    def _open(self, route: Route, hold: Hold | None) -> Connection:
        is_tls = "https" in (route.scheme, route.proxy.scheme if route.proxy else "")
        context = self._context(route.trust) if is_tls else None
        made = _dial(route, hold) if route.proxy is None else _dial_proxy(route, route.proxy, context, hold)
        try:
            if context is not None and route.scheme == "https":
                made = _secure(made, context, route, hold)
            made.settimeout(READ_TIMEOUT_SECONDS)
        except BaseException:
            made.close()
            raise
        return Connection(made)


def reason(error: BaseException) -> str:
    """An error's own words, without object addresses."""
    if words := getattr(error, "verify_message", ""):  # a certificate's fault
        return str(words)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error.args[-1]) if error.args else type(error).__name__


def is_tls(error: BaseException) -> bool:
    """Whether it is of TLS; who did not load that has none."""
    tls = sys.modules.get("ssl")
    return tls is not None and isinstance(error, tls.SSLError)


def _authority(host: str, port: int | None) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"


@contextlib.contextmanager
def _greeting(made: Socket, hold: Hold | None) -> Iterator[None]:
    """Around what is said on a new connection before the first request, which who gives it up ends.

    Another descriptor of it is: where a greeting fails its own may be closed already, and be something else's.
    """
    if hold is None and current_hold() is None:
        yield
        return
    same = os.dup(made.fileno())
    try:
        with waiting(partial(sockets.end, same), hold):
            yield
    finally:
        os.close(same)


def _dial(route: Route, hold: Hold | None) -> Socket:
    host = route.authority
    try:
        return sockets.connect(route.host, route.port, route.dial_seconds, hold)
    except sockets.ResolverError as error:
        hint = "look at the registry's name and at the resolver"
        raise Fault(UnreachableError, f"unknown host: {host}", hint) from error
    except TimeoutError as error:
        raise Fault(UnavailableError, f"no connection: {host}: none in {route.dial_seconds:.3g} seconds") from error
    except OSError as error:
        raise Fault(
            UnreachableError, f"no connection: {host}: {reason(error)}", "is the registry running there?"
        ) from error


def _dial_proxy(route: Route, proxy: Proxy, context: ssl.SSLContext | None, hold: Hold | None) -> Socket:
    """A connection to the proxy; to what is behind it where that speaks TLS."""
    made: Socket | None = None
    try:
        made = sockets.connect(proxy.host, proxy.port, route.dial_seconds, hold)
        with _greeting(made, hold):
            if proxy.scheme == "https" and context is not None:
                from pyctrd.registry.tls import wrap

                made = wrap(made, context, proxy.host)
            if route.scheme == "https":
                _open_tunnel(made, route, proxy)
    except BaseException as error:
        if made is not None:
            made.close()
        if isinstance(error, OSError | ProtocolError):
            raise Fault(UnavailableError, f"proxy failed: {route.authority}: {reason(error)}", PROXY_HINT) from error
        raise
    return made


def _open_tunnel(made: Socket, route: Route, proxy: Proxy) -> None:
    """Have the proxy carry bytes to and fro (RFC 9110, section 9.3.6)."""
    target = _authority(route.host, route.port)
    fields = {"Host": target}
    if proxy.authorization:
        fields["Proxy-Authorization"] = proxy.authorization
    connection = Connection(made)
    connection.send(write_request("CONNECT", target, fields))
    status, words, _, _ = connection.head()
    if not 200 <= status < 300:
        raise ProtocolError(f"Tunnel connection failed: {status} {words}".rstrip())
    if not connection.is_idle():
        raise ProtocolError("more than an answer to CONNECT")  # the other side waits for our greeting


def _secure(made: Socket, context: ssl.SSLContext, route: Route, hold: Hold | None) -> Socket:
    from pyctrd.registry.tls import wrap

    try:
        with _greeting(made, hold):
            return wrap(made, context, route.host)
    except OSError as error:
        raise _exchange_fault(error, route.authority, route.dial_seconds) from error


def _exchange_fault(error: Exception, host: str, seconds: float) -> Fault:
    if is_tls(error):
        return Fault(RegistryError, f"TLS failed: {host}: {reason(error)}", _TLS_HINT)
    if isinstance(error, TimeoutError):
        return Fault(UnavailableError, f"no answer: {host}: nothing in {seconds:.0f} seconds")
    return Fault(UnavailableError, f"connection broke: {host}: {reason(error)}")
