"""Write-behind: the disk writes what is unpacked while more is, so that the flush before it is published is short."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from pyctrd import _core
from pyctrd.flows.threads import OwnThread

# Long beside what a flush costs that has little to do, short beside a pull that is worth it.
PAUSE_SECONDS = 0.2


class WriteBehind:
    """A thread that flushes a root's file system again and again, for as long as somebody wants it to.

    One at a time in all processes: to flush what another is flushing waits for all of it, and holds up who writes.

    Trees and objects are thousands of small files: to find room for them is most of what a flush does, and one core's
    work. The kernel begins with it by itself when they are 30 seconds old, which is long after a pull's end.

    Args:
        root: The engine's root directory.
        turn: Makes a lock that whoever flushes this root has meanwhile.
    """

    def __init__(self, root: Path, turn: Callable[[], _core.FileLock]) -> None:
        self._root = root
        self._turn = turn
        self._lock = threading.Lock()
        self._users: set[object] = set()
        self._ended = threading.Event()
        self._thread: OwnThread | None = None

    @contextmanager
    def during(self) -> Iterator[None]:
        """Have the disk write in the block; any number of threads may."""
        user = object()  # one, and gone at the end also where Ctrl-C comes before it was counted
        try:
            with self._lock:
                self._users.add(user)
                if self._thread is None:
                    self._begin()
            yield
        finally:
            with self._lock:
                self._users.discard(user)
                thread = None if self._users else self._thread
                if thread is not None:
                    self._ended.set()
                    self._thread = None
            if thread is not None:
                thread.finish()  # who is at the end flushes next: no sooner than this flush is over

    def _begin(self) -> None:
        self._ended = threading.Event()
        self._thread = OwnThread(partial(self._work, self._ended), name="pyctrd-write-behind")
        try:
            self._thread.start()
        except RuntimeError:  # no more threads: all of it is written at the end
            self._thread = None

    def _work(self, ended: threading.Event) -> None:
        # An error is kept by the kernel for who flushes before publishing: that one has to know, and is told.
        turn = self._turn()  # the thread's own: the one before it may be at its last flush
        mine = False
        try:
            with suppress(OSError):
                while not ended.wait(PAUSE_SECONDS):
                    mine = mine or turn.acquire(timeout=0)
                    if mine:
                        _core.flush_file_system(self._root)
        finally:
            turn.release()
