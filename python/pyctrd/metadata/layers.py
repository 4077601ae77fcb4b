"""Unpacked layers, by diff_id, shared by all namespaces."""

from __future__ import annotations

import builtins
import time
from collections.abc import Collection, Iterable

from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_COLUMNS = "diff_id, bytes, entries, implied, foreign_links, blob, created_ns"
# Of a layer y, whether the namespace ?1 has it ("" for any): a blob of its own was seen to be this layer, or taken for
# it when it had that.
OF_NAMESPACE = """
    (?1 = '' OR (EXISTS (SELECT 1 FROM layer_blobs b JOIN content c ON c.digest = b.digest
            WHERE b.diff_id = y.diff_id AND c.namespace = ?1 AND c.claimed = '')
        OR EXISTS (SELECT 1 FROM content c WHERE c.claimed = y.diff_id AND c.claimed <> '' AND c.namespace = ?1))
    AND EXISTS (SELECT 1 FROM unpacked u WHERE u.diff_id = y.diff_id AND u.namespace = ?1))
"""


class LayerRecord(NamedTuple):
    """One unpacked layer.

    Attributes:
        diff_id: Digest of its tar.
        bytes: Content bytes of its files.
        entries: Entries of its tar.
        implied: Parent directories that it does not list.
        foreign_links: Hard links to files of lower layers.
        blob: Digest of the blob that it was unpacked from.
        created_ns: When, in nanoseconds since 1970.
    """

    diff_id: str
    bytes: int
    entries: int
    implied: int
    foreign_links: int
    blob: str
    created_ns: int


class Layers(Table):
    """All unpacked layers."""

    def add(self, diff_id: str, *, bytes: int, entries: int, implied: int, foreign_links: int, blob: str) -> None:  # noqa: A002 - the column's name
        """Record one; one that is recorded stays as it is."""
        self._run(
            f"INSERT OR IGNORE INTO layers({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (diff_id, bytes, entries, implied, foreign_links, blob, time.time_ns()),
        )

    def find(self, diff_id: str) -> LayerRecord | None:
        """The record, None where it was not unpacked."""
        row = self._first(f"SELECT {_COLUMNS} FROM layers WHERE diff_id = ?", (diff_id,))
        return None if row is None else LayerRecord(*row)

    def delete(self, diff_id: str) -> None:
        """Forget one."""
        self._run("DELETE FROM layers WHERE diff_id = ?", (diff_id,))

    def list(self) -> builtins.list[LayerRecord]:
        """By diff_id."""
        return [LayerRecord(*row) for row in self._run(f"SELECT {_COLUMNS} FROM layers ORDER BY diff_id")]

    def add_blob(self, digest: str, diff_id: str) -> None:
        """Record that a blob's tar was hashed, and has this diff_id."""
        self._run("INSERT OR IGNORE INTO layer_blobs(digest, diff_id) VALUES (?, ?)", (digest, diff_id))

    def is_layer_of(self, digest: str, diff_id: str) -> bool:
        """Whether a blob's tar was seen to have this diff_id; what a config says of it proves nothing."""
        row = self._first("SELECT 1 FROM layer_blobs WHERE digest = ? AND diff_id = ?", (digest, diff_id))
        return row is not None

    def belongs_to(self, namespace: str, diff_id: str) -> bool:
        """Whether a layer was unpacked for a namespace that has a blob which is this layer, or was taken for it."""
        sql = f"SELECT 1 FROM layers y WHERE y.diff_id = ?2 AND {OF_NAMESPACE}"
        return self._first(sql, (namespace, diff_id)) is not None

    def blobs_of(self, diff_id: str) -> builtins.list[str]:
        """Digests of the blobs that were seen to be a layer."""
        return [row[0] for row in self._run("SELECT digest FROM layer_blobs WHERE diff_id = ?", (diff_id,))]

    def note_unpacked(self, namespace: str, diff_ids: Iterable[str]) -> None:
        """Record that layers were unpacked for a namespace, whoever did it before."""
        for diff_id in diff_ids:
            self._run("INSERT OR IGNORE INTO unpacked(namespace, diff_id) VALUES (?, ?)", (namespace, diff_id))

    def unpacked_for(self, namespace: str, diff_ids: Collection[str]) -> set[str]:
        """Those among some layers that are there, and were unpacked for a namespace that has not let go of them."""
        marks = ", ".join("?" * len(diff_ids))
        sql = f"""SELECT u.diff_id FROM unpacked u JOIN layers y ON y.diff_id = u.diff_id
            WHERE u.namespace = ? AND u.diff_id IN ({marks})"""
        return {row[0] for row in self._run(sql, (namespace, *diff_ids))}

    def forget_unpacked(self, namespace: str, digest: str, claimed: str) -> None:
        """Forget it of the layers of which a namespace has no blob any more, now that it has lost this one.

        Args:
            namespace: Whose.
            digest: The blob that it lost.
            claimed: What it had taken this for, "" where it was seen.
        """
        sql = """DELETE FROM unpacked WHERE namespace = ?1
            AND (diff_id = ?3 OR diff_id IN (SELECT diff_id FROM layer_blobs WHERE digest = ?2))
            AND NOT EXISTS (SELECT 1 FROM layer_blobs b JOIN content c ON c.digest = b.digest
                WHERE b.diff_id = unpacked.diff_id AND c.namespace = ?1 AND c.claimed = '')
            AND NOT EXISTS (SELECT 1 FROM content c
                WHERE c.claimed = unpacked.diff_id AND c.claimed <> '' AND c.namespace = ?1)"""
        self._run(sql, (namespace, digest, claimed))

    def forget_blob(self, digest: str) -> None:
        """Forget of which layers a blob was that no namespace has any more."""
        self._run("DELETE FROM layer_blobs WHERE digest = ?", (digest,))
