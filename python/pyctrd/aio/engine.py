"""The engine, awaitable."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd import engine
from pyctrd.aio.containers import Containers
from pyctrd.aio.contents import Content
from pyctrd.aio.face import Face, calls, gives, iterates, waits
from pyctrd.aio.images import Images
from pyctrd.aio.leases import Leases
from pyctrd.aio.namespaces import Namespaces
from pyctrd.aio.registries import Registries
from pyctrd.aio.threads import Threads
from pyctrd.aio.volumes import Volumes

P = ParamSpec("P")
R = TypeVar("R")

# How often it is looked whether a server has ended.
LOOK_SECONDS = 0.1


class RegistryServer(Face["pyctrd.RegistryServer"]):
    """As ``pyctrd.RegistryServer``, with ``async with``."""

    @property
    def address(self) -> str:
        """As ``pyctrd.RegistryServer.address``."""
        return self._of.address

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as the engine has it
        """As ``pyctrd.RegistryServer.wait``."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while not self._of.wait(0):
            left = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline - loop.time())
            if left <= 0:
                return False
            await asyncio.sleep(left)
        return True

    async def close(self) -> None:
        """As ``pyctrd.RegistryServer.close``."""
        await self._threads.wait(self._of.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class Engine(Face[engine.Engine]):
    """As ``pyctrd.Engine``, whose arguments it takes: the same names, awaited, for one event loop.

    Each call runs on a thread. A task that is cancelled gives its call up: what waits for a registry, a container or an
    event ends at once, a transfer as one that is interrupted; what works on the store is waited for. Nothing goes on
    behind the caller's back. A policy, credentials and names that are iterated over are called in threads.
    """

    info = calls(engine.Engine.info)
    check = waits(engine.Engine.check)
    events = iterates(engine.Engine.events)
    gc = waits(engine.Engine.gc)
    metrics = calls(engine.Engine.metrics)
    df = calls(engine.Engine.df)
    serve_registry = gives(engine.Engine.serve_registry, RegistryServer, discard=lambda server: server.close())
    stages = calls(engine.Engine.stages)

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        namespace: str | None = None,
        runtime: str | None = None,
        runtimes: Mapping[str, Any] | None = None,
        cgroup_manager: str | None = None,
        snapshotter: str | None = None,
        durability: str | None = None,
        concurrency: int = engine.DEFAULT_CONCURRENCY,
        ca: str | os.PathLike[str] | None = None,
        plain_http: Collection[str] = (),
        insecure: Collection[str] | None = None,
        credentials: Mapping[str, tuple[str, str]] | Callable[[str], tuple[str, str] | None] | None = None,
        hosts: str | os.PathLike[str] | None = None,
        policy: pyctrd.Policy | None = None,
        limits: pyctrd.Limits | None = None,
        content_digests: bool | None = None,
        keep_blobs: bool | None = None,
        layer_connections: int | None = None,
    ) -> None:
        opened = engine.Engine(
            root=root,
            state=state,
            namespace=namespace,
            runtime=runtime,
            runtimes=runtimes,
            cgroup_manager=cgroup_manager,
            snapshotter=snapshotter,
            durability=durability,
            concurrency=concurrency,
            ca=ca,
            plain_http=plain_http,
            insecure=insecure,
            credentials=credentials,
            hosts=hosts,
            policy=policy,
            limits=limits,
            content_digests=content_digests,
            keep_blobs=keep_blobs,
            layer_connections=layer_connections,
        )
        super().__init__(opened, Threads())

    @property
    def namespace(self) -> str:
        """As ``pyctrd.Engine.namespace``."""
        return self._of.namespace

    @cached_property
    def images(self) -> Images:
        """The namespace's images."""
        return Images(self._of.images, self._threads)

    @cached_property
    def containers(self) -> Containers:
        """As ``pyctrd.Engine.containers``."""
        return Containers(self._of.containers, self._threads)

    @cached_property
    def content(self) -> Content:
        """As ``pyctrd.Engine.content``."""
        return Content(self._of.content, self._threads)

    @cached_property
    def registry(self) -> Registries:
        """As ``pyctrd.Engine.registry``."""
        return Registries(self._of.registry, self._threads)

    @cached_property
    def volumes(self) -> Volumes:
        """As ``pyctrd.Engine.volumes``."""
        return Volumes(self._of.volumes, self._threads)

    @cached_property
    def namespaces(self) -> Namespaces:
        """As ``pyctrd.Engine.namespaces``."""
        return Namespaces(self._of.namespaces, self._threads)

    @cached_property
    def leases(self) -> Leases:
        """The namespace's leases."""
        return Leases(self._of.leases, self._threads)

    async def close(self) -> None:
        """As ``pyctrd.Engine.close``; what is under way is given up first."""
        await self._threads.close(self._of.close)

    async def leave(self) -> None:
        """As ``pyctrd.Engine.leave``; what is under way is given up first."""
        await self._threads.close(self._of.leave)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _awaited(function: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """A function that needs no engine, on a thread of its own; who is cancelled waits for its end."""

    async def call(*arguments: P.args, **named: P.kwargs) -> R:
        return await Threads().wait(functools.partial(function, *arguments, **named))

    return functools.update_wrapper(call, function)


unpack = _awaited(engine.unpack)
diff = _awaited(engine.diff)
verify = _awaited(engine.verify)
