"""``engine.images.pull_many``: images as they come in, from thousands of references."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyctrd.flows.many import ManyPulls
    from pyctrd.metadata.images import ImageRecord


@dataclass(frozen=True, slots=True)
class PullResult:
    """How the pull of one reference ended: with an image, or with an error.

    Attributes:
        reference: As it was given.
        image: The image; None where there is an error.
        error: What ``pull`` would have raised; None where there is an image.
    """

    reference: str
    image: pyctrd.Image | None = None
    error: Exception | None = None

    def get(self) -> pyctrd.Image:
        """The image.

        Raises:
            Exception: The error, where that is how it ended.
        """
        if self.image is None:
            raise self.error or LookupError(f"no image: {self.reference}")
        return self.image


class PullMany:
    """An iterator over the results of many pulls, in the order in which they end.

    Pulls begin when it is first iterated, and go on while the caller is busy with a result, until 64 wait to be read.
    They stop at the end of the ``with`` block, by ``close``, with the engine, and where the iterator raises, as Ctrl-C
    makes it: what was under way is given up as a pull that is interrupted, and goes on from there the next time.

    It is for one thread; ``progress`` and ``close`` are for any.
    """

    def __init__(
        self,
        pulls: ManyPulls,
        make_image: Callable[[ImageRecord], pyctrd.Image],
        progress: pyctrd.ProgressCallback | None,
    ) -> None:
        self._pulls = pulls
        self._make_image = make_image
        self._callback = progress
        # Left without a close, as by a `break`: collecting garbage may wait for nobody.
        weakref.finalize(self, pulls.stop)

    def progress(self) -> pyctrd.PullManyProgress:
        """How far they are: what ended, what waits, and each image under way."""
        return self._pulls.progress()

    def close(self) -> None:
        """Stop what is under way, and wait until nothing of it is; idempotent. There are no results afterwards."""
        self._pulls.close()

    def __iter__(self) -> Iterator[PullResult]:
        return self

    def __next__(self) -> PullResult:
        ended = self._pulls.next(self._callback)
        if ended is None:
            raise StopIteration
        image = self._make_image(ended.record) if ended.record is not None else None
        return PullResult(ended.given, image, ended.error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
