"""``engine.containers``."""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.container import Container
from pyctrd.container_options import ContainerOptions, health_options, life_options, restart_policy, run_options
from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms


class Containers:
    """The containers of the engine's namespace."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def create(
        self, image: pyctrd.Image | str | None = None, command: Sequence[str] = (), **options: Unpack[ContainerOptions]
    ) -> Container:
        """Make a container, not yet running.

        Args:
            image: An image of this namespace, or its name; None with ``rootfs``.
            command: Replaces the image's; () takes it.
            **options: See ``ContainerOptions``.

        Raises:
            NotFoundError: The image, the user or a bind's source.
            AlreadyExistsError: The name is taken.
            InvalidError: An option cannot be used.
        """
        from pyctrd.flows.load import get_image
        from pyctrd.flows.run import create_container

        if isinstance(command, str):
            raise InvalidError(
                f"invalid command: {command!r}: expected a sequence of words", field="command", value=command
            )
        rootfs = options.get("rootfs")
        if (image is None) == (rootfs is None):
            raise InvalidError(
                "invalid container: expected an image or a rootfs, and not both",
                field="rootfs",
                value=None if rootfs is None else os.fspath(rootfs),
            )
        name = image if image is None or isinstance(image, str) else image.name
        record = create_container(
            self._rooms,
            None if name is None else get_image(self._rooms, name),
            run_options(command, options),
            rootfs=None if rootfs is None else Path(rootfs),
            overlay=options.get("overlay", False),
            name=options.get("name", ""),
            labels=options.get("labels"),
            auto_remove=options.get("auto_remove", False),
            stop_signal=options.get("stop_signal", ""),
            restart=restart_policy(options),
            life=life_options(options),
            health=health_options(options),
        )
        return Container(self._rooms, record)

    def run(
        self, image: pyctrd.Image | str | None = None, command: Sequence[str] = (), **options: Unpack[ContainerOptions]
    ) -> Container:
        """Make a container and start it, detached; where it cannot be started, nothing of it is left.

        Raises:
            As ``create`` and ``Container.start``.
        """
        container = self.create(image, command, **options)
        try:
            container.start(terminal=options.get("terminal", False), stdin=options.get("stdin", False))
        except BaseException:
            container.delete(force=True, volumes=True)
            raise
        return container

    def restore_policies(self, *, all_namespaces: bool = False) -> pyctrd.RestoredContainers:
        """Start what restart policies of this namespace want to run, and does not: what a unit does at boot.

        That is those that run "always", also where a user had stopped them, and those that run "unless-stopped" and
        were not stopped, as Docker's daemon does when it starts; each only if it was started once. Those "on-failure"
        too, where a reboot or the loss of its shim ended a run: nobody saw it succeed. Again starts nothing.

        Args:
            all_namespaces: Those of every namespace: for the store's owner.

        Returns:
            Names of what was ``started``, and of what ``failed`` with why: one does not keep the others from it. Those
            of other namespaces have theirs in front: "other/name".
        """
        from pyctrd.flows.policies import restore_policies

        return restore_policies(self._rooms, all_namespaces=all_namespaces)

    def get(self, name: str) -> Container:
        """By name, id, or the beginning of an id.

        Raises:
            NotFoundError: This namespace has no such container.
        """
        from pyctrd.flows.run import get_container

        return Container(self._rooms, get_container(self._rooms, name))

    def find(self, name: str) -> Container | None:
        """As ``get``, but None where there is none."""
        record = self._rooms.database.containers.find(self._rooms.namespace, name)
        return None if record is None else Container(self._rooms, record)

    def stats(self) -> builtins.list[pyctrd.ContainerStats]:
        """What each one that runs uses now, the newest first; one that ends meanwhile is left out.

        Raises:
            UnsupportedError: No control group of a container can be read here.
        """
        from pyctrd.flows.observe import stats_of_all

        return stats_of_all(self._rooms, self._rooms.namespace)

    def list(
        self,
        *,
        all: bool = True,  # noqa: A002 - docker-py's name
        filters: Mapping[str, str | Sequence[str]] | None = None,
    ) -> builtins.list[Container]:
        """The newest first.

        Args:
            all: Those that do not run, too.
            filters: By key one value or several, as Docker's: ``name`` and ``id`` (regular expressions), ``label``
                ("key" or "key=value", all of them), ``status`` ("created", "running", "paused", "stopped"; "exited" is
                "stopped"), ``health`` ("starting", "healthy", "unhealthy", of containers that run; "none": without a
                check), ``exited`` (an exit code), ``ancestor`` or ``image`` (a reference, or a digest), ``since``
                and ``before`` (a container: made after it, before it). Different keys must all fit.

        Raises:
            InvalidError: A key or a value is none.
            NotFoundError: The container of ``since`` or ``before``.
        """
        from pyctrd.flows.listing import list_containers

        return [
            Container(self._rooms, record) for record in list_containers(self._rooms, everything=all, filters=filters)
        ]
