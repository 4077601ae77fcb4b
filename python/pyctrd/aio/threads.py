"""Calls on threads, awaited: short ones on a few, those that wait on one each; whoever is cancelled ends them."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from pyctrd.errors import ConflictError
from pyctrd.oci.hold import Hold, current_hold, held_by

T = TypeVar("T")

# Short calls at once; others are queued. Each thread has a connection to the database, of two descriptors, and a
# process often may have 1,024: of a thousand calls that are gathered none must be refused.
CALLS_MAX = 32
# Calls at once that wait for an answer, apart from those: a registry that says nothing for a minute must not stop what
# needs the store alone.
ASKS_MAX = 32
# Transfers at once, as many as `pull_many` has: each has threads and files of its own.
TRANSFERS_MAX = 8


class Job(Generic[T]):
    """A call on a thread. For the thread of its event loop, but for ``stop``.

    Args:
        call: Has begun, or is queued.
        hold: Ends what it waits for.
    """

    def __init__(self, call: Future[T], hold: Hold) -> None:
        self._call = call
        self._hold = hold
        self.future = asyncio.wrap_future(call)
        # What nobody asks for any more is no error that nobody looked at.
        self.future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    async def result(self, discard: Callable[[T], object] | None = None) -> T:
        """Wait for its end. Where this is cancelled, the call is given up, and its end awaited.

        Args:
            discard: Called in a thread with a result that came all the same, and that nobody gets.
        """
        try:
            return await asyncio.shield(self.future)
        except asyncio.CancelledError:
            try:
                await self.close()
            finally:
                if discard is not None and not self.future.cancelled() and self.future.exception() is None:
                    await asyncio.to_thread(discard, self.future.result())
            raise

    def stop(self) -> None:
        """Give it up, and wait for nothing."""
        self._call.cancel()  # which helps only where it has not begun
        self._hold.stop()

    async def close(self) -> None:
        """Give it up, and wait until it has ended, however often this is cancelled; idempotent."""
        self.stop()
        cancelled = None
        while not self.future.done():
            try:
                await asyncio.wait([self.future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled


class Threads:
    """The threads of one engine."""

    def __init__(self) -> None:
        self._calls = ThreadPoolExecutor(CALLS_MAX, thread_name_prefix="pyctrd-aio")
        self._asks = ThreadPoolExecutor(ASKS_MAX, thread_name_prefix="pyctrd-aio-ask")
        self._transfers = asyncio.Semaphore(TRANSFERS_MAX)
        self._jobs: set[Job[Any]] = set()
        self._is_closed = False

    async def call(self, function: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
        """What a function returns that needs the store alone, and ends by itself."""
        return await self._queue(self._calls, function).result(discard)

    async def ask(self, function: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
        """What a function returns that waits for somebody's answer, as a registry's, and not for ever."""
        return await self._queue(self._asks, function).result(discard)

    async def wait(self, function: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
        """What a function returns that waits for somebody else, on a thread of its own.

        A thousand containers that are waited for leave all other calls as quick as they were.
        """
        return await self.begin(function).result(discard)

    async def transfer(self, function: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
        """What a transfer returns, when it is its turn."""
        async with self._transfers:
            return await self.wait(function, discard)

    def begin(self, function: Callable[[], T]) -> Job[T]:
        """A function that waits for somebody else, begun.

        Raises:
            OSError: No thread can be started.
        """
        self._refuse_closed()
        hold, call = Hold(), Future[T]()
        call.set_running_or_notify_cancel()
        work = partial(_under, hold, contextvars.copy_context(), function)
        # A daemon, as those of many pulls: the interpreter must not wait for one that nobody closed.
        thread = threading.Thread(target=_settle, args=(call, work), name="pyctrd-aio-wait", daemon=True)
        job = self._note(call, hold)
        try:
            thread.start()
        except RuntimeError as error:  # no memory for a stack, or no more processes for this user
            call.set_exception(error)
            raise OSError(errno.EAGAIN, "no thread can be started", thread.name) from error
        return job

    async def close(self, function: Callable[[], object]) -> None:
        """Give up what is under way, wait until it has ended, and call a function last; again is a no-op."""
        if self._is_closed:
            return
        for job in list(self._jobs):
            job.stop()
        for job in list(self._jobs):
            await job.close()
        try:
            await self.wait(function)
        finally:
            self._is_closed = True
            for pool in (self._calls, self._asks):
                pool.shutdown(wait=False)

    def _queue(self, pool: ThreadPoolExecutor, function: Callable[[], T]) -> Job[T]:
        self._refuse_closed()
        hold = Hold()
        return self._note(pool.submit(_under, hold, contextvars.copy_context(), function), hold)

    def _note(self, call: Future[T], hold: Hold) -> Job[T]:
        job = Job(call, hold)
        self._jobs.add(job)
        job.future.add_done_callback(lambda _: self._jobs.discard(job))
        return job

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ConflictError("engine closed", kind="engine", state="closed")


def in_loop(callback: Callable[[T], object] | None) -> Callable[[T], None]:
    """What a thread calls so that the event loop that runs here calls a callback.

    The thread waits for its end, and what it raises is raised there; and a call that was given up ends there.
    """
    loop = asyncio.get_running_loop()

    def call(value: T) -> None:
        hold = current_hold()
        if hold is not None:
            hold.check()
        if callback is not None:
            done = Future[object]()
            loop.call_soon_threadsafe(_settle, done, partial(callback, value))
            done.result()

    return call


def _under(hold: Hold, context: contextvars.Context, function: Callable[[], T]) -> T:
    with held_by(hold):
        return context.run(function)


def _settle(call: Future[T], function: Callable[[], T]) -> None:
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - handed to whoever waits
        call.set_exception(error)
    else:
        call.set_result(result)
