"""Removal: what has lost its records goes from disk a bite at a time, and gives way to whoever unpacks.

What collections take away stands in ``trash/`` from the moment in which it loses its name, or is an object that no
layer names: both are found again by whoever comes next, so nothing here is recorded. There is no daemon: the first bite
is taken at once, in the caller's thread; what is left then goes in a thread of the engine, which rests four times as
long as it works, and waits while anybody brings content in; closing the engine takes a last bite; every opening of the
root takes one; ``gc``, and a pull that finds the disk full, remove all.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import PyctrdError
from pyctrd.flows.log import logger
from pyctrd.flows.objects import sweep_objects
from pyctrd.flows.threads import OwnThread

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms

# At once: some 20,000 names, which most images have not. More would make `rmi` seem to hang.
FIRST_SECONDS = 0.25
# In the background; whoever closes the engine, or begins to unpack, waits for no more than one.
BITE_SECONDS = 0.05
# How long it rests after a bite: so many times as long as that took, so that it has a fifth of one disk and processor.
REST = 4
# How often it looks whether those are done that it gives way to.
LOOK_SECONDS = 0.5
# What closing an engine may take at most: a million names are left to others, a common image is not.
CLOSE_SECONDS = 2.0


def take_away(root: Path, path: Path) -> Path | None:
    """Give something of a root another place, in ``trash/``, in one step; None where it is missing.

    Who removes it may be killed: all that empty the trash find it.
    """
    trash = root / "trash"
    trash.mkdir(mode=0o700, exist_ok=True)
    taken = trash / os.urandom(16).hex()
    try:
        return path.rename(taken)
    except FileNotFoundError:
        return None


def empty_trash(rooms: Rooms) -> None:
    """Remove all that was taken away, however long it takes; Ctrl-C is heard in between."""
    while not _core.empty_trash(rooms.root, seconds=FIRST_SECONDS):
        pass


class Removal:
    """One engine's part in it. Thread-safe."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._turn = threading.Lock()  # held for a bite
        self._closing = threading.Event()
        self._thread: OwnThread | None = None
        self._objects = False
        self._left = False

    def begin(self, *, objects: bool = False) -> None:
        """Remove what was taken away, for a moment; what is left then goes in the background.

        Args:
            objects: Layers that had some were taken away.
        """
        with self._turn:
            self._objects |= objects
            self._left = not self._bite(FIRST_SECONDS)
            if self._left and self._thread is None and not self._closing.is_set():
                self._thread = OwnThread(self._work, name="pyctrd-removal")
                # No memory for a stack, or no more processes for this user: others will find it.
                with suppress(RuntimeError):
                    self._thread.start()

    def finish(self) -> bool:
        """Remove all of it now, whoever took it away; whether there was anything."""
        with self._turn:
            trash = self._rooms.root / "trash"
            found = trash.is_dir() and any(trash.iterdir())
            empty_trash(self._rooms)
            swept = sweep_objects(self._rooms)
            self._left = self._objects = swept.may_go_on
            return found or swept.number > 0

    def close(self) -> None:
        """End the thread; remove what this engine has left, for a moment, unless somebody brings content in."""
        self._closing.set()
        if (thread := self._thread) is not None:
            thread.finish()
        end = time.monotonic() + CLOSE_SECONDS
        while self._left and time.monotonic() < end and not self._is_arriving():
            try:
                self._left = not self._bite(BITE_SECONDS)
            except (PyctrdError, OSError) as error:
                logger.debug("removal left to others: %s", error)
                return

    def _work(self) -> None:
        pause = 0.0
        # An interpreter that ends waits for this thread: as long as for a bite.
        while not self._closing.wait(pause) and threading.main_thread().is_alive():
            if self._is_arriving():
                pause = LOOK_SECONDS
                continue
            start = time.monotonic()
            with self._turn:
                try:
                    self._left = not self._bite(BITE_SECONDS)
                except (PyctrdError, OSError) as error:
                    logger.debug("removal left to others: %s", error)  # `gc` says it to somebody
                    self._left = False
                if not self._left:
                    self._thread = None
                    return
            pause = REST * (time.monotonic() - start)

    def _bite(self, seconds: float) -> bool:
        """Remove for so long; whether nothing is left."""
        end = time.monotonic() + seconds
        if not _core.empty_trash(self._rooms.root, seconds=seconds):
            return False
        if self._objects:
            self._objects = sweep_objects(self._rooms, seconds=max(0.0, end - time.monotonic())).may_go_on
        return not self._objects

    def _is_arriving(self) -> bool:
        """Whether any process brings content in; the lock says so."""
        lock = self._rooms.arrival_lock(shared=False)
        if not lock.acquire(timeout=0):
            return True
        lock.release()
        return False
