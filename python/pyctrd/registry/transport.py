"""Requests: redirects, retries, proxies, and errors that name what failed."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit

from pyctrd import __version__
from pyctrd.errors import RegistryError, UnavailableError, UnreachableError
from pyctrd.oci.hold import current_hold
from pyctrd.oci.hold import pause as hold_pause
from pyctrd.registry.hosts import Trust
from pyctrd.registry.pool import CONNECT_TIMEOUT_SECONDS, PORTS, PROXY_HINT, Fault, Pool, Proxy, Route

if TYPE_CHECKING:
    import ssl

    from pyctrd.oci.hold import Hold
    from pyctrd.registry.connection import Answer, Payload
    from pyctrd.registry.hosts import Endpoint

REDIRECTS_MAX = 10  # as Go's client, which the registries are tried with
ATTEMPTS_MAX = 5
BACKOFF_SECONDS = 0.25
BACKOFF_MAX_SECONDS = 10.0
RETRY_AFTER_MAX_SECONDS = 60.0
RETRY_AFTER_MAX_CHARS = 12
_RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REPEATING_REDIRECTS = frozenset({307, 308})
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_SECRET_HEADERS = frozenset({"authorization", "cookie"})
# Of a path and a query, what may stand as it is (RFC 3986, section 3.4), and what was encoded by others.
_TARGET_SAFE = "/?:@!$&'()*+,;=-._~%"
_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._:%")


class Transport:
    """A pool of connections for each host; thread-safe.

    Args:
        ca: PEM certificates to trust beside the system's.
    """

    def __init__(self, *, ca: Path | None = None) -> None:
        self._ca = ca
        self._lock = threading.Lock()
        self._contexts: dict[Trust, ssl.SSLContext] = {}
        self._pool = Pool(self._context)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        plain_hosts: Collection[str] = (),
        retry: bool = True,
        body: bytes | Payload = b"",
        hold: Hold | None = None,
        endpoint: Endpoint | None = None,
    ) -> Answer:
        """One answer, its body unread; redirects are followed and passing faults retried.

        Args:
            method: Of what may be sent twice, as all that the distribution API has.
            url: Where.
            headers: What goes along; Authorization is dropped when a redirect leaves the host.
            plain_hosts: ``host[:port]`` that may be talked to without TLS.
            retry: Whether 429, 5xx and broken connections are tried again, with back-off.
            body: What is sent along; again from its start, where the request is sent again.
            hold: Ends the wait for the answer.
            endpoint: Whose certificates are used; to where a redirect leaves its host goes no client's.

        Raises:
            UnavailableError: It could not be reached, or went on failing.
            RegistryError: Too many redirects, or one to where we do not go.
        """
        attempt = 1
        while True:
            try:
                answer = self._follow(method, url, headers, plain_hosts, body, hold, endpoint)
            except UnreachableError:
                raise  # a name that nobody knows will not be known in a second
            except UnavailableError:
                if not retry or attempt == ATTEMPTS_MAX:
                    raise
                pause(backoff_seconds(attempt))
                attempt += 1
                continue
            answer.tries = attempt
            if not retry or answer.status not in _RETRIED_STATUSES or attempt == ATTEMPTS_MAX:
                return answer
            seconds = retry_after_seconds(answer.headers.get("retry-after")) or backoff_seconds(attempt)
            if seconds > RETRY_AFTER_MAX_SECONDS:
                return answer  # the caller decides whether to wait so long
            answer.close()
            pause(seconds)
            attempt += 1

    def post(self, url: str, fields: Mapping[str, str], *, trust: Trust = Trust()) -> Answer:  # noqa: B008 - a value
        """One form, sent once, no redirect followed.

        Raises:
            UnavailableError: It could not be reached.
        """
        headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": user_agent()}
        return self._send("POST", url, headers, body=urlencode(fields).encode(), repeatable=False, trust=trust)

    def close(self) -> None:
        """Close every connection that is idle, and the others when they become it; idempotent."""
        self._pool.close()

    def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        plain_hosts: Collection[str],
        body: bytes | Payload,
        hold: Hold | None,
        endpoint: Endpoint | None,
    ) -> Answer:
        sent = {**headers, "User-Agent": user_agent()}
        start = url
        trust = Trust() if endpoint is None else endpoint.trust
        seconds = None if endpoint is None else endpoint.dial_seconds
        for _ in range(REDIRECTS_MAX + 1):
            answer = self._send(method, url, sent, body=body, hold=hold, trust=trust, dial_seconds=seconds)
            location = answer.headers.get("location")
            # Of what changes something, only these two say that the same is to be done elsewhere (RFC 9110, 15.4).
            followed = _REDIRECTS if method in _SAFE_METHODS else _REPEATING_REDIRECTS
            if answer.status not in followed or location is None:
                return answer
            answer.drain()
            target = redirect_target(method, url, location, plain_hosts)
            if _origin(target) != _origin(url):
                sent = {name: value for name, value in sent.items() if name.lower() not in _SECRET_HEADERS}
                # Those that were added for a host may be as secret.
                own = {name.lower() for name, _ in endpoint.headers} if endpoint is not None else set()
                sent = {name: value for name, value in sent.items() if name.lower() not in own}
                trust = Trust(trust.authorities)
            url = target
        raise RegistryError(
            f"too many redirects: {method} {redacted(start)}: more than {REDIRECTS_MAX}",
            method=method,
            url=redacted(start),
        )

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        body: bytes | Payload = b"",
        repeatable: bool = True,
        hold: Hold | None = None,
        trust: Trust = Trust(),  # noqa: B008 - a value, and the same for all
        dial_seconds: float | None = None,
    ) -> Answer:
        try:
            route, target = _read_url(url)
        except ValueError as error:
            raise RegistryError(f"invalid URL: {redacted(url)}", method=method, url=redacted(url)) from error
        try:
            route = route._replace(
                proxy=_proxy_for(route),
                trust=trust,
                dial_seconds=CONNECT_TIMEOUT_SECONDS if dial_seconds is None else dial_seconds,
            )
            answer = self._pool.request(route, method, target, headers, body=body, repeatable=repeatable, hold=hold)
        except Fault as fault:
            raise fault.kind(fault.message, method=method, url=redacted(url), hint=fault.hint) from fault
        answer.url = url  # who answered decides what a 401 means
        return answer

    def _context(self, trust: Trust) -> ssl.SSLContext:
        """What TLS trusts, loaded once, by who needs it."""
        with self._lock:
            made = self._contexts.get(trust)
            if made is None:
                from pyctrd.registry.tls import make_context

                made = self._contexts[trust] = make_context(self._ca, trust)
            return made


def user_agent() -> str:
    """What we call ourselves."""
    return f"pyctrd/{__version__}"


def redacted(url: str) -> str:
    """The URL without user, password and query values: those of blob stores are signatures."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = "?…" if parts.query else ""
    return f"{parts.scheme}://{host}{parts.path}{query}"


def pause(seconds: float) -> None:
    """Wait before another attempt; who gives the thread's call up ends it."""
    if current_hold() is None:
        time.sleep(seconds)
    else:
        hold_pause(seconds)


def backoff_seconds(attempt: int) -> float:
    """A pause that doubles, with jitter so that a thousand nodes do not come back at once."""
    import random

    return min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def retry_after_seconds(value: str | None) -> float | None:
    """What ``Retry-After`` asks for, in seconds; a date or nonsense counts as not said."""
    text = (value or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) <= RETRY_AFTER_MAX_CHARS else None


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port


def same_origin(url: str, other: str) -> bool:
    """Whether two URLs lead to one server."""
    return _origin(url) == _origin(other)


def redirect_target(method: str, url: str, location: str, plain_hosts: Collection[str]) -> str:
    """Where a redirect leads: to HTTPS, or to a host that was declared plain.

    Raises:
        RegistryError: It leads elsewhere, or ``location`` is no URL.
    """
    with contextlib.suppress(UnicodeError):
        location = location.encode("latin-1").decode()  # what is not ASCII is UTF-8, where it is that
    try:
        target = urljoin(url, location)
        parts, origin = urlsplit(target), _origin(target)
    except ValueError as error:  # half an IPv6 address, a port over 65535
        raise RegistryError(
            f"redirect refused: {method} {redacted(url)}: to what is no URL", method=method, url=redacted(url)
        ) from error
    if parts.scheme == "https" and parts.hostname:
        return target
    if parts.scheme == "http" and parts.hostname:
        host = parts.netloc.rpartition("@")[2]
        if host in plain_hosts or parts.hostname in plain_hosts or origin == _origin(url):
            return target
    raise RegistryError(
        f"redirect refused: {method} {redacted(url)}: to {redacted(target)}, which is not HTTPS",
        method=method,
        url=redacted(url),
    )


def _read_url(url: str) -> tuple[Route, str]:
    """Where a URL leads, and what is asked for there; user, password and fragment stay here.

    Raises:
        ValueError: It leads nowhere.
    """
    parts = urlsplit(url)
    host = _ascii_host(parts.hostname)
    if parts.scheme not in PORTS or any(c < " " or c == "\x7f" for c in url):
        raise ValueError(url)
    port = PORTS[parts.scheme] if parts.port is None else parts.port
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Route(parts.scheme, host, port), quote(target, safe=_TARGET_SAFE)


def _proxy_for(route: Route) -> Proxy | None:
    """The proxy that the environment names for a place, None where there is none.

    Raises:
        Fault: It names what is no HTTP proxy.
    """
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass

    with contextlib.suppress(OSError):
        if proxy_bypass(route.host):
            return None
    named = getproxies().get(route.scheme)
    return None if named is None else _read_proxy(named, route.authority)


def _read_proxy(named: str, host: str) -> Proxy:
    try:
        parts = urlsplit(named if "://" in named else f"http://{named}")
        name, port = _ascii_host(parts.hostname), parts.port or PORTS[parts.scheme]
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    except (ValueError, KeyError) as error:  # a scheme that we do not speak is a KeyError
        what = f"proxy failed: {host}: the environment names what is no HTTP proxy"
        raise Fault(UnavailableError, what, PROXY_HINT) from error
    if not pair:
        return Proxy(parts.scheme, name, port, "")
    from base64 import b64encode

    return Proxy(parts.scheme, name, port, f"Basic {b64encode(pair.encode()).decode('ascii')}")


def _ascii_host(host: str | None) -> str:
    """The host as it goes on the wire.

    Raises:
        ValueError: There is none, or it has characters that no host has.
    """
    found = (host or "").replace("%25", "%")
    if not found.isascii():
        found = found.encode("idna").decode("ascii")
    if not found or not _HOST_CHARACTERS.issuperset(found):
        raise ValueError(host)
    return found
