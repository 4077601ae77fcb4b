"""Tokens: short-lived ones that the registry signs, and those that were given out beforehand."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping

import orjson

from pyctrd.errors import InvalidError
from pyctrd.oci.value import NamedTuple

# What Docker's clients take for granted where a token does not say; a push of a large layer takes no longer to begin.
TOKEN_SECONDS = 300
# A token goes into a header of 16 KiB, and a client asks for a handful.
SCOPES_MAX = 50
_ACTIONS = frozenset({"pull", "push", "delete"})
_SCOPE = re.compile(r"repository(?:\([^)]*\))?:(?P<name>[a-z0-9._/-]{1,255}):(?P<actions>[a-z,*]{1,40})")
# Of a token that is given out, shorter ones can be guessed.
STATIC_MIN_CHARS = 16


class Scope(NamedTuple):
    """What a client wants to do with a repository."""

    repository: str
    actions: frozenset[str]


class Claims(NamedTuple):
    """What a token says.

    Attributes:
        user: Whose it is, "" for anybody's.
        scopes: What may be done, by repository.
    """

    user: str
    scopes: Mapping[str, frozenset[str]]


def parse_scopes(texts: Collection[str]) -> list[Scope]:
    """Read what a client asks for; what is of no repository is passed over, as Docker's servers do.

    Spec:
        Docker, "Token Scope Documentation".
    """
    found = []
    for part in " ".join(texts).split()[:SCOPES_MAX]:
        if (match := _SCOPE.fullmatch(part)) is not None:
            actions = set(match["actions"].split(","))
            found.append(Scope(match["name"], _ACTIONS if "*" in actions else _ACTIONS & actions))
    return found


class TokenSigner:
    """Makes tokens and knows its own again. They end with the process: clients ask for another then.

    Args:
        clock: Seconds; of this process alone, so that a clock that is set makes none good or bad.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = secrets.token_bytes(32)
        self._clock = clock

    def sign(self, user: str, scopes: Mapping[str, Collection[str]]) -> str:
        """A token that is good for a while."""
        claims = {
            "user": user,
            "until": self._clock() + TOKEN_SECONDS,
            "scopes": {name: sorted(actions) for name, actions in scopes.items()},
        }
        body = _encode(orjson.dumps(claims))
        return f"{body}.{_encode(self._mac(body))}"

    def read(self, token: str) -> Claims | None:
        """What one says that was made here and is still good; None of any other."""
        body, _, mac = token.partition(".")
        try:
            if not hmac.compare_digest(_decode(mac), self._mac(body)):
                return None
            claims = orjson.loads(_decode(body))
        except ValueError:
            return None
        if self._clock() >= claims["until"]:
            return None
        return Claims(claims["user"], {name: frozenset(actions) for name, actions in claims["scopes"].items()})

    def _mac(self, body: str) -> bytes:
        return hmac.new(self._key, body.encode(errors="replace"), hashlib.sha256).digest()


class StaticTokens:
    """Tokens that were given out beforehand. Kept by their digests, and all compared, each in constant time.

    Args:
        users: Users by token.

    Raises:
        InvalidError: A token could be guessed.
    """

    def __init__(self, users: Mapping[str, str]) -> None:
        for token, user in users.items():
            if len(token) < STATIC_MIN_CHARS:
                raise InvalidError(
                    f"invalid token: of user {user!r}: expected at least {STATIC_MIN_CHARS} characters",
                    field="tokens",
                    value=user,
                )
        self._users = [(_digest(token), user) for token, user in users.items()]

    def __bool__(self) -> bool:
        return bool(self._users)

    def find(self, token: str) -> str | None:
        """Whose one is, None for nobody's."""
        digest, found = _digest(token), None
        for known, user in self._users:
            if hmac.compare_digest(known, digest):
                found = user
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(text[:1]) from error
