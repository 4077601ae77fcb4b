"""Snapshots, and where they are mounted: the durable intent behind each mount."""

from __future__ import annotations

import builtins
import time

from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_COLUMNS = "key, namespace, snapshotter, kind, diff_ids, target, created_ns, frozen"


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
        frozen: Ids of what lies between its layers and what can be written to, lowest first; also of what may.
    """

    key: str
    namespace: str
    snapshotter: str
    kind: str
    diff_ids: tuple[str, ...]
    target: str
    created_ns: int
    frozen: tuple[str, ...] = ()


class ContainerSnapshot(NamedTuple):
    """What a container can be set back to.

    Attributes:
        name: Unique among those of its container.
        created_ns: When it was made, in nanoseconds since 1970.
        frozen: As in ``SnapshotRecord``.
    """

    name: str
    created_ns: int
    frozen: tuple[str, ...]


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
        frozen: tuple[str, ...] = (),
    ) -> None:
        """Record one, before anything of it is made."""
        self._run(
            f"INSERT INTO snapshots({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key, namespace, snapshotter, kind, " ".join(diff_ids), target, time.time_ns(), " ".join(frozen)),
        )

    def set_frozen(self, key: str, frozen: tuple[str, ...]) -> None:
        """Say what one lies on, or may: before it does, and after it does no more."""
        self._run("UPDATE snapshots SET frozen = ? WHERE key = ?", (" ".join(frozen), key))

    def find_named(self, namespace: str, container: str, name: str) -> ContainerSnapshot | None:
        """What a container can be set back to by a name; None where there is none."""
        sql = """SELECT name, created_ns, frozen FROM container_snapshots
            WHERE namespace = ? AND container = ? AND name = ?"""
        row = self._first(sql, (namespace, container, name))
        return None if row is None else _named(row)

    def list_named(self, namespace: str, container: str) -> builtins.list[ContainerSnapshot]:
        """All of a container, the oldest first."""
        sql = """SELECT name, created_ns, frozen FROM container_snapshots WHERE namespace = ? AND container = ?
            ORDER BY created_ns, name"""
        return [_named(row) for row in self._run(sql, (namespace, container))]

    def add_named(self, namespace: str, container: str, snapshot: ContainerSnapshot) -> None:
        """Record one; the name is free, and the container is recorded."""
        self._run(
            "INSERT INTO container_snapshots(namespace, container, name, frozen, created_ns) VALUES (?, ?, ?, ?, ?)",
            (namespace, container, snapshot.name, " ".join(snapshot.frozen), snapshot.created_ns),
        )

    def delete_named(self, namespace: str, container: str, name: str) -> None:
        """Forget one; again is a no-op."""
        sql = "DELETE FROM container_snapshots WHERE namespace = ? AND container = ? AND name = ?"
        self._run(sql, (namespace, container, name))

    def needed(self) -> set[str]:
        """Ids of all that something lies on, or can be set back to."""
        rows = self._run("SELECT frozen FROM snapshots UNION SELECT frozen FROM container_snapshots")
        return {one for (frozen,) in rows for one in frozen.split()}

    def find(self, key: str) -> SnapshotRecord | None:
        """The record, None where there is none."""
        row = self._first(f"SELECT {_COLUMNS} FROM snapshots WHERE key = ?", (key,))
        return None if row is None else _record(row)

    def of_images(self, container: str = "") -> builtins.list[SnapshotRecord]:
        """The images that are mounted in a container, by its id; "" for those of all."""
        first, last = (f"mount-{container}-", f"mount-{container}.") if container else ("mount-", "mount.")
        sql = f"SELECT {_COLUMNS} FROM snapshots WHERE key >= ? AND key < ? ORDER BY key"
        return [_record(row) for row in self._run(sql, (first, last))]

    def delete(self, key: str) -> None:
        """Forget one, after everything of it is gone."""
        self._run("DELETE FROM snapshots WHERE key = ?", (key,))

    def list(self) -> builtins.list[SnapshotRecord]:
        """All, by key."""
        return [_record(row) for row in self._run(f"SELECT {_COLUMNS} FROM snapshots ORDER BY key")]


def _record(row: tuple[str, str, str, str, str, str, int, str]) -> SnapshotRecord:
    key, namespace, snapshotter, kind, diff_ids, target, created_ns, frozen = row
    lies_on = tuple(frozen.split())
    return SnapshotRecord(key, namespace, snapshotter, kind, tuple(diff_ids.split()), target, created_ns, lies_on)


def _named(row: tuple[str, int, str]) -> ContainerSnapshot:
    name, created_ns, frozen = row
    return ContainerSnapshot(name, created_ns, tuple(frozen.split()))
