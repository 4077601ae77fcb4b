"""README: its examples run as they stand, and what it lists is what the code has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyctrd.cli.group import COMMANDS
from pyctrd.flows import settings
from tests.images import Images

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
# What the examples show; the session's own registry serves something smaller under another name.
SHOWN = "docker.io/library/alpine:3.20"
DEADLINE_SECONDS = 120.0


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert found
    assert all(SHOWN in one for one in found)
    return found


def block(language: str) -> str:
    """The only one."""
    (found,) = blocks(language)
    return found


def run(words: list[str], example: str) -> subprocess.CompletedProcess[str]:
    """Run an example with ``pyctrd`` on the path, as in an activated virtual environment."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [*words, example], env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )


@pytest.mark.root
@pytest.mark.parametrize("example", blocks("python"), ids=["plain", "awaited"])
def test_the_python_examples_print_what_the_container_wrote(images: Images, state: Path, example: str) -> None:
    done = run([sys.executable, "-W", "error", "-c"], example.replace(SHOWN, images.busybox.reference))
    assert (done.returncode, done.stdout) == (0, "0 hello\n\n"), done.stderr
    assert list((state / "shims").iterdir()) == []


@pytest.mark.root
def test_the_shell_example_runs_line_by_line(images: Images, state: Path) -> None:
    example = block("sh").replace(SHOWN, images.busybox.reference)
    done = run(["bash", "-eu", "-o", "pipefail", "-c"], example)
    assert done.returncode == 0, done.stderr
    digest, greeting, container_id, heading, row, removed = done.stdout.splitlines()
    assert digest == images.busybox.built.digest
    assert greeting == "hello world"
    assert row.startswith(container_id[:12])
    assert "sleeper" in row
    assert "running" in row
    assert heading.startswith("ID")
    assert removed == "sleeper"
    assert list((state / "shims").iterdir()) == []


def test_the_variables_that_readme_lists_are_those_of_the_code() -> None:
    known = {value for name, value in vars(settings).items() if name.endswith("_VARIABLE")}
    assert set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) == known


def test_every_word_of_make_that_readme_names_is_in_the_makefile() -> None:
    words = set(re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", README))
    assert {"demo", "test"} <= named <= words


def test_every_command_that_readme_names_exists() -> None:
    named = set(re.findall(r"\bpyctrd ([a-z]+)\b", block("sh"))) | set(re.findall(r"`pyctrd ([a-z]+)[ `]", README))
    assert named <= set(COMMANDS)
    assert "run" in named
