"""The command line and an engine over a root of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.metadata.database import Database
from tests.registry_faults import FaultyRegistry
from tests.runtimes import ending

DEADLINE_SECONDS = 120.0


def forget_volumes(database: Database) -> None:
    """Undo the schema's last three steps: a store of before had no volumes, and nothing frozen."""
    database._run("ALTER TABLE containers DROP COLUMN told_health_ns")
    for table in ("container_volumes", "volumes", "container_snapshots"):
        database._run(f"DROP TABLE {table}")
    database._run("ALTER TABLE snapshots DROP COLUMN frozen")


def forget_repositories(database: Database) -> None:
    """Undo the schema's last steps: a store of before had no repositories, and images of one platform."""
    forget_volumes(database)
    database._run("DROP INDEX images_by_root")
    database._run("ALTER TABLE images DROP COLUMN root")
    database._run("ALTER TABLE image_roots RENAME COLUMN manifests TO manifest_digest")
    database._run("CREATE INDEX images_by_root ON images(target_digest, manifest_digest)")
    for table in ("repository_refs", "repository_tags", "repository_manifests", "repository_blobs", "uploads"):
        database._run(f"DROP TABLE {table}")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """Its output as JSON, a document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Done]


def command(*words: str) -> list[str]:
    """The words that run pyctrd in a process of its own; the root comes from the environment."""
    return [sys.executable, "-P", "-m", "pyctrd", *words]


@pytest.fixture
def cli(state: Path) -> Cli:
    """Runs the command line to its end."""
    del state  # named so that PYCTRD_STATE is the short one: sockets are made in it

    def run(*words: str, text: str = "") -> Done:
        done = subprocess.run(
            command(*words), input=text, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def engine(state: Path) -> Iterator[pyctrd.Engine]:
    """An engine over the test's root; its containers end with the test."""
    del state
    with ending() as opened:
        yield opened


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    """A registry that lies when it is told to."""
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture
def root(state: Path) -> Path:
    """Where the engines of a test are; it is made by the first."""
    del state
    with pyctrd.Engine() as engine:
        engine.images.list()
    return Path(os.environ["PYCTRD_ROOT"])


@pytest.fixture
def database(root: Path) -> Iterator[Database]:
    """That root's records, opened beside the engines."""
    opened = Database(root / "pyctrd.db")
    yield opened
    opened.close()
