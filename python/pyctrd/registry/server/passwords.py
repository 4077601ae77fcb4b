"""Passwords: an htpasswd file of bcrypt hashes, checked beside the loop and remembered for a while."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import bcrypt

from pyctrd.errors import InvalidError
from pyctrd.registry.server.answers import RefusedError

# One check takes a tenth of a second of a core, on purpose: more at once would leave nothing for others.
CHECKS_AT_ONCE = 2
# Who waits for a check holds a connection; past so many, guesses are turned away.
CHECKS_WAITING = 64
# A client of basic authentication sends its password with each request.
REMEMBERED_SECONDS = 300.0
REMEMBERED_MAX = 1000
# How often it is looked whether the file has changed.
LOOK_SECONDS = 1.0
FILE_MAX_BYTES = 16 << 20
# bcrypt looks at no more; some versions of it refuse more.
PASSWORD_MAX_BYTES = 72
_LINE = re.compile(r"(?P<user>[^:\s]{1,255}):(?P<hash>\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{53})")
# Hashing is 2^cost rounds: 2^16 take five seconds.
COST_MAX = 16


class Passwords:
    """The users of an htpasswd file, read again when it changes.

    Args:
        path: The file.
        run: Runs a function beside the loop.

    Raises:
        InvalidError: A line is none, or its hash is no bcrypt's.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, run: Callable[..., asyncio.Future[bool]]) -> None:
        self._path = path
        self._run = run
        self._key = secrets.token_bytes(32)
        self._good: dict[bytes, float] = {}
        self._looked = time.monotonic()
        self._state = _state_of(path)
        self._users = read_users(path)
        self._running = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._waiting = 0

    async def check(self, user: str, password: str) -> bool:
        """Whether a user has a password.

        Raises:
            RefusedError: Too many ask.
        """
        self._look()
        known = hmac.new(self._key, f"{user}\0{password}".encode(errors="replace"), hashlib.sha256).digest()
        now = time.monotonic()
        if self._good.get(known, 0.0) > now:
            return True
        secret = password.encode(errors="replace")
        if len(secret) > PASSWORD_MAX_BYTES:
            return False
        # Of a user that there is not, another one's hash is computed: the time says nothing.
        hashed = self._users.get(user) or next(iter(self._users.values()), b"")
        if not await self._compare(secret, hashed) or user not in self._users:
            return False
        if len(self._good) >= REMEMBERED_MAX:
            self._good.clear()
        self._good[known] = now + REMEMBERED_SECONDS
        return True

    async def _compare(self, secret: bytes, hashed: bytes) -> bool:
        if not hashed:
            return False
        if self._waiting >= CHECKS_WAITING:
            raise RefusedError(
                HTTPStatus.TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many sign in", headers={"Retry-After": "5"}
            )
        self._waiting += 1
        try:
            async with self._running:
                return await self._run(bcrypt.checkpw, secret, hashed)
        finally:
            self._waiting -= 1

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            if (state := _state_of(self._path)) != self._state:
                self._users = read_users(self._path)
                self._state = state
                self._good.clear()
        except (OSError, InvalidError):
            return  # half written, or gone: whoever was a user is one until it can be read


def read_users(path: Path) -> dict[str, bytes]:
    """Users and their hashes.

    Raises:
        InvalidError: A line is none.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(FILE_MAX_BYTES + 1)
    if len(content) > FILE_MAX_BYTES:
        raise InvalidError(f"invalid htpasswd: {path}: expected at most {FILE_MAX_BYTES} bytes", field="htpasswd")
    users = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or int(match["cost"]) > COST_MAX:
            raise InvalidError(
                f"invalid htpasswd: {path}: line {number}: expected a user and a bcrypt hash",
                field="htpasswd",
                value=number,
                hint="make it with: htpasswd -B FILE USER",
            )
        users[match["user"]] = match["hash"].encode()
    return users


def _state_of(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
