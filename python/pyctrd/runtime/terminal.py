"""The user's terminal while it stands for the container's: raw, sized alike, and put back on every path."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


def size(fd: int) -> tuple[int, int] | None:
    """Rows and columns; None where ``fd`` is no terminal."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


@contextmanager
def raw(fd: int | None) -> Iterator[None]:
    """Pass every key on as it is, also Ctrl-C, while the block runs. No terminal: nothing is done."""
    if fd is None or not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def encode_size(rows: int, columns: int) -> bytes:
    """The payload of a resize."""
    return min(rows, 0xFFFF).to_bytes(2, "big") + min(columns, 0xFFFF).to_bytes(2, "big")
