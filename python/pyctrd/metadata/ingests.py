"""Blobs that are on their way in."""

from __future__ import annotations

import builtins
import time
from typing import NamedTuple

from pyctrd.metadata.table import Table

_COLUMNS = "id, namespace, digest, diff_id, size, started_ns"


class IngestRecord(NamedTuple):
    """A reservation, made before the first byte is written.

    Attributes:
        id: Names the staging directory.
        namespace: Who brings it in.
        digest: What it must become.
        diff_id: For a layer, what its tar must be.
        size: Bytes expected.
        started_ns: When, in nanoseconds since 1970.
    """

    id: str
    namespace: str
    digest: str
    diff_id: str | None
    size: int
    started_ns: int


class Ingests(Table):
    """All reservations."""

    def add(self, ingest_id: str, *, namespace: str, digest: str, diff_id: str | None, size: int) -> None:
        """Reserve."""
        self._run(
            f"INSERT INTO ingests({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
            (ingest_id, namespace, digest, diff_id, size, time.time_ns()),
        )

    def find(self, ingest_id: str) -> IngestRecord | None:
        """The reservation, None where it was ended."""
        row = self._first(f"SELECT {_COLUMNS} FROM ingests WHERE id = ?", (ingest_id,))
        return None if row is None else IngestRecord(*row)

    def delete(self, ingest_id: str) -> None:
        """End it."""
        self._run("DELETE FROM ingests WHERE id = ?", (ingest_id,))

    def list(self) -> builtins.list[IngestRecord]:
        """All, oldest first."""
        return [IngestRecord(*row) for row in self._run(f"SELECT {_COLUMNS} FROM ingests ORDER BY started_ns")]
