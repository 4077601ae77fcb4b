"""Whose credentials are found where."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyctrd.errors import AuthenticationError, InvalidError
from pyctrd.registry.credentials import Credentials, CredentialStore, default_files

DOCKER_KEY = "https://index.docker.io/v1/"


def encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def store(tmp_path: Path, document: Any, **explicit: tuple[str, str]) -> CredentialStore:
    path = tmp_path / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return CredentialStore(explicit, files=(tmp_path / "absent.json", path))


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on PATH for credential helpers."""
    directory = tmp_path / "helpers"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def write_helper(directory: Path, name: str, script: str) -> None:
    path = directory / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_explicit_credentials_come_first(tmp_path: Path) -> None:
    document = {"auths": {"example.com": {"auth": encoded("file", "f")}}}
    found = store(tmp_path, document, **{"example.com": ("given", "g")}).find("example.com")
    assert found == Credentials("given", "g")


@pytest.mark.parametrize("key", ["example.com:5000", "https://example.com:5000", "https://example.com:5000/v2/"])
def test_auth_entry_is_found_under_each_spelling(tmp_path: Path, key: str) -> None:
    found = store(tmp_path, {"auths": {key: {"auth": encoded("ada", "pass:word")}}}).find("example.com:5000")
    assert found == Credentials("ada", "pass:word")


def test_docker_hub_has_its_own_key(tmp_path: Path) -> None:
    found = store(tmp_path, {"auths": {DOCKER_KEY: {"auth": encoded("ada", "p")}}}).find("docker.io")
    assert found == Credentials("ada", "p")


def test_identity_token_is_kept_as_such(tmp_path: Path) -> None:
    found = store(tmp_path, {"auths": {"example.com": {"identitytoken": "tok"}}}).find("example.com")
    assert found is not None
    assert found.identity_token == "tok"


def test_nothing_known_is_none(tmp_path: Path) -> None:
    assert store(tmp_path, {"auths": {"other": {"auth": encoded("a", "b")}}}).find("example.com") is None
    assert store(tmp_path, {}).find("example.com") is None


def test_secrets_do_not_show(tmp_path: Path) -> None:
    assert "hidden" not in repr(Credentials("ada", "hidden", "hidden"))
    with pytest.raises(InvalidError) as caught:
        store(tmp_path, '{"auths": {"example.com": {"auth": "hidden').find("example.com")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("auth", ["!!!", base64.b64encode(b"no-colon").decode(), base64.b64encode(b"\xff:").decode()])
def test_broken_auth_names_the_field(tmp_path: Path, auth: str) -> None:
    with pytest.raises(InvalidError) as caught:
        store(tmp_path, {"auths": {"example.com": {"auth": auth}}}).find("example.com")
    assert caught.value.field == "auths['example.com'].auth"


@pytest.mark.parametrize("document", ["[]", "nothing", "7"])
def test_file_that_is_no_object_is_invalid(tmp_path: Path, document: str) -> None:
    with pytest.raises(InvalidError, match=r"invalid credentials file: .*config\.json"):
        store(tmp_path, document).find("example.com")


def test_helper_of_a_registry_is_asked(tmp_path: Path, helper: Path) -> None:
    write_helper(helper, "test", 'read server; echo "{\\"Username\\":\\"$server\\",\\"Secret\\":\\"s\\"}"')
    found = store(tmp_path, {"credHelpers": {"example.com": "test"}}).find("example.com")
    assert found == Credentials("example.com", "s")


def test_helper_for_everything_is_asked_before_the_entries(tmp_path: Path, helper: Path) -> None:
    write_helper(helper, "test", 'echo \'{"Username":"<token>","Secret":"idt"}\'')
    document = {"credsStore": "test", "auths": {"example.com": {"auth": encoded("file", "f")}}}
    found = store(tmp_path, document).find("example.com")
    assert found is not None
    assert found.identity_token == "idt"


def test_helper_that_knows_nothing_leaves_the_entries(tmp_path: Path, helper: Path) -> None:
    write_helper(helper, "test", "echo credentials not found in native keychain; exit 1")
    document = {"credsStore": "test", "auths": {"example.com": {"auth": encoded("file", "f")}}}
    assert store(tmp_path, document).find("example.com") == Credentials("file", "f")


@pytest.mark.parametrize(
    ("script", "message"),
    [("exit 3", "exit status 3"), ("echo nonsense", "no credentials"), ("echo '[]'", "no credentials")],
)
def test_helper_that_fails_is_named(tmp_path: Path, helper: Path, script: str, message: str) -> None:
    write_helper(helper, "test", script)
    with pytest.raises(AuthenticationError, match=message):
        store(tmp_path, {"credHelpers": {"example.com": "test"}}).find("example.com")


def test_missing_helper_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError) as caught:
        store(tmp_path, {"credHelpers": {"example.com": "does-not-exist"}}).find("example.com")
    assert "docker-credential-does-not-exist" in caught.value.hint


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", ""])
def test_helper_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidError, match="credential helper"):
        store(tmp_path, {"credHelpers": {"example.com": name}}).find("example.com")


def test_default_files_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "d"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    assert default_files() == (tmp_path / "d/config.json", tmp_path / "auth.json")
    monkeypatch.delenv("REGISTRY_AUTH_FILE")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert tmp_path / "run/containers/auth.json" in default_files()
