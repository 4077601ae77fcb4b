"""Waiting for a flow's own threads: nothing of theirs is left behind, whenever Ctrl-C comes."""

from __future__ import annotations

import threading
import time

# How long a thread that was asked for may take to begin.
START_SECONDS = 1.0


def join(thread: threading.Thread) -> None:
    """Wait for the end of a thread that ends by itself, if it was started at all; its files are ours.

    Ctrl-C may have come while it was started, when it does not count as started yet. And Ctrl-C may come meanwhile: it
    is raised when the thread has ended.
    """
    try:
        _join(thread)
    except BaseException:
        _join(thread)
        raise


def _join(thread: threading.Thread) -> None:
    end = time.monotonic() + START_SECONDS
    while thread.ident is None and thread in threading.enumerate() and time.monotonic() < end:
        time.sleep(0.001)
    if thread.ident is not None:
        thread.join()
