"""Requests over urllib3: pools, redirects, retries, and errors that name what failed."""

from __future__ import annotations

import contextlib
import os
import random
import ssl
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from pyctrd import __version__
from pyctrd.errors import InvalidError, RegistryError, UnavailableError, UnreachableError

CONNECT_TIMEOUT_SECONDS = 15.0
# The longest silence of a server that still is at work; distribution's own default is a minute.
READ_TIMEOUT_SECONDS = 60.0
POOL_CONNECTIONS = 16
REDIRECTS_MAX = 10  # as Go's client, which the registries are tried with
ATTEMPTS_MAX = 5
BACKOFF_SECONDS = 0.25
BACKOFF_MAX_SECONDS = 10.0
RETRY_AFTER_MAX_SECONDS = 60.0
RETRY_AFTER_MAX_CHARS = 12
_RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SECRET_HEADERS = frozenset({"authorization", "cookie"})


class Transport:
    """A pool of connections for each host; thread-safe.

    Args:
        ca: PEM certificates to trust beside the system's.
    """

    def __init__(self, *, ca: Path | None = None) -> None:
        self._ca = ca
        self._lock = threading.Lock()
        self._pools: dict[tuple[bool, str | None], urllib3.PoolManager] = {}

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        plain_hosts: Collection[str] = (),
        retry: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        """One answer, its body unread; redirects are followed and passing faults retried.

        Args:
            method: GET or HEAD: nothing here is sent twice that would matter.
            url: Where.
            headers: What goes along; Authorization is dropped when a redirect leaves the host.
            plain_hosts: ``host[:port]`` that may be talked to without TLS.
            retry: Whether 429, 5xx and broken connections are tried again, with back-off.

        Raises:
            UnavailableError: It could not be reached, or went on failing.
            RegistryError: Too many redirects, or one to where we do not go.
        """
        attempt = 1
        while True:
            try:
                answer = self._follow(method, url, headers, plain_hosts)
            except UnreachableError:
                raise  # a name that nobody knows will not be known in a second
            except UnavailableError:
                if not retry or attempt == ATTEMPTS_MAX:
                    raise
                time.sleep(backoff_seconds(attempt))
                attempt += 1
                continue
            if not retry or answer.status not in _RETRIED_STATUSES or attempt == ATTEMPTS_MAX:
                return answer
            pause = retry_after_seconds(answer.headers.get("Retry-After")) or backoff_seconds(attempt)
            if pause > RETRY_AFTER_MAX_SECONDS:
                return answer  # the caller decides whether to wait so long
            answer.close()
            time.sleep(pause)
            attempt += 1

    def post(self, url: str, fields: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """One form, sent once, no redirect followed.

        Raises:
            UnavailableError: It could not be reached.
        """
        headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": user_agent()}
        return self._send("POST", url, headers, body=urlencode(fields).encode())

    def close(self) -> None:
        """Close every pool; idempotent."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.clear()

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], plain_hosts: Collection[str]
    ) -> urllib3.BaseHTTPResponse:
        sent = {**headers, "User-Agent": user_agent()}
        start = url
        for _ in range(REDIRECTS_MAX + 1):
            answer = self._send(method, url, sent)
            answer.url = url  # urllib3 knows the path only; who answered decides what a 401 means
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or location is None:
                return answer
            answer.drain_conn()
            target = _redirect_target(method, url, location, plain_hosts)
            if _origin(target) != _origin(url):
                sent = {name: value for name, value in sent.items() if name.lower() not in _SECRET_HEADERS}
            url = target
        raise RegistryError(
            f"too many redirects: {method} {redacted(start)}: more than {REDIRECTS_MAX}",
            method=method,
            url=redacted(start),
        )

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], *, body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool(url).request(
                method,
                url,
                headers=headers,
                body=body,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=READ_TIMEOUT_SECONDS),
            )
        except HTTPError as error:
            raise translate(error, method, url) from error

    def _pool(self, url: str) -> urllib3.PoolManager:
        """The pool manager for a scheme and a proxy: only TLS pays for loading the trust store."""
        key = secure, proxy = urlsplit(url).scheme == "https", _proxy_for(url)
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = self._make_pool(secure=secure, proxy=proxy)
            return pool

    def _make_pool(self, *, secure: bool, proxy: str | None) -> urllib3.PoolManager:
        context = self._context() if secure else None
        if proxy is not None:
            return urllib3.ProxyManager(proxy, maxsize=POOL_CONNECTIONS, block=False, ssl_context=context)
        return urllib3.PoolManager(maxsize=POOL_CONNECTIONS, block=False, ssl_context=context)

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._ca is not None:
            try:
                context.load_verify_locations(self._ca)
            except ssl.SSLError as error:
                raise InvalidError(
                    f"invalid certificates: {self._ca}: no PEM certificates", field="ca", value=str(self._ca)
                ) from error
            except OSError as error:
                error.filename = str(self._ca)  # ssl does not say which file
                raise
        return context


def user_agent() -> str:
    """What we call ourselves."""
    return f"pyctrd/{__version__}"


def redacted(url: str) -> str:
    """The URL without user, password and query values: those of blob stores are signatures."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = "?…" if parts.query else ""
    return f"{parts.scheme}://{host}{parts.path}{query}"


def backoff_seconds(attempt: int) -> float:
    """A pause that doubles, with jitter so that a thousand nodes do not come back at once."""
    return min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def retry_after_seconds(value: str | None) -> float | None:
    """What ``Retry-After`` asks for, in seconds; a date or nonsense counts as not said."""
    text = (value or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) <= RETRY_AFTER_MAX_CHARS else None


def translate(error: HTTPError, method: str, url: str) -> RegistryError:
    """urllib3's error as ours: one line that names the host and the cause."""
    cause: BaseException = error
    if isinstance(error, MaxRetryError) and error.reason is not None:
        cause = error.reason
    host = urlsplit(url).netloc.rpartition("@")[2]
    kind: type[RegistryError] = UnavailableError
    hint = ""
    if isinstance(cause, ProxyError):
        message, hint = f"proxy failed: {host}: {_reason(cause)}", "look at HTTPS_PROXY and NO_PROXY"
    elif isinstance(cause, NameResolutionError):
        kind, message = UnreachableError, f"unknown host: {host}"
        hint = "look at the registry's name and at the resolver"
    elif isinstance(cause, SSLError):
        kind, message = RegistryError, f"TLS failed: {host}: {_reason(cause)}"
        hint = "give the registry's certificate authority with --ca, or name a host without TLS with --plain-http"
    elif isinstance(cause, NewConnectionError):
        kind, message, hint = (
            UnreachableError,
            f"no connection: {host}: {_reason(cause)}",
            "is the registry running there?",
        )
    elif isinstance(cause, ConnectTimeoutError):
        message = f"no connection: {host}: none in {CONNECT_TIMEOUT_SECONDS:.0f} seconds"
    elif isinstance(cause, ReadTimeoutError):
        message = f"no answer: {host}: nothing in {READ_TIMEOUT_SECONDS:.0f} seconds"
    elif isinstance(cause, LocationParseError):
        kind, message = RegistryError, f"invalid URL: {redacted(url)}"
    else:
        message = f"connection broke: {host}: {_reason(cause)}"
    return kind(message, method=method, url=redacted(url), hint=hint)


def _reason(error: BaseException) -> str:
    """The last cause's own words, without object addresses."""
    root = error
    while root.__cause__ is not None or root.__context__ is not None:
        root = root.__cause__ or root.__context__ or root
    if isinstance(root, ssl.SSLCertVerificationError):
        return root.verify_message
    if isinstance(root, OSError) and root.strerror:
        return root.strerror.lower()
    return str(root.args[-1]) if root.args else type(root).__name__


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port


def _redirect_target(method: str, url: str, location: str, plain_hosts: Collection[str]) -> str:
    """Where a redirect leads: to HTTPS, or to a host that was declared plain.

    Raises:
        RegistryError: It leads elsewhere, or ``location`` is no URL.
    """
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


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL, None where there is none."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    with contextlib.suppress(OSError):
        if proxy_bypass(parts.hostname or ""):
            return None
    return getproxies().get(parts.scheme)
