"""A registry that lies, and a client that does not wait long between its attempts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyctrd.registry import transport
from pyctrd.registry.client import Client
from tests.archives import Tar
from tests.images import BuiltImage, build_image
from tests.registry_faults import FaultyRegistry, make_certificates


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    """A registry that misbehaves on demand."""
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture
def client() -> Iterator[Client]:
    """A client without credentials."""
    made = Client()
    yield made
    made.close()


@pytest.fixture
def image() -> BuiltImage:
    """Something small to serve."""
    return build_image([Tar().file("hello", b"world" * 1000).build()])


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, noted instead of waited."""
    noted: list[float] = []
    monkeypatch.setattr(transport, "time", SimpleNamespace(sleep=noted.append))
    return noted


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, Path]]:
    """An authority, and the certificate and key of 127.0.0.1."""
    return make_certificates(tmp_path_factory.mktemp("tls"))
