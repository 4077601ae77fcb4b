"""Which blobs a namespace has."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_COLUMNS = "namespace, digest, size, media_type, source, created_ns, is_stored, claimed"


class ContentRecord(NamedTuple):
    """One blob of one namespace.

    Attributes:
        namespace: Whose.
        digest: ``algorithm:hex``.
        size: Bytes.
        media_type: As the descriptor said.
        source: ``registry/repository`` that it was pulled from, "" for what was loaded or made here.
        created_ns: When, in nanoseconds since 1970.
        is_stored: Whether its bytes are kept for this namespace. If not, it was pulled so: what there is is the layer
            that it was unpacked to.
        claimed: Where no byte of it came, the diff_id of the layer that the namespace had, and that an image's config
            says it is; then ``size`` is what it is charged as. "" where it was seen to be what it is.
    """

    namespace: str
    digest: str
    size: int
    media_type: str
    source: str
    created_ns: int
    is_stored: bool
    claimed: str


class ContentRecords(Table):
    """The blobs of all namespaces."""

    def add(
        self, namespace: str, digest: str, *, size: int, media_type: str, source: str, is_stored: bool = True
    ) -> None:
        """Record one whose bytes were seen; one that is recorded stays, but that its bytes may be kept from now on."""
        self._run(
            f"INSERT INTO content({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, '') ON CONFLICT DO UPDATE SET "
            "is_stored = max(is_stored, excluded.is_stored), claimed = '', "
            "size = CASE claimed WHEN '' THEN size ELSE excluded.size END",
            (namespace, digest, size, media_type, source, time.time_ns(), is_stored),
        )

    def add_claimed(
        self, namespace: str, digest: str, diff_id: str, *, size: int, media_type: str, source: str
    ) -> None:
        """Record one of which no byte came, for a layer that the namespace has; one that is recorded stays as it is."""
        self._run(
            f"INSERT OR IGNORE INTO content({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, FALSE, ?)",
            (namespace, digest, size, media_type, source, time.time_ns(), diff_id),
        )

    def claims(self, diff_id: str) -> list[ContentRecord]:
        """What was taken for a layer in all namespaces, for the store's own work."""
        sql = f"SELECT {_COLUMNS} FROM content WHERE claimed = ? AND claimed <> '' ORDER BY namespace, digest"
        return [_record(row) for row in self._run(sql, (diff_id,))]

    def find(self, namespace: str, digest: str) -> ContentRecord | None:
        """The record, None where the namespace has no such blob."""
        row = self._first(
            f"SELECT {_COLUMNS} FROM content WHERE namespace = ? AND digest = ?",
            (namespace, digest),
        )
        return None if row is None else _record(row)

    def is_recorded(self, digest: str) -> bool:
        """Whether any namespace had its bytes, kept or not: never for an answer to a tenant."""
        sql = "SELECT 1 FROM content WHERE digest = ? AND claimed = '' LIMIT 1"
        return self._first(sql, (digest,)) is not None

    def is_stored(self, digest: str) -> bool:
        """Whether its bytes are kept for any namespace: for removal from disk, never for an answer to a tenant."""
        return self._first("SELECT 1 FROM content WHERE digest = ? AND is_stored LIMIT 1", (digest,)) is not None

    def is_common(self, namespace: str, digest: str) -> bool:
        """Whether a namespace had its bytes to which this one is open: both have the policy "shared"."""
        row = self._first(
            "SELECT 1 FROM content JOIN namespaces AS holder ON holder.name = content.namespace "
            "JOIN namespaces AS asker ON asker.name = ? "
            "WHERE digest = ? AND claimed = '' AND holder.policy = 'shared' AND asker.policy = 'shared' LIMIT 1",
            (namespace, digest),
        )
        return row is not None

    def add_source(self, digest: str, source: str) -> None:
        """Record that the store got the blob's bytes from there, all of them."""
        self._run("INSERT OR IGNORE INTO blob_sources(digest, source) VALUES (?, ?)", (digest, source))

    def came_from(self, digest: str, source: str) -> bool:
        """Whether the store got a blob's bytes from there, and some namespace has it."""
        row = self._first(
            "SELECT 1 FROM blob_sources AS known JOIN content USING (digest) "
            "WHERE known.digest = ? AND known.source = ? LIMIT 1",
            (digest, source),
        )
        return row is not None

    def delete(self, namespace: str, digest: str) -> None:
        """Take it from one namespace; with the last one goes where it came from."""
        self._run("DELETE FROM content WHERE namespace = ? AND digest = ?", (namespace, digest))
        if not self.is_recorded(digest):
            self._run("DELETE FROM blob_sources WHERE digest = ?", (digest,))

    def holders(self, digest: str) -> list[ContentRecord]:
        """Its records in all namespaces, for the store's own work."""
        sql = f"SELECT {_COLUMNS} FROM content WHERE digest = ? ORDER BY namespace"
        return [_record(row) for row in self._run(sql, (digest,))]

    def walk(self, namespace: str) -> Iterator[ContentRecord]:
        """The blobs of one namespace, by digest."""
        sql = f"SELECT {_COLUMNS} FROM content WHERE namespace = ? ORDER BY digest"
        for row in self._run(sql, (namespace,)):
            yield _record(row)

    def walk_all(self) -> Iterator[ContentRecord]:
        """The blobs of every namespace."""
        for row in self._run(f"SELECT {_COLUMNS} FROM content ORDER BY digest"):
            yield _record(row)


def _record(row: Sequence[Any]) -> ContentRecord:
    return ContentRecord(*row)._replace(is_stored=bool(row[-2]))  # SQLite has no booleans
