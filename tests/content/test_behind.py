"""Write-behind: one thread of all processes has the disk write, and no more than one."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

from pyctrd._core import FileLock
from pyctrd.flows.behind import PAUSE_SECONDS, WriteBehind

DEADLINE_SECONDS = 20.0


def is_taken(path: Path) -> bool:
    lock = FileLock(str(path))
    taken = not lock.acquire(timeout=0)
    lock.release()
    return taken


def test_one_of_two_has_the_turn_and_the_other_gets_it_after_it(tmp_path: Path) -> None:
    path = tmp_path / "turn"
    first, second = (WriteBehind(tmp_path, partial(FileLock, str(path))) for _ in range(2))
    with first.during():
        wait_until(path, taken=True)
        with second.during():
            time.sleep(PAUSE_SECONDS * 2)  # it asks at least once, and is told no
        assert is_taken(path)
    wait_until(path, taken=False)
    with second.during():
        wait_until(path, taken=True)
    wait_until(path, taken=False)


def test_who_begins_while_the_one_before_is_at_its_last_flush_is_no_failure(tmp_path: Path) -> None:
    behind = WriteBehind(tmp_path, partial(FileLock, str(tmp_path / "turn")))
    failures: list[object] = []
    before, threading.excepthook = threading.excepthook, failures.append
    try:
        threads = [threading.Thread(target=write, args=(behind, tmp_path / str(number))) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = before
    assert failures == []


def write(behind: WriteBehind, path: Path) -> None:
    for _ in range(4):
        with behind.during():
            path.write_bytes(bytes(1 << 20))
            time.sleep(PAUSE_SECONDS)


def wait_until(path: Path, *, taken: bool) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while is_taken(path) != taken:
        assert time.monotonic() < end
        time.sleep(0.02)
