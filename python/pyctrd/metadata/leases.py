"""Leases: what is kept although no image needs it."""

from __future__ import annotations

import builtins
import time
from collections.abc import Iterable, Mapping
from typing import Any

from pyctrd.errors import InvalidError
from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_COLUMNS = "id, namespace, purpose, labels, created_ns, expires_ns"


class LeaseRecord(NamedTuple):
    """One lease.

    Attributes:
        id: 32 hex digits; names its lock file too.
        namespace: Whose.
        purpose: "" for one that a user made, else what is under way: "pull", "load", "commit" or "convert".
        labels: The caller's own.
        created_ns: When, in nanoseconds since 1970.
        expires_ns: Until when it lives without a holder; None: no longer than its holder.
    """

    id: str
    namespace: str
    purpose: str
    labels: dict[str, str]
    created_ns: int
    expires_ns: int | None


class LeaseResource(NamedTuple):
    """What a lease keeps.

    Attributes:
        kind: "blob" or "layer".
        name: Digest of the one, diff_id of the other.
    """

    kind: str
    name: str


class Leases(Table):
    """The leases of all namespaces. A row says nothing of whether its lease is alive."""

    def add(
        self, lease_id: str, *, namespace: str, purpose: str, labels: Mapping[str, str], expires_ns: int | None
    ) -> LeaseRecord:
        """Record one, whose lock is held.

        Raises:
            InvalidError: A label is not UTF-8.
        """
        record = LeaseRecord(lease_id, namespace, purpose, dict(labels), time.time_ns(), expires_ns)
        values = record._replace(labels=_json(record.labels))  # type: ignore[arg-type] # as the column has it
        self._run(f"INSERT INTO leases({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", values)
        return record

    def find(self, lease_id: str) -> LeaseRecord | None:
        """The record, None where there is none."""
        row = self._first(f"SELECT {_COLUMNS} FROM leases WHERE id = ?", (lease_id,))
        return None if row is None else _record(row)

    def delete(self, lease_id: str) -> None:
        """Forget one and what it keeps."""
        self._run("DELETE FROM leases WHERE id = ?", (lease_id,))

    def delete_all(self, namespace: str) -> None:
        """Forget those of a namespace, and what they keep."""
        self._run("DELETE FROM leases WHERE namespace = ?", (namespace,))

    def list(self) -> builtins.list[LeaseRecord]:
        """All, oldest first."""
        return [_record(row) for row in self._run(f"SELECT {_COLUMNS} FROM leases ORDER BY created_ns, id")]

    def keep(self, lease_id: str, resources: Iterable[LeaseResource]) -> None:
        """Let a lease keep some more; again is a no-op."""
        sql = "INSERT OR IGNORE INTO lease_resources(name, kind, lease) VALUES (?, ?, ?)"
        for kind, name in resources:
            self._run(sql, (name, kind, lease_id))

    def resources(self, lease_id: str) -> builtins.list[LeaseResource]:
        """What a lease keeps, by kind and name."""
        sql = "SELECT kind, name FROM lease_resources WHERE lease = ? ORDER BY kind, name"
        return [LeaseResource(*row) for row in self._run(sql, (lease_id,))]


def _json(labels: Mapping[str, str]) -> str:
    import orjson

    try:
        return orjson.dumps(labels).decode()
    except TypeError as error:
        raise InvalidError(f"invalid labels: {labels!r}: expected UTF-8", field="labels", value=labels) from error


def _record(row: tuple[Any, ...]) -> LeaseRecord:
    import orjson

    return LeaseRecord(row[0], row[1], row[2], orjson.loads(row[3]), row[4], row[5])
