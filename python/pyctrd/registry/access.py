"""Requests as each registry wants them: where it answers, with TLS or without, and with whose authorization."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from pyctrd.errors import AuthenticationError, RegistryError
from pyctrd.registry.body import read_limited
from pyctrd.registry.challenge import TOKEN_MAX_BYTES, Challenge, Tokens, parse_challenges
from pyctrd.registry.hosts import api_host, host_of, is_internal, is_loopback, may_be_plain
from pyctrd.registry.pool import CONNECT_TIMEOUT_SECONDS
from pyctrd.registry.transport import Transport, redacted, redirect_target

if TYPE_CHECKING:
    from pyctrd.oci.reference import Reference
    from pyctrd.registry.connection import Answer, Hold, Payload
    from pyctrd.registry.credentials import Credentials, CredentialStore

# Types of TLS records (RFC 8446, section 5.1).
_ALERT, _HANDSHAKE = b"\x15", b"\x16"


class Access:
    """Asks registries; one connection pool for each host. Thread-safe.

    Args:
        ca: PEM certificates to trust beside the system's.
        plain_http: ``host`` or ``host:port`` to talk to without TLS. Loopback hosts are tried with TLS first and
            without it second, as Docker does.
        credentials: User and password by registry, before any configuration file.
    """

    def __init__(
        self,
        *,
        ca: Path | None = None,
        plain_http: Collection[str] = (),
        credentials: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self._plain_http = frozenset(plain_http)
        self._given = dict(credentials or {})
        self._transport = Transport(ca=ca)
        self._tokens = Tokens(self._fetch_token)
        self._lock = threading.Lock()
        self._schemes: dict[str, str] = {}
        # What a repository's last request was let in with: (registry, scope) → Authorization.
        self._grants: dict[tuple[str, str], str] = {}

    def close(self) -> None:
        """Close the connections; idempotent."""
        self._transport.close()

    @cached_property
    def _credentials(self) -> CredentialStore:
        """Looked for where a registry asks for them: most pulls need none."""
        from pyctrd.registry.credentials import CredentialStore

        return CredentialStore(self._given)

    def ask(
        self,
        method: str,
        reference: Reference,
        target: str,
        kind: str,
        headers: Mapping[str, str],
        *,
        subject: str = "",
        retry: bool = True,
        actions: str = "pull",
        scope: str = "",
        body: bytes | Payload = b"",
        accepts: Collection[int] = (200, 206),
        hold: Hold | None = None,
    ) -> Answer:
        """One answer, with whatever authorization the registry asks for.

        Args:
            method: Of HTTP.
            reference: Whose registry and repository.
            target: A path with its query, or a URL that the registry gave; to another host goes no authorization.
            kind: Of what is asked for, for messages.
            headers: What goes along.
            subject: What is asked for, for messages; the reference by default.
            retry: Whether passing faults are tried again here.
            actions: What is going to be done in the repository, as scopes have it.
            scope: What is going to be done elsewhere.
            body: What is sent.
            accepts: The statuses that are given back.
            hold: Ends the wait for the answer.

        Raises:
            CancelledError: ``hold`` was stopped before.
            NotFoundError, UnsupportedError, RegistryError: What another status means.
        """
        registry = reference.registry
        scope = f"repository:{reference.repository}:{actions}{' ' if scope else ''}{scope}"
        base = f"{self._scheme(registry)}://{api_host(registry)}"
        plain_hosts = self._plain_hosts(registry)
        url = base + target if target.startswith("/") else redirect_target(method, base, target, plain_hosts)
        is_own = urlsplit(url)[:2] == urlsplit(base)[:2]
        grant = self._grants.get((registry, scope)) if is_own else None
        refreshed = False
        while True:
            sent = {**headers, "Authorization": grant} if grant else dict(headers)
            answer = self._transport.request(
                method, url, headers=sent, plain_hosts=plain_hosts, retry=retry, body=body, hold=hold
            )
            # A blob server behind a redirect has its own ideas of 401; its challenge is not ours to answer.
            ours = is_own and urlsplit(answer.url or url).netloc == urlsplit(url).netloc
            if answer.status != 401 or not ours or refreshed:
                break
            challenges = parse_challenges(answer.headers.get("www-authenticate", ""))
            answer.drain()
            refreshed = grant is None or self._was_token(grant)
            grant = self._answer(
                challenges, registry, scope, credentials=self._credentials.find(registry), refresh=grant is not None
            )
            self._grants[registry, scope] = grant
        if answer.status not in accepts:
            from pyctrd.registry.refusal import raise_status

            raise_status(answer, method, reference, kind, subject or str(reference))
        return answer

    @staticmethod
    def _was_token(grant: str) -> bool:
        return grant.startswith("Bearer ")

    def check(self, registry: str, credentials: Credentials) -> None:
        """See whether a registry knows credentials; one that lets in everybody is content with any.

        Raises:
            AuthenticationError: It does not.
            RegistryError: It could not be reached, or is none.

        Spec:
            distribution-spec v1.1, "Determining Support".
        """
        url = f"{self._scheme(registry)}://{api_host(registry)}/v2/"
        plain_hosts = self._plain_hosts(registry)
        answer = self._transport.request("GET", url, headers={}, plain_hosts=plain_hosts)
        if answer.status == 401:
            challenges = parse_challenges(answer.headers.get("www-authenticate", ""))
            answer.drain()
            grant = self._answer(challenges, registry, "", credentials=credentials, refresh=True)
            answer = self._transport.request("GET", url, headers={"Authorization": grant}, plain_hosts=plain_hosts)
        answer.drain()
        if answer.status in (401, 403):
            raise AuthenticationError(f"credentials refused: {registry}", method="GET", url=url, status=answer.status)
        if answer.status != 200:
            raise RegistryError(
                f"no registry: {registry}: status {answer.status}", method="GET", url=url, status=answer.status
            )

    def _answer(
        self,
        challenges: list[Challenge],
        registry: str,
        scope: str,
        *,
        credentials: Credentials | None,
        refresh: bool,
    ) -> str:
        """The Authorization that answers a 401.

        Raises:
            AuthenticationError: There are no credentials, or the challenge is of no known kind.
        """
        for challenge in challenges:
            if challenge.scheme == "bearer":
                token = self._tokens.get(
                    challenge,
                    scope=scope,
                    credentials=credentials,
                    registry=registry,
                    plain_ok=may_be_plain(registry, self._plain_http),
                    refresh=refresh,
                )
                return f"Bearer {token}"
        if any(challenge.scheme == "basic" for challenge in challenges):
            if credentials is None or not credentials.password or (refresh and scope):
                raise AuthenticationError(
                    f"credentials refused: {registry}" if refresh else f"credentials needed: {registry}",
                    method="GET",
                    url=registry,
                    status=401,
                    hint=f"log in: pyctrd login {registry}",
                )
            return credentials.basic()
        raise AuthenticationError(
            f"credentials refused: {registry}: no challenge that is known", url=registry, status=401
        )

    def _fetch_token(
        self, method: str, url: str, *, fields: Mapping[str, str], headers: Mapping[str, str], plain_ok: bool
    ) -> tuple[int, bytes]:
        try:
            parts = urlsplit(url)
        except ValueError as error:  # half an IPv6 address
            raise AuthenticationError("token server refused: its realm is no URL") from error
        if not plain_ok and is_internal(parts.hostname or ""):
            raise AuthenticationError(
                f"token server refused: {redacted(url)}: a registry elsewhere names an address of this machine or link",
                url=redacted(url),
            )
        if parts.scheme != "https" and not (parts.scheme == "http" and plain_ok):
            raise AuthenticationError(
                f"token server refused: {redacted(url)}: credentials are sent over HTTPS only", url=redacted(url)
            )
        if method == "POST":
            answer = self._transport.post(url, fields)
        else:
            # Several scopes are several parameters here, and one with spaces in a form.
            pairs = [(name, one) for name, value in fields.items() for one in _each(name, value)]
            joined = f"{url}{'&' if parts.query else '?'}{urlencode(pairs)}"
            answer = self._transport.request("GET", joined, headers=headers)
        with answer:
            return answer.status, read_limited(answer, TOKEN_MAX_BYTES, "token")

    def _plain_hosts(self, registry: str) -> frozenset[str]:
        if self._scheme(registry) == "https":
            return self._plain_http
        return self._plain_http | {api_host(registry), host_of(registry)}

    def _scheme(self, registry: str) -> str:
        """TLS, but for hosts that were declared plain, and loopback ones that do not speak it."""
        with self._lock:
            known = self._schemes.get(registry)
        if known is not None:
            return known
        if registry in self._plain_http or host_of(registry) in self._plain_http:
            scheme = "http"
        elif is_loopback(registry):
            scheme = "https" if _speaks_tls(registry) else "http"
        else:
            scheme = "https"
        with self._lock:
            self._schemes[registry] = scheme
        return scheme


def _each(name: str, value: str) -> list[str]:
    return value.split(" ") if name == "scope" else [value]


def _speaks_tls(registry: str) -> bool:
    """Greet as TLS does, nothing more: who speaks it answers with a record of it, a plain server with what is none.

    Any certificate is passed over: the real connection looks at it. A plain server costs no loading of ``ssl``.
    """
    port = registry.rpartition(":")[2] if ":" in registry.rpartition("]")[2] else "443"
    # As bytes: of a str, the resolver's call would load the codec of names beyond ASCII.
    address: Any = (host_of(registry).encode("ascii"), int(port))
    try:
        with socket.create_connection(address, timeout=CONNECT_TIMEOUT_SECONDS) as plain:
            plain.sendall(_client_hello())
            return plain.recv(1) in (_ALERT, _HANDSHAKE)
    except OSError:
        return False  # the real connection says what is wrong


def _client_hello() -> bytes:
    """A greeting that every server of TLS 1.2 or 1.3 understands (RFC 8446, section 4.1.2)."""
    # For randomness, of which a handshake that goes no further needs none: the end of a head, which makes a plain
    # server answer at once.
    random = b"\r\n\r\n".ljust(32, b"-")
    ciphers = bytes.fromhex("1301 1302 1303 c02b c02f c02c c030 cca9 cca8 009c 009d")
    extensions = bytes.fromhex(
        "000a 0006 0004 001d 0017"  # groups: x25519, P-256
        "000d 000a 0008 0403 0804 0805 0401"  # signatures: ECDSA, RSA-PSS, RSA
        "002b 0005 04 0304 0303"  # versions: 1.3, 1.2
        "0033 0002 0000"  # no key yet: the server asks for one
    )
    body = b"\x03\x03" + random + b"\0" + _sized(ciphers, 2) + b"\1\0" + _sized(extensions, 2)
    return _HANDSHAKE + b"\x03\x01" + _sized(b"\1" + _sized(body, 3), 2)


def _sized(content: bytes, digits: int) -> bytes:
    return len(content).to_bytes(digits, "big") + content
