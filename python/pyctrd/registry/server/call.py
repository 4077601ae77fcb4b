"""One request while it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from pyctrd.oci.value import dataclass

if TYPE_CHECKING:
    from aiohttp import web

    from pyctrd.registry.server.access import Caller
    from pyctrd.registry.server.metrics import Metrics
    from pyctrd.registry.server.routes import Route
    from pyctrd.registry.server.store import Store

T = TypeVar("T")
# What waits for the disk: hashing and writing a block, a flush, a transaction, of which one is at once. Each thread has
# a connection to the database.
WORKERS = 8
# What waits for another registry. These have threads of their own, or those who wait would keep everybody else from the
# disk.
FETCHERS = 16


class Threads:
    """What runs beside the loop."""

    def __init__(self) -> None:
        self.workers: Executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="pyctrd-registry")
        self._fetchers: Executor = ThreadPoolExecutor(FETCHERS, thread_name_prefix="pyctrd-registry-fetch")
        self._fetching: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    async def once(self, act: Callable[..., T], *args: Any) -> T:
        """Run what may wait for another registry; all who ask for the same meanwhile wait for one."""
        key = (act, *args)
        future: asyncio.Future[T] | None = self._fetching.get(key)
        if future is None:
            future = asyncio.get_running_loop().run_in_executor(self._fetchers, act, *args)
            self._fetching[key] = future
            future.add_done_callback(lambda done: self._end(key, done))
        return await asyncio.shield(future)

    def _end(self, key: tuple[Any, ...], done: asyncio.Future[Any]) -> None:
        self._fetching.pop(key, None)
        if not done.cancelled():
            done.exception()  # all who wanted it may have left

    def close(self) -> None:
        """Wait until what runs is over; what has not begun never does."""
        for executor in (self._fetchers, self.workers):
            executor.shutdown(cancel_futures=True)


@dataclass(slots=True, eq=False)
class Call:
    """What handlers know of a request.

    Attributes:
        request: The request.
        route: What it asks for.
        caller: Who asks.
        store: Whose repositories are seen.
        metrics: Where it is counted.
        threads: Run what may wait.
        receiving: Bodies that may come at once.
    """

    request: web.BaseRequest
    route: Route
    caller: Caller
    store: Store
    metrics: Metrics
    threads: Threads
    receiving: asyncio.Semaphore

    @property
    def is_head(self) -> bool:
        """Whether only the answer's headers are wanted."""
        return self.request.method == "HEAD"

    async def work(self, act: Callable[..., T], *args: Any) -> T:
        """Run what may wait for the disk, beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self.threads.workers, act, *args)
