"""One database in many threads, after its end, and after a fork."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from pyctrd.errors import ConflictError
from pyctrd.metadata.database import Database
from tests.children import Child
from tests.metadata.records import digest, image, open_files

T = TypeVar("T")
THREADS = 8
WRITES = 25
FORK = """
import os, sys
from pyctrd.errors import ConflictError
from pyctrd.metadata.database import Database
database = Database(sys.argv[1])
reading, writing = os.pipe()
if os.fork() == 0:
    for call in (lambda: database.namespaces.list(), lambda: database.write().__enter__(), database.close):
        try:
            call()
            os.write(writing, b"done\\n")
        except ConflictError as error:
            os.write(writing, f"{error.state}: {error}: {error.hint}\\n".encode())
    os._exit(0)
os.close(writing)
with open(reading) as file:
    print(file.read(), end="", flush=True)
assert os.wait()[1] == 0
with database.write() as tx:
    tx.namespaces.ensure("parent")
print([known.name for known in database.namespaces.list()], flush=True)
"""


def in_a_thread(call: Callable[[], T]) -> T:
    """Its result, from a thread that has ended then."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_each_thread_has_a_connection_of_its_own(database: Database) -> None:
    mine = database._connection()
    assert database._connection() is mine
    assert in_a_thread(database._connection).sqlite is not mine.sqlite


def test_a_thread_takes_over_the_connection_of_one_that_has_ended(database: Database) -> None:
    def leave_a_transaction() -> object:
        connection = database._connection().sqlite
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("BEGIN IMMEDIATE")
        return connection

    left = in_a_thread(leave_a_transaction)
    assert in_a_thread(lambda: database._connection().sqlite) is left
    assert in_a_thread(lambda: database._run("PRAGMA synchronous")) == [(2,)]
    with database.write() as tx:  # nobody holds the database
        tx.namespaces.ensure("mine")


def test_a_connection_of_another_thread_is_set_up_the_same(database: Database) -> None:
    pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    here = [database._run(f"PRAGMA {name}") for name in pragmas]
    assert in_a_thread(lambda: [database._run(f"PRAGMA {name}") for name in pragmas]) == here


def test_threads_that_write_at_once_lose_nothing(database: Database) -> None:
    with database.write() as tx:
        tx.images.put(image("counter", size=0))

    def count() -> None:
        for _ in range(WRITES):
            with database.write() as tx:
                record = tx.images.find("mine", "counter")
                assert record is not None
                tx.images.put(record._replace(target_size=record.target_size + 1))

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(count) for _ in range(THREADS)]:
            future.result()
    found = database.images.find("mine", "counter")
    assert found is not None
    assert found.target_size == THREADS * WRITES


def test_threads_that_have_ended_leave_no_open_file(database: Database, path: Path) -> None:
    at_once = threading.Barrier(THREADS)

    def use() -> None:
        database.content.find("mine", digest(1))

    def use_with_others() -> None:
        at_once.wait()
        use()

    def use_many() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for future in [pool.submit(use_with_others) for _ in range(THREADS)]:
                future.result()

    use_many()
    in_a_thread(use)
    before = len(open_files(path))
    assert before
    for _ in range(10):
        use_many()
        in_a_thread(use)
    assert len(open_files(path)) == before


def test_close_may_be_called_twice_and_from_another_thread(database: Database, path: Path) -> None:
    in_a_thread(database.namespaces.list)
    in_a_thread(database.close)
    database.close()
    assert open_files(path) == []
    assert sorted(file.name for file in path.parent.glob("pyctrd.db*")) == ["pyctrd.db"]  # the log went into it


@pytest.mark.parametrize("where", ["the thread that used it", "a thread that did not"])
def test_use_after_close_says_that_it_is_closed(database: Database, path: Path, where: str) -> None:
    database.namespaces.list()
    database.close()

    def use() -> None:
        with pytest.raises(ConflictError, match="database closed") as caught:
            database.namespaces.list()
        assert (caught.value.state, caught.value.name) == ("closed", str(path))
        with pytest.raises(ConflictError, match="database closed"), database.write():
            pytest.fail("a transaction of a closed database")

    if where == "a thread that did not":
        in_a_thread(use)
    else:
        use()


def test_a_forked_child_is_refused_and_its_parent_goes_on(path: Path) -> None:
    with Child(FORK, path) as child:
        reading, writing, closing = (child.hear() for _ in range(3))
        for refusal in (reading, writing):
            assert refusal.startswith("forked: database opened by another process")
            assert f"forked from {child.pid}" in refusal
            assert refusal.endswith("open an engine in each process")
        assert closing == "done"
        assert child.hear() == "['parent']"
        assert child.wait() == 0
    with sqlite3.connect(path) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    plain.close()


def test_closing_while_others_read_ends_them_with_an_error_and_no_crash(database: Database) -> None:
    started = threading.Barrier(THREADS + 1)
    ends: list[BaseException] = []

    def read() -> None:
        database.namespaces.list()
        started.wait(60)
        try:
            while True:
                database.namespaces.list()
        except ConflictError as error:
            ends.append(error)

    threads = [threading.Thread(target=read) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    started.wait(60)
    database.close()
    for thread in threads:
        thread.join(60)
    assert len(ends) == THREADS
