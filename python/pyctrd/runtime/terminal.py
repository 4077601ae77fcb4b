"""The user's terminal while it stands for the container's: raw, sized alike, and put back on every path."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from pyctrd.errors import InvalidError

# Docker's and Podman's.
DETACH_KEYS = "ctrl-p,ctrl-q"
RESIZE_SECONDS = 30.0  # for a shim on the busiest machine


def size(fd: int) -> tuple[int, int] | None:
    """Rows and columns; None where ``fd`` is no terminal."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


def own_size() -> tuple[int, int] | None:
    """Of this process's terminal, where it has one: another one, made for it, begins with that."""
    return size(1) or size(0)


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


def parse_keys(text: str) -> bytes:
    """What ``ctrl-p,ctrl-q`` or ``ctrl-],a`` sends on a terminal; b"" for "", which is no keys.

    Raises:
        InvalidError: A key is none.
    """
    return b"".join(_parse_key(word) for word in text.split(",")) if text else b""


def _parse_key(word: str) -> bytes:
    name = word.removeprefix("ctrl-")
    if len(name) == 1 and name.isascii() and name.isprintable():
        # A letter, or one of @ [ \\ ] ^ _: the keys that have a control code.
        code = ord(name.upper()) - 64
        if name == word:
            return name.encode()
        if 0 <= code < 32:
            return bytes((code,))
    raise InvalidError(
        f"invalid detach keys: {word!r}: expected a character, or ctrl- and a letter or one of @ [ \\ ] ^ _",
        field="detach_keys",
        value=word,
    )


class Keys:
    """Input that is looked through for a sequence of keys, which may come in any number of reads.

    Args:
        wanted: The sequence; b"" is never found.
    """

    def __init__(self, wanted: bytes) -> None:
        self._wanted = wanted
        self._held = b""

    def pass_on(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be sent of this, and whether the sequence is whole: what comes behind it is dropped then."""
        if not self._wanted:
            return data, False
        text = self._held + data
        at = text.find(self._wanted)
        if at >= 0:
            self._held = b""
            return text[:at], True
        # The beginning of the sequence at the end of what was typed is not sent until it is known to be none.
        length = next(n for n in range(len(self._wanted) - 1, -1, -1) if text.endswith(self._wanted[:n]))
        self._held = text[len(text) - length :]
        return text[: len(text) - length], False


def encode_size(rows: int, columns: int) -> bytes:
    """The payload of a resize."""
    return min(rows, 0xFFFF).to_bytes(2, "big") + min(columns, 0xFFFF).to_bytes(2, "big")
