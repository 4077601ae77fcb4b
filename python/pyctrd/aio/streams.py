"""Iterators of the engine's, asynchronous: a thread iterates, ahead of whoever reads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.aio.threads import in_loop
from pyctrd.errors import CancelledError
from pyctrd.oci.hold import waiting

if TYPE_CHECKING:
    from pyctrd.aio.threads import Job, Threads

T = TypeVar("T")

# What nobody has read yet; with more, the thread waits.
ITEMS_MAX = 256


class _Feed(Generic[T]):
    """What a thread and an event loop have in common; the thread knows nothing of who reads, which may be gone."""

    def __init__(self) -> None:
        self.items: deque[T] = deque()
        self.room = threading.Semaphore(ITEMS_MAX)
        self.news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def fill(self, opens: Callable[[], Iterator[T]]) -> None:
        """In the thread: put all that comes."""
        iterator = opens()
        with contextlib.closing(iterator) if hasattr(iterator, "close") else contextlib.nullcontext():  # type: ignore[type-var] # it has been looked
            for item in iterator:
                if not self.room.acquire(blocking=False):
                    with waiting(self.room.release):
                        self.room.acquire()
                self.items.append(item)
                if len(self.items) == 1:  # else whoever reads goes on by itself
                    self._loop.call_soon_threadsafe(self.news.set)


class Stream(AsyncIterator[T]):
    """An asynchronous iterator, for one task, and a context manager.

    The first item that is asked for begins it. It ends with what it gives, at the end of an ``async with`` block, by
    ``aclose``, with the engine, and where a task is cancelled that waits for an item.
    """

    def __init__(self, threads: Threads, opens: Callable[[], Iterator[T]]) -> None:
        self._threads = threads
        self._opens = opens
        self._feed: _Feed[T] | None = None
        self._job: Job[None] | None = None
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        feed, job = self._begin()
        try:
            while not feed.items:
                if self._is_closed:
                    raise StopAsyncIteration
                if job.future.done():
                    self._is_closed = True
                    job.future.result()
                    continue
                feed.news.clear()
                await feed.news.wait()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        feed.room.release()
        return feed.items.popleft()

    async def aclose(self) -> None:
        """End it, and wait for that; idempotent."""
        self._is_closed = True
        if self._feed is not None:
            self._feed.items.clear()
        if self._job is not None:
            await self._job.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _begin(self) -> tuple[_Feed[T], Job[None]]:
        if self._feed is None or self._job is None:
            if self._is_closed:
                raise StopAsyncIteration
            self._feed = feed = _Feed[T]()
            self._job = self._threads.begin(partial(feed.fill, self._opens))
            self._job.future.add_done_callback(lambda _: feed.news.set())
            # Left without a close, as by a `break`: collecting garbage may wait for nobody.
            weakref.finalize(self, _later, asyncio.get_running_loop(), self._job.stop).atexit = False
        return self._feed, self._job


class Transfer(AsyncIterator["pyctrd.PullProgress"], Generic[T]):
    """An asynchronous iterator over the events of one transfer, for one task; then its result.

    The first event or the result that is asked for begins it. Who reads slowly gets of each phase what was told last.
    It is given up at the end of an ``async with`` block, by ``close``, with the engine, and where a task is cancelled
    that waits for it; after its last event there is nothing to give up, and the result stays.
    """

    def __init__(self, threads: Threads, work: Callable[[pyctrd.ProgressCallback], T]) -> None:
        self._threads = threads
        self._work = work
        self._news: dict[str, pyctrd.PullProgress] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[T] | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._task is not None and self._task.done()

    async def result(self) -> T:
        """Wait for its end, and what it came to.

        Raises:
            Exception: What the transfer itself would have raised; ``CancelledError`` where it was given up.
        """
        task = self._begin()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise _given_up() from None
            await self.close()
            raise

    async def close(self) -> None:
        """Give up what has not ended, and wait for that; idempotent."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pyctrd.PullProgress:
        task = self._begin()
        try:
            while not self._news:
                if task.cancelled():
                    raise _given_up()
                if task.done():
                    task.result()
                    raise StopAsyncIteration
                self._changed.clear()
                await self._changed.wait()
        except asyncio.CancelledError:
            await self.close()
            raise
        return self._news.pop(next(iter(self._news)))

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _begin(self) -> asyncio.Task[T]:
        if self._task is None:
            news, changed = self._news, self._changed

            def note(event: pyctrd.PullProgress) -> None:
                news[event.phase] = event
                changed.set()

            call = self._threads.transfer(partial(self._work, in_loop(note)))
            self._task = task = asyncio.get_running_loop().create_task(call)
            task.add_done_callback(lambda _: changed.set())
            # What nobody asks for any more is no error that nobody looked at.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            weakref.finalize(self, _later, asyncio.get_running_loop(), task.cancel).atexit = False
        return self._task


def _given_up() -> CancelledError:
    return CancelledError("cancelled")


def _later(loop: asyncio.AbstractEventLoop, end: Callable[[], object]) -> None:
    """Have the loop end something: who collects garbage may be any thread, in the middle of anything."""
    with contextlib.suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(end)
