"""Events: what happened, told in the transaction in which it happened."""

from __future__ import annotations

import builtins
import time
from collections.abc import Mapping
from typing import Any

from pyctrd.metadata.table import Table

# Of each namespace, so that a busy one takes nothing from the others. A run of a container makes four: this is two
# thousand runs, in 3 MB. By count and not by age: a clock that steps would take all of them.
KEPT_EVENTS = 10_000
# So many are removed at once, or every event would rewrite a page for the one that it pushes out.
TRIMMED_EVENTS = 1_000
# Whose events are about the store as a whole: no namespace has this name.
STORE = ""

# cursor in the namespace, cursor among all, nanoseconds since 1970, namespace, type, action, name, attributes as JSON
EventRow = tuple[int, int, int, str, str, str, str, str]
_COLUMNS = "id, seq, time_ns, namespace, type, action, name, attributes"


class Events(Table):
    """The events of all namespaces.

    Each namespace counts its own, without gaps, so that a number tells nothing of what others do. The first is the
    time in microseconds: a namespace, or a database, that is made anew does not give numbers out again.
    """

    def add(
        self,
        namespace: str,
        type: str,  # noqa: A002 - the column's name
        action: str,
        name: str,
        attributes: Mapping[str, Any],
        *,
        time_ns: int = 0,
    ) -> None:
        """Tell what the transaction around this does; ``time_ns`` is when it happened, 0 for now."""
        import orjson

        now = time.time_ns()
        first = max(now, 0) // 1000
        values = (first, namespace, namespace, first, time_ns or now, type, action, name)
        added = self._run(
            "INSERT INTO events(seq, namespace, id, time_ns, type, action, name, attributes) SELECT "
            "coalesce((SELECT max(seq) FROM events), ?) + 1, ?, "
            "coalesce((SELECT max(id) FROM events WHERE namespace = ?), ?) + 1, ?, ?, ?, ?, ? RETURNING id",
            (*values, orjson.dumps(dict(attributes)).decode()),
        )
        if (newest := int(added[0][0])) % TRIMMED_EVENTS == 0:
            self._trim(namespace, newest - KEPT_EVENTS)

    def after(self, namespace: str, cursor: int, *, limit: int) -> builtins.list[EventRow]:
        """The next events of one namespace, oldest first."""
        sql = f"SELECT {_COLUMNS} FROM events WHERE namespace = ? AND id > ? ORDER BY id LIMIT ?"
        return self._run(sql, (namespace, cursor, limit))

    def after_of_all(self, cursor: int, *, limit: int) -> builtins.list[EventRow]:
        """The next events of all namespaces, as they came: for the store's owner."""
        return self._run(f"SELECT {_COLUMNS} FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (cursor, limit))

    def bounds(self, namespace: str) -> tuple[int, int]:
        """The last event of a namespace that is not kept any more, and the newest; 0 and 0 where it has none."""
        oldest, newest = self._first("SELECT min(id), max(id) FROM events WHERE namespace = ?", (namespace,))
        return (oldest or 1) - 1, newest or 0

    def bounds_of_all(self) -> tuple[int, int]:
        """As ``bounds``, among all: behind the last one that any namespace has lost, nothing is missing."""
        oldest, newest = self._first("SELECT min(seq), max(seq) FROM events")
        trimmed = self._first("SELECT max(seq) FROM events_trimmed")[0]
        return max((oldest or 1) - 1, trimmed or 0), newest or 0

    def forget(self, namespace: str) -> None:
        """Remove those of a namespace that is removed itself; another event must have been added before."""
        self._trim(namespace, self.bounds(namespace)[1])

    def _trim(self, namespace: str, last: int) -> None:
        """Remove a namespace's events up to one, and remember that there were some."""
        gone = self._run("DELETE FROM events WHERE namespace = ? AND id <= ? RETURNING seq", (namespace, last))
        if gone:
            self._run(
                "INSERT OR REPLACE INTO events_trimmed(namespace, seq) VALUES (?, ?)",
                (namespace, max(seq for (seq,) in gone)),
            )
