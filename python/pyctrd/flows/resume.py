"""Resume: what came of a blob whose pull broke off is kept for a day, and a later pull goes on from there.

What is kept is a reservation and the bytes in its staging directory, nothing more. Bytes that nobody hashed to their
end prove nothing: only the namespace that brought them in goes on from them, they are read through all stages again
with the rest behind them, and the whole is verified. So it does not matter what became of them meanwhile.

Whoever has the digest's lock knows that nobody writes to them.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from pyctrd import _core
from pyctrd.errors import (
    CancelledError,
    DigestMismatchError,
    NotFoundError,
    PyctrdError,
    RegistryError,
    SizeMismatchError,
)
from pyctrd.flows.recover import digest_names, discard, lock_name, take_locks, undo, unpublish

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.fetch import Want
    from pyctrd.flows.rooms import Rooms
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
    return reserved.resumable and age <= KEPT_NS and 0 < _kept_bytes(rooms, reserved) <= reserved.size


def keep(rooms: Rooms, reserved: IngestRecord, *, locked: Container[str]) -> bool:
    """Keep what came of a blob, and remove what else was made of it: whether there is anything to keep.

    Its digest's lock is held, and nobody writes to it any more.
    """
    if not (is_kept(rooms, reserved) and _is_within_quota(rooms, reserved)):
        return False
    unpublish(rooms, reserved, locked=locked)
    _core.remove_tree(_directory(rooms, reserved), "layer")
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
        if reserved is None:
            continue
        if not (keeps and keep(rooms, reserved, locked=digest_names(reserved.digest, reserved.diff_id))):
            undo(rooms, reserved)


def find_kept(rooms: Rooms, wants: Sequence[Want]) -> list[str | None]:
    """For each want the ingest of its own namespace to go on from, if one was kept; their locks are held.

    What else is left of their digests in this namespace ends here: nothing is kept twice.
    """
    own: dict[str, list[IngestRecord]] = {}
    for reserved in rooms.database.ingests.list():
        if reserved.namespace == rooms.namespace:
            own.setdefault(reserved.digest, []).append(reserved)
    return [_choose(rooms, want, own.get(str(want.descriptor.digest), [])) for want in wants]


def reserve(rooms: Rooms, tables: Tables, wants: Sequence[Want], kept: Sequence[str | None]) -> list[str]:
    """Reserve wants, in a transaction, under the ids that were kept or new ones; their locks are held."""
    digests = {str(want.descriptor.digest) for want in wants}
    ids = [found or os.urandom(16).hex() for found in kept]
    for other in tables.ingests.list():
        if other.id in ids:
            tables.ingests.delete(other.id)
        elif other.digest in digests:
            tables.ingests.abandon(other.id)
    for want, ingest_id in zip(wants, ids, strict=True):
        tables.ingests.add(
            ingest_id,
            namespace=rooms.namespace,
            digest=str(want.descriptor.digest),
            diff_id=want.diff_id,
            size=want.descriptor.size,
            resumable=want.resumable and not want.is_stored,
        )
    return ids


def make_room(rooms: Rooms, *, beside: Container[str]) -> Iterator[IngestRecord]:
    """End what is left in the namespace of broken-off pulls, oldest first and one at a time, but for some digests."""
    for reserved in rooms.database.ingests.list():
        if reserved.namespace != rooms.namespace or reserved.digest in beside:
            continue
        with ExitStack() as held:
            with rooms.database.write() as tx:
                found = tx.ingests.find(reserved.id)
                left = None if found is None else _find_left(rooms, [found], held)
                if left is None:
                    continue
                tx.ingests.delete(reserved.id)
            forget(rooms, left)
        yield reserved


class Left(NamedTuple):
    """Reservations whose writers are gone.

    Attributes:
        reserved: Those.
        locked: Of the locks of their digests those that are held; another process has the rest.
    """

    reserved: list[IngestRecord]
    locked: set[str]


def find_left(rooms: Rooms, tables: Tables, namespace: str, held: ExitStack) -> Left | None:
    """All reservations of a namespace, in a transaction; None where one of them has a writer that lives."""
    return _find_left(rooms, [found for found in tables.ingests.list() if found.namespace == namespace], held)


def forget(rooms: Rooms, left: Left) -> None:
    """Remove from disk what reservations left there that have ended; their locks are still held."""
    for reserved in left.reserved:
        unpublish(rooms, reserved, locked=left.locked)
        discard(rooms, reserved.id)


def _find_left(rooms: Rooms, found: Sequence[IngestRecord], held: ExitStack) -> Left | None:
    names = {name for reserved in found for name in digest_names(reserved.digest, reserved.diff_id)}
    locked = _take_free(rooms, names, held)
    if all(reserved.abandoned or lock_name(reserved.digest) in locked for reserved in found):
        return Left(list(found), locked)
    return None


def _take_free(rooms: Rooms, names: Iterable[str], held: ExitStack) -> set[str]:
    return {name for name in sorted(names) if take_locks(rooms, [name], held) is None}


def _choose(rooms: Rooms, want: Want, found: Sequence[IngestRecord]) -> str | None:
    chosen = None
    own = set(digest_names(str(want.descriptor.digest), want.diff_id))
    for reserved in found:
        with ExitStack() as held:
            # Of one that claimed to be another layer, that layer's lock is needed as well.
            others = set(digest_names(reserved.digest, reserved.diff_id)) - own
            locked = own | _take_free(rooms, others, held)
            takes = chosen is None and want.resumable and not want.is_stored
            if takes and keep(rooms, reserved, locked=locked):
                chosen = reserved.id
                continue
            with rooms.database.write() as tx:
                tx.ingests.delete(reserved.id)
            forget(rooms, Left([reserved], locked))
    return chosen


def _is_within_quota(rooms: Rooms, reserved: IngestRecord) -> bool:
    usage = rooms.database.usage
    try:
        limit = usage.quota(reserved.namespace)
    except NotFoundError:
        return False  # its namespace is gone
    return limit is None or usage.charged(reserved.namespace) + usage.reserved(reserved.namespace) <= limit


def _kept_bytes(rooms: Rooms, reserved: IngestRecord) -> int:
    try:
        found = (_directory(rooms, reserved) / "data").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _directory(rooms: Rooms, reserved: IngestRecord) -> Path:
    return rooms.root / "content" / "ingest" / reserved.id
