"""What lost its last record and may still be on disk: collection writes it down before it removes anything."""

from __future__ import annotations

import builtins
from collections.abc import Iterable

from pyctrd.metadata.table import Table

Thing = tuple[str, str]


class Doomed(Table):
    """Blobs by digest and layers by diff_id, as pairs of kind ("blob" or "layer") and name."""

    def add(self, things: Iterable[Thing]) -> None:
        """Write some down, in the transaction that removes their records; again is a no-op."""
        for kind, name in things:
            self._run("INSERT OR IGNORE INTO doomed(name, kind) VALUES (?, ?)", (name, kind))

    def holds(self, kind: str, name: str) -> bool:
        """Whether one is on its way out."""
        return self._first("SELECT 1 FROM doomed WHERE name = ? AND kind = ?", (name, kind)) is not None

    def list(self, limit: int, *, after: Thing = ("", "")) -> builtins.list[Thing]:
        """Some of them, in the order of their names.

        Args:
            limit: At most so many.
            after: Those behind this one.
        """
        kind, name = after
        sql = "SELECT kind, name FROM doomed WHERE (name, kind) > (?, ?) ORDER BY name, kind LIMIT ?"
        return [(row[0], row[1]) for row in self._run(sql, (name, kind, limit))]

    def forget(self, things: Iterable[Thing]) -> None:
        """Strike out what is gone, or is recorded again."""
        for kind, name in things:
            self._run("DELETE FROM doomed WHERE name = ? AND kind = ?", (name, kind))
