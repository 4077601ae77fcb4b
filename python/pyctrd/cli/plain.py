"""``pull`` in plain words, read without click: to load that is a tenth of pulling a small image.

What is read here click reads in the same way (``tests/cli/test_plain.py`` compares them). For all else there is click:
other options, those joined to their values, help, mistakes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyctrd.cli.globals import Globals
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GLOBAL = {"--root": "root", "--state": "state", "-n": "namespace", "--namespace": "namespace"}
_QUIET = ("-q", "--quiet")
# How the variables begin that click reads and the engine does not: one for each option, and for completion.
_VARIABLES = ("PYCTRD_AS_JSON", "PYCTRD_DEBUG", "PYCTRD_VERSION", "PYCTRD_PULL_", "PYCTRD__", "_PYCTRD_")


class PlainPull(NamedTuple):
    """What the words say."""

    options: Globals
    reference: str
    quiet: bool


def read_pull(words: Sequence[str]) -> PlainPull | None:
    """What to pull, where one image is to be pulled with no more than the usual options; None for all other words."""
    if any(name.startswith(_VARIABLES) for name in os.environ):
        return None
    rest = iter(words)
    options = _read_globals(rest)
    if options is None:
        return None
    said = list(rest)
    references = [word for word in said if word not in _QUIET]
    if len(references) != 1 or not references[0] or references[0].startswith("-"):
        return None
    return PlainPull(Globals(**options), references[0], len(said) > 1)


def _read_globals(words: Iterator[str]) -> dict[str, Any] | None:
    """The options up to ``pull``, which is taken too; None where others come, or another command."""
    options: dict[str, Any] = {}
    for word in words:
        if word == "pull":
            return options
        value = next(words, "")
        if word not in _GLOBAL or not value or value.startswith("-"):
            return None
        options[_GLOBAL[word]] = value
    return None
