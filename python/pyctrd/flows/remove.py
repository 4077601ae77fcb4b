"""Removal from disk of what no record names: under its own lock, without waiting for anybody."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from pyctrd.errors import naming
from pyctrd.flows.recover import digest_locks
from pyctrd.metadata.doomed import Thing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.reachability import KeptLayer

# Things between two transactions: a few milliseconds of one.
PAGE = 500


def remove_doomed(rooms: Rooms, *, limit: int | None = None) -> None:
    """Remove what collections wrote down, whichever they were, and strike it out once that is durable.

    What somebody is bringing in again is left to the next: its lock is not free.

    Args:
        rooms: The engine's rooms.
        limit: At most so many; None for all.
    """
    database = rooms.database
    left = limit
    after: Thing = ("", "")
    while page := database.doomed.list(PAGE if left is None else min(PAGE, left), after=after):
        after = page[-1]
        gone = [(kind, name) for kind, name in page if remove_unrecorded(rooms, kind, name)]
        _flush_folders(rooms)
        with database.write() as tx:
            tx.doomed.forget(gone)
        if left is not None:
            left -= len(page)


def find_unrecorded(rooms: Rooms) -> Iterator[Thing]:
    """Blobs and layers that are on disk and that no record names; some may be about to get one."""
    scans = (("blob", "content", rooms.blobs.scan()), ("layer", "layers", rooms.layers.scan()))
    for kind, table, names in scans:
        while page := list(islice(names, PAGE)):
            yield from ((kind, name) for name in sorted(rooms.database.reachability.unrecorded(table, page)))


def remove_unrecorded(rooms: Rooms, kind: str, name: str) -> bool:
    """Remove a blob or layer that has no record; False where somebody is at work on it."""
    # Whoever brings it in holds this lock from when it has its name until it is recorded.
    (lock,) = digest_locks(rooms, name)
    if not lock.acquire(timeout=0):
        return False
    try:
        if kind == "blob":
            if not rooms.database.content.is_stored(name):
                rooms.blobs.delete(name, missing_ok=True)
        elif rooms.database.layers.find(name) is None:
            rooms.layers.delete(name, missing_ok=True)
    finally:
        lock.release()
    return True


def own_bytes(rooms: Rooms, layer: KeptLayer) -> int:
    """Of a layer, files' content in its own directory; objects are counted when they go."""
    total = layer.bytes if rooms.layers.may_have_form(layer.diff_id, "tree") else 0
    for part in ("pack", "blocks"):
        with suppress(FileNotFoundError):
            total += (rooms.layers.path(layer.diff_id) / part).stat().st_blocks * 512
    return total


def size_on_disk(rooms: Rooms, kind: str, name: str) -> int:
    """Bytes of a blob, or of a layer's directory; 0 for what is gone."""
    from pyctrd.snapshots.store import directory_bytes

    path = rooms.blobs.path(name) if kind == "blob" else rooms.layers.path(name)
    try:
        return path.stat().st_size if kind == "blob" else directory_bytes(path)
    except FileNotFoundError:
        return 0


def walk_trash(rooms: Rooms) -> Iterator[tuple[str, int]]:
    """What was taken away and is still on disk: its name in the trash, and bytes."""
    from pyctrd.snapshots.store import directory_bytes

    for path in sorted((rooms.root / "trash").glob("*")):
        with suppress(FileNotFoundError):  # it goes at this moment
            yield path.name, directory_bytes(path)


def _flush_folders(rooms: Rooms) -> None:
    """Make removals durable: a power cut would bring back what is written down nowhere any more."""
    for base in ("content/blobs", "layers"):
        for folder in _folders(rooms.root / base):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with naming(folder):
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _folders(base: Path) -> list[Path]:
    return [path for path in base.iterdir() if path.is_dir()] if base.is_dir() else []
