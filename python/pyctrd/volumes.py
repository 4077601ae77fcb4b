"""``engine.volumes`` and the volume that it gives."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.volumes import VolumeRecord


class Volume:
    """A directory that containers see at a path of theirs, and that outlives them."""

    def __init__(self, rooms: Rooms, record: VolumeRecord) -> None:
        self._rooms = rooms
        self._record = record

    @property
    def name(self) -> str:
        """Its name in the namespace."""
        return self._record.name

    @property
    def labels(self) -> Mapping[str, str]:
        """The caller's own."""
        return self._record.labels

    @property
    def is_anonymous(self) -> bool:
        """Whether it was made for one container: ``prune`` takes it when that is gone."""
        return self._record.anonymous

    @property
    def created_ns(self) -> int:
        """When it was made, in nanoseconds since 1970."""
        return self._record.created_ns

    @property
    def path(self) -> Path:
        """Where its files are on the host."""
        from pyctrd.flows.volumes import volume_path

        return volume_path(self._rooms, self._record.namespace, self._record.name)

    def users(self) -> list[str]:
        """The names of the containers that have it."""
        return self._rooms.database.volumes.users(self._record.namespace, self._record.name)

    def remove(self) -> None:
        """As ``Volumes.remove``.

        Raises:
            ConflictError: A container has it.
            NotFoundError: It is gone.
        """
        from pyctrd.flows.volumes import remove_volume

        remove_volume(self._rooms, self.name)

    def __repr__(self) -> str:
        return f"<Volume {self.name}>"


class Volumes:
    """The volumes of the engine's namespace."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def create(self, name: str = "", *, labels: Mapping[str, str] | None = None) -> Volume:
        """Make an empty one. The first container that mounts it fills it with what its image has there.

        Args:
            name: Letters, digits, dots, dashes and underscores; 64 hex digits by default.
            labels: The caller's own.

        Raises:
            AlreadyExistsError: The name is taken.
            InvalidError: The name or a label is none.
        """
        from pyctrd.flows.volumes import create_volume

        return Volume(self._rooms, create_volume(self._rooms, name, labels=labels))

    def get(self, name: str) -> Volume:
        """By name.

        Raises:
            NotFoundError: This namespace has no such volume.
        """
        return Volume(self._rooms, self._rooms.database.volumes.get(self._rooms.namespace, name))

    def find(self, name: str) -> Volume | None:
        """As ``get``, but None where there is none."""
        record = self._rooms.database.volumes.find(self._rooms.namespace, name)
        return None if record is None else Volume(self._rooms, record)

    def list(self) -> list[Volume]:
        """All, by name."""
        records = self._rooms.database.volumes.list(self._rooms.namespace)
        return [Volume(self._rooms, record) for record in records]

    def remove(self, name: str) -> None:
        """Remove one with all that is in it.

        Raises:
            NotFoundError: This namespace has no such volume.
            ConflictError: A container has it, running or not.
        """
        from pyctrd.flows.volumes import remove_volume

        remove_volume(self._rooms, name)

    def prune(self, *, named: bool = False) -> builtins.list[str]:
        """Remove those that no container has.

        Args:
            named: Also those that have a name of somebody's, and not only what was made for one container.

        Returns:
            Their names.
        """
        from pyctrd.flows.volumes import prune_volumes

        return prune_volumes(self._rooms, named=named)
