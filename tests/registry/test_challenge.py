"""Challenges are read, and tokens are kept as long as they last."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from pyctrd.errors import AuthenticationError
from pyctrd.registry import challenge as module
from pyctrd.registry.challenge import TOKEN_MARGIN_SECONDS, Challenge, Tokens, parse_challenges
from pyctrd.registry.credentials import Credentials


class Endpoint:
    """A token endpoint that counts."""

    def __init__(self, body: bytes = b'{"token":"t%d"}', status: int = 200) -> None:
        self.calls: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.body, self.status = body, status

    def __call__(
        self, method: str, url: str, *, fields: Mapping[str, str], headers: Mapping[str, str], plain_ok: bool
    ) -> tuple[int, bytes]:
        self.calls.append((method, dict(fields), dict(headers)))
        return self.status, self.body.replace(b"%d", b"%d" % len(self.calls))


def get(tokens: Tokens, *, credentials: Credentials | None = None, refresh: bool = False, scope: str = "s") -> str:
    asked = Challenge("bearer", {"realm": "https://auth.example/token", "service": "example"})
    return tokens.get(asked, scope=scope, credentials=credentials, registry="example", plain_ok=False, refresh=refresh)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="r"', [Challenge("basic", {"realm": "r"})]),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"',
            [Challenge("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        (
            'Basic realm="a", Bearer realm="b"',
            [Challenge("basic", {"realm": "a"}), Challenge("bearer", {"realm": "b"})],
        ),
        ("bearer REALM=plain", [Challenge("bearer", {"realm": "plain"})]),
        ('Basic realm="quo\\"ted"', [Challenge("basic", {"realm": 'quo"ted'})]),
        ("Negotiate", [Challenge("negotiate", {})]),
        ("", []),
    ],
)
def test_challenges_are_read(header: str, expected: list[Challenge]) -> None:
    assert parse_challenges(header) == expected


def test_token_is_kept_by_scope() -> None:
    endpoint = Endpoint()
    tokens = Tokens(endpoint)
    assert [get(tokens), get(tokens), get(tokens, scope="other"), get(tokens)] == ["t1", "t1", "t2", "t1"]


def test_refused_token_is_fetched_anew() -> None:
    tokens = Tokens(Endpoint())
    assert [get(tokens), get(tokens, refresh=True), get(tokens)] == ["t1", "t2", "t2"]


def test_token_ends_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tokens = Tokens(Endpoint(b'{"access_token":"t%d","expires_in":100}'))
    assert get(tokens) == "t1"
    now[0] = 100 - TOKEN_MARGIN_SECONDS - 0.1
    assert get(tokens) == "t1"
    now[0] = 100 - TOKEN_MARGIN_SECONDS + 0.1
    assert get(tokens) == "t2"


def test_identity_token_is_posted_and_never_in_the_url() -> None:
    endpoint = Endpoint()
    get(Tokens(endpoint), credentials=Credentials("<token>", identity_token="idt"))
    method, fields, headers = endpoint.calls[0]
    assert (method, fields["refresh_token"], headers) == ("POST", "idt", {})


@pytest.mark.parametrize("status", [401, 403])
def test_endpoint_that_refuses_is_an_authentication_error(status: int) -> None:
    with pytest.raises(AuthenticationError, match="credentials refused"):
        get(Tokens(Endpoint(status=status)))


def test_challenge_without_realm_is_refused() -> None:
    with pytest.raises(AuthenticationError, match="without realm"):
        Tokens(Endpoint()).get(Challenge("bearer", {}), scope="s", credentials=None, registry="example", plain_ok=False)
