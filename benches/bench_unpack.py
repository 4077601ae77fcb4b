"""Unpack: a layer's file into a directory, beside GNU tar and umoci."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import pyctrd
from benches.conftest import Measure
from tests.images import BuiltImage

Fresh = Callable[[], Path]
pytestmark = [pytest.mark.root, pytest.mark.benchmark(group="unpack")]


@pytest.mark.parametrize("form", ["gzip", "zstd", "none"])
def test_pyctrd(measure: Measure, fresh: Fresh, built: dict[str, BuiltImage], tmp_path: Path, form: str) -> None:
    layer = _write(built[form], tmp_path)
    measure(lambda dest: pyctrd.unpack(layer, dest), size=layer.stat().st_size, fresh=fresh)


@pytest.mark.parametrize("form", ["gzip", "zstd", "none"])
def test_gnu_tar(measure: Measure, fresh: Fresh, built: dict[str, BuiltImage], tmp_path: Path, form: str) -> None:
    layer = _write(built[form], tmp_path)

    def work(dest: Path) -> None:
        dest.mkdir()
        subprocess.run(["tar", "-x", "-f", str(layer), "-C", str(dest), "--numeric-owner", "--xattrs"], check=True)

    measure(work, size=layer.stat().st_size, fresh=fresh)


def test_umoci(measure: Measure, fresh: Fresh, built: dict[str, BuiltImage], tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    built["gzip"].write_layout(layout)

    def work(dest: Path) -> None:
        subprocess.run(["umoci", "unpack", "--image", f"{layout}:latest", str(dest)], check=True, capture_output=True)

    measure(work, size=len(built["gzip"].layers[0].content), fresh=fresh)


def _write(image: BuiltImage, directory: Path) -> Path:
    path = directory / "layer"
    path.write_bytes(image.layers[0].content)
    return path
