"""What the tests of the server's parts have in common: nothing of a store is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry_users import write_users


@pytest.fixture
def htpasswd(tmp_path: Path) -> Path:
    """A file with two users, alice and bob."""
    return write_users(tmp_path / "htpasswd")
