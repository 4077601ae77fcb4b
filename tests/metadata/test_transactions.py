"""Transactions: all or nothing, between threads, processes and kills."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pyctrd.metadata.database import Database, Tables
from tests.children import Child
from tests.metadata.records import container, digest, image

DEADLINE_SECONDS = 60.0
PROCESSES = 4
INCREMENTS = 60
# Each takes a number out of the database and puts the next one in.
COUNT = """
import sys
from pyctrd.metadata.database import Database
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    with database.write() as tx:
        record = tx.images.find("mine", "counter")
        tx.images.put(record._replace(target_size=record.target_size + 1))
database.close()
"""
# Holds the write lock, says so, and waits.
HOLD = """
import sys
from pyctrd.metadata.database import Database
database = Database(sys.argv[1])
with database.write() as tx:
    tx.namespaces.ensure("held")
    tx.content.add("mine", "sha256:new", size=1, media_type="", source="")
    tx.ingests.add("new", namespace="mine", digest="sha256:new", diff_id=None, size=1)
    tx.images.delete("mine", "counter")
    print("inside", flush=True)
    sys.stdin.readline()
print("committed", flush=True)
sys.stdin.readline()
"""


def fill(tx: Tables, number: int) -> None:
    """A row in every table."""
    tx.namespaces.ensure(f"tenant-{number}")
    tx.content.add("mine", digest(number), size=number, media_type="", source="")
    tx.layers.add(digest(number), bytes=1, entries=1, implied=0, foreign_links=0, blob=digest(0))
    tx.layers.add_blob(digest(0), digest(number))
    tx.images.put(image(f"image-{number}"))
    tx.ingests.add(f"ingest-{number}", namespace="mine", digest=digest(number), diff_id=None, size=1)
    tx.snapshots.add(
        f"snapshot-{number}",
        namespace="mine",
        snapshotter="overlayfs",
        kind="active",
        diff_ids=(digest(1),),
        target="",
    )
    tx.containers.add(container(f"container-{number}", number))


def everything(database: Database) -> list[object]:
    """All rows of all tables."""
    return [
        *database.namespaces.list(),
        *database.content.walk_all(),
        *database.layers.list(),
        database.layers.is_layer_of(digest(0), digest(2)),
        *database.images.list("mine"),
        *database.ingests.list(),
        *database.snapshots.list(),
        *database.containers.list("mine"),
    ]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_takes_back_every_change_of_the_transaction(
    database: Database, error: type[BaseException]
) -> None:
    with database.write() as tx:
        fill(tx, 1)
    before = everything(database)

    def fail() -> None:
        with database.write() as tx:
            fill(tx, 2)
            tx.images.delete("mine", "image-1")
            tx.containers.delete("mine", container("", 1).id)
            assert everything(database) != before
            raise error

    with pytest.raises(error):
        fail()
    assert everything(database) == before
    with database.write() as tx:  # and the connection is fit for the next
        fill(tx, 2)
    assert len(everything(database)) == len(before) + 7  # a row in seven tables


def test_what_was_committed_is_there_when_the_database_is_opened_again(database: Database, path: Path) -> None:
    with database.write() as tx:
        fill(tx, 1)
    before = everything(database)
    database.close()
    with closing(Database(path)) as again:
        assert everything(again) == before


def test_a_reader_is_not_kept_waiting_by_a_writer_and_sees_what_was_before(database: Database, path: Path) -> None:
    with closing(Database(path)) as reader:
        with database.write() as tx:
            tx.images.put(image("new"))
            assert reader.images.list("mine") == []
            assert database.images.find("mine", "new") is not None  # the writer sees its own
        assert [known.name for known in reader.images.list("mine")] == ["new"]


def test_a_reader_in_another_process_is_not_kept_waiting_by_a_writer(database: Database, path: Path) -> None:
    with database.write() as tx:
        tx.images.put(image("counter"))
    with Child(HOLD, path) as child:
        assert child.hear() == "inside"
        assert database.images.find("mine", "counter") is not None
        child.say()
        assert child.hear() == "committed"
        assert database.images.find("mine", "counter") is None


def test_a_writer_waits_for_the_other_process_and_goes_on(database: Database, path: Path) -> None:
    begun, done = threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        with database.write() as tx:
            tx.namespaces.ensure("after")
        done.set()

    with Child(HOLD, path) as child:
        assert child.hear() == "inside"
        thread = threading.Thread(target=write)
        thread.start()
        assert begun.wait(DEADLINE_SECONDS)
        assert not done.is_set()
        child.say()
        assert done.wait(DEADLINE_SECONDS)
        thread.join()
    assert {known.name for known in database.namespaces.list()} == {"mine", "theirs", "held", "after"}


def test_no_increment_is_lost_between_processes(database: Database, path: Path) -> None:
    with database.write() as tx:
        tx.images.put(image("counter", size=0))
    children = [Child(COUNT, path, str(INCREMENTS)) for _ in range(PROCESSES)]
    try:
        assert [child.hear() for child in children] == ["ready"] * PROCESSES
        for child in children:
            child.say()
        assert [child.wait() for child in children] == [0] * PROCESSES
    finally:
        for child in children:
            child.__exit__(None, None, None)
    found = database.images.find("mine", "counter")
    assert found is not None
    assert found.target_size == PROCESSES * INCREMENTS


def test_a_writer_that_is_killed_leaves_the_state_from_before_and_no_lock(database: Database, path: Path) -> None:
    with database.write() as tx:
        tx.images.put(image("counter"))
    before = everything(database)
    with Child(HOLD, path) as child:
        assert child.hear() == "inside"
        child.kill()
    assert everything(database) == before
    with database.write() as tx:
        tx.images.put(image("next"))
    with closing(Database(path)) as again:
        assert [known.name for known in again.images.list("mine")] == ["counter", "next"]
        assert again._run("PRAGMA integrity_check") == [("ok",)]


def test_a_writer_that_is_killed_after_its_commit_loses_nothing(database: Database, path: Path) -> None:
    database.close()
    with Child(HOLD, path) as child:
        assert child.hear() == "inside"
        child.say()
        assert child.hear() == "committed"
        child.kill()
    with closing(Database(path)) as again:
        assert [known.digest for known in again.content.walk("mine")] == ["sha256:new"]
        assert [known.id for known in again.ingests.list()] == ["new"]


def _read_twice(database: Database) -> None:
    database.images.list("mine")
    database.images.find("mine", "image")


def _walk_half(database: Database) -> None:
    next(database.content.walk("mine"))


@pytest.mark.parametrize("use", [_read_twice, _walk_half])
def test_a_reader_holds_nothing_after_it_has_its_answer(
    database: Database, path: Path, use: Callable[[Database], None]
) -> None:
    with database.write() as tx:
        tx.images.put(image("image"))
        for number in range(100):
            tx.content.add("mine", digest(number), size=1, media_type="", source="")
    use(database)
    with closing(Database(path)) as other:
        # A checkpoint that empties the log is refused while any reader stands in it.
        assert other._run("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0
