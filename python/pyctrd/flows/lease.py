"""Leases: rows that keep content, alive while somebody holds their lock file or until they expire."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError, NotFoundError, PyctrdError
from pyctrd.metadata.leases import LeaseRecord, LeaseResource
from pyctrd.metadata.namespaces import check_labels
from pyctrd.oci.digest import Digest

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd._core import FileLock
    from pyctrd.flows.rooms import Rooms
    from pyctrd.flows.wants import Want
    from pyctrd.metadata.database import Tables

# A century; beyond it, nanoseconds since 1970 would leave SQLite's integers in the end.
EXPIRES_SECONDS_MAX = 100 * 365 * 86400


class HeldLease:
    """A lease whose lock this process holds.

    Args:
        rooms: The engine's rooms.
        record: The lease's.
        lock: Its lock, held.
    """

    def __init__(self, rooms: Rooms, record: LeaseRecord, lock: FileLock) -> None:
        self.record = record
        self._rooms = rooms
        self._lock = lock

    def end(self, tx: Tables) -> None:
        """End it in the transaction that makes it needless."""
        tx.leases.delete(self.record.id)

    def delete(self) -> None:
        """End it, and let go; again is a no-op."""
        database = self._rooms.database
        if database.leases.find(self.record.id) is not None:
            with database.write() as tx:
                tx.leases.delete(self.record.id)
        _remove_lock(self._rooms, self.record.id)
        self._lock.release()

    def let_go(self) -> None:
        """Leave it to its time; one that has none ends."""
        if self.record.expires_ns is None:
            self.delete()
        self._lock.release()


def create_lease(
    rooms: Rooms,
    *,
    purpose: str = "",
    labels: Mapping[str, str] | None = None,
    expires: float | None = None,
    resources: Iterable[LeaseResource] = (),
) -> HeldLease:
    """Record a lease and hold it.

    Args:
        rooms: The engine's rooms.
        purpose: "" for a user's; what is under way for a flow's own.
        labels: The caller's own.
        expires: Seconds from now that it lives without a holder; None for none.
        resources: What it keeps from the start.

    Raises:
        InvalidError: ``expires`` is no positive number of seconds, or a label is none.
    """
    if expires is not None and not 0 < expires <= EXPIRES_SECONDS_MAX:
        raise InvalidError(
            f"invalid expires: {expires!r}: expected seconds, more than 0 and at most {EXPIRES_SECONDS_MAX}",
            field="expires",
            value=expires,
        )
    checked = check_labels(labels or {})
    lease_id = os.urandom(16).hex()
    lock = rooms.lock("lease", lease_id)
    try:
        # The lock is made while nobody else can write: whoever finds the row finds it held, and whoever removes
        # lock files without a row cannot come in between. One that ends with its holder ends in a power cut too.
        with rooms.database.note() if expires is None else rooms.database.write() as tx:
            lock.acquire(timeout=0)
            expires_ns = None if expires is None else time.time_ns() + int(expires * 1e9)
            record = tx.leases.add(
                lease_id, namespace=rooms.namespace, purpose=purpose, labels=checked, expires_ns=expires_ns
            )
            tx.leases.keep(lease_id, resources)
    except BaseException:
        _remove_lock(rooms, lease_id)
        lock.release()
        raise
    return HeldLease(rooms, record, lock)


@contextmanager
def kept(rooms: Rooms, purpose: str, resources: Iterable[LeaseResource]) -> Iterator[HeldLease]:
    """Keep something while a flow brings content in: what is looked up inside the block, and is there, stays there."""
    with rooms.arrival_lock(shared=True):
        lease = create_lease(rooms, purpose=purpose, resources=resources)
        try:
            yield lease
        except BaseException:
            with suppress(PyctrdError, OSError):  # a lease that nobody holds is dead, with or without its row
                lease.delete()
            raise
        lease.delete()


def resources_of(wants: Iterable[Want]) -> list[LeaseResource]:
    """What wants are about to bring in, or have found."""
    found = set()
    for want in wants:
        found.add(LeaseResource("blob", str(want.descriptor.digest)))
        if want.diff_id is not None:
            found.add(LeaseResource("layer", want.diff_id))
    return sorted(found)


def get_lease(rooms: Rooms, lease_id: str) -> LeaseRecord:
    """A user's lease of this namespace that is alive.

    Raises:
        NotFoundError: There is none.
    """
    record = rooms.database.leases.find(lease_id)
    if record is None or not _is_own(rooms, record) or not is_alive(rooms, record):
        raise _missing(lease_id)
    return record


def list_leases(rooms: Rooms) -> list[LeaseRecord]:
    """The users' leases of this namespace that are alive, oldest first."""
    return [record for record in rooms.database.leases.list() if _is_own(rooms, record) and is_alive(rooms, record)]


def delete_lease(rooms: Rooms, lease_id: str) -> None:
    """End a user's lease, whoever holds it.

    Raises:
        NotFoundError: This namespace has no such lease.
    """
    with rooms.database.write() as tx:
        record = tx.leases.find(lease_id)
        if record is None or not _is_own(rooms, record):
            raise _missing(lease_id)
        tx.leases.delete(lease_id)


def keep_by_lease(rooms: Rooms, lease_id: str, name: str) -> None:
    """Let a lease keep an image with all that it needs, a blob, or an unpacked layer of this namespace.

    Raises:
        NotFoundError: There is no such lease, or this namespace has nothing of that name: whether another has, does
            not show.
    """
    from pyctrd.flows.load import find_image
    from pyctrd.flows.reach import needs_of

    image = find_image(rooms, name)
    needs = None if image is None else needs_of(rooms, image)
    # Looked up in the transaction that keeps it: what is there now stays there.
    with rooms.database.write() as tx:
        record = tx.leases.find(lease_id)
        if record is None or not _is_own(rooms, record) or not is_alive(rooms, record):
            raise _missing(lease_id)
        if image is not None and needs is not None and tx.images.find(image.namespace, image.name) == image:
            found = [LeaseResource("blob", digest) for digest in needs.blobs]
            found += [LeaseResource("layer", diff_id) for diff_id in needs.layers]
        else:
            found = list(_content_of(rooms, tx, name))
        if not found:
            raise NotFoundError(f"content not found: {name}", kind="content", name=name)
        tx.leases.keep(lease_id, found)


def _content_of(rooms: Rooms, tx: Tables, name: str) -> Iterator[LeaseResource]:
    try:
        digest = str(Digest.parse(name))
    except InvalidError:
        return
    if tx.content.find(rooms.namespace, digest) is not None:
        yield LeaseResource("blob", digest)
    elif tx.layers.belongs_to(rooms.namespace, digest):
        yield LeaseResource("layer", digest)


def is_alive(rooms: Rooms, record: LeaseRecord) -> bool:
    """Whether somebody holds a lease, or its time has not come. A clock alone never ends one that is held."""
    if record.expires_ns is not None and time.time_ns() < record.expires_ns:
        return True
    lock = rooms.lock("lease", record.id)
    if not lock.acquire(timeout=0):
        return True
    # Taking it made the file where there was none.
    _remove_lock(rooms, record.id)
    lock.release()
    return False


def end_dead_leases(rooms: Rooms) -> None:
    """Remove the leases that are not alive, and lock files that belong to none."""
    database = rooms.database
    dead = [record.id for record in database.leases.list() if not is_alive(rooms, record)]
    if dead:
        with database.write() as tx:
            for lease_id in dead:
                tx.leases.delete(lease_id)
    directory = lock_directory(rooms)
    known = {record.id for record in database.leases.list()}
    strays = {path.name for path in directory.iterdir()} - known if directory.exists() else set()
    if strays:
        with database.write() as tx:  # as whoever makes one
            for name in strays:
                if tx.leases.find(name) is None:
                    _remove_stray(rooms, name)


def lock_directory(rooms: Rooms) -> Path:
    """Where leases' lock files are. They go with their lease: its id never comes again."""
    return rooms.root / "locks" / "lease"


def _remove_stray(rooms: Rooms, name: str) -> None:
    lock = rooms.lock("lease", name)
    if lock.acquire(timeout=0):
        _remove_lock(rooms, name)
        lock.release()


def _remove_lock(rooms: Rooms, lease_id: str) -> None:
    (lock_directory(rooms) / lease_id).unlink(missing_ok=True)


def _is_own(rooms: Rooms, record: LeaseRecord) -> bool:
    return record.namespace == rooms.namespace and not record.purpose


def _missing(lease_id: str) -> NotFoundError:
    return NotFoundError(f"lease not found: {lease_id}", kind="lease", name=lease_id, hint="list them: pyctrd lease ls")
