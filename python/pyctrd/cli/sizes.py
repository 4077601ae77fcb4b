"""Numbers with a unit, and the limits that are given as such."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from pyctrd import Limits

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_size(text: str) -> int | None:
    """The number of ``512``, ``64k``, ``1g``; None where it is none."""
    number, unit = text.rstrip("bBkKmMgG"), text.lstrip("0123456789").lower()
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS:
        return None
    return int(number) * _UNITS[unit]


class SizeType(click.ParamType[int | str]):
    """A number of bytes as an option's value, or one of some words."""

    name = "size"

    def __init__(self, *words: str) -> None:
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The bytes, or the word as it stands."""
        if isinstance(value, int):
            return value
        if (text := str(value)) in self._words:
            return text
        size = parse_size(text)
        if size is None:
            expected = " or ".join(["a number of bytes, also with k, m or g,", *self._words]).removesuffix(",")
            self.fail(f"{value!r}: expected {expected}", param, ctx)
        return size


def limit_option(function: Any) -> Any:
    """``--limit NAME=VALUE`` of every command that unpacks layers; the command gets ``limits``."""
    return click.option(
        "--limit",
        "limits",
        metavar="NAME=VALUE[kmg]",
        multiple=True,
        callback=_read_limits,
        help="What a layer may have: entries, bytes, ratio, name_bytes, depth, xattr_bytes, header_bytes.",
    )(function)


def _read_limits(_context: click.Context, _parameter: click.Parameter, words: tuple[str, ...]) -> Limits | None:
    if not words:
        return None
    from pyctrd import Limits

    values: dict[str, int] = {}
    for word in words:
        name, _, text = word.partition("=")
        value = parse_size(text)
        if name not in Limits.__dataclass_fields__ or value is None:
            names = ", ".join(Limits.__dataclass_fields__)
            raise click.BadParameter(f"{word!r}: expected NAME=VALUE, a number with k, m or g; names: {names}")
        values[name] = value
    try:
        return Limits(**values)
    except InvalidError as error:
        raise click.BadParameter(str(error)) from error
