"""Opening: what a database is made of, what upgrades it, and what is refused."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import DeadlineError, IntegrityError, UnsupportedError
from pyctrd.metadata import database as room
from pyctrd.metadata import empty
from pyctrd.metadata.database import Database
from pyctrd.metadata.migrations import MIGRATIONS
from tests.children import Child
from tests.metadata.records import digest, image, open_files

NEWEST = len(MIGRATIONS)
OPEN = """
import sys
from pyctrd.metadata.database import Database
sys.stdin.readline()
opened = Database(sys.argv[1])
with opened.write() as tx:
    tx.namespaces.ensure(sys.argv[2])
opened.close()
"""
# A step of which the first statement was carried out, when the process waits to be killed.
STOP_IN_THE_MIDDLE = """
import sys
from pyctrd.metadata import database
def step():
    yield "CREATE TABLE half (number INTEGER)"
    print("in the middle", flush=True)
    sys.stdin.readline()
database.MIGRATIONS = (*database.MIGRATIONS, step())
database.Database(sys.argv[1])
"""


def write_schema(path: Path, version: int) -> None:
    """A database as an older program left it, with a namespace in it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for step in MIGRATIONS[:version]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={version}")
        connection.execute("INSERT INTO namespaces(name, created_ns) VALUES ('old', 7)")


def read(path: Path, sql: str) -> list[tuple[object, ...]]:
    """What plain SQLite reads."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def tables(path: Path) -> set[object]:
    """The names of its tables and indexes."""
    return {row[0] for row in read(path, "SELECT name FROM sqlite_schema")}


def test_every_connection_has_a_write_ahead_log_and_flushes_each_commit(database: Database) -> None:
    assert database._run("PRAGMA journal_mode") == [("wal",)]
    assert database._run("PRAGMA synchronous") == [(2,)]  # FULL
    assert database._run("PRAGMA foreign_keys") == [(1,)]


def test_the_database_and_the_files_beside_it_are_its_owners_alone(path: Path) -> None:
    mask = os.umask(0)
    try:
        opened = Database(path)
        with opened.write() as tx:
            tx.namespaces.ensure("mine")
        found = {file.name: stat.filemode(file.stat().st_mode) for file in path.parent.glob("pyctrd.db*")}
        opened.close()
    finally:
        os.umask(mask)
    assert found == dict.fromkeys(("pyctrd.db", "pyctrd.db-wal", "pyctrd.db-shm"), "-rw-------")


def test_an_engines_directories_are_its_owners_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        with pyctrd.Engine(root=tmp_path / "a", state=tmp_path / "b") as engine:
            engine.images.list()
    finally:
        os.umask(mask)
    for name in ("a", "b"):
        assert stat.filemode((tmp_path / name).stat().st_mode) == "drwx------"


def test_the_empty_database_that_is_copied_is_what_the_migrations_make(tmp_path: Path) -> None:
    copied, made = tmp_path / "copied", tmp_path / "made"
    copied.write_bytes(empty.EMPTY.read_bytes())
    made.write_bytes(empty.make())
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
    for sql in (schema, "PRAGMA user_version", "PRAGMA page_size", "PRAGMA journal_mode"):
        assert read(copied, sql) == read(made, sql)
    for (table,) in read(made, "SELECT name FROM sqlite_schema WHERE type = 'table'"):
        assert read(copied, f"SELECT * FROM {table}") == read(made, f"SELECT * FROM {table}")  # noqa: S608 - ours
    assert read(copied, "PRAGMA integrity_check") == [("ok",)]


def test_a_new_database_has_the_newest_schema(path: Path) -> None:
    Database(path).close()
    assert read(path, "PRAGMA user_version") == [(NEWEST,)]
    expected = {"namespaces", "content", "layers", "images", "ingests", "snapshots", "containers", "layer_blobs"}
    assert tables(path) >= expected


@pytest.mark.parametrize("version", range(1, NEWEST + 1))
def test_an_older_schema_becomes_the_newest_and_keeps_its_records(path: Path, tmp_path: Path, version: int) -> None:
    write_schema(path, version)
    with closing(Database(path)) as opened:
        assert [(known.name, known.created_ns) for known in opened.namespaces.list()] == [("old", 7)]
    Database(tmp_path / "new").close()
    assert read(path, "PRAGMA user_version") == [(NEWEST,)]
    assert tables(path) == tables(tmp_path / "new")


def test_a_newer_schema_is_refused_with_what_to_do_and_is_left_as_it_was(path: Path) -> None:
    write_schema(path, NEWEST)
    read(path, f"PRAGMA user_version={NEWEST + 1}")
    before = tables(path)
    with pytest.raises(UnsupportedError, match=f"newer than this pyctrd.*schema {NEWEST + 1}") as caught:
        Database(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint == "upgrade pyctrd, or choose another --root"
    assert read(path, "PRAGMA user_version") == [(NEWEST + 1,)]
    assert tables(path) == before
    assert open_files(path) == []


def test_an_upgrade_that_fails_half_way_leaves_the_older_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_schema(path, NEWEST)
    before = tables(path)
    with monkeypatch.context() as patch:
        patch.setattr(room, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE half (number INTEGER)", "NONSENSE")))
        with pytest.raises(OSError, match="NONSENSE") as caught:
            Database(path)
    assert caught.value.filename == str(path)
    assert read(path, "PRAGMA user_version") == [(NEWEST,)]
    assert tables(path) == before
    assert open_files(path) == []
    with closing(Database(path)) as opened:
        assert [known.name for known in opened.namespaces.list()] == ["old"]


def test_an_upgrade_that_is_killed_half_way_leaves_the_older_schema(path: Path) -> None:
    write_schema(path, NEWEST)
    before = tables(path)
    with Child(STOP_IN_THE_MIDDLE, path) as child:
        assert child.hear() == "in the middle"
        child.kill()
    with closing(Database(path)) as opened:
        assert [known.name for known in opened.namespaces.list()] == ["old"]
    assert read(path, "PRAGMA user_version") == [(NEWEST,)]
    assert tables(path) == before


def test_an_upgrade_is_done_once_by_processes_that_open_at_once(path: Path) -> None:
    names = [f"process-{number}" for number in range(6)]
    children = [Child(OPEN, path, name) for name in names]
    for child in children:
        child.say()
    assert [child.wait() for child in children] == [0] * len(children)
    for child in children:
        child.__exit__(None, None, None)
    with closing(Database(path)) as opened:
        assert [known.name for known in opened.namespaces.list()] == names


@pytest.mark.parametrize("content", [b"text, not a database\n" * 400, bytes(range(256)) * 64], ids=["text", "binary"])
def test_a_file_that_is_no_database_is_one_clear_error_and_is_left_as_it_was(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="not a database") as caught:
        Database(path)
    assert str(path) in str(caught.value)
    assert "pyctrd check --repair" in caught.value.hint
    assert path.read_bytes() == content
    assert open_files(path) == []


def test_an_empty_file_becomes_a_database(path: Path) -> None:
    path.touch()
    with closing(Database(path)) as opened:
        assert opened.namespaces.list() == []


@pytest.mark.parametrize("sound", [0.0, 0.5, 0.9], ids=["all but the schema", "the second half", "the last tenth"])
def test_damage_is_one_clear_error_at_whatever_row_it_shows(database: Database, path: Path, sound: float) -> None:
    schema_bytes = path.stat().st_size  # a new database is this and no more
    with database.write() as tx:
        for number in range(400):
            tx.images.put(image(f"image-{number:04}"))
    database.close()
    page_bytes = 4096
    content = path.read_bytes()
    keep = max(schema_bytes, int(len(content) / page_bytes * sound) * page_bytes)
    path.write_bytes(content[:keep] + b"\xff" * (len(content) - keep))
    with closing(Database(path)) as opened:
        with pytest.raises(IntegrityError, match="database damaged") as caught:
            opened.images.list("mine")
        assert caught.value.subject == str(path)


def _remove(path: Path) -> None:
    path.parent.rmdir()


@pytest.mark.parametrize(
    ("spoil", "number"), [(Path.mkdir, errno.EACCES), (_remove, errno.ENOENT)], ids=["a directory", "no parent"]
)
def test_a_place_where_no_database_can_be_is_an_os_error_with_its_name(
    tmp_path: Path, spoil: Callable[[Path], None], number: int
) -> None:
    path = tmp_path / "parent" / "pyctrd.db"
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number and name are looked at below
        Database(path)
    assert caught.value.errno == number
    assert caught.value.filename == str(path)


def test_a_database_that_stays_locked_ends_at_a_deadline(
    database: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BUSY_TIMEOUT_SECONDS", 0.01)
    other = Database(path)
    with database.write(), pytest.raises(DeadlineError, match="database locked") as caught, other.write():
        pytest.fail("two writers at once")
    assert "stuck pyctrd" in caught.value.hint
    with other.write() as tx:
        tx.namespaces.ensure("later")
    other.close()


def fill(database: Database) -> None:
    """One transaction that is larger than some disks."""
    with database.write() as tx:
        for number in range(10_000):
            tx.content.add("mine", digest(number), size=1, media_type="x" * 100, source="")


def test_a_full_disk_is_an_os_error_and_the_records_are_as_before(database: Database, path: Path) -> None:
    database._run("PRAGMA max_page_count=40")
    with pytest.raises(OSError, match="full") as caught:
        fill(database)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert list(database.content.walk("mine")) == []
    with database.write() as tx:
        tx.images.put(image("small"))
    assert [known.name for known in database.images.list("mine")] == ["small"]
