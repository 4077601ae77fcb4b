"""Counts of faults, for the table at the end."""

from __future__ import annotations

from collections import Counter


class Tally:
    """What one test tried, and how much of it left nothing wrong."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()

    def tried(self, how: str, flow: str) -> None:
        """A fault was put in."""
        self.counts[how, flow, "tried"] += 1

    def clean(self, how: str, flow: str) -> None:
        """And nothing was wrong after it."""
        self.counts[how, flow, "clean"] += 1
