"""Digest: a blob's file against its digest, beside hashlib."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from benches.conftest import Measure
from pyctrd import _core

Fresh = Callable[[], Path]


@pytest.fixture
def blob(layer_tar: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(layer_tar)
    return path


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.benchmark(group="digest")
def test_pyctrd(measure: Measure, fresh: Fresh, blob: Path, algorithm: str) -> None:
    measure(lambda _: _core.digest_file(blob, algorithm=algorithm), size=blob.stat().st_size, fresh=fresh)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.benchmark(group="digest")
def test_hashlib(measure: Measure, fresh: Fresh, blob: Path, algorithm: str) -> None:
    def work(_: Path) -> None:
        with blob.open("rb", buffering=0) as file:
            hashlib.file_digest(file, algorithm)

    measure(work, size=blob.stat().st_size, fresh=fresh)
