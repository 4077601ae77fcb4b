"""What the command line says of itself, and what it loads to say it."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

import pyctrd
from pyctrd.cli.group import COMMANDS, LazyGroup
from tests.cli.commands import environment, run

GROUP = LazyGroup("pyctrd")


def expected_words(name: str) -> list[str]:
    """The options and arguments that a command declares."""
    command = GROUP.get_command(click.Context(GROUP), name)
    assert command is not None
    found = []
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            found += [*parameter.opts, *([parameter.metavar] if parameter.metavar else [])]
        else:
            found.append((parameter.metavar or str(parameter.name).upper()).removesuffix("..."))
    return found


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_that_names_all_that_it_takes(name: str) -> None:
    done = run(name, "--help")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"Usage: pyctrd {name} ")
    missing = [word for word in expected_words(name) if word not in done.out]
    assert missing == []


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help_names_every_command_and_global_option(words: list[str]) -> None:
    done = run(*words)
    assert (done.status, done.err) == (0, "")
    listed = {line.split()[0] for line in done.out.partition("Commands:\n")[2].splitlines()}
    assert listed == set(COMMANDS)
    for option in ("--root", "--state", "--namespace", "--json", "--debug", "--version"):
        assert option in done.out


def test_no_command_is_answered_with_help() -> None:
    done = run()
    assert done.status == 2  # nothing was done
    assert done.out == ""
    assert "Usage: pyctrd" in done.err
    assert "images" in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no-such-command"], "no-such-command"),
        (["--no-such-option", "images"], "--no-such-option"),
        (["images", "--no-such-option"], "--no-such-option"),
        (["images", "too-many"], "too-many"),
        (["pull"], "REFERENCE"),
        (["rm"], "CONTAINER"),
        (["stop", "-t", "soon", "x"], "soon"),
        (["run", "--pull", "perhaps", "x"], "perhaps"),
        (["mount", "x", "/no/such/directory"], "/no/such/directory"),
        (["unpack", "/no/such/file", "x"], "/no/such/file"),
        (["pull", "--ca", "/no/such/file", "x"], "/no/such/file"),
    ],
)
def test_wrong_usage_is_named_and_exits_2(words: list[str], told: str) -> None:
    done = run(*words)
    assert (done.status, done.out) == (2, "")
    assert told in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


@pytest.mark.parametrize("word", ["version", "--version"])
def test_the_version_is_told_without_click_and_the_native_module(word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "pyctrd", word],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert done.stdout == f"pyctrd {pyctrd.__version__}\n"
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pyctrd.cli.main" in loaded  # it lists what was loaded
    assert [name for name in loaded if name.partition(".")[0] in ("click", "rich", "urllib3", "orjson")] == []
    assert "pyctrd._core" not in loaded


def test_the_version_may_follow_global_options() -> None:
    assert run("--debug", "--version").out == f"pyctrd {pyctrd.__version__}\n"
    assert run("-n", "other", "version").out == f"pyctrd {pyctrd.__version__}\n"
