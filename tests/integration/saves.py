"""Images put into a store and saved from it, and what is in the archives then."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyctrd
from tests.images import BuiltImage, build_image, tree_tars

FORMS = ("oci-archive", "oci", "docker-archive")
TREE = build_image(tree_tars())


def put(engine: pyctrd.Engine, built: BuiltImage, name: str, tmp_path: Path, **options: Any) -> pyctrd.Image:
    """An image in the store."""
    layout = tmp_path / f"layout-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    built.write_layout(layout)
    (image,) = engine.images.load(layout, name=name, **options)
    return image


def save_to(engine: pyctrd.Engine, names: str | Sequence[str], form: str, dest: Path, **options: Any) -> Path:
    """A path to which images were saved."""
    engine.images.save(names, dest, format=form, **options)  # type: ignore[arg-type]
    return dest


def members(archive: Path | bytes) -> dict[str, tarfile.TarInfo]:
    """An archive's headers by name."""
    source = io.BytesIO(archive) if isinstance(archive, bytes) else io.BytesIO(archive.read_bytes())
    with tarfile.open(fileobj=source, mode="r:") as tar:
        return {member.name: member for member in tar}


def read(archive: Path, name: str) -> bytes:
    """A member's bytes."""
    with tarfile.open(archive, "r:") as tar:
        found = tar.extractfile(name)
        assert found is not None
        return found.read()


def tree_of(directory: Path) -> dict[str, bytes]:
    """A directory's files."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
