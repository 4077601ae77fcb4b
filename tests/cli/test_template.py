"""``--format``: fields of one's own, and nothing but fields."""

from __future__ import annotations

import pytest

from pyctrd.cli.template import fill
from pyctrd.errors import InvalidError

FACTS = {"name": "web", "command": ["echo", "a"], "labels": {"k": "v", "l": "w"}, "pid": 7, "exit_code": None}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{name}", "web"),
        ("", ""),
        ("{name}\\t{pid}\\n", "web\t7\n"),
        ("{command} [{labels}] {exit_code}.", "echo a [k=v,l=w] ."),
        ("{{name}}", "{name}"),
    ],
)
def test_fields_are_filled_in(template: str, expected: str) -> None:
    assert fill(template, FACTS) == expected


def test_what_a_value_says_is_text() -> None:
    assert "\x1b" not in fill("{name}", {"name": "\x1b[2J{pid}"})
    assert "{pid}" in fill("{name}", {"name": "{pid}"})


@pytest.mark.parametrize(
    "template", ["{other}", "{}", "{0}", "{name.__class__}", "{labels[k]}", "{name!r}", "{pid:>9}", "{name", "name}"]
)
def test_anything_else_is_refused_in_one_line(template: str) -> None:
    with pytest.raises(InvalidError, match="invalid --format") as raised:
        fill(template, FACTS)
    assert "\n" not in str(raised.value)
