"""Counts of faults, for the table at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

# So many wrong ends of one test are enough to look at.
MANY = 20


class Tally:
    """What one test tried, how much of it left nothing wrong, and what the rest left."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self._failures: list[Exception] = []

    @contextmanager
    def trying(self, how: str, flow: str, where: str) -> Iterator[None]:
        """One fault: what is wrong after it is kept, and told by ``conclude``, so that others are tried too."""
        self.counts[how, flow, "tried"] += 1
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised in the end, whatever it is
            error.add_note(f"{flow}: {where}")
            self._failures.append(error)
            if len(self._failures) >= MANY:
                self.conclude()
        else:
            self.counts[how, flow, "clean"] += 1

    def add(self, how: str, flow: str, count: int) -> None:
        """So many faults, after which nothing was wrong."""
        self.counts[how, flow, "tried"] += count
        self.counts[how, flow, "clean"] += count

    def conclude(self) -> None:
        """Raise what was wrong."""
        failures, self._failures = self._failures, []
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup("after faults", failures)
