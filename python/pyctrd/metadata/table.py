"""What every table's class has: a way to run statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

Run = Callable[..., sqlite3.Cursor]


class Table:
    """Statements of one table. Changes belong into ``Database.write()``."""

    def __init__(self, run: Callable[[str, Sequence[Any]], sqlite3.Cursor]) -> None:
        self._run: Run = run
