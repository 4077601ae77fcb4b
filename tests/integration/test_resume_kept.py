"""What is kept of a pull that broke off, and for how long."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import pyctrd
from pyctrd.metadata.database import Database
from tests.children import Child
from tests.content.stores import files_below
from tests.images import build_image
from tests.integration.conftest import Cli
from tests.integration.cuts import (
    BLOCK,
    PULL,
    cut,
    image_of,
    kept,
    noise,
    ranges,
)
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root

HOUR_NS = 3600 * 10**9


# for how long


def set_back(database: Database, nanoseconds: int) -> None:
    """Make what is reserved older."""
    with database.write() as tx:
        tx.ingests._run("UPDATE ingests SET started_ns = started_ns - ?", (nanoseconds,))


@pytest.mark.parametrize(("hours", "stays"), [(0, True), (23, True), (25, False), (-23, True), (-25, False)])
def test_it_is_kept_for_a_day_whatever_the_clock_says(
    root: Path, faulty: FaultyRegistry, database: Database, hours: int, *, stays: bool
) -> None:
    cut(faulty, image_of(noise(21)), BLOCK)
    set_back(database, hours * HOUR_NS)
    with pyctrd.Engine() as engine:
        assert engine.check() == []
    assert len(kept(root)) == len(database.ingests.list()) == stays


def test_an_engine_that_stays_open_lets_go_of_it_when_it_collects(
    cli: Cli, root: Path, faulty: FaultyRegistry, database: Database
) -> None:
    with pyctrd.Engine() as engine:
        cut(faulty, image_of(noise(22)), BLOCK)
        engine.gc()
        assert len(kept(root)) == 1
        (item,) = [item for item in engine.gc(dry_run=True).items if item.kind == "ingest"]
        assert (item.bytes, item.kept) == (BLOCK, True)
        set_back(database, 25 * HOUR_NS)
        (item,) = [item for item in engine.gc(dry_run=True).items if item.kind == "ingest"]
        assert (item.bytes, item.kept) == (BLOCK, False)
        (finding,) = engine.check()
        assert (finding.kind, finding.cause) == ("ingest", "left")
        engine.gc()
        assert engine.check() == []
    assert files_below(root / "content/ingest") == []
    assert cli("check").out == "clean\n"


def test_repair_ends_what_is_too_old_and_leaves_what_is_not(
    root: Path, faulty: FaultyRegistry, database: Database
) -> None:
    with pyctrd.Engine() as engine:
        cut(faulty, image_of(noise(24)), BLOCK)
        assert engine.check(repair=True) == []
        assert len(kept(root)) == 1
        set_back(database, 25 * HOUR_NS)
        (finding,) = engine.check(repair=True)
        assert finding.repaired
        assert engine.check() == []
    assert files_below(root / "content/ingest") == []


def test_a_pull_that_lasts_longer_is_not_taken_for_left(root: Path, faulty: FaultyRegistry, database: Database) -> None:
    built = image_of(noise(25))
    reference = faulty.add(built, "app")
    go_on = threading.Event()
    faulty.lie(f"/blobs/{built.layers[0].digest}", Answer(body=None, stall=go_on))
    with Child(PULL, reference) as child:
        assert faulty.stalled.wait(60)
        set_back(database, 1000 * HOUR_NS)
        with pyctrd.Engine() as engine:
            assert engine.check() == []
        go_on.set()
        assert child.hear() == built.digest
    assert files_below(root / "content/ingest") == []


# what is not kept


def test_what_comes_from_files_here_is_not_kept(root: Path, tmp_path: Path, database: Database) -> None:
    built = image_of(noise(26))
    built.write_layout(tmp_path / "layout")

    def stop(told: pyctrd.PullProgress) -> None:
        if told.layers:
            raise KeyboardInterrupt

    with pyctrd.Engine() as engine, pytest.raises(KeyboardInterrupt):
        engine.images.load(tmp_path / "layout", name="example.com/loaded:1", progress=stop)
    assert files_below(root / "content/ingest") == []
    assert database.ingests.list() == []


def test_a_blob_that_is_here_already_is_not_kept_twice(root: Path, faulty: FaultyRegistry, database: Database) -> None:
    built = image_of(noise(27, 20 << 20))
    reference = faulty.add(built, "app")

    def stop(told: pyctrd.PullProgress) -> None:
        if told.layers:
            raise KeyboardInterrupt

    with pyctrd.Engine() as engine:
        engine.images.pull(reference, unpack=False)
        with pytest.raises(KeyboardInterrupt):
            engine.images.pull(reference, progress=stop)
    assert files_below(root / "content/ingest") == []
    assert database.ingests.list() == []


@pytest.mark.parametrize("content", [b"no tar at all" * 1000])
def test_content_that_is_refused_is_not_kept(root: Path, faulty: FaultyRegistry, content: bytes) -> None:
    built = build_image([content], compression="none")
    reference = cut(faulty, built, 2000)
    with pyctrd.Engine() as engine, pytest.raises(pyctrd.PyctrdError):
        engine.images.pull(reference)
    assert ranges(faulty, built.layers[0]) == ["bytes=2000-"]
    assert files_below(root / "content/ingest") == []
