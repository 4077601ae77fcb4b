"""Volumes: directories that outlive containers, and who has which."""

from __future__ import annotations

import builtins
import time
from collections.abc import Mapping

from pyctrd.errors import AlreadyExistsError, NotFoundError
from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_COLUMNS = "namespace, name, labels, anonymous, created_ns"


class VolumeRecord(NamedTuple):
    """One volume.

    Attributes:
        namespace: Whose.
        name: Unique in the namespace.
        labels: The caller's own.
        anonymous: Whether it was made for one container, which it goes with.
        created_ns: When, in nanoseconds since 1970.
    """

    namespace: str
    name: str
    labels: dict[str, str]
    anonymous: bool
    created_ns: int


class Volumes(Table):
    """The volumes of all namespaces."""

    def add(self, namespace: str, name: str, *, labels: Mapping[str, str], anonymous: bool = False) -> VolumeRecord:
        """Record one, before its directory is made.

        Raises:
            AlreadyExistsError: The name is taken.
        """
        import orjson

        if self.find(namespace, name) is not None:
            raise AlreadyExistsError(f"volume already exists: {name}", kind="volume", name=name)
        record = VolumeRecord(namespace, name, dict(labels), anonymous, time.time_ns())
        self._run(
            f"INSERT INTO volumes({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
            (namespace, name, orjson.dumps(record.labels).decode(), int(anonymous), record.created_ns),
        )
        return record

    def find(self, namespace: str, name: str) -> VolumeRecord | None:
        """The record, None where there is none."""
        row = self._first(f"SELECT {_COLUMNS} FROM volumes WHERE namespace = ? AND name = ?", (namespace, name))
        return None if row is None else _record(row)

    def get(self, namespace: str, name: str) -> VolumeRecord:
        """The record.

        Raises:
            NotFoundError: There is none.
        """
        record = self.find(namespace, name)
        if record is None:
            raise NotFoundError(
                f"volume not found: {name}", kind="volume", name=name, hint="list them: pyctrd volume ls"
            )
        return record

    def list(self, namespace: str) -> builtins.list[VolumeRecord]:
        """By name."""
        rows = self._run(f"SELECT {_COLUMNS} FROM volumes WHERE namespace = ? ORDER BY name", (namespace,))
        return [_record(row) for row in rows]

    def delete(self, namespace: str, name: str) -> None:
        """Forget one, after its directory is gone."""
        self._run("DELETE FROM volumes WHERE namespace = ? AND name = ?", (namespace, name))

    def attach(self, namespace: str, container: str, name: str) -> None:
        """Say that a container has one, for as long as it is recorded; again is a no-op."""
        sql = "INSERT OR IGNORE INTO container_volumes(namespace, container, volume) VALUES (?, ?, ?)"
        self._run(sql, (namespace, container, name))

    def of_container(self, namespace: str, container: str) -> builtins.list[str]:
        """The names of those that a container has."""
        sql = "SELECT volume FROM container_volumes WHERE namespace = ? AND container = ? ORDER BY volume"
        return [row[0] for row in self._run(sql, (namespace, container))]

    def users(self, namespace: str, name: str) -> builtins.list[str]:
        """The names of the containers that have one."""
        sql = """SELECT c.name FROM container_volumes v
            JOIN containers c ON c.namespace = v.namespace AND c.id = v.container
            WHERE v.namespace = ? AND v.volume = ? ORDER BY c.name"""
        return [row[0] for row in self._run(sql, (namespace, name))]


def _record(row: tuple[str, str, str, int, int]) -> VolumeRecord:
    import orjson

    namespace, name, labels, anonymous, created_ns = row
    return VolumeRecord(namespace, name, orjson.loads(labels), bool(anonymous), created_ns)
