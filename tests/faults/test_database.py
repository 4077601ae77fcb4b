"""D13, D14: the database of another version, lost, cut or overwritten: refused in one line, and built anew."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import ConflictError, IntegrityError
from pyctrd.metadata.migrations import MIGRATIONS
from tests import platforms, syscalls
from tests.children import Child
from tests.cli.commands import is_one_error, run
from tests.images import Images
from tests.syscalls import Watched

pytestmark = pytest.mark.root

PAGE_BYTES = 4096
WHY_UNWATCHED = syscalls.why_not()
STEPS = ["fdatasync", "fsync", "rename", "renameat2", "unlink", "mkdir"]
REPAIR = """
import pyctrd
with pyctrd.Engine() as engine:
    engine.check(repair=True)
"""
HOLD = """
import pyctrd
engine = pyctrd.Engine()
engine.images.list()
print("open", flush=True)
input()
"""


@pytest.fixture
def reference(images: Images, state: Path) -> str:
    """An image in the store, and a stopped container of it; nobody has the store open."""
    del state
    reference = images.busybox.reference
    with pyctrd.Engine() as engine:
        engine.images.pull(reference)
        engine.containers.create(reference, ["echo", "hello"], name="made")
    return reference


def empty(path: Path) -> None:
    """Leave nothing but the name."""
    path.write_bytes(b"")


def cut(path: Path) -> None:
    """Leave the first half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // PAGE_BYTES // 2 * PAGE_BYTES])


def overwrite_first(path: Path) -> None:
    """The page with the header and the schema."""
    path.write_bytes(b"\xff" * PAGE_BYTES + path.read_bytes()[PAGE_BYTES:])


def page_of(path: Path, table: str) -> int:
    """Where a table begins, in bytes."""
    with closing(sqlite3.connect(path)) as connection:
        sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        return int(connection.execute(sql, (table,)).fetchone()[0] - 1) * PAGE_BYTES


def overwrite_table(table: str) -> Callable[[Path], None]:
    """The first page of a table."""

    def overwrite(path: Path) -> None:
        where = page_of(path, table)
        content = path.read_bytes()
        path.write_bytes(content[:where] + b"\xff" * PAGE_BYTES + content[where + PAGE_BYTES :])

    overwrite.__name__ = f"overwrite {table}"
    return overwrite


LOST = [Path.unlink, empty, overwrite_first, cut]
OVERWRITTEN = [overwrite_table(table) for table in ("images", "content", "layers", "containers", "snapshots", "events")]


@pytest.mark.parametrize("damage", LOST, ids=lambda damage: damage.__name__)
def test_d14_a_lost_database_is_refused_in_one_line_and_no_new_one_takes_its_place(
    reference: str, root: Path, damage: Callable[[Path], None]
) -> None:
    del reference
    damage(root / "pyctrd.db")
    done = run("images")
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert "pyctrd check --repair" in done.err
    with pyctrd.Engine() as engine, pytest.raises(IntegrityError, match="database"):
        engine.check()


@pytest.mark.parametrize("damage", [*LOST, *OVERWRITTEN], ids=lambda damage: damage.__name__)
def test_d14_a_damaged_database_is_built_anew_with_all_that_can_be_known(
    reference: str, root: Path, damage: Callable[[Path], None]
) -> None:
    with pyctrd.Engine() as engine:
        digest = engine.images.get(reference).manifest_digest
        container_id = engine.containers.get("made").id
    damage(root / "pyctrd.db")
    with pyctrd.Engine() as engine:
        done = engine.check(digests=True, repair=True)
        assert (done[0].kind, done[0].repaired) == ("database", True)
        assert engine.check(digests=True) == []
        [image] = engine.images.list()
        assert image.manifest_digest == digest
        assert image.name in (reference, f"localhost/recovered:{digest.partition(':')[2][:12]}")
        [container] = engine.containers.list()
        assert (container.id, container.command) == (container_id, ("echo", "hello"))
        container.start()
        assert container.wait(60).exit_code == 0
        assert container.logs() == "hello\n"
        # The name is given back by a pull, which fetches no blob that is there.
        before = {path: path.stat().st_mtime_ns for path in (root / "content/blobs/sha256").iterdir()}
        assert engine.images.pull(reference).manifest_digest == digest
        after = {path: path.stat().st_mtime_ns for path in (root / "content/blobs/sha256").iterdir()}
        assert {path: after[path] for path in before} == before
        events = list(engine.events(all_namespaces=True, types=["store"]))
        assert [event.action for event in events] == ["rebuilt"]
        for known in engine.containers.list():
            known.delete(force=True)
    assert (root / "quarantine").is_dir()


@pytest.mark.parametrize("table", ["content", "images"])
def test_d14_every_platform_of_an_image_is_found_again(images: Images, root: Path, state: Path, table: str) -> None:
    del state
    reference = images.push(platforms.WHOLE, "all", tag="1").reference
    with pyctrd.Engine() as engine:
        engine.images.pull(reference, all_platforms=True)
    overwrite_table(table)(root / "pyctrd.db")
    with pyctrd.Engine() as engine:
        assert engine.check(repair=True)[0].repaired
        assert engine.check(digests=True) == []
        found = {image.name: image.platforms for image in engine.images.list()}
        # What it was called nobody knows, or whose its other platforms were: each of those is found by itself.
        assert {(platforms.OTHER,), (platforms.NESTED,)} < set(found.values())
        assert len(found) == 3
        assert (reference in found) == (table == "content")
        engine.gc()
        assert {image.name for image in engine.images.list()} == found.keys()


def test_d14_what_came_of_an_index_stays_one_image_where_its_records_can_be_read(
    images: Images, root: Path, state: Path
) -> None:
    del state
    reference = images.push(platforms.WHOLE, "all", tag="1").reference
    with pyctrd.Engine() as engine:
        engine.images.pull(reference, all_platforms=True)
    overwrite_table("events")(root / "pyctrd.db")
    with pyctrd.Engine() as engine:
        assert engine.check(repair=True)[0].repaired
        [image] = engine.images.list()
        assert (image.name, image.platforms) == (reference, (platforms.HOST, platforms.OTHER, platforms.NESTED))
        assert engine.gc().items == ()


@pytest.mark.parametrize("table", ["images", "content"])
def test_d14_a_page_that_is_overwritten_is_told_by_check_and_at_use(reference: str, root: Path, table: str) -> None:
    overwrite_table(table)(root / "pyctrd.db")
    with pyctrd.Engine() as engine:
        [found] = engine.check()
        assert (found.kind, found.cause) == ("database", "damaged")
        with pytest.raises(IntegrityError, match="database damaged"):
            engine.images.pull(reference)


def test_d14_names_that_can_be_read_are_kept_and_namespaces_stay_apart(images: Images, root: Path, state: Path) -> None:
    del state
    reference = images.busybox.reference
    for namespace in ("a", "b"):
        with pyctrd.Engine(namespace=namespace) as engine:
            engine.images.pull(reference)
    with pyctrd.Engine(namespace="a") as engine:
        engine.images.pull(images.many_layers.reference)
    overwrite_table("content")(root / "pyctrd.db")
    with pyctrd.Engine(namespace="b") as engine:
        assert engine.check(repair=True)[0].repaired
        assert engine.check(digests=True) == []
        assert [image.name for image in engine.images.list()] == [reference]
        others = {str(layer.digest) for layer in engine.images.get(reference).manifest.layers}
        assert {record.digest for record in engine.content.list()} >= others
    with pyctrd.Engine(namespace="a") as engine:
        assert {image.name for image in engine.images.list()} == {reference, images.many_layers.reference}
        mine = {record.digest for record in engine.content.list()}
    with pyctrd.Engine(namespace="b") as engine:
        assert {record.digest for record in engine.content.list()} < mine


def test_d14_a_database_that_another_process_has_open_is_left_alone(reference: str, root: Path) -> None:
    del reference
    with Child(HOLD) as child:
        assert child.hear() == "open"
        overwrite_table("images")(root / "pyctrd.db")
        before = (root / "pyctrd.db").read_bytes()
        with pyctrd.Engine() as engine, pytest.raises(ConflictError, match=f"in use.*process {child.pid}"):
            engine.check(repair=True)
        assert (root / "pyctrd.db").read_bytes() == before
        assert not (root / "quarantine").exists()


def test_d14_an_empty_root_needs_no_repair(root: Path, state: Path) -> None:
    del state
    root.mkdir()
    (root / "pyctrd.db").touch()
    with pyctrd.Engine() as engine:
        assert engine.images.list() == []
        assert engine.check(repair=True) == []


def test_d13_a_newer_store_is_refused_in_one_line_and_an_older_one_is_brought_up_in_one_step(
    reference: str, root: Path
) -> None:
    path = root / "pyctrd.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    for words in (["images"], ["pull", reference], ["check", "--repair"], ["ps"]):
        done = run(*words)
        assert (done.status, done.out) == (1, "")
        assert is_one_error(done.err)
        assert f"has schema {len(MIGRATIONS) + 1}, known are 1 to {len(MIGRATIONS)}" in done.err
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
    assert run("images", "-q").status == 0


@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
def test_d14_a_repair_that_is_killed_at_any_step_is_done_by_the_next(reference: str, root: Path) -> None:
    overwrite_table("content")(root / "pyctrd.db")
    shutil.copytree(root, root.with_name("damaged"), symlinks=True)
    step, killed = 0, True
    while killed:
        killed = False
        with Watched(REPAIR, calls=STEPS) as program:
            for number, call in enumerate(program):
                if number == step:
                    killed = True
                    break
                call.allow()
        with pyctrd.Engine() as engine:
            engine.check(repair=True)
            assert engine.check(digests=True) == []
            assert [image.name for image in engine.images.list()] == [reference]
            assert [container.name for container in engine.containers.list()] == ["made"]
        assert not (root / "rebuilding").exists()
        subprocess.run(["umount", "-R", "-q", *(str(path) for path in root.glob("containers/*/*/rootfs"))], check=False)
        shutil.rmtree(root)
        shutil.copytree(root.with_name("damaged"), root, symlinks=True)
        step += 3
    assert step > 15
