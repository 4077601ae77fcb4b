"""A transfer in a thread of its own, whose events another thread reads."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from pyctrd.errors import CancelledError
from pyctrd.flows.threads import Changed
from pyctrd.oci.hold import Hold, held_by

if TYPE_CHECKING:
    from pyctrd.flows.progress import Phase, ProgressCallback, PullProgress

Result = TypeVar("Result")


class Following(Generic[Result]):
    """One transfer, which begins at once. For any thread.

    Who reads slowly is told of each phase what was last: events are looks at the whole.

    Args:
        work: Does it, and tells the callback that it is given how far it is.

    Raises:
        OSError: No thread can be started.
    """

    def __init__(self, work: Callable[[ProgressCallback], Result]) -> None:
        self._work = work
        self._changed = Changed()
        self._hold = Hold()
        self._news: dict[Phase, PullProgress] = {}
        self._is_over = False
        self._result: Result | None = None
        self._error: BaseException | None = None
        # A daemon, as those of many pulls: the interpreter must not wait for one that nobody closed.
        thread = threading.Thread(target=self._run, name="pyctrd-following", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no memory for a stack, or no more processes for this user
            raise OSError(errno.EAGAIN, "no thread can be started", thread.name) from error

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._is_over

    def next(self) -> PullProgress | None:
        """Wait for the next event; None when there is none any more."""
        with self._changed:
            while not self._news and not self._is_over:
                self._changed.wait()
            return self._news.pop(next(iter(self._news))) if self._news else None

    def result(self) -> Result:
        """Wait for the end.

        Raises:
            Exception: What the transfer raised; ``CancelledError`` where it was given up.
        """
        self._wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value] # it has ended without an error

    def stop(self) -> None:
        """Give it up, and wait for nothing."""
        self._hold.stop()

    def close(self) -> None:
        """Give it up, and wait until it has ended; idempotent."""
        self.stop()
        self._wait()

    def _wait(self) -> None:
        with self._changed:
            while not self._is_over:
                self._changed.wait()

    def _run(self) -> None:
        try:
            with held_by(self._hold):
                self._result = self._work(self._tell)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self._error = CancelledError("cancelled") if self._hold.is_stopped else error
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _tell(self, told: PullProgress) -> None:
        self._hold.check()
        with self._changed:
            self._news[told.phase] = told
            self._changed.notify_all()
