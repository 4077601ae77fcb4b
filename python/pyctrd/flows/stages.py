"""Where the time of the pipeline's stages went, added up over an engine's pulls."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyctrd._core import StageTimes

FIGURES = ("busy_ns", "starved_ns", "blocked_ns", "waiting_ns", "bytes")


class StageTotals:
    """Sums by stage; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, dict[str, int]] = {}

    def add(self, ingests: Iterable[Mapping[str, StageTimes]]) -> None:
        """Add what finished ingests counted."""
        with self._lock:
            for stages in ingests:
                for name, times in stages.items():
                    total = self._totals.setdefault(name, dict.fromkeys(FIGURES, 0))
                    for figure in FIGURES:
                        total[figure] += getattr(times, figure)

    def read(self) -> dict[str, dict[str, int]]:
        """A copy: by stage, nanoseconds busy, starved, blocked and waiting, and bytes taken in."""
        with self._lock:
            return {name: dict(total) for name, total in self._totals.items()}
