"""What the tests of the store have in common: digests, and what is on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from pyctrd import _core

NewIngest = Callable[..., _core.Ingest]


def sha256(content: bytes) -> str:
    """The digest of bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def sha512(content: bytes) -> str:
    """The longer one."""
    return f"sha512:{hashlib.sha512(content).hexdigest()}"


def blob_path(root: Path, digest: str) -> Path:
    """Where a blob belongs, said once more than the product says it."""
    algorithm, _, digits = digest.partition(":")
    return root / "content" / "blobs" / algorithm / digits


def files_below(directory: Path) -> list[str]:
    """The names of all that is no directory beneath one, relative and sorted."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def put(ingest: _core.Ingest, content: bytes) -> _core.Ingested:
    """All bytes of one blob, and its end."""
    ingest.write(content)
    return ingest.finish()
