"""``pull`` in plain words: what is read without click is what click reads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import click
import pytest

from pyctrd.cli import plain
from pyctrd.cli.globals import Globals
from pyctrd.cli.group import pyctrd as pyctrd_command
from pyctrd.cli.images import pull_command
from pyctrd.cli.plain import read_pull
from tests.cli.commands import run
from tests.images import Images

REFERENCE = "example.com/a:1"
GLOBALS: Sequence[list[str]] = (
    *([], ["--root", "r"], ["--state", "s"], ["-n", "team"], ["--namespace", "team"]),
    ["--root", "r", "--state", "s", "-n", "team"],
    ["--root", "r", "--root", "r2"],
    ["--root", "pull"],
)
OWN: Sequence[list[str]] = (
    [REFERENCE],
    ["-q", REFERENCE],
    [REFERENCE, "--quiet"],
    ["-q", REFERENCE, "-q"],
    ["pull"],
    ["not a name"],
)
# What click reads in some way, or refuses: it is left to it.
LEFT: Sequence[list[str]] = (
    *([], ["pull"], ["pull", "-q"], ["pull", ""], ["pull", REFERENCE, REFERENCE], ["pull", "--", REFERENCE]),
    *(["pull", "--json", REFERENCE], ["pull", REFERENCE, "--stages"], ["pull", "--platform", "linux/arm64", REFERENCE]),
    *(["pull", "--progress", "json", REFERENCE], ["pull", "--progress=bars", REFERENCE]),
    *(["pull", "-qq", REFERENCE], ["pull", "-h"], ["pull", "--help", REFERENCE], ["pull", "--quie", REFERENCE]),
    *(["--root=r", "pull", REFERENCE], ["--root", "", "pull", REFERENCE], ["--root", "-n", "pull", REFERENCE]),
    *(["-nteam", "pull", REFERENCE], ["--json", "pull", REFERENCE], ["--debug", "pull", REFERENCE]),
    *(["--root", "r"], ["--root"], ["--root", "pull"], ["-h", "pull", REFERENCE], ["--version"], ["images"]),
    *(["run", REFERENCE], ["--rooot", "r", "pull", REFERENCE], ["pull", "-"], [REFERENCE, "pull"]),
)


def read_by_click(words: Sequence[str]) -> tuple[Globals, dict[str, Any]]:
    """The global options and the command's, after click has read them."""
    with (
        mock.patch.object(pull_command, "callback", new=click.pass_context(lambda known, **said: (known.obj, said))),
    ):
        read = pyctrd_command.main(args=list(words), prog_name="pyctrd", standalone_mode=False)
    assert isinstance(read, tuple)
    return read


@pytest.mark.parametrize(("before", "after"), list(itertools.product(GLOBALS, OWN)))
def test_plain_words_are_read_as_click_reads_them(
    before: Sequence[str], after: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYCTRD_ROOT", "PYCTRD_STATE", "PYCTRD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)  # click gives the engine what it reads itself
    words = [*before, "pull", *after]
    said = read_pull(words)
    assert said is not None
    options, own = read_by_click(words)
    assert said.options == options
    assert (own.pop("references"), own.pop("quiet")) == ((said.reference,), said.quiet)
    assert not any(own.values())  # what has not been said is the same for both


@pytest.mark.parametrize("words", LEFT, ids=" ".join)
def test_other_words_are_left_to_click(words: Sequence[str]) -> None:
    assert read_pull(words) is None


def test_each_variable_that_click_alone_reads_leaves_the_words_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    context = click.Context(pyctrd_command, info_name="pyctrd", auto_envvar_prefix="PYCTRD")
    below = click.Context(pull_command, info_name="pull", parent=context)
    names = {
        name
        for known, command in ((context, pyctrd_command), (below, pull_command))
        for parameter in command.get_params(known)
        if isinstance(parameter, click.Option) and parameter.name
        for name in [f"{known.auto_envvar_prefix}_{parameter.name.upper()}"]
    }
    assert {"PYCTRD_ROOT", "PYCTRD_DEBUG", "PYCTRD_PULL_CA"} <= names
    by_both = {f"PYCTRD_{name.upper()}" for name in plain._GLOBAL.values()}
    for name in names | {"_PYCTRD_COMPLETE"}:
        with monkeypatch.context() as changed:
            changed.setenv(name, "1")
            assert (read_pull(["pull", REFERENCE]) is None) == (name not in by_both), name


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_both_ways_print_the_same(images: Images, quiet: Sequence[str]) -> None:
    words: Mapping[str, Sequence[str]] = {
        "plain": ["pull", *quiet, images.busybox.reference],
        "by click": ["pull", *quiet, "--", images.busybox.reference],
    }
    assert read_pull(words["plain"]) is not None
    assert read_pull(words["by click"]) is None
    told = {}
    for how, said in words.items():
        done = run(*said)
        told[how] = (done.status, done.out, bool(done.err))
        assert run("rmi", images.busybox.reference).status == 0
    assert told["plain"] == told["by click"]
    assert told["plain"][1] == f"{images.busybox.built.digest}\n"


def test_both_ways_fail_the_same(images: Images) -> None:
    for reference in ("UPPER", f"{images.busybox.reference}-and-not-there"):
        plainly, by_click = run("pull", reference), run("pull", "--", reference)
        assert (plainly.status, plainly.out, plainly.err) == (by_click.status, by_click.out, by_click.err)
        assert plainly.status == 1
