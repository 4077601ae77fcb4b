"""``engine.volumes`` and the volume that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pyctrd import volumes
from pyctrd.aio.face import Face, calls, finds, gives, lists


class Volume(Face[volumes.Volume]):
    """As ``pyctrd.Volume``."""

    users = calls(volumes.Volume.users)
    remove = calls(volumes.Volume.remove)

    @property
    def name(self) -> str:
        """As ``pyctrd.Volume.name``."""
        return self._of.name

    @property
    def labels(self) -> Mapping[str, str]:
        """As ``pyctrd.Volume.labels``."""
        return self._of.labels

    @property
    def is_anonymous(self) -> bool:
        """As ``pyctrd.Volume.is_anonymous``."""
        return self._of.is_anonymous

    @property
    def created_ns(self) -> int:
        """As ``pyctrd.Volume.created_ns``."""
        return self._of.created_ns

    @property
    def path(self) -> Path:
        """As ``pyctrd.Volume.path``."""
        return self._of.path


class Volumes(Face[volumes.Volumes]):
    """As ``pyctrd.Volumes``."""

    create = gives(volumes.Volumes.create, Volume, discard=volumes.Volume.remove)
    get = gives(volumes.Volumes.get, Volume)
    find = finds(volumes.Volumes.find, Volume)
    list = lists(volumes.Volumes.list, Volume)
    remove = calls(volumes.Volumes.remove)
    prune = calls(volumes.Volumes.prune)
