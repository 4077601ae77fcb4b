"""Namespaces: the tenants of a store."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from pyctrd.errors import InvalidError
from pyctrd.metadata.table import Table

# containerd's identifiers: they name directories and cgroups too.
_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
NAME_MAX_CHARS = 76


class NamespaceRecord(NamedTuple):
    """One tenant."""

    name: str
    created_ns: int


def check_namespace(name: str) -> str:
    """The name, if it is one.

    Raises:
        InvalidError: It has other characters than letters, digits and single ``._-`` between them, or is longer
            than 76.
    """
    if len(name) > NAME_MAX_CHARS or _NAME.fullmatch(name) is None:
        raise InvalidError(
            f"invalid namespace: {name!r}: expected letters and digits with single . _ - between them, at most "
            f"{NAME_MAX_CHARS}",
            field="namespace",
            value=name,
        )
    return name


class Namespaces(Table):
    """All of them."""

    def ensure(self, name: str) -> None:
        """Make it where it is missing."""
        self._run("INSERT OR IGNORE INTO namespaces(name, created_ns) VALUES (?, ?)", (name, time.time_ns()))

    def list(self) -> list[NamespaceRecord]:
        """By name."""
        return [NamespaceRecord(*row) for row in self._run("SELECT name, created_ns FROM namespaces ORDER BY name")]
