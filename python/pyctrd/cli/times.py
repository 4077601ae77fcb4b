"""Times and durations as users of Docker write them."""

from __future__ import annotations

import re
import time
from datetime import datetime

from pyctrd.errors import InvalidError

_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d*)?)(ns|us|ms|s|m|h|d)")


def find_duration(text: str) -> float | None:
    """``1h30m``, ``500ms``, ``10s`` in seconds; None where it is no duration. Go's units, and days."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def parse_duration(text: str, *, field: str) -> float:
    """As ``find_duration``; a number alone is seconds.

    Raises:
        InvalidError: It is no duration.
    """
    found = float(text) if text.isascii() and text.isdigit() else find_duration(text)
    if found is None:
        raise InvalidError(
            f"invalid {field}: {text!r}: expected a duration like 30s, 5m or 1h30m", field=field, value=text
        )
    return found


def parse_time(text: str | None, *, field: str) -> int | None:
    """RFC 3339, seconds since 1970, or how long ago (``10m``), in nanoseconds since 1970; None for None.

    Raises:
        InvalidError: It is none of these.
    """
    if text is None:
        return None
    ago = find_duration(text)
    if ago is not None:
        return time.time_ns() - int(ago * 1e9)
    try:
        seconds = float(text) if text.replace(".", "", 1).isdigit() else datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise InvalidError(
            f"invalid --{field}: {text!r}: expected RFC 3339, seconds since 1970, or a duration like 10m",
            field=field,
            value=text,
        ) from error
    return int(seconds * 1_000_000_000)
