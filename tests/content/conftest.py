"""A root directory, and ingests into it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from pyctrd import _core
from tests.content.stores import NewIngest, sha256


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root."""
    made = tmp_path / "store"
    made.mkdir()
    return made


@pytest.fixture
def new_ingest(root: Path) -> NewIngest:
    """Makes ingests with ids of their own: they expect the content that is given, but for what options say."""
    numbers = itertools.count(1)

    def make(content: bytes = b"", **options: Any) -> _core.Ingest:
        expected: dict[str, Any] = {"digest": sha256(content), "size": len(content)} | options
        return _core.Ingest(root, f"ingest-{next(numbers)}", **expected)

    return make
