"""Signals by the names that images and users write."""

from __future__ import annotations

import signal

from pyctrd.errors import InvalidError

_LAST = 64  # SIGRTMAX on Linux


def signal_number(text: str) -> int:
    """``SIGTERM``, ``term``, ``SIGRTMIN+3`` or ``15`` as a number.

    Raises:
        InvalidError: It is no signal.
    """
    if text.isdigit() and 0 < int(text) <= _LAST:
        return int(text)
    name, plus, offset = text.upper().partition("+")
    name = name if name.startswith("SIG") else f"SIG{name}"
    number = signal.Signals.__members__.get(name)
    if number is not None and (not plus or offset.isdigit()):
        total = int(number) + (int(offset) if plus else 0)
        if total <= _LAST:
            return total
    raise InvalidError(f"invalid signal: {text!r}: expected a name or 1 to {_LAST}", field="signal", value=text)
