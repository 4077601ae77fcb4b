"""``engine.containers`` and the container that it gives."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd import container, containers
from pyctrd.aio.face import Face, asks, calls, finds, gives, iterates, lists, waits
from pyctrd.aio.images import Image
from pyctrd.aio.processes import Process, discard_process


class Container(Face[container.Container]):
    """As ``pyctrd.Container``; who is cancelled waits no longer, and the container goes on."""

    start = calls(container.Container.start)
    start_attached = waits(container.Container.start_attached)
    exec = gives(container.Container.exec, Process, discard=discard_process)
    attach = waits(container.Container.attach)
    get_exec = gives(container.Container.get_exec, Process)
    execs = lists(container.Container.execs, Process)
    exec_output = waits(container.Container.exec_output)
    wait = waits(container.Container.wait)
    wait_healthy = waits(container.Container.wait_healthy)
    run_health_check = waits(container.Container.run_health_check)
    logs = calls(container.Container.logs)
    log_lines = iterates(container.Container.log_lines)
    kill = calls(container.Container.kill)
    stop = asks(container.Container.stop)
    restart = asks(container.Container.restart)
    rename = calls(container.Container.rename)
    checkpoint = calls(container.Container.checkpoint)
    restore = calls(container.Container.restore)
    update = calls(container.Container.update)
    stats = calls(container.Container.stats)
    stats_stream = iterates(container.Container.stats_stream)
    top = calls(container.Container.top)
    inspect = calls(container.Container.inspect)
    pause = calls(container.Container.pause)
    resume = calls(container.Container.resume)
    diff = calls(container.Container.diff)
    commit = gives(container.Container.commit, Image)
    copy_to = waits(container.Container.copy_to)
    copy_from = iterates(container.Container.copy_from)
    copy_file_to = waits(container.Container.copy_file_to)
    copy_file_from = waits(container.Container.copy_file_from)
    export = waits(container.Container.export)
    snapshot = calls(container.Container.snapshot)
    snapshots = calls(container.Container.snapshots)
    rollback = asks(container.Container.rollback)
    delete_snapshot = calls(container.Container.delete_snapshot)
    delete = calls(container.Container.delete)

    async def fork(self, *, name: str = "") -> Container:
        """As ``pyctrd.Container.fork``; nothing is left where the task is cancelled."""
        return Container(await self._threads.call(lambda: self._of.fork(name=name), _delete), self._threads)

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

    @property
    def health(self) -> Coroutine[Any, Any, pyctrd.Health | None]:
        """As ``pyctrd.Container.health``, awaited."""
        return self._threads.call(lambda: self._of.health)


class Containers(Face[containers.Containers]):
    """As ``pyctrd.Containers``."""

    get = gives(containers.Containers.get, Container)
    find = finds(containers.Containers.find, Container)
    list = lists(containers.Containers.list, Container)
    stats = calls(containers.Containers.stats)
    restore_policies = asks(containers.Containers.restore_policies)

    async def create(
        self, image: Image | str | None = None, command: Sequence[str] = (), **options: Unpack[pyctrd.ContainerOptions]
    ) -> Container:
        """As ``pyctrd.Containers.create``; nothing is left where the task is cancelled."""
        name = image.name if isinstance(image, Image) else image
        made = await self._threads.call(lambda: self._of.create(name, command, **options), _delete)
        return Container(made, self._threads)

    async def run(
        self, image: Image | str | None = None, command: Sequence[str] = (), **options: Unpack[pyctrd.ContainerOptions]
    ) -> Container:
        """As ``pyctrd.Containers.run``; nothing is left where the task is cancelled."""
        name = image.name if isinstance(image, Image) else image
        made = await self._threads.call(lambda: self._of.run(name, command, **options), _delete)
        return Container(made, self._threads)


_delete = partial(container.Container.delete, force=True)
