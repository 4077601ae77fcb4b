"""One request while it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

from pyctrd.oci.value import dataclass

if TYPE_CHECKING:
    from aiohttp import web

    from pyctrd.registry.server.access import Caller
    from pyctrd.registry.server.metrics import Metrics
    from pyctrd.registry.server.routes import Route
    from pyctrd.registry.server.store import Store

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Call:
    """What handlers know of a request.

    Attributes:
        request: The request.
        route: What it asks for.
        caller: Who asks.
        store: Whose repositories are seen.
        metrics: Where it is counted.
        workers: Run what may wait.
        receiving: Bodies that may come at once.
    """

    request: web.BaseRequest
    route: Route
    caller: Caller
    store: Store
    metrics: Metrics
    workers: Executor
    receiving: asyncio.Semaphore

    @property
    def is_head(self) -> bool:
        """Whether only the answer's headers are wanted."""
        return self.request.method == "HEAD"

    async def work(self, act: Callable[..., T], *args: Any) -> T:
        """Run what may wait, beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, act, *args)
