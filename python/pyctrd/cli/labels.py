"""Labels on the command line."""

from __future__ import annotations

import click


def read_labels(_context: click.Context, _parameter: click.Parameter, words: tuple[str, ...]) -> dict[str, str]:
    """What several ``--label KEY=VALUE`` say."""
    labels = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.BadParameter(f"{word!r}: expected KEY=VALUE")
        labels[key] = value
    return labels
