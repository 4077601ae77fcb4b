"""Uploads: blobs sent to a repository in parts, kept over restarts, and made the namespace's at their end."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import ConflictError, DeadlineError, NotFoundError, PyctrdError, QuotaError
from pyctrd.flows.recover import digest_locks, hold, transfer_locks, undo
from pyctrd.oci.digest import Digest

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.database import Tables
    from pyctrd.metadata.uploads import UploadRecord

# What a blob is called of which a manifest will say what it is.
BLOB_MEDIA_TYPE = "application/octet-stream"
# Whoever brings the same blob into the namespace has its lock: another upload for milliseconds, a pull for as long as
# its registry takes.
LOCK_WAIT_SECONDS = 60.0
# Of bytes whose number is not told before, so many are held against a quota ahead.
RESERVE_BYTES = 16 << 20
# Uploads between two requests that stay open, so that what came need not be read again to be hashed: five descriptors
# each.
MAX_OPEN = 64
# A namespace whose uploads are held is not removed, and a descriptor is a descriptor.
IDLE_SECONDS = 60.0
# Of one namespace: a client has a handful; what is begun and left takes a row and a directory for a day.
MAX_UPLOADS = 10_000


def commit_upload(
    rooms: Rooms,
    upload: _core.Upload,
    upload_id: str,
    digest: str,
    *,
    media_type: str,
    record: Callable[[Tables], None],
) -> None:
    """Verify what was sent, give it its name, and record it: the namespace has it then.

    Args:
        rooms: The engine's rooms.
        upload: The bytes.
        upload_id: Its id, which is free as an ingest's.
        digest: What they must be.
        media_type: What they are.
        record: Records more of it, in the same transaction.

    Raises:
        DigestMismatchError: They are something else.
        QuotaError: The namespace may not have so much.
        DeadlineError: Somebody else brings the same in, and does not come to an end.
        OSError: The disk.
    """
    upload.verify(digest)
    size = upload.size
    namespace, database = rooms.namespace, rooms.database

    def record_all(tx: Tables) -> None:
        tx.content.add(namespace, digest, size=size, media_type=media_type, source="")
        tx.uploads.delete(upload_id)
        record(tx)

    with rooms.arrival_lock(shared=True), ExitStack() as held:
        _wait_for(transfer_locks(rooms, namespace, digest), digest, held)
        with database.write() as tx:
            found = tx.content.find(namespace, digest)
            if found is not None and found.is_stored:  # pinned where it is looked
                record_all(tx)
                return
        with database.note() as tx:  # durable before anything gets a name
            tx.uploads.reserve(upload_id, 0)  # it is the ingest's from now on
            tx.usage.admit(namespace, {digest: size})
            tx.ingests.add(upload_id, namespace=namespace, digest=digest, diff_id=None, size=size)
        try:
            with ExitStack() as named:
                hold(digest_locks(rooms, digest), named)
                upload.publish(digest, durability=rooms.settings.durability, journal=database.log)
                with database.write() as tx:
                    tx.usage.admit(namespace, {digest: size})  # the quota may have been lowered
                    record_all(tx)
                    tx.ingests.delete(upload_id)
        except BaseException as error:
            upload.abort()
            with noted(error, "what was published"), ExitStack() as named:
                if (reserved := database.ingests.find(upload_id)) is not None:
                    hold(digest_locks(rooms, digest), named)
                    undo(rooms, reserved)
            raise


def _wait_for(locks: list[_core.FileLock], digest: str, held: ExitStack) -> None:
    for lock in locks:
        held.callback(lock.release)
        if not lock.acquire(timeout=LOCK_WAIT_SECONDS):
            raise DeadlineError(
                f"blob on its way: {digest}: another process brings it in",
                operation="commit",
                timeout_seconds=LOCK_WAIT_SECONDS,
            )


@contextmanager
def noted(error: BaseException, what: str) -> Iterator[None]:
    """Clean up after an error: what fails then is noted with it. Whoever opens the root next cleans up as well."""
    try:
        yield
    except (PyctrdError, OSError) as failure:
        error.add_note(f"{what} is left for the next to open the root: {failure}")


class Session:
    """One upload, held by one request."""

    def __init__(self, uploads: UploadSessions, record: UploadRecord, upload: _core.Upload) -> None:
        self._uploads = uploads
        self._rooms = uploads.rooms
        self._upload = upload
        self._reserved = record.reserved_bytes
        self.record = record
        self.size = upload.size
        self.idle_since = time.monotonic()
        self._over = False

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._over

    def expect(self, count: int) -> None:
        """Make sure that so many more bytes may come."""
        if self.size + count > self._reserved:
            self._reserve(self.size + count)

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        if self.size + len(data) > self._reserved:
            try:
                self._reserve(self.size + max(len(data), RESERVE_BYTES))
            except QuotaError:
                self._reserve(self.size + len(data))  # there is less room than is taken ahead
        self.size = self._upload.write(data)

    def _reserve(self, reserved: int) -> None:
        with self._rooms.database.note() as tx:
            tx.usage.admit_upload(self.record.namespace, reserved - self._reserved)
            tx.uploads.reserve(self.record.id, reserved)
        self._reserved = reserved

    def commit(self, digest: str) -> None:
        """Make it a blob of its repository; then it is over."""
        namespace, repository = self.record.namespace, self.record.repository
        try:
            commit_upload(
                self._rooms,
                self._upload,
                self.record.id,
                digest,
                media_type=BLOB_MEDIA_TYPE,
                record=lambda tx: tx.repositories.add_blob(namespace, repository, digest),
            )
        except BaseException as error:
            with noted(error, "the upload"):
                self.cancel()
            raise
        self._end()

    def cancel(self) -> None:
        """Give it up; then it is over."""
        if self._over:
            return
        self._end()
        with self._rooms.database.note() as tx:
            tx.uploads.delete(self.record.id)

    def _end(self) -> None:
        self._over = True
        self._upload.abort()  # of what is the namespace's by now, it leaves the record alone
        self._uploads.put_back(self)

    def release(self) -> None:
        """Let another request go on with it."""
        if self._over:
            return
        try:
            with self._rooms.database.note() as tx:  # something came, and no more is just coming
                tx.uploads.reserve(self.record.id, self.size)
            self._reserved = self.size
        finally:
            self.idle_since = time.monotonic()
            self._uploads.put_back(self)

    def leave(self) -> None:
        """Close it, and leave what came to whoever goes on."""
        self._upload.leave()


class UploadSessions:
    """The uploads of one namespace that this process works on. Thread-safe.

    Args:
        rooms: The rooms of an engine of that namespace.
    """

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._idle: OrderedDict[str, Session] = OrderedDict()

    def begin(self, repository: str, algorithm: str) -> str:
        """Record a new one: its id.

        Raises:
            ConflictError: The namespace has too many.
        """
        upload_id = os.urandom(16).hex()
        with self.rooms.database.note() as tx:
            if tx.uploads.count(self.rooms.namespace) >= MAX_UPLOADS:
                raise ConflictError(
                    f"too many uploads: expected at most {MAX_UPLOADS} that are not over",
                    kind="upload",
                    name=upload_id,
                    state="refused",
                )
            tx.uploads.add(upload_id, namespace=self.rooms.namespace, repository=repository, algorithm=algorithm)
        return upload_id

    def open(self, repository: str, upload_id: str) -> Session:
        """Go on with one.

        Raises:
            NotFoundError: There is none of that id in the repository.
            ConflictError: Another request, or another process, is at it.
        """
        with self._lock:
            if upload_id in self._busy:
                raise _busy(upload_id)
            self._busy.add(upload_id)
            known = self._idle.pop(upload_id, None)
        try:
            record = self._find(repository, upload_id)
            return known or Session(
                self, record, _core.Upload(str(self.rooms.root), upload_id, algorithm=record.algorithm)
            )
        except BaseException:
            with self._lock:
                self._busy.discard(upload_id)
            if known is not None:
                known.leave()
            raise

    def _find(self, repository: str, upload_id: str) -> UploadRecord:
        record = self.rooms.database.uploads.find(upload_id)
        if record is None or (record.namespace, record.repository) != (self.rooms.namespace, repository):
            raise NotFoundError(f"upload not found: {upload_id}", kind="upload", name=upload_id)
        return record

    def put_back(self, session: Session) -> None:
        """Take a session from a request that is done with it."""
        left = None
        with self._lock:
            self._busy.discard(session.record.id)
            if not session.is_over:
                self._idle[session.record.id] = session
                if len(self._idle) > MAX_OPEN:
                    left = self._idle.popitem(last=False)[1]
        if left is not None:
            left.leave()

    def leave_idle(self, seconds: float = IDLE_SECONDS) -> None:
        """Leave those to which nothing came for a while; what came is hashed again if they are gone on with."""
        until = time.monotonic() - seconds
        with self._lock:
            old = [self._idle.pop(name) for name, session in list(self._idle.items()) if session.idle_since < until]
        for session in old:
            session.leave()

    def close(self) -> None:
        """Leave all of them to another process."""
        with self._lock:
            idle, self._idle = self._idle, OrderedDict()
        for session in idle.values():
            session.leave()


def _busy(upload_id: str) -> ConflictError:
    return ConflictError(
        f"upload in use: {upload_id}: another request is at it",
        kind="upload",
        name=upload_id,
        state="in use",
        allowed="idle",
    )


def parse_algorithm(text: str) -> str:
    """The algorithm of a digest, or by its own name; sha256 for "".

    Raises:
        InvalidError: There is none such.
    """
    if not text:
        return "sha256"
    return Digest.parse(text).algorithm
