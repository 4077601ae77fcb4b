"""A store with an image in it, to be damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd


@pytest.fixture
def root() -> Path:
    """The root of the test's store."""
    return Path(os.environ["PYCTRD_ROOT"])


@pytest.fixture
def engine(state: Path) -> Iterator[pyctrd.Engine]:
    """An engine over it; its containers end with the test."""
    del state  # named so that PYCTRD_STATE is the short one: sockets are made in it
    with pyctrd.Engine() as opened:
        yield opened
        for container in opened.containers.list():
            container.delete(force=True)
