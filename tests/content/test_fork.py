"""After os.fork(): the child refuses what is its parent's, and its end changes nothing of the parent's.

Each test forks in a process of its own, since pytest's has threads.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.children import Child

# Prints the name of the error that a call ends with, in a child that was forked off after `before`.
FORK = """
import gc, hashlib, os, sys
import pyctrd
from pyctrd import _core
path = sys.argv[1]

def outcome(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"

def forked(*calls):
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        told = "|".join(outcome(call) for call in calls)
        os.write(writing, told.encode())
        gc.collect()
        return True  # the child goes on to its end, as any Python program does
    os.close(writing)
    with open(reading, "rb") as file:
        told = file.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for line in told.split("|"):
        print(line, flush=True)
    return False
"""


def run(code: str, path: Path) -> list[str]:
    """The lines that a program on top of the above prints."""
    with Child(FORK + code, path) as child:
        lines = []
        while line := child.hear():
            lines.append(line)
        assert child.wait() == 0
        return lines


def test_a_lock_stays_the_parents(tmp_path: Path) -> None:
    code = """
lock = _core.FileLock(path)
lock.acquire()
if forked(lock.acquire, lock.release):
    sys.exit()
print(_core.FileLock(path).acquire(timeout=0))
"""
    refused, released, free = run(code, tmp_path / "lock")
    assert refused.startswith("ConflictError: conflict: lock")
    assert "which this one was forked from" in refused
    assert (released, free) == ("done", "False")


def test_a_lock_that_was_let_go_is_free_while_a_forked_child_lives(tmp_path: Path) -> None:
    code = """
lock = _core.FileLock(path)
lock.acquire()
reading, writing = os.pipe()
if os.fork() == 0:
    os.close(writing)
    os.read(reading, 1)
    os._exit(0)
os.close(reading)
lock.release()
print(_core.FileLock(path).acquire(timeout=0), flush=True)
os.close(writing)
os.wait()
"""
    assert run(code, tmp_path / "lock") == ["True"]


def test_an_ingest_stays_the_parents(tmp_path: Path) -> None:
    code = """
content = b"x" * 1000000
ingest = _core.Ingest(path, "one", digest="sha256:" + hashlib.sha256(content).hexdigest(), size=len(content))
ingest.write(content[:500000])
started = lambda: _core.Ingest(path, "two", digest="sha256:" + "0" * 64)
if forked(ingest.buffer, lambda: ingest.write(b"y"), ingest.finish, ingest.abort, ingest.stages, started):
    del ingest, started
    sys.exit()
ingest.write(content[500000:])
print(ingest.finish().size)
_core.publish(path, [ingest])
print(os.listdir(path + "/content/ingest"))
"""
    lines = run(code, tmp_path)
    for refused in (*lines[:3], lines[5]):
        assert refused.startswith("ConflictError: conflict: process"), refused
        assert "spawn, not fork" in refused
    assert lines[3:5] == ["done", "done"]
    assert lines[6:] == ["1000000", "[]"]


def test_an_engine_stays_the_parents(tmp_path: Path) -> None:
    code = """
engine = pyctrd.Engine(root=path, state=path + "/state")
engine.images.list()
if forked(engine.images.list, engine.check, engine.close):
    del engine
    sys.exit()
print(engine.images.list())
with engine._rooms.database.write() as tx:
    tx.namespaces.ensure("after")
"""
    lines = run(code, tmp_path)
    for refused in lines[:2]:
        assert refused.startswith("ConflictError: database opened by another process"), refused
    assert lines[2:] == ["done", "[]"]
    with sqlite3.connect(tmp_path / "pyctrd.db") as database:
        assert database.execute("SELECT name FROM namespaces ORDER BY name").fetchall() == [("after",), ("default",)]
    database.close()


def test_a_child_opens_an_engine_of_its_own(tmp_path: Path) -> None:
    code = """
engine = pyctrd.Engine(root=path, state=path + "/state")
engine.images.list()
def fresh():
    with pyctrd.Engine(root=path, state=path + "/state", namespace="child") as own:
        own.images.list()
if forked(fresh):
    sys.exit()
print(sorted(known.name for known in engine._rooms.database.namespaces.list()))
"""
    assert run(code, tmp_path) == ["done", "['child', 'default']"]
