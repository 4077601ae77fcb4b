"""Lock files: between threads, between processes, and after the holder's death."""

from __future__ import annotations

import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from pyctrd._core import FileLock
from pyctrd.errors import ConflictError
from tests.children import Child

# Takes the lock that is its argument, says so, and lets go when it is told to.
HOLD = """
import sys
from pyctrd._core import FileLock
lock = FileLock(sys.argv[1], shared=len(sys.argv) > 2)
print(lock.acquire(timeout=30), flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_lock_keeps_another_process_out_until_it_is_let_go(path: Path) -> None:
    ours = FileLock(path)
    with Child(HOLD, path) as other:
        assert other.hear() == "True"
        assert not ours.acquire(timeout=0)
        assert not ours.acquire(timeout=0.01)
        other.say()
        assert other.hear() == "released"
        assert ours.acquire(timeout=0)
    ours.release()


def test_the_holder_is_told(path: Path) -> None:
    assert FileLock(path).holder is None
    lock = FileLock(path)
    with Child(HOLD, path) as other:
        other.hear()
        assert lock.holder == other.pid
    assert lock.acquire(timeout=30)
    assert lock.holder == os.getpid()
    lock.release()


def test_the_kernel_lets_go_for_a_process_that_was_killed(path: Path) -> None:
    ours = FileLock(path)
    with Child(HOLD, path) as other:
        assert other.hear() == "True"
        taken: list[bool] = []
        waiter = threading.Thread(target=lambda: taken.append(ours.acquire(timeout=30)))
        waiter.start()
        other.kill()
        waiter.join()
    assert taken == [True]
    ours.release()


def test_readers_share_a_lock_and_keep_writers_out(path: Path) -> None:
    with Child(HOLD, path, "shared") as other:
        assert other.hear() == "True"
        reader = FileLock(path, shared=True)
        assert reader.acquire(timeout=0)
        assert not FileLock(path).acquire(timeout=0)
        reader.release()
        assert not FileLock(path).acquire(timeout=0)


def test_a_lock_is_between_threads_too(path: Path) -> None:
    inside, most = 0, 0
    counted = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with FileLock(path):
                with counted:
                    inside += 1
                    most = max(most, inside)
                with counted:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_letting_go_twice_is_no_matter_and_taking_twice_is_refused(path: Path) -> None:
    lock = FileLock(path)
    lock.release()
    assert lock.acquire()
    with pytest.raises(ConflictError, match="held by this object") as caught:
        lock.acquire()
    assert (caught.value.kind, caught.value.name) == ("lock", str(path))
    lock.release()
    lock.release()
    assert lock.acquire(timeout=0)
    lock.release()


def test_a_lock_file_is_made_once_private_and_never_removed(path: Path) -> None:
    with FileLock(path):
        first = path.stat()
    assert stat.S_IMODE(first.st_mode) == 0o600
    with FileLock(path):
        assert path.stat().st_ino == first.st_ino
    assert path.exists()


def test_a_lock_is_let_go_when_the_block_fails(path: Path) -> None:
    with pytest.raises(RuntimeError), FileLock(path):
        raise RuntimeError
    assert FileLock(path).acquire(timeout=0)


def test_what_cannot_be_opened_is_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        FileLock(path / "below").acquire()
    assert caught.value.filename == str(path / "below")
    path.symlink_to("elsewhere")
    with pytest.raises(OSError, match="open") as refused:
        FileLock(path).acquire()
    assert refused.value.filename == str(path)
    assert not path.with_name("elsewhere").exists()


def test_a_waiter_hears_signals(path: Path) -> None:
    class Interrupted(Exception):  # noqa: N818 - no error, a signal
        pass

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with FileLock(path):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                FileLock(path).acquire(timeout=30)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_lock_is_not_inherited_by_programs_that_are_started(path: Path) -> None:
    with FileLock(path), Child("import sys; print(flush=True); sys.stdin.readline()") as other:
        other.hear()
        held = [entry.readlink() for entry in Path(f"/proc/{other.pid}/fd").iterdir()]
        assert path not in held
