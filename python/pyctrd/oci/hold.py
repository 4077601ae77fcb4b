"""What is waited for, so that another thread can end the waiting: by one call, or by all that a thread does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from pyctrd.errors import CancelledError

_own = threading.local()


class Hold:
    """What one transfer, or one thread, waits for, so that another thread can end the waiting. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # who collects garbage may stop it, in whichever thread
        self._ends: list[Callable[[], object]] = []
        self._is_stopped = False

    @property
    def is_stopped(self) -> bool:
        """Whether it was given up."""
        return self._is_stopped

    def check(self) -> None:
        """Raise where it was given up.

        Raises:
            CancelledError: It was.
        """
        if self._is_stopped:
            raise CancelledError("cancelled")

    def begin(self, end: Callable[[], object]) -> None:
        """Note how to end what is waited for next.

        Raises:
            CancelledError: It was given up.
        """
        with self._lock:
            self._ends.append(end)
            if self._is_stopped:
                self._ends.remove(end)
                self.check()

    def over(self, end: Callable[[], object]) -> None:
        """It has come, or failed."""
        with self._lock, contextlib.suppress(ValueError):  # it was never begun, where it was given up before
            self._ends.remove(end)

    def stop(self) -> None:
        """Give it up; idempotent."""
        with self._lock:
            self._is_stopped = True
            for end in list(self._ends):
                end()


def current_hold() -> Hold | None:
    """Who may end what this thread waits for; None where nobody may."""
    found: Hold | None = getattr(_own, "hold", None)
    return found


@contextlib.contextmanager
def held_by(hold: Hold) -> Iterator[None]:
    """Let another thread end whatever this one waits for in the block, where whoever waits asks for it."""
    before = current_hold()
    _own.hold = hold
    try:
        yield
    finally:
        _own.hold = before


@contextlib.contextmanager
def waiting(end: Callable[[], object], hold: Hold | None = None) -> Iterator[None]:
    """Around a wait of this thread, which who gives it up ends.

    Args:
        end: Ends it; called in another thread, and must not wait itself.
        hold: Whose wait it is; the thread's own by default.

    Raises:
        CancelledError: It was given up, before the wait or in it.
    """
    hold = hold or current_hold()
    if hold is None:
        yield
        return
    hold.begin(end)
    try:
        yield
    except Exception as error:
        if hold.is_stopped:  # which is why
            raise CancelledError("cancelled") from error
        raise
    finally:
        hold.over(end)
    if hold.is_stopped:
        raise CancelledError("cancelled")


def pause(seconds: float) -> None:
    """Wait so long, or until it is given up.

    Raises:
        CancelledError: It was given up.
    """
    ended = threading.Event()
    with waiting(ended.set):
        ended.wait(seconds)
