"""Who we are to a registry: arguments, Docker's and Podman's files, credential helpers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

import orjson

from pyctrd.errors import AuthenticationError, InvalidError
from pyctrd.oci.value import dataclass

HELPER_TIMEOUT_SECONDS = 30.0
CONFIG_MAX_BYTES = 1024 * 1024
# docker.io's credentials stand under this key in Docker's file.
_DOCKER_KEY = "https://index.docker.io/v1/"
_HELPER_NAME = r"[A-Za-z0-9_.-]+"
# What helpers give as the user's name when the secret is an identity token.
_TOKEN_USER = "<token>"  # noqa: S105 - the protocol's marker, no secret


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a secret, or an identity token; neither shows in ``repr``."""

    user: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """The value of an Authorization header."""
        import base64

        pair = f"{self.user}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


# User and password by registry, or what gives them: None for one that it does not know.
Keychain = Mapping[str, tuple[str, str]] | Callable[[str], tuple[str, str] | None]


class CredentialStore:
    """Finds credentials for a registry host: explicit ones, then each file in turn.

    Args:
        explicit: User and password by host, or what gives them for one.
        files: Configuration files; Docker's and Podman's by default.
    """

    def __init__(self, explicit: Keychain | None = None, *, files: tuple[Path, ...] | None = None) -> None:
        self._explicit = explicit if callable(explicit) else dict(explicit or {}).get
        self._files = default_files() if files is None else files

    def find(self, registry: str) -> Credentials | None:
        """The credentials of a registry; None for an anonymous request.

        Raises:
            InvalidError: A file is no configuration.
            AuthenticationError: A helper failed.
        """
        if (pair := self._explicit(registry)) is not None:
            return Credentials(*pair)
        for path in self._files:
            found = _find_in(path, registry)
            if found is not None:
                return found
        return None


def default_files() -> tuple[Path, ...]:
    """Docker's ``config.json``, then Podman's ``auth.json``."""
    docker = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}")
    named = os.environ.get("REGISTRY_AUTH_FILE")
    podman = (
        (Path(named),) if named else (runtime / "containers/auth.json", Path.home() / ".config/containers/auth.json")
    )
    return (docker, *podman)


def default_file() -> Path:
    """Where credentials are written: what ``REGISTRY_AUTH_FILE`` names, else Docker's ``config.json``."""
    named = os.environ.get("REGISTRY_AUTH_FILE")
    return Path(named) if named else default_files()[0]


def store(path: Path, registry: str, credentials: Credentials) -> None:
    """Write a registry's credentials into a configuration file, or hand them to the helper that it names.

    The file stays whole whatever happens, and only its owner may read it; what else stands in it stays.

    Raises:
        InvalidError: The file is no configuration.
        AuthenticationError: The helper failed.
        OSError: The file cannot be written.
    """
    document = _read(path) or {}
    key = _key_of(path, registry)
    if (helper := _helper_for(document, key)) is not None:
        secret = {"ServerURL": key, "Username": credentials.user, "Secret": credentials.password}
        _run_helper(helper, "store", orjson.dumps(secret))
        document.setdefault("auths", {})[key] = {}
    else:
        auth = credentials.basic().removeprefix("Basic ")
        document.setdefault("auths", {})[key] = {"auth": auth}
    _write(path, document)


def erase(path: Path, registry: str) -> bool:
    """Take a registry's credentials out of a configuration file, and from the helper that it names.

    Returns:
        Whether there were any.

    Raises:
        As ``store``.
    """
    document = _read(path)
    if document is None:
        return False
    found = False
    auths: dict[str, Any] = document.get("auths", {})
    for key in _keys_of(registry):
        if (helper := _helper_for(document, key)) is not None and _ask_helper(helper, key) is not None:
            _run_helper(helper, "erase", key.encode())
            found = True
        found |= auths.pop(key, None) is not None
    if found:
        _write(path, document)
    return found


def _key_of(path: Path, registry: str) -> str:
    """Under which key a file has a registry: Docker's has an old address for its own."""
    return _DOCKER_KEY if registry == "docker.io" and path.name == "config.json" else registry


def _keys_of(registry: str) -> tuple[str, ...]:
    keys = (registry, f"https://{registry}", f"https://{registry}/v1/", f"https://{registry}/v2/")
    if registry == "docker.io":
        return (_DOCKER_KEY, *keys, "index.docker.io", "registry-1.docker.io")
    return keys


def _helper_for(document: Mapping[str, Any], key: str) -> str | None:
    helpers = document.get("credHelpers")
    named = helpers.get(key) if isinstance(helpers, dict) else None
    named = named or document.get("credsStore")
    return named if isinstance(named, str) and named else None


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path = path.resolve()  # it may be a link into somebody's collection of such files
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def _find_in(path: Path, registry: str) -> Credentials | None:
    document = _read(path)
    if document is None:
        return None
    keys = _keys_of(registry)
    helpers = document.get("credHelpers")
    for key in keys:
        if isinstance(helpers, dict) and isinstance(name := helpers.get(key), str):
            return _ask_helper(name, key)
    store = document.get("credsStore")
    if isinstance(store, str) and store:
        found = _ask_helper(store, _DOCKER_KEY if registry == "docker.io" else registry)
        if found is not None:
            return found
    auths: dict[str, Any] = document.get("auths", {})
    for key in keys:
        if auths and isinstance(entry := auths.get(key), dict):
            return _from_entry(entry, path, key)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            body = file.read(CONFIG_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The error's own text may quote what stands there, which may be a secret.
        raise InvalidError(f"invalid credentials file: {path}: no JSON", field=str(path)) from error
    if not isinstance(document, dict) or not isinstance(document.get("auths", {}), dict):
        raise InvalidError(f"invalid credentials file: {path}: expected an object", field=str(path))
    return document


def _from_entry(entry: dict[str, Any], path: Path, key: str) -> Credentials | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(_TOKEN_USER, identity_token=token)
    auth = entry.get("auth")
    if isinstance(auth, str) and auth:
        import base64
        import binascii

        try:
            user, colon, password = base64.b64decode(auth, validate=True).decode().rstrip("\0").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = user = password = ""
        if not colon:
            raise InvalidError(
                f"invalid credentials file: {path}: auths[{key!r}].auth is no base64 of user:password",
                field=f"auths[{key!r}].auth",
            )
        return Credentials(user, password)
    name, secret = entry.get("username"), entry.get("password")
    if isinstance(name, str) and isinstance(secret, str) and name:
        return Credentials(name, secret)
    return None


def _ask_helper(name: str, server: str) -> Credentials | None:
    """Ask a helper; None where it knows nothing of the server."""
    answered = _run_helper(name, "get", server.encode())
    if answered is None:
        return None
    try:
        answer = orjson.loads(answered)
        user, secret = answer["Username"], answer["Secret"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise AuthenticationError(f"credential helper answered no credentials: docker-credential-{name}") from error
    if user == _TOKEN_USER:
        return Credentials(user, identity_token=secret)
    return Credentials(user, secret) if user or secret else None


def _run_helper(name: str, word: str, given: bytes) -> bytes | None:
    """Run ``docker-credential-NAME WORD``; what it says, None where it has no such credentials."""
    if re.fullmatch(_HELPER_NAME, name) is None:
        raise InvalidError(f"invalid credential helper: {name!r}", field="credHelpers", value=name)
    import subprocess

    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, word], input=given, capture_output=True, timeout=HELPER_TIMEOUT_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise AuthenticationError(
            f"credential helper not found: {program}", hint=f"install {program}, or take it out of config.json"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise AuthenticationError(
            f"credential helper hangs: {program}: no answer in {HELPER_TIMEOUT_SECONDS:.0f} seconds"
        ) from error
    if done.returncode != 0:
        if b"credentials not found" in done.stdout + done.stderr:
            return None
        raise AuthenticationError(f"credential helper failed: {program}: exit status {done.returncode}")
    return done.stdout
