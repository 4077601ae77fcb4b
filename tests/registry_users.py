"""Users of a registry in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bcrypt

# The least that bcrypt has: a test should not take a tenth of a second to sign in.
ROUNDS = 4


def hashed(password: str) -> str:
    """A line's part behind the colon."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(ROUNDS)).decode()


def write_users(path: Path) -> Path:
    """A file with two users."""
    path.write_text(f"alice:{hashed('secret of alice')}\n\n# a comment\nbob:{hashed('secret of bob')}\n")
    return path


def beside(act: Callable[..., bool], *args: Any) -> asyncio.Future[bool]:
    """Runs it at once, as a loop's executor would later."""
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_result(act(*args))
    return future
