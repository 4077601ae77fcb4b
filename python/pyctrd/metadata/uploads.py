"""Uploads: blobs that come to a repository in parts, and whose digest is known at their end."""

from __future__ import annotations

import builtins
import time

from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_COLUMNS = "id, namespace, repository, algorithm, reserved_bytes, updated_ns"


class UploadRecord(NamedTuple):
    """One upload.

    Attributes:
        id: Names it, and its staging directory.
        namespace: Whose.
        repository: Where it is to be seen.
        algorithm: Of the digest that it is expected to have.
        reserved_bytes: What it is held against the quota for: what came, and what is just coming.
        updated_ns: When something last came, in nanoseconds since 1970.
    """

    id: str
    namespace: str
    repository: str
    algorithm: str
    reserved_bytes: int
    updated_ns: int


class Uploads(Table):
    """The uploads of all namespaces."""

    def add(self, upload_id: str, *, namespace: str, repository: str, algorithm: str) -> None:
        """Record one of which nothing came yet."""
        sql = f"INSERT INTO uploads({_COLUMNS}) VALUES (?, ?, ?, ?, 0, ?)"
        self._run(sql, (upload_id, namespace, repository, algorithm, time.time_ns()))

    def find(self, upload_id: str) -> UploadRecord | None:
        """The record, None where it is over."""
        row = self._first(f"SELECT {_COLUMNS} FROM uploads WHERE id = ?", (upload_id,))
        return None if row is None else UploadRecord(*row)

    def reserve(self, upload_id: str, reserved_bytes: int) -> None:
        """Note that something comes, and for how much it is held against the quota from now on."""
        sql = "UPDATE uploads SET reserved_bytes = ?, updated_ns = ? WHERE id = ?"
        self._run(sql, (reserved_bytes, time.time_ns(), upload_id))

    def delete(self, upload_id: str) -> None:
        """End it."""
        self._run("DELETE FROM uploads WHERE id = ?", (upload_id,))

    def count(self, namespace: str) -> int:
        """How many a namespace has under way."""
        return int(self._first("SELECT count(*) FROM uploads WHERE namespace = ?", (namespace,))[0])

    def list(self) -> builtins.list[UploadRecord]:
        """All, oldest first."""
        return [UploadRecord(*row) for row in self._run(f"SELECT {_COLUMNS} FROM uploads ORDER BY updated_ns")]
