"""``WWW-Authenticate``: what a registry asks for, and the tokens that answer it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from pyctrd.errors import AuthenticationError, RegistryError
from pyctrd.oci.value import NamedTuple, dataclass

if TYPE_CHECKING:
    from pyctrd.registry.credentials import Credentials

# A token without `expires_in` lives 60 seconds (distribution's token specification).
DEFAULT_TOKEN_SECONDS = 60
# A token that ends within this is asked for anew: a request takes time too.
TOKEN_MARGIN_SECONDS = 10
TOKEN_MAX_BYTES = 1024 * 1024
CLIENT_ID = "pyctrd"

_PARAMETER = r'\s*([a-zA-Z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))'


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: scheme (lower case) and parameters (RFC 9110, section 11.6.1)."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of a header, in their order; what cannot be read is passed over."""
    found: list[Challenge] = []
    for part in re.split(r",\s*(?=[A-Za-z]+\s+[A-Za-z_]+=)|,\s*(?=[A-Za-z]+\s*(?:,|$))", header):
        scheme, _, rest = part.strip().partition(" ")
        if scheme:
            found.append(Challenge(scheme.lower(), dict(_parameters(rest))))
    return found


def _parameters(text: str) -> Iterator[tuple[str, str]]:
    """Names and values. In one go from left to right: to look for them at each place takes time by the square."""
    at = 0
    while at < len(text):
        if (match := re.compile(_PARAMETER).match(text, at)) is not None:
            name, quoted, plain = match.groups()
            yield name.lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            at = match.end()
        if (comma := text.find(",", at)) < 0:
            return
        at = comma + 1


class Grant(NamedTuple):
    """What a token server gave: a token, the seconds that it lives, and one to get the next with, or ""."""

    token: str
    seconds: int
    refresh_token: str


def merge_scopes(*texts: str) -> str:
    """Scopes, those of one resource as one: ``repository:a:pull,push repository:b:pull``.

    Spec:
        distribution's token specification, "Requesting a Token"; RFC 6749, section 3.3.
    """
    merged: dict[str, dict[str, None]] = {}
    for scope in " ".join(texts).split():
        resource, colon, actions = scope.rpartition(":") if ":" in scope else (scope, "", "")
        merged.setdefault(resource + colon, {}).update(dict.fromkeys(actions.split(",")))
    return " ".join(f"{resource}{','.join(actions)}" for resource, actions in merged.items())


class Fetch(Protocol):
    """How a token endpoint is asked; returns status and body."""

    def __call__(
        self, method: str, url: str, *, fields: Mapping[str, str], headers: Mapping[str, str], plain_ok: bool
    ) -> tuple[int, bytes]:
        """One request, no redirects."""
        ...


class Tokens:
    """Bearer tokens by realm, service and scope, kept until they end. Thread-safe."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str, str, str], tuple[str, float]] = {}
        # Refresh tokens that a server gave along: (registry, realm, service) → token.
        self._refreshing: dict[tuple[str, str, str], str] = {}

    def get(
        self,
        challenge: Challenge,
        *,
        scope: str,
        credentials: Credentials | None,
        registry: str,
        plain_ok: bool,
        refresh: bool = False,
    ) -> str:
        """A token for a challenge.

        Args:
            challenge: A bearer challenge.
            scope: What is going to be done, beside what the challenge says of it.
            credentials: Whose; None for an anonymous token.
            registry: Whose challenge it is, for messages and so that registries never share tokens.
            plain_ok: Whether the registry is one to talk to without TLS; the token endpoint then may be too.
            refresh: Do not take a kept one: the registry refused it.

        Raises:
            AuthenticationError: The endpoint refused, or the challenge has none.
        """
        realm = challenge.parameters.get("realm", "")
        scopes = merge_scopes(challenge.parameters.get("scope", ""), scope)
        key = (registry, realm, challenge.parameters.get("service", ""), scopes)
        if not realm:
            raise AuthenticationError(f"challenge without realm: {registry}", url=registry, status=401)
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and not refresh and kept[1] > time.monotonic():
            return kept[0]
        grant = self._ask(key, credentials, plain_ok=plain_ok)
        with self._lock:
            self._kept[key] = (grant.token, time.monotonic() + max(0, grant.seconds - TOKEN_MARGIN_SECONDS))
            if grant.refresh_token and credentials is not None:  # one that nobody's is may be anybody's
                self._refreshing[key[:3]] = grant.refresh_token
        return grant.token

    def _ask(self, key: tuple[str, str, str, str], credentials: Credentials | None, *, plain_ok: bool) -> Grant:
        registry, realm, service, scope = key
        fields = {name: value for name, value in (("service", service), ("scope", scope)) if value}
        with self._lock:
            given = self._refreshing.pop(key[:3], "")
        if given:  # one that came with another token; where it is refused, what we began with counts
            status, body = self._refresh(realm, fields, given, plain_ok=plain_ok)
            if status == 200:
                grant = _read_token(status, body, registry)
                return grant._replace(refresh_token=grant.refresh_token or given)
        if credentials is not None and credentials.identity_token:
            return _read_token(*self._refresh(realm, fields, credentials.identity_token, plain_ok=plain_ok), registry)
        headers = {}
        if credentials is not None:
            headers["Authorization"] = credentials.basic()
            fields |= {"account": credentials.user} if credentials.user else {}
        return _read_token(*self._fetch("GET", realm, fields=fields, headers=headers, plain_ok=plain_ok), registry)

    def _refresh(self, realm: str, fields: Mapping[str, str], token: str, *, plain_ok: bool) -> tuple[int, bytes]:
        sent = {**fields, "grant_type": "refresh_token", "refresh_token": token, "client_id": CLIENT_ID}
        return self._fetch("POST", realm, fields=sent, headers={}, plain_ok=plain_ok)


def _read_token(status: int, body: bytes, registry: str) -> Grant:
    if status in (401, 403):
        raise AuthenticationError(
            f"credentials refused: {registry}: the token server answered {status}",
            url=registry,
            status=status,
            hint=f"log in: pyctrd login {registry}",
        )
    try:
        answer: Any = orjson.loads(body) if status == 200 else None
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise RegistryError(f"no token: {registry}: the token server answered {status}", url=registry, status=status)
    token = answer.get("token") or answer.get("access_token")
    seconds = answer.get("expires_in", DEFAULT_TOKEN_SECONDS)
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise RegistryError(f"no token: {registry}: the token server's answer has none", url=registry, status=status)
    again = answer.get("refresh_token")
    return Grant(
        token,
        seconds if isinstance(seconds, int) else DEFAULT_TOKEN_SECONDS,
        again if isinstance(again, str) else "",
    )
