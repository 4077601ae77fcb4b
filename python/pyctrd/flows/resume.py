"""Resume: what came of a blob whose pull broke off is kept for a day, and a later pull goes on from there.

What is kept is a reservation and the bytes in its staging directory, nothing more. Bytes that nobody hashed to their
end prove nothing: only the namespace that brought them in goes on from them, they are read through all stages again
with the rest behind them, and the whole is verified. So it does not matter what became of them meanwhile.

Whoever has the namespace's transfer lock of the digest knows that nobody writes to them.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.content import INGESTS
from pyctrd.errors import (
    CancelledError,
    DigestMismatchError,
    NotFoundError,
    PyctrdError,
    RegistryError,
    SizeMismatchError,
)
from pyctrd.flows.recover import digest_locks, discard, hold, take_locks, transfer_locks, undo, unpublish

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.flows.wants import Want
    from pyctrd.metadata.database import Tables
    from pyctrd.metadata.ingests import IngestRecord

# Long enough for somebody who comes back the next morning; what nobody comes back for must not fill the disk.
KEPT_NS = 24 * 3600 * 10**9


def says_nothing_of_bytes(error: BaseException) -> bool:
    """Whether a transfer ended for a reason that lies neither in what came nor in the disk that it is on.

    A full disk is to be relieved, and one with faults is not to be trusted.
    """
    if isinstance(error, RegistryError | NotFoundError | CancelledError):
        return True
    return not isinstance(error, PyctrdError | OSError | MemoryError | sqlite3.Error)


def may_be_damage(error: BaseException) -> bool:
    """Whether bytes that were kept may be the cause of a failure, so that it is worth to begin without them."""
    if isinstance(error, OSError):
        return error.errno == errno.EIO
    return isinstance(error, DigestMismatchError | SizeMismatchError)


def is_kept(rooms: Rooms, reserved: IngestRecord) -> bool:
    """Whether there is something to go on from; who asks has its lock, or does not mind that it changes."""
    # Of a clock that was set back the age is negative: what seems to come from the future is as old.
    age = abs(time.time_ns() - reserved.started_ns)
    return reserved.resumable and age <= KEPT_NS and 0 < kept_bytes(rooms, reserved) <= reserved.size


def keep(rooms: Rooms, reserved: IngestRecord) -> bool:
    """Keep what came of a blob, and remove what else was made of it: whether there is anything to keep.

    Its digest locks are held, and nobody writes to it any more.
    """
    if not (is_kept(rooms, reserved) and _is_within_quota(rooms, reserved)):
        return False
    unpublish(rooms, reserved)
    for made in ("layer", "objects"):
        _core.remove_tree(_directory(rooms, reserved), made)
    return True


def end_failed(rooms: Rooms, wants: Sequence[Want], ids: Sequence[str], error: BaseException) -> None:
    """End the ingests of a transfer that failed, whose locks are held: keep their bytes, or leave nothing."""
    keeps = says_nothing_of_bytes(error)
    for want in wants:
        if want.ingest is not None:
            try:
                (want.ingest.leave if keeps else want.ingest.abort)()
            except OSError as failure:
                error.add_note(f"nothing is kept of {want.descriptor.digest}: {failure}")
    for ingest_id in ids:
        reserved = rooms.database.ingests.find(ingest_id)
        if reserved is not None:
            with _alone(rooms, reserved):
                if not (keeps and keep(rooms, reserved)):
                    undo(rooms, reserved)


def find_kept(rooms: Rooms, wants: Sequence[Want]) -> list[str | None]:
    """For each want the ingest of its namespace to go on from, if one was kept; their transfer locks are held.

    What else is left of their digests in this namespace ends here: nothing is kept twice.
    """
    own: dict[str, list[IngestRecord]] = {}
    for reserved in rooms.database.ingests.list():
        if reserved.namespace == rooms.namespace:
            own.setdefault(reserved.digest, []).append(reserved)
    return [_choose(rooms, want, own.get(str(want.descriptor.digest), [])) for want in wants]


def reserve(rooms: Rooms, tables: Tables, wants: Sequence[Want], kept: Sequence[str | None]) -> list[str]:
    """Reserve wants, in a transaction, under the ids that were kept or new ones; their transfer locks are held."""
    ids = [found or os.urandom(16).hex() for found in kept]
    for want, ingest_id in zip(wants, ids, strict=True):
        tables.ingests.delete(ingest_id)
        tables.ingests.add(
            ingest_id,
            namespace=rooms.namespace,
            digest=str(want.descriptor.digest),
            diff_id=want.diff_id,
            size=want.descriptor.size,
            resumable=want.resumable and want.keep and not want.is_stored,
        )
    return ids


def make_room(rooms: Rooms, *, beside: Container[str]) -> Iterator[IngestRecord]:
    """End what is left in the namespace of broken-off pulls, oldest first and one at a time, but for some digests."""
    for reserved in rooms.database.ingests.list():
        if reserved.namespace != rooms.namespace or reserved.digest in beside:
            continue
        with ExitStack() as held:
            if take_locks(_locks(rooms, rooms.namespace, [reserved]), held) is not None:
                continue
            # Looked up again: its writer may have ended well in the meantime.
            if (left := rooms.database.ingests.find(reserved.id)) is None:
                continue
            with _alone(rooms, left):
                undo(rooms, left)
        yield reserved


def find_left(rooms: Rooms, tables: Tables, namespace: str, held: ExitStack) -> list[IngestRecord] | None:
    """All reservations of a namespace, in a transaction, their locks taken; None where one has a writer that lives."""
    found = [reserved for reserved in tables.ingests.list() if reserved.namespace == namespace]
    return None if take_locks(_locks(rooms, namespace, found), held) is not None else found


def forget(rooms: Rooms, ended: Sequence[IngestRecord]) -> None:
    """Remove from disk what reservations left there that have ended; their transfer locks are held still."""
    for reserved in ended:
        with _alone(rooms, reserved):
            unpublish(rooms, reserved)
        discard(rooms, reserved.id)


def kept_bytes(rooms: Rooms, reserved: IngestRecord) -> int:
    """How many bytes of it are there."""
    try:
        found = (_directory(rooms, reserved) / "data").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _choose(rooms: Rooms, want: Want, found: Sequence[IngestRecord]) -> str | None:
    chosen = None
    for reserved in found:
        with _alone(rooms, reserved):
            if chosen is None and want.resumable and want.keep and not want.is_stored and keep(rooms, reserved):
                chosen = reserved.id
            else:
                undo(rooms, reserved)
    return chosen


@contextmanager
def _alone(rooms: Rooms, reserved: IngestRecord) -> Iterator[None]:
    """Nobody names or records the same meanwhile; waited for, since it takes milliseconds."""
    with ExitStack() as held:
        hold(digest_locks(rooms, reserved.digest, reserved.diff_id), held)
        yield


def _locks(rooms: Rooms, namespace: str, found: Sequence[IngestRecord]) -> list[_core.FileLock]:
    return transfer_locks(
        rooms, namespace, *(name for reserved in found for name in (reserved.digest, reserved.diff_id))
    )


def _is_within_quota(rooms: Rooms, reserved: IngestRecord) -> bool:
    usage = rooms.database.usage
    try:
        limit = usage.quota(reserved.namespace)
    except NotFoundError:
        return False  # its namespace is gone
    return limit is None or usage.charged(reserved.namespace) + usage.reserved(reserved.namespace) <= limit


def _directory(rooms: Rooms, reserved: IngestRecord) -> Path:
    return rooms.root / INGESTS / reserved.id
