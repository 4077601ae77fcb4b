"""Events: told with what they tell of, numbered in each namespace without gaps, and bounded."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from pyctrd.errors import AlreadyExistsError
from pyctrd.metadata import events as room
from pyctrd.metadata.database import Database, Tables
from pyctrd.metadata.events import STORE
from tests.metadata.records import container, digest, image

ALL = 1_000_000


def told(database: Database, namespace: str = "mine") -> list[tuple[str, str, str]]:
    """Type, action and name of a namespace's events, but of its own creation."""
    rows = database.events.after(namespace, 0, limit=ALL)
    return [(row[4], row[5], row[6]) for row in rows if row[4] != "namespace"]


def numbers(database: Database, namespace: str) -> list[int]:
    """The cursors of a namespace's events."""
    return [row[0] for row in database.events.after(namespace, 0, limit=ALL)]


def add(database: Database, namespace: str, count: int) -> None:
    """Some events in one transaction."""
    with database.write() as tx:
        for number in range(count):
            tx.events.add(namespace, "gc", "freed", "", {"blobs": number})


def fail(transaction: AbstractContextManager[Tables]) -> None:
    """Change something in a transaction, and fail in it."""
    with transaction as tx:
        tx.images.put(image("failed"))
        tx.namespaces.ensure("new")
        _ = 1 / 0


def test_an_image_that_changes_is_told_and_one_that_stays_is_not(database: Database) -> None:
    with database.write() as tx:
        tx.images.put(image("a", now=1), by="pull")
        tx.images.put(image("a", now=2), by="pull")  # pulled again, and the same
        tx.images.put(image("a", now=3)._replace(target_digest=digest(9)), by="load")
        tx.images.delete("mine", "a")
        tx.images.delete("mine", "a")  # again: there is nothing to remove
    assert told(database) == [("image", "created", "a"), ("image", "updated", "a"), ("image", "removed", "a")]
    attributes = [row[7] for row in database.events.after("mine", 0, limit=ALL)]
    assert '"by":"pull"' in attributes[1]
    assert f'"previous_digest":"{digest(1)}"' in attributes[2]
    assert f'"digest":"{digest(9)}"' in attributes[3]


def test_what_is_rolled_back_is_not_told(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(database.write())
    with database.write() as tx:
        tx.containers.add(container("name", 1))
    with pytest.raises(AlreadyExistsError), database.write() as tx:
        tx.containers.add(container("name", 2))
    assert told(database) == [("container", "created", "name")]
    assert database.events.bounds("new") == (0, 0)


def test_a_run_is_told_once_whoever_tells_it(database: Database) -> None:
    one = container("name", 1)

    def end(started_ns: int) -> None:
        with database.write() as tx:
            tx.containers.tell_end("mine", one.id, started_ns, exit_code=7, signal=0, exited_ns=started_ns + 1)

    with database.write() as tx:
        tx.containers.add(one)
        tx.containers.tell_start("mine", one.id, 100)
        tx.containers.tell_start("mine", one.id, 100)
    end(100)
    end(100)
    end(200)  # a second run, of which nobody saw the start
    assert [action for _, action, _ in told(database)] == ["created", "started", "exited", "started", "exited"]
    rows = database.events.after("mine", 0, limit=ALL)
    assert [row[2] for row in rows[-4:]] == [100, 101, 200, 201]
    assert '"exit_code":7' in rows[-1][7]
    assert [record.id for record in database.containers.list_untold()] == []


def test_a_run_whose_end_nobody_saw_has_ended_before_the_next_and_before_its_removal(database: Database) -> None:
    one = container("name", 1)
    with database.write() as tx:
        tx.containers.add(one)
        tx.containers.tell_start("mine", one.id, 100)
        assert [record.id for record in tx.containers.list_untold()] == [one.id]
        tx.containers.tell_start("mine", one.id, 200)
        tx.containers.delete("mine", one.id)
        tx.containers.tell_start("mine", one.id, 300)  # it is gone
    expected = ["created", "started", "exited", "started", "exited", "removed"]
    assert [action for _, action, _ in told(database)] == expected
    assert '"exit_code":255' in database.events.after("mine", 0, limit=ALL)[-2][7]


def test_a_namespace_counts_its_own_events_without_gaps(database: Database) -> None:
    for _ in range(3):
        add(database, "mine", 2)
        add(database, "theirs", 5)
    for namespace in ("mine", "theirs"):
        found = numbers(database, namespace)
        assert found == list(range(found[0], found[0] + len(found)))
    among_all = [row[1] for row in database.events.after_of_all(0, limit=ALL)]
    assert among_all == sorted(set(among_all))
    assert len(among_all) == len(numbers(database, "mine")) + len(numbers(database, "theirs"))


def test_the_table_is_bounded_and_one_namespace_takes_nothing_from_another(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "KEPT_EVENTS", 20)
    monkeypatch.setattr(room, "TRIMMED_EVENTS", 5)
    add(database, "theirs", 3)
    before = numbers(database, "theirs")
    for _ in range(10):
        add(database, "mine", 50)
    kept = numbers(database, "mine")
    assert 20 <= len(kept) < 25
    assert numbers(database, "theirs") == before
    last_gone, newest = database.events.bounds("mine")
    assert (last_gone + 1, newest) == (kept[0], kept[-1])
    last_gone, newest = database.events.bounds_of_all()
    rows = database.events.after_of_all(last_gone, limit=ALL)
    assert [row[0] for row in rows] == kept  # behind what was lost of mine there is nothing of theirs
    assert rows[-1][1] == newest


def test_numbers_are_not_given_out_again(database: Database) -> None:
    add(database, "theirs", 3)
    before = numbers(database, "theirs")
    with database.write() as tx:
        tx.events.add(STORE, "namespace", "removed", "theirs", {})
        tx.events.forget("theirs")
    assert numbers(database, "theirs") == []
    assert database.events.bounds_of_all()[0] > 0
    add(database, "theirs", 1)
    assert numbers(database, "theirs")[0] > before[-1]


def test_a_note_is_one_transaction_and_the_next_flushes_again(database: Database) -> None:
    with database.note() as tx:
        assert database._run("PRAGMA synchronous") == [(1,)]  # NORMAL: the log is not flushed
        tx.events.add("mine", "gc", "freed", "", {})
    assert database._run("PRAGMA synchronous") == [(2,)]
    with pytest.raises(ZeroDivisionError):
        fail(database.note())
    assert database._run("PRAGMA synchronous") == [(2,)]
    assert len(told(database)) == 1
