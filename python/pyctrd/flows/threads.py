"""A flow's own threads: nothing of theirs is left behind, whenever Ctrl-C comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# How long a thread that was asked for may take to begin.
START_SECONDS = 1.0


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
        self._over = threading.Event()

    def run(self) -> None:
        """See ``Thread``."""
        try:
            super().run()
        finally:
            self._over.set()

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
            self._over.wait()
            self.join()
