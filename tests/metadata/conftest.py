"""A database of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctrd.metadata.database import Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "pyctrd.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    """An open one, with the namespaces "mine" and "theirs"."""
    opened = Database(path)
    with opened.write() as tx:
        tx.namespaces.ensure("mine")
        tx.namespaces.ensure("theirs")
    yield opened
    opened.close()
