"""Transfers under way: events to iterate over, and a result."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them

if TYPE_CHECKING:
    from pyctrd.flows.follow import Following

T = TypeVar("T")


class Transfer(Generic[T]):
    """An iterator over the events of one transfer, in a thread of its own; then its result.

    It goes on while the caller is busy; who reads slowly gets of each phase what was told last. It is given up, as one
    that is interrupted, at the end of the ``with`` block, by ``close``, with the engine, and where the iterator is
    interrupted by Ctrl-C; after its last event there is nothing to give up, and the result stays.
    """

    def __init__(self, following: Following[T]) -> None:
        self._following = following
        # Left without a close: collecting garbage may wait for nobody.
        weakref.finalize(self, following.stop)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._following.is_over

    def result(self) -> T:
        """Wait for its end, and what it came to.

        Raises:
            Exception: What the transfer itself would have raised; ``CancelledError`` where it was given up.
        """
        try:
            return self._following.result()
        except KeyboardInterrupt:
            self.close()
            raise

    def close(self) -> None:
        """Give up what has not ended, and wait for that; idempotent."""
        self._following.close()

    def __iter__(self) -> Iterator[pyctrd.PullProgress]:
        return self

    def __next__(self) -> pyctrd.PullProgress:
        try:
            event = self._following.next()
        except BaseException:  # Ctrl-C lands here
            self.close()
            raise
        if event is not None:
            return event
        self._following.result()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
