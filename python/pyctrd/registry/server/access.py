"""Access: who asks, which tenant's repositories they see, and what they may do there."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from pyctrd.oci.value import NamedTuple
from pyctrd.registry.server.answers import RefusedError

if TYPE_CHECKING:
    from pyctrd.registry.server.passwords import Passwords
    from pyctrd.registry.server.tokens import Scope, StaticTokens, TokenSigner

Anonymous = Literal["none", "pull", "push"]
ANONYMOUS: tuple[Anonymous, ...] = ("none", "pull", "push")
Challenge = Literal["token", "basic"]
CHALLENGES: tuple[Challenge, ...] = ("token", "basic")
_ACTIONS: Mapping[str, frozenset[str]] = {
    "none": frozenset(),
    "pull": frozenset({"pull"}),
    "push": frozenset({"pull", "push", "delete"}),
}
# Longer ones are nobody's: bcrypt takes 72 bytes of a password.
_CREDENTIALS_MAX_CHARS = 4096


class Caller(NamedTuple):
    """Somebody who asks.

    Attributes:
        name: A user's, "" for anybody.
        namespace: Whose repositories are seen.
        actions: What may be done there: "pull", "push", "delete".
        scopes: Where a token says so, the same by repository; None where it holds for all.
    """

    name: str
    namespace: str
    actions: frozenset[str]
    scopes: Mapping[str, frozenset[str]] | None = None

    def may(self, action: str, repository: str) -> bool:
        """Whether something may be done with a repository, "" for what is of none."""
        if action not in self.actions:
            return False
        return self.scopes is None or not repository or action in self.scopes.get(repository, frozenset())


class Access:
    """The policy of a registry.

    Args:
        namespace: Whose repositories those see who are mapped to no other.
        anonymous: What may be done by anybody.
        passwords: Users and their passwords, where there are some.
        static: Tokens that were given out beforehand.
        signer: Makes tokens.
        namespaces: The namespaces of users that have one of their own.
        readers: Users who may only pull.
        challenge: What a client is asked for: "token", by the registry's own token endpoint, or "basic".
    """

    def __init__(
        self,
        *,
        namespace: str,
        anonymous: Anonymous,
        passwords: Passwords | None,
        static: StaticTokens,
        signer: TokenSigner,
        namespaces: Mapping[str, str],
        readers: Collection[str],
        challenge: Challenge,
    ) -> None:
        self._namespace = namespace
        self._anonymous = anonymous
        self._passwords = passwords
        self._static = static
        self._signer = signer
        self._namespaces = dict(namespaces)
        self._readers = frozenset(readers)
        self._challenge = challenge

    @property
    def has_users(self) -> bool:
        """Whether there is anybody who could say who they are."""
        return self._passwords is not None or bool(self._static)

    def anybody(self) -> Caller:
        """Who does not say who they are."""
        return Caller("", self._namespace, _ACTIONS[self._anonymous])

    def user(self, name: str) -> Caller:
        """Who has shown to be a user."""
        actions = _ACTIONS["pull" if name in self._readers else "push"]
        return Caller(name, self._namespaces.get(name, self._namespace), actions)

    async def identify(self, authorization: str | None) -> Caller | None:
        """Who sends a header; None for credentials that are nobody's."""
        if authorization is None:
            return self.anybody()
        scheme, _, rest = authorization.strip().partition(" ")
        credentials = rest.strip()
        if len(credentials) > _CREDENTIALS_MAX_CHARS:
            return None
        if scheme.lower() == "basic":
            return await self._by_password(credentials)
        if scheme.lower() == "bearer":
            return self._by_token(credentials)
        return None

    async def _by_password(self, credentials: str) -> Caller | None:
        if self._passwords is None or (pair := _split_basic(credentials)) is None:
            return None
        user, password = pair
        return self.user(user) if await self._passwords.check(user, password) else None

    def _by_token(self, token: str) -> Caller | None:
        if (user := self._static.find(token)) is not None:
            return self.user(user)
        claims = self._signer.read(token)
        if claims is None:
            return None
        caller = self.user(claims.user) if claims.user else self.anybody()
        return caller._replace(scopes=claims.scopes)

    def grant(self, caller: Caller, wanted: Collection[Scope]) -> str:
        """A token for what of some scopes a caller may."""
        scopes: dict[str, frozenset[str]] = {}
        for scope in wanted:
            allowed = scope.actions & caller.actions
            scopes[scope.repository] = scopes.get(scope.repository, frozenset()) | allowed
        return self._signer.sign(caller.name, scopes)

    def refuse(self, caller: Caller | None, *, realm: str, action: str, repository: str) -> RefusedError:
        """What somebody is told who may not do something: to say who they are, or that it is not for them."""
        if caller is not None and caller.name and (caller.scopes is None or action not in caller.actions):
            return RefusedError(HTTPStatus.FORBIDDEN, "DENIED", f"you may not {action} here")
        if not self.has_users:
            return RefusedError(HTTPStatus.FORBIDDEN, "DENIED", f"nobody may {action} here")
        return self.ask(realm=realm, action=action, repository=repository)

    def ask(self, *, realm: str, action: str = "", repository: str = "", basic: bool = False) -> RefusedError:
        """Ask for credentials.

        Spec:
            RFC 9110, section 11; Docker's "Token Authentication Specification".
        """
        if basic or self._challenge == "basic":
            challenge = 'Basic realm="registry", charset="UTF-8"'
        else:
            challenge = f'Bearer realm="{realm}/token",service="pyctrd"'
            if repository:
                actions = {"pull": "pull", "push": "pull,push", "delete": "delete,pull"}[action]
                challenge += f',scope="repository:{repository}:{actions}"'
        return RefusedError(
            HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", "who are you?", headers={"WWW-Authenticate": challenge}
        )


def _split_basic(credentials: str) -> tuple[str, str] | None:
    try:
        text = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    user, colon, password = text.partition(":")
    return (user, password) if colon else None
