"""Who asks, and what they may: passwords, tokens, and anybody."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pyctrd.errors import InvalidError
from pyctrd.registry.server import passwords
from pyctrd.registry.server.access import Access, Anonymous, Caller, Challenge
from pyctrd.registry.server.answers import RefusedError
from pyctrd.registry.server.passwords import Passwords, read_users
from pyctrd.registry.server.tokens import TOKEN_SECONDS, Scope, StaticTokens, TokenSigner, parse_scopes
from tests.registry_users import beside, hashed

T = TypeVar("T")
REALM = "https://registry.example"


def wait(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives."""
    return asyncio.run(work)


def basic(user: str, password: str) -> str:
    """The header that a client sends."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def make_access(
    htpasswd: Path | None = None,
    *,
    anonymous: Anonymous = "pull",
    challenge: Challenge = "token",
    tokens: dict[str, str] | None = None,
) -> Access:
    """A policy: alice has a namespace of her own, bob reads."""
    return Access(
        namespace="shared",
        anonymous=anonymous,
        passwords=None if htpasswd is None else Passwords(htpasswd, beside),
        static=StaticTokens(tokens or {}),
        signer=TokenSigner(),
        namespaces={"alice": "team-a"},
        readers=("bob",),
        challenge=challenge,
    )


async def identify(access: Access, header: str | None) -> Caller | None:
    """Who sends a header."""
    return await access.identify(header)


@pytest.mark.parametrize(
    ("anonymous", "actions"), [("none", set()), ("pull", {"pull"}), ("push", {"pull", "push", "delete"})]
)
def test_anybody_may_what_the_policy_says(anonymous: Anonymous, actions: set[str]) -> None:
    async def look() -> Caller | None:
        return await make_access(anonymous=anonymous).identify(None)

    assert wait(look()) == Caller("", "shared", frozenset(actions))


def test_a_user_is_known_by_password_and_has_a_namespace(htpasswd: Path) -> None:
    async def look() -> list[Caller | None]:
        access = make_access(htpasswd)
        return [
            await access.identify(header)
            for header in (
                basic("alice", "secret of alice"),
                basic("alice", "secret of alice"),  # remembered
                basic("bob", "secret of bob"),
                basic("alice", "secret of bob"),
                basic("nobody", "secret of alice"),
                basic("alice", "x" * 73),
                basic("alice", "\0"),
                "Basic !!!",
                "Basic " + base64.b64encode(b"no colon").decode(),
                "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
                "Basic " + "a" * 5000,
                "Digest x",
                "",
            )
        ]

    alice, again, bob, *others = wait(look())
    assert alice == again == Caller("alice", "team-a", frozenset({"pull", "push", "delete"}))
    assert bob == Caller("bob", "shared", frozenset({"pull"}))
    assert others == [None] * len(others)


def test_users_are_read_again_when_the_file_changes(htpasswd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "LOOK_SECONDS", 0.0)

    def change(text: str, moment: int) -> None:
        htpasswd.write_text(text)
        os.utime(htpasswd, ns=(moment, moment))

    async def look() -> list[bool]:
        known = Passwords(htpasswd, beside)
        found = [await known.check("alice", "secret of alice")]
        change("half a line", 1)  # somebody is writing it: who was a user is one still
        found.append(await known.check("alice", "secret of alice"))
        change(f"alice:{hashed('a new one')}\n", 2)
        return [*found, await known.check("alice", "secret of alice"), await known.check("alice", "a new one")]

    assert wait(look()) == [True, True, False, True]


@pytest.mark.parametrize(
    "line",
    [
        "alice:plain",
        "alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=",
        "alice:$apr1$x$y",
        "alice",
        ":" + "$2b$04$" + "a" * 53,
        "alice:$2b$31$" + "a" * 53,  # it would take days
    ],
)
def test_a_file_with_anything_but_bcrypt_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(line + "\n")
    with pytest.raises(InvalidError, match="line 1: expected a user and a bcrypt hash"):
        read_users(path)


def test_too_many_guesses_are_turned_away(htpasswd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "CHECKS_WAITING", 0)

    async def look() -> None:
        await Passwords(htpasswd, beside).check("alice", "a guess")

    with pytest.raises(RefusedError) as caught:
        wait(look())
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "5")


def test_a_token_says_what_its_user_may_and_only_that(htpasswd: Path) -> None:
    async def look() -> tuple[Caller | None, Caller | None]:
        access = make_access(htpasswd)
        scopes = [Scope("team/app", frozenset({"pull", "push"})), Scope("other", frozenset({"pull"}))]
        alice = access.grant(access.user("alice"), scopes)
        bob = access.grant(access.user("bob"), scopes)
        return await access.identify(f"Bearer {alice}"), await access.identify(f"bearer {bob}")

    alice, bob = wait(look())
    assert alice is not None
    assert bob is not None
    assert (alice.name, alice.namespace) == ("alice", "team-a")
    assert [alice.may(action, "team/app") for action in ("pull", "push", "delete")] == [True, True, False]
    assert [alice.may("push", name) for name in ("other", "another")] == [False, False]
    assert [bob.may(action, "team/app") for action in ("pull", "push")] == [True, False]


def test_a_token_that_was_changed_is_old_or_is_another_servers_is_nobodys() -> None:
    now = [0.0]
    signer = TokenSigner(lambda: now[0])
    token = signer.sign("alice", {"app": ["pull"]})
    assert signer.read(token) is not None
    body, _, mac = token.partition(".")
    forged = base64.urlsafe_b64encode(b'{"user":"root","until":1e9,"scopes":{}}').decode().rstrip("=")
    for wrong in (
        f"{forged}.{mac}",
        f"{body}.",
        body,
        "",
        ".",
        f"{body}.{mac}x",
        f"{body}.é",
        TokenSigner().sign("a", {}),
    ):
        assert signer.read(wrong) is None
    now[0] = TOKEN_SECONDS + 1
    assert signer.read(token) is None


def test_tokens_that_were_given_out_are_known() -> None:
    async def look() -> list[Caller | None]:
        access = make_access(tokens={"0123456789abcdef": "alice"})
        return [await access.identify(f"Bearer {token}") for token in ("0123456789abcdef", "0123456789abcdeF", "é")]

    found = wait(look())
    assert found[0] is not None
    assert (found[0].name, found[1], found[2]) == ("alice", None, None)
    with pytest.raises(InvalidError, match="at least 16 characters"):
        StaticTokens({"short": "alice"})


def test_scopes_are_read_and_others_are_passed_over() -> None:
    found = parse_scopes(
        [
            "repository:a/b:pull,push repository:c:*",
            "registry:catalog:*",
            "repository:A:pull",
            "repository:d:fly",
            "x" * 9999,
        ]
    )
    assert found == [
        Scope("a/b", frozenset({"pull", "push"})),
        Scope("c", frozenset({"pull", "push", "delete"})),
        Scope("d", frozenset()),
    ]
    assert len(parse_scopes([" ".join(["repository:a:pull"] * 1000)])) == 50


@pytest.mark.parametrize(("challenge", "expected"), [("token", "Bearer realm="), ("basic", "Basic realm=")])
def test_who_may_not_is_asked_who_they_are_or_told_no(htpasswd: Path, challenge: Challenge, expected: str) -> None:
    async def look() -> tuple[RefusedError, RefusedError, RefusedError]:
        access = make_access(htpasswd, challenge=challenge)
        words = {"realm": REALM, "action": "push", "repository": "app"}
        alone = make_access()  # nobody could say who they are
        return (
            access.refuse(access.anybody(), **words),
            access.refuse(access.user("bob"), **words),
            alone.refuse(alone.anybody(), **words),
        )

    asked, denied, nobody = wait(look())
    assert (asked.status, asked.code) == (401, "UNAUTHORIZED")
    assert asked.headers["WWW-Authenticate"].startswith(expected)
    if challenge == "token":
        assert 'scope="repository:app:pull,push"' in asked.headers["WWW-Authenticate"]
    assert (denied.status, denied.code) == (403, "DENIED")
    assert (nobody.status, nobody.code) == (403, "DENIED")


@pytest.mark.slow
def test_a_user_that_there_is_not_takes_as_long(tmp_path: Path) -> None:
    import bcrypt

    path = tmp_path / "htpasswd"
    path.write_text(f"alice:{bcrypt.hashpw(b'right', bcrypt.gensalt(8)).decode()}\n")

    async def look() -> dict[str, float]:
        known = Passwords(path, beside)
        found = {}
        for user in ("alice", "nobody"):
            times = []
            for guess in range(15):
                began = time.perf_counter()
                assert not await known.check(user, f"wrong {guess}")
                times.append(time.perf_counter() - began)
            found[user] = sorted(times)[len(times) // 2]
        return found

    found = wait(look())
    assert 0.5 < found["alice"] / found["nobody"] < 2
