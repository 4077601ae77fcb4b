"""``engine.containers`` and the container that it gives."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd import container, containers
from pyctrd.aio.face import Face, asks, calls, finds, gives, iterates, lists, waits
from pyctrd.aio.images import Image


class Container(Face[container.Container]):
    """As ``pyctrd.Container``; who is cancelled waits no longer, and the container goes on."""

    start = calls(container.Container.start)
    start_attached = waits(container.Container.start_attached)
    attach = waits(container.Container.attach)
    wait = waits(container.Container.wait)
    logs = calls(container.Container.logs)
    log_lines = iterates(container.Container.log_lines)
    kill = calls(container.Container.kill)
    stop = asks(container.Container.stop)
    pause = calls(container.Container.pause)
    resume = calls(container.Container.resume)
    diff = calls(container.Container.diff)
    commit = gives(container.Container.commit, Image)
    delete = calls(container.Container.delete)

    @property
    def id(self) -> str:
        """As ``pyctrd.Container.id``."""
        return self._of.id

    @property
    def name(self) -> str:
        """As ``pyctrd.Container.name``."""
        return self._of.name

    @property
    def image_name(self) -> str:
        """As ``pyctrd.Container.image_name``."""
        return self._of.image_name

    @property
    def command(self) -> tuple[str, ...]:
        """As ``pyctrd.Container.command``."""
        return self._of.command

    @property
    def labels(self) -> Mapping[str, str]:
        """As ``pyctrd.Container.labels``."""
        return self._of.labels

    @property
    def created_ns(self) -> int:
        """As ``pyctrd.Container.created_ns``."""
        return self._of.created_ns

    @property
    def restart_policy(self) -> Coroutine[Any, Any, str]:
        """As ``pyctrd.Container.restart_policy``, awaited."""
        return self._threads.call(lambda: self._of.restart_policy)

    @property
    def status(self) -> Coroutine[Any, Any, pyctrd.ContainerStatus]:
        """As ``pyctrd.Container.status``, awaited."""
        return self._threads.call(lambda: self._of.status)


class Containers(Face[containers.Containers]):
    """As ``pyctrd.Containers``."""

    get = gives(containers.Containers.get, Container)
    find = finds(containers.Containers.find, Container)
    list = lists(containers.Containers.list, Container)
    restore_policies = asks(containers.Containers.restore_policies)

    async def create(
        self, image: Image | str, command: Sequence[str] = (), **options: Unpack[pyctrd.ContainerOptions]
    ) -> Container:
        """As ``pyctrd.Containers.create``; nothing is left where the task is cancelled."""
        name = image if isinstance(image, str) else image.name
        made = await self._threads.call(lambda: self._of.create(name, command, **options), _delete)
        return Container(made, self._threads)

    async def run(
        self, image: Image | str, command: Sequence[str] = (), **options: Unpack[pyctrd.ContainerOptions]
    ) -> Container:
        """As ``pyctrd.Containers.run``; nothing is left where the task is cancelled."""
        name = image if isinstance(image, str) else image.name
        made = await self._threads.call(lambda: self._of.run(name, command, **options), _delete)
        return Container(made, self._threads)


_delete = partial(container.Container.delete, force=True)
