"""``engine.leases`` and the lease that it gives."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them

if TYPE_CHECKING:
    from pyctrd.flows.lease import HeldLease
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.leases import LeaseRecord


class Lease:
    """Keeps images, blobs and layers of one namespace, whatever becomes of the names that they have.

    It lives for as long as the engine that made it holds it: until ``delete``, the end of its ``with`` block, the
    engine's ``close`` or its process' end. One that expires lives on after that, until its time has come.
    """

    def __init__(self, leases: Leases, record: LeaseRecord) -> None:
        self._leases = leases
        self._record = record

    @property
    def id(self) -> str:
        """32 hex digits."""
        return self._record.id

    @property
    def labels(self) -> Mapping[str, str]:
        """The caller's own."""
        return MappingProxyType(self._record.labels)

    @property
    def created_ns(self) -> int:
        """When it was made, in nanoseconds since 1970."""
        return self._record.created_ns

    @property
    def expires_ns(self) -> int | None:
        """Until when it lives without a holder, in nanoseconds since 1970; None: no longer than its holder."""
        return self._record.expires_ns

    def add(self, name: str) -> None:
        """Keep one more thing; nothing is kept that was not added.

        Args:
            name: An image by its reference or digest, with all that it needs; or a blob's digest; or an unpacked
                layer's diff_id.

        Raises:
            NotFoundError: This namespace has no such thing, or the lease is not alive any more. What other namespaces
                have makes no difference.
        """
        from pyctrd.flows.lease import keep_by_lease

        keep_by_lease(self._leases._rooms, self.id, name)  # noqa: SLF001 - of this module

    def resources(self) -> list[pyctrd.LeaseResource]:
        """What it keeps: blobs by digest and layers by diff_id."""
        return self._leases._rooms.database.leases.resources(self.id)  # noqa: SLF001 - of this module

    def delete(self) -> None:
        """End it; again is a no-op. What nothing else keeps goes with the next collection."""
        self._leases._end(self.id)  # noqa: SLF001 - of this module

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.delete()

    def __repr__(self) -> str:
        return f"<Lease {self.id}>"


class Leases:
    """The leases of the engine's namespace."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._held: dict[str, HeldLease] = {}
        self._lock = threading.Lock()

    def create(self, *, expires: float | None = None, labels: Mapping[str, str] | None = None) -> Lease:
        """Make a lease that keeps nothing yet, and hold it.

        Args:
            expires: Seconds from now that it lives without a holder, by the wall clock; None for none. While it is held
                no clock ends it.
            labels: The caller's own.

        Raises:
            InvalidError: ``expires`` is not more than 0, or a label is none: a key is empty,
                one has control characters, or is too long.
        """
        from pyctrd.flows.lease import create_lease

        held = create_lease(self._rooms, expires=expires, labels=labels)
        with self._lock:
            self._held[held.record.id] = held
        return Lease(self, held.record)

    def get(self, lease_id: str) -> Lease:
        """A lease that is alive, whoever holds it.

        Raises:
            NotFoundError: This namespace has no such lease.
        """
        from pyctrd.flows.lease import get_lease

        return Lease(self, get_lease(self._rooms, lease_id))

    def list(self) -> list[Lease]:
        """The leases that are alive, oldest first."""
        from pyctrd.flows.lease import list_leases

        return [Lease(self, record) for record in list_leases(self._rooms)]

    def delete(self, lease_id: str) -> None:
        """End a lease, whoever holds it.

        Raises:
            NotFoundError: This namespace has no such lease.
        """
        from pyctrd.flows.lease import delete_lease

        delete_lease(self._rooms, lease_id)
        self._end(lease_id)

    def close(self) -> None:
        """Let go of what is held: those that do not expire end. The engine's ``close`` does this."""
        with self._lock:
            held, self._held = self._held, {}
        for lease in held.values():
            lease.let_go()

    def _end(self, lease_id: str) -> None:
        from pyctrd.errors import NotFoundError
        from pyctrd.flows.lease import delete_lease

        with self._lock:
            held = self._held.pop(lease_id, None)
        if held is not None:
            held.delete()
            return
        try:
            delete_lease(self._rooms, lease_id)
        except NotFoundError:
            return  # it has ended
