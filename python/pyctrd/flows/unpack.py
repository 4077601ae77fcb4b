"""Unpack one layer file, with no engine."""

from __future__ import annotations

import os
from pathlib import Path

from pyctrd import _core
from pyctrd.content.limits import Limits
from pyctrd.errors import NotFoundError

DIRECTORY_MODE = 0o755


def unpack_file(
    layer: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    diff_id: str | None = None,
    digest: str | None = None,
    limits: Limits | None = None,
) -> _core.Ingested:
    """Apply a layer file to a directory; see ``pyctrd.unpack``."""
    if not Path(layer).is_file():
        raise NotFoundError(f"layer file not found: {layer}", kind="file", name=os.fspath(layer))
    Path(dest).mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    return _core.unpack(layer, dest, diff_id=diff_id, digest=digest, limits=limits)
