"""Ingest: bytes in memory to a verified, published blob, beside hashing, writing and renaming in Python."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benches.conftest import Measure
from pyctrd import _core
from tests.images import BuiltImage

Fresh = Callable[[], Path]


@pytest.mark.parametrize("unpack", [False, True], ids=["blob", "blob+layer"])
@pytest.mark.parametrize("form", ["gzip", "zstd"])
@pytest.mark.benchmark(group="ingest")
def test_pyctrd(measure: Measure, fresh: Fresh, built: dict[str, BuiltImage], form: str, *, unpack: bool) -> None:
    blob = built[form].layers[0]

    def work(root: Path) -> None:
        root.mkdir()
        ingest = _core.Ingest(root, "bench", digest=blob.digest, size=len(blob.content), unpack=unpack)
        ingest.write(blob.content)
        ingest.finish()
        _core.publish(root, [ingest])

    measure(work, size=len(blob.content), fresh=fresh)


@pytest.mark.benchmark(group="ingest")
def test_python(measure: Measure, fresh: Fresh, built: dict[str, BuiltImage]) -> None:
    blob = built["gzip"].layers[0]

    def work(root: Path) -> None:
        root.mkdir()
        assert f"sha256:{hashlib.sha256(blob.content).hexdigest()}" == blob.digest
        with (root / "staged").open("wb") as file:
            file.write(blob.content)
            file.flush()
            os.fdatasync(file.fileno())
        (root / "staged").rename(root / "blob")

    measure(work, size=len(blob.content), fresh=fresh)
