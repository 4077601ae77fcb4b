"""``engine.leases`` and the lease that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from pyctrd import leases
from pyctrd.aio.face import Face, calls, gives, lists


class Lease(Face[leases.Lease]):
    """As ``pyctrd.Lease``, with ``async with``."""

    add = calls(leases.Lease.add)
    resources = calls(leases.Lease.resources)
    delete = calls(leases.Lease.delete)

    @property
    def id(self) -> str:
        """As ``pyctrd.Lease.id``."""
        return self._of.id

    @property
    def labels(self) -> Mapping[str, str]:
        """As ``pyctrd.Lease.labels``."""
        return self._of.labels

    @property
    def created_ns(self) -> int:
        """As ``pyctrd.Lease.created_ns``."""
        return self._of.created_ns

    @property
    def expires_ns(self) -> int | None:
        """As ``pyctrd.Lease.expires_ns``."""
        return self._of.expires_ns

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.delete()


class Leases(Face[leases.Leases]):
    """As ``pyctrd.Leases``."""

    create = gives(leases.Leases.create, Lease, discard=leases.Lease.delete)
    get = gives(leases.Leases.get, Lease)
    list = lists(leases.Leases.list, Lease)
    delete = calls(leases.Leases.delete)
    close = calls(leases.Leases.close)
