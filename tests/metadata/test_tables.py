"""Each table's verbs: what is absent, what order, whose it is, and values at the edges."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from pyctrd.errors import AlreadyExistsError, InvalidError, NotFoundError
from pyctrd.metadata.database import Database, Tables
from pyctrd.metadata.namespaces import NAME_MAX_CHARS, check_namespace
from tests.metadata.records import container, digest, image

LARGEST = 2**63 - 1
# Scripts, a combining accent, an emoji, a quote, a NUL, a bidirectional override, a private character.
ODD = "名前 é e\u0301 🐳 ' \" ; -- % _ \n \x00 \x1b[31m \u202e \ue000"


def add_content(tx: Tables, namespace: str, number: int, *, size: int = 1) -> None:
    """A blob's record."""
    tx.content.add(namespace, digest(number), size=size, media_type=f"type/{number}", source="example.com/repository")


def add_snapshot(tx: Tables, key: str, *, diff_ids: tuple[str, ...] = (), target: str = "") -> None:
    """A snapshot's record."""
    tx.snapshots.add(
        key,
        namespace="mine",
        snapshotter="overlayfs",
        kind="view",
        diff_ids=diff_ids,
        target=target,
    )


@pytest.mark.parametrize(
    "find",
    [
        lambda tables: tables.images.find("mine", "absent"),
        lambda tables: tables.content.find("mine", digest(404)),
        lambda tables: tables.layers.find(digest(404)),
        lambda tables: tables.ingests.find("absent"),
        lambda tables: tables.snapshots.find("absent"),
        lambda tables: tables.containers.find("mine", "absent"),
        lambda tables: tables.containers.find("mine", "abc"),  # the beginning of an id that none has
        lambda tables: tables.containers.find("mine", ""),
        lambda tables: tables.images.find("no such namespace", "absent"),
    ],
)
def test_find_gives_none_for_what_is_absent(database: Database, find: Callable[[Tables], object]) -> None:
    assert find(database) is None


@pytest.mark.parametrize(
    "delete",
    [
        lambda tables: tables.images.delete("mine", "absent"),
        lambda tables: tables.content.delete("mine", digest(404)),
        lambda tables: tables.layers.delete(digest(404)),
        lambda tables: tables.ingests.delete("absent"),
        lambda tables: tables.snapshots.delete("absent"),
        lambda tables: tables.containers.delete("mine", "absent"),
    ],
)
def test_deleting_what_is_absent_does_nothing(database: Database, delete: Callable[[Tables], None]) -> None:
    with database.write() as tx:
        tx.images.put(image("present"))
        delete(tx)
    assert [known.name for known in database.images.list("mine")] == ["present"]


def test_an_empty_database_lists_nothing(database: Database) -> None:
    assert database.images.list("mine") == []
    assert list(database.content.walk("mine")) == []
    assert list(database.content.walk_all()) == []
    assert database.layers.list() == []
    assert database.ingests.list() == []
    assert database.snapshots.list() == []
    assert database.containers.list("mine") == []


def test_namespaces_are_listed_by_name_and_made_once(database: Database) -> None:
    before = database.namespaces.list()
    with database.write() as tx:
        tx.namespaces.ensure("mine")
        tx.namespaces.ensure("first")
    after = database.namespaces.list()
    assert [known.name for known in after] == ["first", "mine", "theirs"]
    assert after[1:] == before  # with the time that they were made


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "x" * NAME_MAX_CHARS])
def test_a_namespace_may_have_letters_digits_and_single_marks_between(name: str) -> None:
    assert check_namespace(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a..b", "a b", "a/b", "..", "é", "a\n", "x" * (NAME_MAX_CHARS + 1)])
def test_another_namespace_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidError, match="invalid namespace") as caught:
        check_namespace(name)
    assert repr(name) in str(caught.value)
    assert caught.value.field == "namespace"


@pytest.mark.parametrize(
    "add",
    [
        lambda tx: tx.images.put(image("image", namespace="nobody's")),
        lambda tx: add_content(tx, "nobody's", 1),
    ],
)
def test_a_record_of_no_namespace_is_refused(database: Database, add: Callable[[Tables], None]) -> None:
    with pytest.raises(NotFoundError, match="namespace not found"), database.write() as tx:
        add(tx)


def test_an_image_is_found_as_it_was_put(database: Database) -> None:
    with database.write() as tx:
        stored = tx.images.put(image("example.com/a:1", size=3, now=5))
    assert stored == image("example.com/a:1", size=3, now=5)
    assert database.images.find("mine", "example.com/a:1") == stored


def test_an_image_that_is_put_again_keeps_its_first_time(database: Database) -> None:
    with database.write() as tx:
        tx.images.put(image("a", size=1, now=5))
        stored = tx.images.put(image("a", size=2, now=7))
    assert (stored.created_ns, stored.updated_ns, stored.target_size) == (5, 7, 2)
    assert database.images.list("mine") == [stored]


def test_images_are_listed_by_name_whatever_their_order(database: Database) -> None:
    names = ["b", "B", "a:2", "a:10", "é", "z"]
    with database.write() as tx:
        for name in names:
            tx.images.put(image(name))
    assert [known.name for known in database.images.list("mine")] == sorted(names)


def test_an_image_of_one_namespace_is_none_of_another(database: Database) -> None:
    with database.write() as tx:
        tx.images.put(image("same", size=1))
        tx.images.put(image("same", namespace="theirs", size=2))
        tx.images.put(image("other", namespace="theirs"))
    assert [known.target_size for known in database.images.list("mine")] == [1]
    assert database.images.find("mine", "other") is None
    with database.write() as tx:
        tx.images.delete("mine", "same")
    assert database.images.find("mine", "same") is None
    assert [known.name for known in database.images.list("theirs")] == ["other", "same"]


def test_content_that_is_recorded_again_stays_as_it_is(database: Database) -> None:
    with database.write() as tx:
        add_content(tx, "mine", 1, size=7)
    before = database.content.find("mine", digest(1))
    with database.write() as tx:
        add_content(tx, "mine", 1, size=8)
    assert before is not None
    assert before[:5] == ("mine", digest(1), 7, "type/1", "example.com/repository")
    assert database.content.find("mine", digest(1)) == before


def test_content_is_a_namespaces_own_and_recorded_for_the_store(database: Database) -> None:
    with database.write() as tx:
        for namespace, number in (("theirs", 1), ("mine", 3), ("mine", 2), ("theirs", 3)):
            add_content(tx, namespace, number)
    assert [known.digest for known in database.content.walk("mine")] == [digest(2), digest(3)]
    assert [known.digest for known in database.content.walk("theirs")] == [digest(1), digest(3)]
    assert [known.digest for known in database.content.walk_all()] == [digest(n) for n in (1, 2, 3, 3)]
    assert database.content.find("mine", digest(1)) is None
    assert database.content.is_recorded(digest(1))
    with database.write() as tx:
        tx.content.delete("mine", digest(3))
    assert database.content.is_recorded(digest(3))
    with database.write() as tx:
        tx.content.delete("theirs", digest(3))
    assert not database.content.is_recorded(digest(3))


def test_content_may_change_while_it_is_walked(database: Database) -> None:
    with database.write() as tx:
        for number in range(50):
            add_content(tx, "mine", number)
    with database.write() as tx:
        for record in tx.content.walk("mine"):
            tx.content.delete("mine", record.digest)
    assert list(database.content.walk("mine")) == []


def test_layers_are_the_stores_and_the_first_record_stays(database: Database) -> None:
    with database.write() as tx:
        for number, size in ((2, 5), (1, 6), (2, 7)):
            tx.layers.add(digest(number), bytes=size, entries=1, implied=2, foreign_links=3, blob=digest(0))
    assert [(known.diff_id, known.bytes) for known in database.layers.list()] == [(digest(1), 6), (digest(2), 5)]
    found = database.layers.find(digest(2))
    assert found is not None
    assert found[:6] == (digest(2), 5, 1, 2, 3, digest(0))
    with database.write() as tx:
        tx.layers.delete(digest(2))
    assert database.layers.find(digest(2)) is None


def test_a_blob_is_the_layer_that_it_was_seen_to_be_until_no_namespace_has_it(database: Database) -> None:
    with database.write() as tx:
        add_content(tx, "mine", 1)
        tx.layers.add_blob(digest(1), digest(10))
        tx.layers.add_blob(digest(1), digest(10))
        tx.layers.add_blob(digest(2), digest(20))
        tx.layers.forget_blob(digest(2))
    assert database.layers.is_layer_of(digest(1), digest(10))
    assert not database.layers.is_layer_of(digest(1), digest(20))
    assert not database.layers.is_layer_of(digest(10), digest(1))
    assert not database.layers.is_layer_of(digest(2), digest(20))


def test_ingests_are_listed_oldest_first_and_end_once(database: Database) -> None:
    with database.write() as tx:
        for name in ("b", "a", "c"):
            tx.ingests.add(name, namespace="mine", digest=digest(1), diff_id=None, size=1)
        tx.ingests.add("layer", namespace="theirs", digest=digest(2), diff_id=digest(3), size=2, resumable=True)
    assert [known.id for known in database.ingests.list()] == ["b", "a", "c", "layer"]
    found = database.ingests.find("layer")
    assert found is not None
    assert found[:5] == ("layer", "theirs", digest(2), digest(3), 2)
    assert [known.resumable for known in database.ingests.list()] == [False, False, False, True]
    with pytest.raises(sqlite3.IntegrityError), database.write() as tx:
        tx.ingests.add("a", namespace="mine", digest=digest(1), diff_id=None, size=1)
    with database.write() as tx:
        tx.ingests.delete("a")
        tx.ingests.delete("a")
    assert database.ingests.find("a") is None


@pytest.mark.parametrize("diff_ids", [(), (digest(1),), tuple(digest(n) for n in range(120, 0, -1))])
def test_a_snapshot_keeps_its_layers_in_their_order(database: Database, diff_ids: tuple[str, ...]) -> None:
    with database.write() as tx:
        add_snapshot(tx, "key", diff_ids=diff_ids, target="/mnt/with space")
    found = database.snapshots.find("key")
    assert found is not None
    assert found.diff_ids == diff_ids
    assert found[:4] == ("key", "mine", "overlayfs", "view")
    assert found.target == "/mnt/with space"


def test_snapshots_are_listed_by_key_and_a_key_is_taken_once(database: Database) -> None:
    with database.write() as tx:
        for key in ("view-b", "container-a", "view-a"):
            add_snapshot(tx, key)
    assert [known.key for known in database.snapshots.list()] == ["container-a", "view-a", "view-b"]
    with pytest.raises(sqlite3.IntegrityError), database.write() as tx:
        add_snapshot(tx, "view-a")
    with database.write() as tx:
        tx.snapshots.delete("view-a")
    assert [known.key for known in database.snapshots.list()] == ["container-a", "view-b"]


def test_a_container_is_found_by_name_id_and_a_beginning_that_only_it_has(database: Database) -> None:
    one, two = container("one", 0xABC << 240), container("two", 0xABD << 240)
    assert (one.id[:4], two.id[:4]) == ("0abc", "0abd")
    with database.write() as tx:
        tx.containers.add(one)
        tx.containers.add(two)
    for name in ("one", one.id, one.id[:12], "0abc"):
        assert database.containers.find("mine", name) == one, name
    for name in ("0ab", "0abe", "0ABC", "on", one.id + "0", "%", "_" * 64):
        assert database.containers.find("mine", name) is None, name


def test_a_containers_name_comes_before_another_ones_id(database: Database) -> None:
    one = container("one", 0xABC << 240)
    named_like_it = container("0abc", 2)
    with database.write() as tx:
        tx.containers.add(one)
        tx.containers.add(named_like_it)
    assert database.containers.find("mine", "0abc") == named_like_it


def test_a_containers_name_is_its_own_in_a_namespace(database: Database) -> None:
    with database.write() as tx:
        tx.containers.add(container("name", 1))
        tx.containers.add(container("name", 2, namespace="theirs"))
    with pytest.raises(AlreadyExistsError, match="container name taken: name") as caught, database.write() as tx:
        tx.containers.add(container("name", 3))
    assert (caught.value.kind, caught.value.name) == ("container", "name")
    assert "pyctrd rm name" in caught.value.hint
    with pytest.raises(AlreadyExistsError), database.write() as tx:
        tx.containers.add(container("another name", 1))
    with database.write() as tx:
        tx.containers.delete("mine", container("", 1).id)
        tx.containers.add(container("name", 3))
    assert [known.id for known in database.containers.list("mine")] == [container("", 3).id]
    assert [known.id for known in database.containers.list("theirs")] == [container("", 2).id]


def test_containers_are_listed_newest_first(database: Database) -> None:
    with database.write() as tx:
        for number, created in ((4, 1), (2, 3), (1, 3), (3, 2)):
            tx.containers.add(container(f"c{number}", number, created_ns=created))
    assert [known.name for known in database.containers.list("mine")] == ["c1", "c2", "c3", "c4"]


def test_text_at_the_edges_comes_back_as_it_went_in(database: Database) -> None:
    odd = container(ODD, 1)._replace(
        image_name=ODD, command=("", ODD, "x" * 100_000), labels={ODD: ODD, "": ""}, stop_signal=ODD, auto_remove=True
    )
    with database.write() as tx:
        tx.images.put(image(ODD))
        tx.containers.add(odd)
        add_snapshot(tx, ODD, target=ODD)
    assert database.images.find("mine", ODD) == image(ODD)
    assert database.containers.find("mine", ODD) == odd
    found = database.snapshots.find(ODD)
    assert found is not None
    assert found.target == ODD


@pytest.mark.parametrize("size", [0, 2**31, 2**53 + 1, LARGEST])
def test_sizes_up_to_the_largest_come_back_exactly(database: Database, size: int) -> None:
    with database.write() as tx:
        tx.images.put(image("image", size=size, now=size))
        add_content(tx, "mine", 1, size=size)
        tx.layers.add(digest(1), bytes=size, entries=size, implied=size, foreign_links=size, blob=digest(0))
        tx.ingests.add("ingest", namespace="mine", digest=digest(1), diff_id=None, size=size)
    found = (
        database.images.find("mine", "image"),
        database.content.find("mine", digest(1)),
        database.layers.find(digest(1)),
        database.ingests.find("ingest"),
    )
    assert found[0] == image("image", size=size, now=size)
    assert found[1] is not None
    assert found[1].size == size
    assert found[2] is not None
    assert found[2][1:5] == (size,) * 4
    assert found[3] is not None
    assert found[3].size == size


@pytest.mark.parametrize(
    "use",
    [
        lambda tx: tx.images.find("mine", "\udcff"),
        lambda tx: tx.images.put(image("\udcff")),
        lambda tx: tx.containers.find("mine", "\udcff"),
        lambda tx: tx.containers.add(container("\udcff", 1)),
        lambda tx: tx.containers.add(container("name", 1)._replace(command=("echo", "\udcff"))),
        lambda tx: tx.containers.add(container("name", 1)._replace(labels={"\udcff": ""})),
        lambda tx: add_snapshot(tx, "key", target="/\udcff"),
    ],
)
def test_text_that_is_not_utf_8_is_refused_by_name(database: Database, use: Callable[[Tables], object]) -> None:
    with pytest.raises(InvalidError, match=r"\\udcff.*expected UTF-8"), database.write() as tx:
        use(tx)
    assert database.containers.list("mine") == []


def test_a_blob_is_stored_while_one_record_says_so_and_no_record_takes_it_back(database: Database) -> None:
    content = database.content

    def add(namespace: str, *, is_stored: bool) -> None:
        with database.write() as tx:
            tx.content.add(namespace, digest(1), size=1, media_type="", source="", is_stored=is_stored)

    add("mine", is_stored=False)
    assert (content.is_recorded(digest(1)), content.is_stored(digest(1))) == (True, False)
    assert database.reachability.unrecorded("content", [digest(1)]) == {digest(1)}
    add("theirs", is_stored=True)
    add("theirs", is_stored=False)
    found = {record.namespace: record.is_stored for record in content.holders(digest(1))}
    assert found == {"mine": False, "theirs": True}
    assert database.reachability.unrecorded("content", [digest(1)]) == set()
    with database.write() as tx:
        tx.content.delete("theirs", digest(1))
    assert (content.is_recorded(digest(1)), content.is_stored(digest(1))) == (True, False)
