"""Snapshots, and where they are mounted: the durable intent behind each mount."""

from __future__ import annotations

import builtins
import time

from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_COLUMNS = "key, namespace, snapshotter, kind, diff_ids, target, created_ns"


class SnapshotRecord(NamedTuple):
    """One snapshot.

    Attributes:
        key: Names it, and its directory.
        namespace: Whose.
        snapshotter: "overlayfs", "native", "composefs" or "erofs".
        kind: "active" (writable) or "view".
        diff_ids: Those layers, lowest first.
        target: Where it is, or is about to be, mounted; "" for nowhere.
        created_ns: When, in nanoseconds since 1970.
    """

    key: str
    namespace: str
    snapshotter: str
    kind: str
    diff_ids: tuple[str, ...]
    target: str
    created_ns: int


class Snapshots(Table):
    """All snapshots."""

    def add(
        self,
        key: str,
        *,
        namespace: str,
        snapshotter: str,
        kind: str,
        diff_ids: tuple[str, ...],
        target: str,
    ) -> None:
        """Record one, before anything of it is made."""
        self._run(
            f"INSERT INTO snapshots({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, namespace, snapshotter, kind, " ".join(diff_ids), target, time.time_ns()),
        )

    def find(self, key: str) -> SnapshotRecord | None:
        """The record, None where there is none."""
        row = self._first(f"SELECT {_COLUMNS} FROM snapshots WHERE key = ?", (key,))
        return None if row is None else _record(row)

    def delete(self, key: str) -> None:
        """Forget one, after everything of it is gone."""
        self._run("DELETE FROM snapshots WHERE key = ?", (key,))

    def list(self) -> builtins.list[SnapshotRecord]:
        """All, by key."""
        return [_record(row) for row in self._run(f"SELECT {_COLUMNS} FROM snapshots ORDER BY key")]


def _record(row: tuple[str, str, str, str, str, str, int]) -> SnapshotRecord:
    key, namespace, snapshotter, kind, diff_ids, target, created_ns = row
    return SnapshotRecord(key, namespace, snapshotter, kind, tuple(diff_ids.split()), target, created_ns)
