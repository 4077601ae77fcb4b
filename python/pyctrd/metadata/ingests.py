"""Blobs that are on their way in."""

from __future__ import annotations

import builtins
import time
from typing import Any

from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_COLUMNS = "id, namespace, digest, diff_id, size, started_ns, resumable"


class IngestRecord(NamedTuple):
    """A reservation, made before the first byte is written.

    Attributes:
        id: Names the staging directory.
        namespace: Who brings it in.
        digest: What it must become.
        diff_id: For a layer, what its tar must be.
        size: Bytes expected.
        started_ns: When, in nanoseconds since 1970.
        resumable: Whether what came of it is worth keeping when the rest does not come.
    """

    id: str
    namespace: str
    digest: str
    diff_id: str | None
    size: int
    started_ns: int
    resumable: bool


class Ingests(Table):
    """All reservations."""

    def add(
        self,
        ingest_id: str,
        *,
        namespace: str,
        digest: str,
        diff_id: str | None,
        size: int,
        resumable: bool = False,
    ) -> None:
        """Reserve."""
        self._run(
            f"INSERT INTO ingests({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (ingest_id, namespace, digest, diff_id, size, time.time_ns(), resumable),
        )

    def find(self, ingest_id: str) -> IngestRecord | None:
        """The reservation, None where it was ended."""
        row = self._first(f"SELECT {_COLUMNS} FROM ingests WHERE id = ?", (ingest_id,))
        return None if row is None else _record(row)

    def delete(self, ingest_id: str) -> None:
        """End it."""
        self._run("DELETE FROM ingests WHERE id = ?", (ingest_id,))

    def staged(self) -> builtins.list[str]:
        """Ids of all that may have something in staging: these, and uploads."""
        return [row[0] for row in self._run("SELECT id FROM ingests UNION ALL SELECT id FROM uploads")]

    def list(self) -> builtins.list[IngestRecord]:
        """All, oldest first."""
        return [_record(row) for row in self._run(f"SELECT {_COLUMNS} FROM ingests ORDER BY started_ns")]


def _record(row: Any) -> IngestRecord:
    record = IngestRecord(*row)
    return record._replace(resumable=bool(record.resumable))
