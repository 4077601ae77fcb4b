"""``--format``: lines of one's own, with fields of an object in braces."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from pyctrd.cli.output import printable
from pyctrd.errors import InvalidError

_ESCAPES = {r"\t": "\t", r"\n": "\n"}


def fill(template: str, facts: Mapping[str, Any]) -> str:
    r"""One line.

    Args:
        template: Text with ``{field}``; ``\t`` and ``\n`` are what they are elsewhere.
        facts: The fields. Lists are joined by spaces, mappings shown as ``key=value,…``.

    Raises:
        InvalidError: A field is not there, or more is asked of it than its value.
    """
    for written, meant in _ESCAPES.items():
        template = template.replace(written, meant)
    words = []
    try:
        for text, field, spec, conversion in string.Formatter().parse(template):
            words.append(text)
            if field is None:
                continue
            # A plain name only: "{labels.__class__}" and the like would reach into the program.
            if field not in facts or spec or conversion:
                raise InvalidError(
                    f"invalid --format: {{{field}}}: expected one of {', '.join(sorted(facts))}",
                    field="format",
                    value=field,
                )
            words.append(printable(_text(facts[field])))
    except ValueError as error:
        raise InvalidError(f"invalid --format: {template!r}: {error}", field="format", value=template) from error
    return "".join(words)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(str(one) for one in value)
    return "" if value is None else str(value)
