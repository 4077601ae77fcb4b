"""The names under which the store keeps things: ``<base>/<algorithm>/<hex>``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pyctrd.errors import InvalidError
from pyctrd.oci.digest import HEX_CHARS, Digest


def walk_digests(base: Path) -> Iterator[Digest]:
    """The digests that have something beneath ``base``, sorted."""
    for algorithm in HEX_CHARS:
        for path in _children(base / algorithm):
            if (digest := _digest_of(path)) is not None:
                yield digest


def scan_digests(base: Path) -> Iterator[str]:
    """As ``walk_digests``, in no order and one at a time: there may be millions."""
    for algorithm in HEX_CHARS:
        with suppress(FileNotFoundError), os.scandir(base / algorithm) as entries:
            for entry in entries:
                with suppress(InvalidError):
                    yield Digest.parse(f"{algorithm}:{entry.name}")


def walk_strays(base: Path) -> Iterator[Path]:
    """What stands beneath ``base`` under a name that is no digest: not ours, and never touched."""
    for path in _children(base):
        if path.name not in HEX_CHARS or not path.is_dir():
            yield path
            continue
        yield from (child for child in _children(path) if _digest_of(child) is None)


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _digest_of(path: Path) -> Digest | None:
    try:
        return Digest.parse(f"{path.parent.name}:{path.name}")
    except InvalidError:
        return None
