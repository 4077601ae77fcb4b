"""``engine.registry``: what registries have, beyond the images that are pulled and pushed."""

from __future__ import annotations

from pyctrd import registries
from pyctrd.aio.face import Face, asks, iterates


class Repository(Face[registries.Repository]):
    """As ``pyctrd.Repository``."""

    tags = iterates(registries.Repository.tags)
    find = asks(registries.Repository.find)
    manifest = asks(registries.Repository.manifest)
    put_manifest = asks(registries.Repository.put_manifest)
    referrers = asks(registries.Repository.referrers)
    attach = asks(registries.Repository.attach)
    delete = asks(registries.Repository.delete)
    has_blob = asks(registries.Repository.has_blob)
    read_blob = asks(registries.Repository.read_blob)

    @property
    def name(self) -> str:
        """As ``pyctrd.Repository.name``."""
        return self._of.name


class Registries(Face[registries.Registries]):
    """As ``pyctrd.Registries``."""

    login = asks(registries.Registries.login)
    logout = asks(registries.Registries.logout)

    def repository(self, reference: str) -> Repository:
        """As ``pyctrd.Registries.repository``: nobody is asked yet."""
        return Repository(self._of.repository(reference), self._threads)
