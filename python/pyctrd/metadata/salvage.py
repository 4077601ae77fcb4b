"""What can still be read of a damaged database, brought into a new one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pyctrd.errors import naming

# Reservations are left out: their processes are gone.
TABLES = (
    *("namespaces", "content", "layers", "layer_blobs", "unpacked", "images", "snapshots", "containers", "events"),
    *("container_snapshots", "volumes", "container_volumes"),
    *("repository_manifests", "repository_refs", "repository_tags", "repository_blobs"),
)
SUFFIXES = ("", "-wal", "-shm")
LOCKS = Path("/proc/locks")


def find_users(path: Path) -> list[int]:
    """The processes that have a database open: SQLite locks its files for as long as that.

    The kernel's list is read, not the files: to open and close one would drop this process' own locks.
    """
    inodes = set()
    for suffix in SUFFIXES:
        with suppress(FileNotFoundError):
            inodes.add(path.with_name(path.name + suffix).stat().st_ino)
    found = set()
    for line in LOCKS.read_text().splitlines():
        fields = line.split()  # number, kind, mode, type, pid, major:minor:inode, start, end
        if "->" not in fields and int(fields[5].rpartition(":")[2]) in inodes:
            found.add(int(fields[4]))
    return sorted(found)


def set_aside(path: Path, directory: Path) -> None:
    """Move a database's files into a directory, whichever there are; nobody has them open. The first name goes last."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for suffix in reversed(SUFFIXES):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(directory / (path.name + suffix))
    flush_directory(path.parent)


def flush_directory(directory: Path) -> None:
    """Make what was renamed in it survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with naming(directory):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def salvage(damaged: Path, new: Path) -> int:
    """Copy the rows that can be read, from both ends of each table up to where it is damaged.

    Args:
        damaged: The old file, which nobody has open.
        new: A database of the newest schema, which nobody has open.

    Returns:
        How many rows.
    """
    if not damaged.exists() or damaged.stat().st_size == 0:
        return 0
    count = 0
    with (
        closing(sqlite3.connect(f"file:{damaged}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(new, isolation_level=None)) as target,
    ):
        target.execute("PRAGMA synchronous=FULL")
        target.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            columns, order = _columns(target, table)
            with suppress(sqlite3.DatabaseError):  # an older version's has fewer
                columns = [column for column in columns if column in _columns(source, table)[0]] or columns
            for row in _readable(source, table, columns, order):
                places = ", ".join("?" * len(columns))
                with suppress(sqlite3.IntegrityError):  # a row that the damage has made a wrong one
                    count += target.execute(
                        f"INSERT OR IGNORE INTO {table}({', '.join(columns)}) VALUES ({places})", row
                    ).rowcount
        target.execute("UPDATE images SET root = NULL")  # what they need is read again, from their documents
        for table in ("content", "images", "containers", "volumes"):
            target.execute(
                f"INSERT OR IGNORE INTO namespaces(name, created_ns) SELECT DISTINCT namespace, 0 FROM {table}"
            )
        target.execute("COMMIT")
    return count


def _columns(target: sqlite3.Connection, table: str) -> tuple[list[str], list[str]]:
    """The columns of a table, and those of its key."""
    rows = target.execute(f"PRAGMA table_info({table})").fetchall()
    key = sorted((row[5], row[1]) for row in rows if row[5])
    return [row[1] for row in rows], [name for _, name in key]


def _readable(source: sqlite3.Connection, table: str, columns: list[str], order: list[str]) -> Iterator[Any]:
    for way in ("ASC", "DESC"):
        ordered = ", ".join(f"{column} {way}" for column in order)
        try:
            yield from source.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY {ordered}")
        except sqlite3.DatabaseError:
            continue  # from here on it cannot be read; perhaps from the other end
        return
