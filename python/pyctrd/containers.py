"""``engine.containers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.container import Container
from pyctrd.container_options import ContainerOptions, life_options, restart_policy, run_options
from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms


class Containers:
    """The containers of the engine's namespace."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def create(
        self, image: pyctrd.Image | str, command: Sequence[str] = (), **options: Unpack[ContainerOptions]
    ) -> Container:
        """Make a container, not yet running.

        Args:
            image: An image of this namespace, or its name.
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
        name = image if isinstance(image, str) else image.name
        record = create_container(
            self._rooms,
            get_image(self._rooms, name),
            run_options(command, options),
            name=options.get("name", ""),
            labels=options.get("labels"),
            auto_remove=options.get("auto_remove", False),
            stop_signal=options.get("stop_signal", ""),
            restart=restart_policy(options),
            life=life_options(options),
        )
        return Container(self._rooms, record)

    def run(
        self, image: pyctrd.Image | str, command: Sequence[str] = (), **options: Unpack[ContainerOptions]
    ) -> Container:
        """Make a container and start it, detached; where it cannot be started, nothing of it is left.

        Raises:
            As ``create`` and ``Container.start``.
        """
        container = self.create(image, command, **options)
        try:
            container.start(terminal=options.get("terminal", False), stdin=options.get("stdin", False))
        except BaseException:
            container.delete(force=True)
            raise
        return container

    def restore_policies(self) -> pyctrd.RestoredContainers:
        """Start what restart policies of this namespace want to run, and does not: what a unit does at boot.

        That is those that run "always", also where a user had stopped them, and those that run "unless-stopped" and
        were not stopped, as Docker's daemon does when it starts; each only if it was started once. Those "on-failure"
        too, where a reboot or the loss of its shim ended a run: nobody saw it succeed. Again starts nothing.

        Returns:
            Names of what was ``started``, and of what ``failed`` with why: one does not keep the others from it.
        """
        from pyctrd.flows.policies import restore_policies

        return restore_policies(self._rooms)

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

    def list(self) -> list[Container]:
        """All, the newest first."""
        return [
            Container(self._rooms, record) for record in self._rooms.database.containers.list(self._rooms.namespace)
        ]
