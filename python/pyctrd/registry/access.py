"""Requests as each registry wants them: where it answers, with TLS or without, and with whose authorization."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode, urlsplit

from pyctrd.errors import AuthenticationError, NotFoundError, RegistryError, UnavailableError, UnsupportedError
from pyctrd.oci.hold import current_hold
from pyctrd.oci.value import NamedTuple
from pyctrd.registry import sockets
from pyctrd.registry.body import read_limited
from pyctrd.registry.challenge import TOKEN_MAX_BYTES, Challenge, Tokens, parse_challenges
from pyctrd.registry.hosts import (
    Endpoint,
    Resting,
    Trust,
    api_host,
    host_of,
    is_internal,
    is_loopback,
    is_within,
    may_be_plain,
)
from pyctrd.registry.pool import CONNECT_TIMEOUT_SECONDS
from pyctrd.registry.transport import Transport, redacted, redirect_target, same_origin

if TYPE_CHECKING:
    from pyctrd.oci.hold import Hold
    from pyctrd.oci.reference import Reference
    from pyctrd.registry.connection import Answer, Payload
    from pyctrd.registry.credentials import Credentials, CredentialStore, Keychain

_FOUND = (200, 206)
# Types of TLS records (RFC 8446, section 5.1).
_ALERT, _HANDSHAKE = b"\x15", b"\x16"


class _Request(NamedTuple):
    """What is asked for, of whichever endpoint."""

    method: str
    reference: Reference
    target: str
    kind: str
    headers: dict[str, str]
    subject: str
    scope: str
    body: bytes | Payload


class Access:
    """Asks registries; one connection pool for each host. Thread-safe.

    Args:
        ca: PEM certificates to trust beside the system's.
        plain_http: ``host`` or ``host:port`` to talk to without TLS. Loopback hosts are tried with TLS first and
            without it second, as Docker does.
        insecure: Registries, or networks (``10.0.0.0/8``) of such, whose certificates are not looked at, and that are
            talked to without TLS where they speak none.
        credentials: User and password by registry, or what gives them for one, before any configuration file.
        hosts: Directories that say where registries' content is to be had, each a directory for a registry.
    """

    def __init__(
        self,
        *,
        ca: Path | None = None,
        plain_http: Collection[str] = (),
        insecure: Collection[str] = (),
        credentials: Keychain | None = None,
        hosts: Sequence[Path] = (),
    ) -> None:
        self._plain_http = frozenset(plain_http)
        self._insecure = frozenset(insecure)
        self._given = credentials
        self._directories = tuple(hosts)
        self._transport = Transport(ca=ca)
        self._lock = threading.Lock()
        self._schemes: dict[str, str] = {}
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}
        # What a repository's last request was let in with: (endpoint, scope) → Authorization.
        self._grants: dict[tuple[str, str], str] = {}
        self._tokens: dict[Endpoint, Tokens] = {}
        self._resting = Resting()

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
        at: Literal["", "own", "push"] = "",
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
            at: Whom to ask: "own" is the registry's own server and nobody else, since what a mirror has proves nothing;
                "push" is who takes what is sent; "" is whoever can do it, mirrors first.

        Raises:
            CancelledError: ``hold`` was stopped before.
            NotFoundError, UnsupportedError, RegistryError: What another status means.
        """
        hold = hold or current_hold()
        scope = f"repository:{reference.repository}:{actions}{' ' if scope else ''}{scope}"
        request = _Request(method, reference, target, kind, dict(headers), subject or str(reference), scope, body)
        capability = at or _capability(method, target)
        endpoints = self._endpoints_for(reference.registry, capability)
        if capability == "push":  # what is begun at one host is gone on with there
            endpoints = endpoints[:1]
        for endpoint in endpoints[:-1]:
            try:
                return self._ask_one(endpoint, request, retry=False, accepts=_FOUND, hold=hold)
            except (RegistryError, NotFoundError, UnsupportedError) as error:
                if hold is not None and hold.is_stopped:
                    raise
                if isinstance(error, UnavailableError):
                    self._resting.rest(endpoint)
                import logging  # which a pull that goes well does not load

                logging.getLogger("pyctrd.registry").debug(
                    "%s: %s: %s", request.subject, redacted(endpoint.base), error
                )
        return self._ask_one(endpoints[-1], request, retry=retry, accepts=accepts, hold=hold)

    def first_host(self, registry: str) -> str:
        """Who is asked first for a registry's blobs: itself, or a mirror."""
        return self._endpoints_for(registry, "pull")[0].host

    def _ask_one(
        self, endpoint: Endpoint, request: _Request, *, retry: bool, accepts: Collection[int], hold: Hold | None
    ) -> Answer:
        registry, plain_hosts = request.reference.registry, self._plain_hosts(endpoint)
        url = self._url(endpoint, request, plain_hosts)
        is_own = urlsplit(url)[:2] == urlsplit(endpoint.base)[:2]
        key = (endpoint.base, request.scope)
        grant = self._grants.get(key) if is_own else None
        headers = request.headers | (dict(endpoint.headers) if is_own else {})
        refreshed = False
        while True:
            answer = self._transport.request(
                request.method,
                url,
                headers=headers | ({"Authorization": grant} if grant else {}),
                plain_hosts=plain_hosts,
                retry=retry,
                body=request.body,
                hold=hold,
                endpoint=endpoint if is_own else None,
            )
            # A blob server behind a redirect has its own ideas of 401; its challenge is not ours to answer.
            ours = is_own and urlsplit(answer.url or url).netloc == urlsplit(url).netloc
            if answer.status != 401 or not ours or refreshed or "Authorization" in headers:
                break
            challenges = parse_challenges(answer.headers.get("www-authenticate", ""))
            answer.drain()
            refreshed = grant is None or self._was_token(grant)
            grant = self._answer(endpoint, challenges, request.scope, refresh=grant is not None)
            self._grants[key] = grant
        if answer.status not in accepts:
            from pyctrd.registry.refusal import raise_status

            raise_status(answer, request.method, request.reference, request.kind, request.subject)
        if endpoint.is_mirror or len(self._endpoints[registry]) > 1:
            answer.broke = partial(self._resting.rest, endpoint)
        answer.source = endpoint.host
        return answer

    def _url(self, endpoint: Endpoint, request: _Request, plain_hosts: Collection[str]) -> str:
        """Where a path of the API is at an endpoint; a URL that it gave itself is left as it is."""
        target = request.target
        if not target.startswith("/"):
            return redirect_target(request.method, f"{endpoint.base}/", target, plain_hosts)
        if not target.startswith("/v2/"):  # a location that the registry gave without its host
            return redirect_target(request.method, f"{endpoint.base}/", target, plain_hosts)
        url = endpoint.base + target.removeprefix("/v2")
        if endpoint.is_mirror:
            # Whose content it is: a mirror may be one of several registries (containerd's docs/hosts.md).
            url += f"{'&' if '?' in url else '?'}{urlencode({'ns': request.reference.registry})}"
        return url

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
        endpoint = self._endpoints_for(registry, "pull")[-1]
        url, plain_hosts = f"{endpoint.base}/", self._plain_hosts(endpoint)
        headers = dict(endpoint.headers)
        answer = self._transport.request("GET", url, headers=headers, plain_hosts=plain_hosts, endpoint=endpoint)
        if answer.status == 401:
            challenges = parse_challenges(answer.headers.get("www-authenticate", ""))
            answer.drain()
            grant = self._answer(endpoint, challenges, "", refresh=True, credentials=credentials)
            headers["Authorization"] = grant
            answer = self._transport.request("GET", url, headers=headers, plain_hosts=plain_hosts, endpoint=endpoint)
        answer.drain()
        if answer.status in (401, 403):
            raise AuthenticationError(f"credentials refused: {registry}", method="GET", url=url, status=answer.status)
        if answer.status != 200:
            raise RegistryError(
                f"no registry: {registry}: status {answer.status}", method="GET", url=url, status=answer.status
            )

    def _answer(
        self,
        endpoint: Endpoint,
        challenges: list[Challenge],
        scope: str,
        *,
        refresh: bool,
        credentials: Credentials | None = None,
    ) -> str:
        """The Authorization that answers a 401.

        Raises:
            AuthenticationError: There are no credentials, or the challenge is of no known kind.
        """
        host = endpoint.host
        found = credentials or self._credentials.find(host)
        for challenge in challenges:
            if challenge.scheme == "bearer":
                token = self._tokens_of(endpoint).get(
                    challenge,
                    scope=scope,
                    credentials=found,
                    registry=host,
                    plain_ok=self._may_be_plain(endpoint),
                    refresh=refresh,
                )
                return f"Bearer {token}"
        if any(challenge.scheme == "basic" for challenge in challenges):
            if found is None or not found.password or (refresh and credentials is None):
                raise AuthenticationError(
                    f"credentials refused: {host}" if refresh else f"credentials needed: {host}",
                    method="GET",
                    url=host,
                    status=401,
                    hint=f"log in: pyctrd login {host}",
                )
            return found.basic()
        raise AuthenticationError(f"credentials refused: {host}: no challenge that is known", url=host, status=401)

    def _tokens_of(self, endpoint: Endpoint) -> Tokens:
        with self._lock:
            made = self._tokens.get(endpoint)
            if made is None:
                made = self._tokens[endpoint] = Tokens(partial(self._fetch_token, endpoint))
            return made

    def _fetch_token(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        *,
        fields: Mapping[str, str],
        headers: Mapping[str, str],
        plain_ok: bool,
    ) -> tuple[int, bytes]:
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 - read, it is checked
        except ValueError as error:  # half an IPv6 address, a port over 65535
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
            answer = self._transport.post(url, fields, trust=self._for_tokens(endpoint, url).trust)
        else:
            # Several scopes are several parameters here, and one with spaces in a form.
            pairs = [(name, one) for name, value in fields.items() for one in _each(name, value)]
            joined = f"{url}{'&' if parts.query else '?'}{urlencode(pairs)}"
            answer = self._transport.request("GET", joined, headers=headers, endpoint=self._for_tokens(endpoint, url))
        with answer:
            return answer.status, read_limited(answer, TOKEN_MAX_BYTES, "token")

    @staticmethod
    def _for_tokens(endpoint: Endpoint, url: str) -> Endpoint:
        """How a token server is talked to: as the registry where it is the same host, else with its authorities."""
        if same_origin(url, endpoint.base):
            return endpoint
        return endpoint._replace(trust=Trust(endpoint.trust.authorities), headers=())

    def _endpoints_for(self, registry: str, capability: str) -> tuple[Endpoint, ...]:
        """Whom to ask, in this order: those that failed a while ago come last, and are asked all the same."""
        with self._lock:
            known = self._endpoints.get(registry)
        if known is None:
            known = self._read_endpoints(registry)
            with self._lock:
                self._endpoints[registry] = known
        if capability == "own":
            able = [each for each in known if not each.is_mirror]
        else:
            able = [each for each in known if capability in each.capabilities]
        if not able:
            raise UnsupportedError(
                f"no host for this: {registry}: its hosts file has none for {capability!r}",
                feature=capability,
                needs="another hosts file",
            )
        return tuple(able if capability == "push" else sorted(able, key=self._resting.is_resting))

    def _read_endpoints(self, registry: str) -> tuple[Endpoint, ...]:
        is_insecure = bool(self._insecure) and is_within(registry, self._insecure)
        scheme = self._scheme(registry, is_insecure=is_insecure)
        found: tuple[Endpoint, ...] = ()
        if any(directory.is_dir() for directory in self._directories):
            from pyctrd.registry.endpoints import read_endpoints

            found = read_endpoints(self._directories, registry, scheme)
        own = Endpoint(f"{scheme}://{api_host(registry)}/v2", registry)
        return found or (own._replace(trust=Trust(verify=False)) if is_insecure else own,)

    def _plain_hosts(self, endpoint: Endpoint) -> frozenset[str]:
        if endpoint.base.startswith("https:"):
            return self._plain_http
        authority = urlsplit(endpoint.base).netloc
        return self._plain_http | {authority, host_of(authority)}

    def _may_be_plain(self, endpoint: Endpoint) -> bool:
        return endpoint.base.startswith("http:") or may_be_plain(endpoint.host, self._plain_http)

    def _scheme(self, registry: str, *, is_insecure: bool) -> str:
        """TLS, but for hosts that were declared plain, and loopback ones that do not speak it."""
        with self._lock:
            known = self._schemes.get(registry)
        if known is not None:
            return known
        if registry in self._plain_http or host_of(registry) in self._plain_http:
            scheme = "http"
        elif is_insecure or is_loopback(registry):
            scheme = "https" if _speaks_tls(registry) else "http"
        else:
            scheme = "https"
        with self._lock:
            self._schemes[registry] = scheme
        return scheme


def _capability(method: str, target: str) -> str:
    """What an endpoint must be able to do for a request, as containerd calls it."""
    if method not in ("GET", "HEAD") or "/blobs/uploads/" in target:
        return "push"
    is_by_tag = "/manifests/" in target and ":" not in target.rpartition("/")[2]
    return "resolve" if is_by_tag or "/tags/" in target else "pull"


def _each(name: str, value: str) -> list[str]:
    return value.split(" ") if name == "scope" else [value]


def _speaks_tls(registry: str) -> bool:
    """Greet as TLS does, nothing more: who speaks it answers with a record of it, a plain server with what is none.

    Any certificate is passed over: the real connection looks at it. A plain server costs no loading of ``ssl``.
    """
    port = registry.rpartition(":")[2] if ":" in registry.rpartition("]")[2] else "443"
    try:
        with closing(sockets.connect(host_of(registry), int(port), CONNECT_TIMEOUT_SECONDS)) as plain:
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
