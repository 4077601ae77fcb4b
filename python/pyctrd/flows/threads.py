"""A flow's own threads: nothing of theirs is left behind, whenever Ctrl-C comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

# How long a thread that was asked for may take to begin.
START_SECONDS = 1.0
# How long nobody looks whether it has ended that should have told so; and how long a wait without an end goes on before
# it is begun again: a Ctrl-C that comes between the interpreter's last look and the wait itself ends no wait.
LOOK_SECONDS = 1.0


class OwnThread(threading.Thread):
    """A thread that ends by itself, or when it is told, and whose files are the caller's.

    ``join`` of Python 3.11 and 3.12 takes a thread for ended when Ctrl-C comes while it waits; and a thread that Ctrl-C
    catches in its start does not count as started yet.

    Args:
        work: What it does.
        name: Of the thread.
    """

    def __init__(self, work: Callable[[], None], *, name: str) -> None:
        super().__init__(target=work, name=name)
        # No Event: who waits for one when Ctrl-C comes may be told that it let go of what it did not hold.
        self._is_over = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def run(self) -> None:
        """See ``Thread``."""
        try:
            super().run()
        finally:
            self._is_over = True
            self._gate.release()

    def finish(self) -> None:
        """Wait for its end, if it was started at all; Ctrl-C is raised when it has ended."""
        try:
            self._wait()
        except BaseException:
            self._wait()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while self.ident is None and self in threading.enumerate() and time.monotonic() < end:
            time.sleep(0.001)
        if self.ident is not None:
            while not self._is_over:
                self._gate.acquire(timeout=LOOK_SECONDS)  # Ctrl-C may come when it has it, and before that is told
            self.join()


class Changed(threading.Condition):
    """A condition in which Ctrl-C finds its lock held, also in the moment in which that is given up to wait.

    Whoever waits looks in a loop whether it is so, as ever: a wait without a time-out ends after a second, too.

    Python's leaves it then to ``with`` to release what is not held: a ``RuntimeError`` in the place of Ctrl-C.
    """

    def __init__(self) -> None:
        super().__init__(threading.RLock())  # which knows whose it is

    def wait(self, timeout: float | None = None) -> bool:
        """See ``Condition``."""
        try:
            return super().wait(LOOK_SECONDS if timeout is None else timeout)
        except BaseException:
            with suppress(RuntimeError):
                self.release()
            self.acquire()
            raise
