"""The documents: every path that they name exists, and what they list is all that there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "python/pyctrd"
CRATE = PROJECT / "rust/src"
DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    *(f"docs/{name}.md" for name in ("docker-py", "inspect", "metrics", "performance", "registries", "runtime-cases")),
)
# Below an engine's root, in a virtual environment, or elsewhere: what only exists when pyctrd runs.
ELSEWHERE = {
    "hosts.toml",
    "content/ingest/",
    "dist/",
    "blobs/",
    "objects/",
    "snapshots/",
    "tree/",
    "trash/",
    "python/pyctrd/<room>/",
}
_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/|[\w.-]+(?:/[\w.-]+)*\.(?:py|pyi|rs|md|toml)")


def paths_of(text: str) -> set[str]:
    """What stands in backquotes and looks like a path."""
    return {word for word in re.findall(r"`([^`\n]+)`", text) if _PATH.fullmatch(word)} - ELSEWHERE


def declared(text: str) -> set[str]:
    """The first column of the tables of dependencies."""
    section = text.partition("\n## Dependencies\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\w, -]+?) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.split(r", | with ", row)} - {"Python", "Rust"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_that_a_document_names_exists(name: str) -> None:
    found = paths_of((PROJECT / name).read_text())
    assert [
        path for path in sorted(found) if not any((base / path).exists() for base in (PROJECT, PACKAGE, CRATE))
    ] == []


def test_a_path_that_is_not_there_would_be_seen() -> None:
    text = "`flows/pull.py`, `no/such.py`, `tests/nothing/`, `--json`, `pyctrd rm`, `/etc/passwd`"
    assert paths_of(text) == {"flows/pull.py", "no/such.py", "tests/nothing/"}


def test_every_link_between_documents_leads_somewhere() -> None:
    for name in DOCUMENTS:
        targets = re.findall(r"\]\(([^)#]+)\)", (PROJECT / name).read_text())
        assert [target for target in targets if "://" not in target and not (PROJECT / target).exists()] == []


@pytest.mark.parametrize(("name", "least"), [("registries", 40), ("runtime-cases", 30)])
def test_every_test_that_a_document_names_is_one(name: str, least: int) -> None:
    rows = re.findall(r"`(tests/[\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", (PROJECT / f"docs/{name}.md").read_text())
    assert len(rows) > least
    for path, names in rows:
        defined = set(re.findall(r"^def (test_\w+)", (PROJECT / path).read_text(), re.MULTILINE))
        assert set(re.findall(r"`(\w+)`", names)) - defined == set()


def test_architecture_draws_every_room() -> None:
    text = (PROJECT / "ARCHITECTURE.md").read_text()
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert [room for room in sorted(rooms) if f"{room}/" not in text] == []
    modules = {path.name for path in CRATE.iterdir() if path.is_dir()} | {"spawn", "mount", "root", "digest", "error"}
    assert [module for module in sorted(modules) if module not in text] == []


def test_architecture_gives_a_reason_for_every_dependency() -> None:
    cargo = tomllib.loads((PROJECT / "Cargo.toml").read_text())
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    optional = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    python = {re.split(r"[<>=~ ]", requirement)[0] for requirement in [*project["dependencies"], *optional]}
    wanted = python | cargo["dependencies"].keys() | cargo["dev-dependencies"].keys()
    assert declared((PROJECT / "ARCHITECTURE.md").read_text()) - {"zlib-rs"} == wanted
