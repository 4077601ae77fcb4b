"""Two tenants of one store: ``a``, who has something, and ``b``, who would like to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from tests.registry_faults import FaultyRegistry


@pytest.fixture
def a(state: Path) -> Iterator[pyctrd.Engine]:
    """The first tenant; its containers end with the test."""
    del state
    yield from _opened("a")


@pytest.fixture
def b(state: Path) -> Iterator[pyctrd.Engine]:
    """The second one."""
    del state
    yield from _opened("b")


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    """A registry that asks for credentials, lies, and tells what it was asked."""
    with FaultyRegistry() as running:
        yield running


def _opened(namespace: str) -> Iterator[pyctrd.Engine]:
    with pyctrd.Engine(namespace=namespace) as engine:
        engine.images.list()  # its namespace is made at the first use
        yield engine
        for container in engine.containers.list():
            container.delete(force=True)
