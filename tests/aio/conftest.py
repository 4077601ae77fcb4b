"""What the tests of the awaitable engine have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from tests.registry_faults import FaultyRegistry


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    """A registry that lies when it is told to."""
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture
def root(state: Path) -> Iterator[Path]:
    """Where the engines of a test are; containers end with the test, and what is left is sound."""
    del state
    yield Path(os.environ["PYCTRD_ROOT"])
    with pyctrd.Engine() as engine:
        for container in engine.containers.list():
            container.delete(force=True)
        assert engine.check(digests=True) == []
