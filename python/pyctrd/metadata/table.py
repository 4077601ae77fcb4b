"""What every table's class has: a way to run statements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Run = Callable[..., list[Any]]


class Table:
    """Statements of one table. Changes belong into ``Database.write()``."""

    def __init__(self, run: Callable[[str, Sequence[Any]], list[Any]]) -> None:
        self._run: Run = run

    def _first(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first row, None where there is none."""
        return next(iter(self._run(sql, values)), None)
