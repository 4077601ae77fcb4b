"""What the command line prints: tables, JSON, one line for an error."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pyctrd.errors import PyctrdError

EXIT_FAILED = 1
_HINTS = {
    errno.ENOSPC: "free some space, or choose another --root",
    errno.EDQUOT: "the disk quota is used up; choose another --root",
    errno.EACCES: "run as root, or choose --root and --state directories of your own",
    errno.EPERM: "run as root: mounts, device nodes and ownership need it",
    errno.EROFS: "choose a --root on a writable file system",
}
_UNITS = ("B", "kB", "MB", "GB", "TB")


def complain(error: BaseException, *, status: int = EXIT_FAILED) -> int:
    """One line on standard error, a hint line where there is one; returns ``status``."""
    print_error(describe(error), hint_for(error))
    return status


def print_error(message: str, hint: str = "") -> None:
    """Write ``pyctrd: message`` and, below it, ``hint: …`` to standard error."""
    lines = [f"pyctrd: {printable(message)}"]
    if hint:
        lines.append(f"hint: {printable(hint)}")
    with suppress(OSError):  # the last flush, before the end, reports it
        sys.stdout.flush()
    sys.stderr.write("\n".join(lines) + "\n")


def describe(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, PyctrdError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror[:1].lower()}{error.strerror[1:]}{where}"
    return f"internal error: {type(error).__name__}: {error}"


def hint_for(error: BaseException) -> str:
    """What the user can do."""
    if isinstance(error, PyctrdError):
        return error.hint
    if isinstance(error, OSError):
        return _HINTS.get(error.errno or 0, "")
    return "this is a bug in pyctrd: run again with --debug and report the traceback"


def printable(text: str) -> str:
    """The text with control characters escaped: names come from archives and registries."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_json(document: Any) -> None:
    """One JSON document and a newline on standard output."""
    import orjson

    sys.stdout.flush()
    sys.stdout.buffer.write(orjson.dumps(document, default=str, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


def print_json_lines(documents: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line on standard output."""
    for document in documents:
        print_json(document)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns padded to their widest cell, two spaces apart."""
    table = [tuple(headings), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(headings))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


def size_text(count: int) -> str:
    """Bytes as people read them, in powers of 1000 as the disk's label has it."""
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("the last unit takes every value")


def age_text(time_ns: int) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0, (time.time_ns() - time_ns) // 1_000_000_000)
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return f"{seconds} seconds ago"
