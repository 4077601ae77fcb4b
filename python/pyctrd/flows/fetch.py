"""Blobs and layers brought into the store: one download for a digest, whoever asks."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import (
    CancelledError,
    IntegrityError,
    PyctrdError,
    QuotaError,
    UnavailableError,
    UnreachableError,
    UnsafeArchiveError,
)
from pyctrd.flows.bodies import RETRY_PAUSE_SECONDS, Body, Connections, FileBody, Pace, feed_block, skip
from pyctrd.flows.log import logger
from pyctrd.flows.recover import digest_locks, discard, hold, take_locks, transfer_locks
from pyctrd.flows.resume import end_failed, find_kept, make_room, may_be_damage, reserve
from pyctrd.flows.threads import Changed, OwnThread
from pyctrd.flows.wants import Given, Want
from pyctrd.oci.media_types import layer_compression

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.bodies import Rates
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.database import Tables

# A body that breaks off is asked for again so often; each time after a longer pause.
MAX_BODY_RETRIES = 5
# A registry that asks for a longer pause has told the user something; it is not waited for.
RETRY_PAUSE_MAX_SECONDS = 60.0
# Each has locks and files open until all of them are recorded, at most eight: 1,024 descriptors are what most processes
# may have. Few images have as many layers.
MAX_CLAIMED = 100
# A body that breaks off with fewer has brought nothing on: a server that sends a byte at a time is given up.
MIN_PROGRESS_BYTES = 512
# Layers that are unpacked before the disk would have written anything are as fast without.
WRITE_BEHIND_FROM_BYTES = 16 << 20
# Smaller ones are there before it was seen how fast they come.
SPREAD_MIN_BYTES = 16 << 20
# What a disk says that is full, or has no more inodes; and a quota of the kernel's.
FULL = (errno.ENOSPC, errno.EDQUOT)


class _GoneError(Exception):
    """The last namespace that had a blob let go of it before this one had it for its own."""


class Fetch:
    """Brings wants in: claims each digest, transfers, and publishes and records the finished ones.

    A digest that another process is bringing into the same namespace is left for last; when that process is done it is
    looked up again, and is either present then or claimed here. No such lock is held while waiting for another, so two
    processes can never wait for each other.

    Args:
        rooms: The engine's rooms.
        is_present: Whether the store has all of a want already.
        record: Records a batch of published wants; in a transaction, while their locks are held.
        share: What the store may give of a shareable want; nothing by default. Called in the carriers' threads.
        watch: Called a few times a second while bytes arrive.
        watch_seconds: How often.
        charged: Whether the engine's namespace must have room for them; not for what is brought back to its owners.
        bodies: Taken for each blob while its bytes come, where several transfers share what may come at once.
        claims: Wants that have locks and files open at once.
        flushes: Whether what is recorded is durable when ``run`` returns; else with the caller's next ``write()``, and
            a power cut before that undoes all of it.
        publishing: Entered while what came gets its names, with where layers are until they have theirs.
    """

    def __init__(
        self,
        rooms: Rooms,
        *,
        is_present: Callable[[Want], bool],
        record: Callable[[Tables, Sequence[Want]], None],
        share: Callable[[Want], Given] | None = None,
        watch: Callable[[], None] | None = None,
        watch_seconds: float = 0.1,
        charged: bool = True,
        bodies: Connections | None = None,
        claims: int = MAX_CLAIMED,
        flushes: bool = True,
        publishing: Callable[[Mapping[str, Path]], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._rooms = rooms
        self._publishing = publishing
        self._flushes = flushes
        self._charged = charged
        self._is_present = is_present
        self._record = record
        self._share = share
        self._watch = watch
        self._watch_seconds = watch_seconds
        self._bodies = bodies
        self._claims = claims
        self._publishes = False

    def run(self, wants: Iterable[Want]) -> None:
        """Bring all of them in.

        Raises:
            QuotaError: All of them together are more than the namespace may have; none was asked for then.
            PyctrdError, OSError: The first failure; nothing of its batch is visible then.
        """
        pending = sorted(wants, key=lambda want: want.descriptor.size, reverse=True)
        busy: list[tuple[Want, _core.FileLock]] = []
        waited = False
        self._admit_all(pending)
        while pending:
            with ExitStack() as locks:
                claimed, taken = self._claim(pending[: self._claims], locks)
                if claimed:
                    self._bring(claimed)
            del pending[: self._claims]
            busy += taken
            if busy and not pending:
                self._wait_for(busy[0][1])
                pending, busy, waited = [want for want, _ in busy], [], True
        if waited and self._watch is not None:
            self._watch()  # what another has brought is there now, and nobody has told yet

    def _admit(self, tables: Tables, wants: Sequence[Want]) -> None:
        if self._charged:
            # One wanted twice comes once.
            sizes = {_charged_name(tables, self._rooms.namespace, want): want.descriptor.size for want in wants}
            tables.usage.admit(self._rooms.namespace, sizes)

    def _admit_all(self, wants: Sequence[Want]) -> None:
        try:
            self._admit(self._rooms.database, wants)
        except QuotaError:
            self._make_room(wants)

    def _make_room(self, wants: Sequence[Want]) -> None:
        """Let go of what broken-off pulls left, until the wants fit."""
        for _ in make_room(self._rooms, beside={str(want.descriptor.digest) for want in wants}):
            with suppress(QuotaError):
                return self._admit(self._rooms.database, wants)
        return self._admit(self._rooms.database, wants)

    def _claim(self, wants: Sequence[Want], locks: ExitStack) -> tuple[list[Want], list[tuple[Want, _core.FileLock]]]:
        """Those whose locks were free and that are really missing; and those that another has, with the lock."""
        claimed: list[Want] = []
        busy: list[tuple[Want, _core.FileLock]] = []
        for want in wants:
            if self._is_present(want):
                want.state = "present"
                continue
            own = transfer_locks(self._rooms, self._rooms.namespace, str(want.descriptor.digest), want.diff_id)
            if (taken := take_locks(own, locks)) is not None:
                busy.append((want, taken))
                continue
            if self._is_present(want):  # it came while we looked
                want.state = "present"
            else:
                claimed.append(want)
        return claimed, busy

    def _wait_for(self, lock: _core.FileLock) -> None:
        while not lock.acquire(timeout=self._watch_seconds):
            if self._watch is not None:
                self._watch()
        lock.release()

    def _bring(self, wants: list[Want]) -> None:
        relieved = False
        while True:
            try:
                return self._transfer(wants)
            except _GoneError:
                self._share = None
            except OSError as error:
                # What was removed, and is there still, may be all the room that lacks. What was not flushed is not
                # tried again: some of it has its name by then, and would be taken for flushed.
                if relieved or self._publishes or error.errno not in FULL or not self._make_disk_room():
                    raise
                relieved = True
            self._publishes = False
            for want in wants:
                want.start_again()

    def _make_disk_room(self) -> bool:
        try:
            return self._rooms.removal.finish()
        except OSError:
            return False  # what failed before is the one to be told

    def _transfer(self, wants: list[Want]) -> None:
        kept = find_kept(self._rooms, wants)
        with self._rooms.database.note() as tx:  # durable before anything gets a name
            self._admit(tx, wants)
            ids = reserve(self._rooms, tx, wants, kept)
        try:
            with self._write_behind(wants):
                _Carriers(self._rooms, wants, ids, self._share, self._bodies).run(self._watch, self._watch_seconds)
            self._rooms.stages.add(want.ingest.stages() for want in wants if want.ingest is not None)
            self._commit(wants, ids)
        except BaseException as error:
            end_failed(self._rooms, wants, ids, error)
            raise

    def _write_behind(self, wants: Sequence[Want]) -> AbstractContextManager[None]:
        """Have the disk write many files while they come; blocks are one, and see to it themselves."""
        unpacked = [want for want in wants if want.unpack and not want.known]
        if (
            sum(want.descriptor.size for want in unpacked) < WRITE_BEHIND_FROM_BYTES
            or self._rooms.settings.durability == "none"
            or all((want.form or self._rooms.snapshotter.form) == "blocks" for want in unpacked)
        ):
            return nullcontext()
        return self._rooms.write_behind.during()

    def _commit(self, wants: Sequence[Want], ids: Sequence[str]) -> None:
        """Publish with one flush; then, in one transaction, record and end the reservations."""
        ingests = [want.ingest for want in wants if want.ingest is not None]
        names = [name for want in wants for name in (str(want.descriptor.digest), want.diff_id)]
        with ExitStack() as held:
            hold(digest_locks(self._rooms, *names), held)  # in their order, so that no two wait for each other
            database = self._rooms.database
            self._publishes = True
            with self._publishing(self._staged(wants, ids)) if self._publishing is not None else nullcontext():
                _core.publish(
                    str(self._rooms.root),
                    ingests,
                    durability=self._rooms.settings.durability,
                    journal=database.log,
                )
            with database.write() if self._flushes else database.note() as tx:
                # Looked at again in the transaction that keeps it, or it could go in between.
                if not _are_there(self._rooms, tx, wants):
                    raise _GoneError
                self._admit(tx, wants)  # the quota may have been lowered
                self._record(tx, wants)
                for ingest_id in ids:
                    tx.ingests.delete(ingest_id)
        for ingest in ingests:
            ingest.abort()  # what was kept until now, lest it had to be fetched again

    def _staged(self, wants: Sequence[Want], ids: Sequence[str]) -> dict[str, Path]:
        """Where the layers are that are to get their names, by diff_id."""
        return {
            want.diff_id: self._rooms.layers.staged(ingest_id)
            for want, ingest_id in zip(wants, ids, strict=True)
            if want.diff_id is not None and want.ingest is not None and want.unpack and not want.known
        }


def _are_there(rooms: Rooms, tx: Tables, wants: Sequence[Want]) -> bool:
    """Whether what was given can be: what others have is still there, and what is the namespace's own is its own."""
    claims = [str(want.descriptor.digest) for want in wants if want.given == "layer"]
    if len(set(claims)) != len(claims):
        return False  # one blob cannot be two layers: its bytes will say which
    return all(_is_there(rooms, tx, want) for want in wants if want.given != "nothing")


def _is_there(rooms: Rooms, tx: Tables, want: Want) -> bool:
    digest = str(want.descriptor.digest)
    if want.given == "layer":
        return want.diff_id is not None and tx.layers.belongs_to(rooms.namespace, want.diff_id)
    return tx.content.is_stored(digest) if want.keep else tx.content.is_recorded(digest)


def _charged_name(tables: Tables, namespace: str, want: Want) -> str:
    """By which record a namespace is charged for a want: of a layer that was made from parts, that is its tar's."""
    if want.ranges is not None and want.diff_id is not None and tables.content.find(namespace, want.diff_id):
        return want.diff_id
    return str(want.descriptor.digest)


class _Carriers:
    """A few threads that carry bodies into ingests, largest first."""

    def __init__(
        self,
        rooms: Rooms,
        wants: Sequence[Want],
        ids: Sequence[str],
        share: Callable[[Want], Given] | None,
        bodies: Connections | None,
    ) -> None:
        self._rooms = rooms
        self._share = share
        self._connections = bodies or Connections(rooms.settings.concurrency)
        self._queue = list(zip(wants, ids, strict=True))[::-1]
        self._wants = wants
        self._changed = Changed()
        self._running = 0
        self._error: BaseException | None = None
        self._stopped = threading.Event()

    def run(self, watch: Callable[[], None] | None, seconds: float) -> None:
        """Start the threads and wait for the last; raises the first failure."""
        count = min(len(self._queue), self._rooms.settings.concurrency)
        self._running = count
        threads = [OwnThread(self._work, name=f"pyctrd-pull-{i}") for i in range(count)]
        try:
            self._start(threads)
            self._wait(watch, seconds)
        except BaseException:
            # Ctrl-C lands here, in the main thread; the carriers sit in recv and must be woken.
            self._stop()
            raise
        finally:
            for thread in threads:
                thread.finish()
        if self._error is not None:
            raise self._error

    def _start(self, threads: Sequence[threading.Thread]) -> None:
        """Start them, or as many as can be: those carry what the others would have."""
        for started, thread in enumerate(threads):
            try:
                thread.start()
            except RuntimeError as error:  # no memory for a stack, or no more processes for this user
                with self._changed:
                    self._running -= len(threads) - started
                if started == 0:
                    raise OSError(errno.EAGAIN, "no thread can be started", thread.name) from error
                return

    def _wait(self, watch: Callable[[], None] | None, seconds: float) -> None:
        ended = False
        while not ended:
            with self._changed:
                ended = self._running == 0
                if not ended:
                    self._changed.wait(seconds if watch is not None else None)
            if watch is not None:
                watch()  # after the end too, which may have come before anybody waited

    def _work(self) -> None:
        try:
            while (item := self._next()) is not None:
                with self._connections.turn(self._stopped):
                    self._carry(*item)
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread, whatever it is
            with self._changed:
                if self._error is None and not (self._stopped.is_set() and isinstance(error, CancelledError)):
                    self._error = error
            self._stop()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _next(self) -> tuple[Want, str] | None:
        with self._changed:
            return None if self._stopped.is_set() or not self._queue else self._queue.pop()

    def _stop(self) -> None:
        """End every transfer under way; the ingests are aborted by the caller once the threads are gone."""
        self._stopped.set()
        for want in self._wants:
            if (body := want.body) is not None:
                body.close()
            if (ingest := want.ingest) is not None:
                ingest.suspend()

    def _carry(self, want: Want, ingest_id: str) -> None:
        want.state = "pulling"
        if want.known and not want.keep:
            want.given, want.source = "layer", "store"
        elif self._share is not None and want.shareable and not want.local:
            want.given = self._share(want)
        if want.given != "nothing":
            discard(self._rooms, ingest_id)  # of what is there, no part need be kept
        if want.given not in ("all", "layer"):
            self._carry_through(want, ingest_id)
        want.state = "done"

    def _carry_through(self, want: Want, ingest_id: str) -> None:
        if want.ranges is not None and not want.is_stored and self._carry_parts(want, ingest_id):
            return
        ingest = self._begin(want, ingest_id)
        try:
            self._fill(want, ingest)
        except (IntegrityError, OSError) as error:
            if not ((ingest.kept or want.is_spread) and may_be_damage(error)):
                raise
            want.whole = True  # a server may give wrong parts of what it gives rightly whole
            logger.debug("begun anew: %s: not all that was put together is of it: %s", want.descriptor.digest, error)
            ingest.abort()
            self._fill(want, self._begin(want, ingest_id))

    def _carry_parts(self, want: Want, ingest_id: str) -> bool:
        """Whether the layer could be made from parts of its blob. What speaks against that is judged by the whole."""
        from pyctrd.flows.parts import choose_parts  # for layers with a table of contents alone

        try:
            parts = choose_parts(self._rooms, want, self._stopped)
            if parts is None:
                return False
            with parts:
                parts.fetch(self._stopped)
                ingest = self._begin(want, ingest_id, rebuilt=True)
                parts.rebuild(ingest)
            want.result = ingest.finish()
        except (PyctrdError, OSError) as error:
            if self._stopped.is_set() or isinstance(error, CancelledError):
                raise
            logger.debug("layer %s is taken whole: %s", want.descriptor.digest, error)
            if want.ingest is not None:
                want.ingest.abort()
                want.ingest = None
            return False
        want.rebuilt = True
        return True

    def _begin(self, want: Want, ingest_id: str, *, rebuilt: bool = False) -> _core.Ingest:
        """An ingest, which goes on from what an earlier one of its id left, if one did.

        Into one of a layer that is rebuilt its tar comes, as if that were the blob: its diff_id is the only word on it.
        """
        settings = self._rooms.settings
        unpacks = want.unpack and not want.known  # of a layer that is there, it need only be seen that the blob is it
        ingest = _core.Ingest(
            str(self._rooms.root),
            ingest_id,
            digest=str(want.diff_id if rebuilt else want.descriptor.digest),
            size=None if rebuilt else want.descriptor.size,
            diff_id=want.diff_id,
            unpack=unpacks,
            form=(want.form or self._rooms.snapshotter.form) if unpacks else "tree",
            content_digests=settings.content_digests,
            # What a later table is looked up in.
            file_digests=want.ranges is not None or settings.content_digests,
            keep_blob=want.keep and not want.is_stored,
            resumable=want.resumable and want.keep and not want.is_stored,
            limits=settings.limits,
        )
        want.ingest = ingest
        if self._stopped.is_set():
            raise CancelledError("cancelled")
        return ingest

    def _fill(self, want: Want, ingest: _core.Ingest) -> None:
        """Read what is there, have the rest brought, and wait until all of it was checked."""
        ingest.replay()
        self._carry_rest(want, ingest)
        try:
            want.result = ingest.finish()
        except UnsafeArchiveError as error:
            raise of_layer(error, str(want.descriptor.digest)) from error
        _tell_oddities(want, want.result)

    def _carry_rest(self, want: Want, ingest: _core.Ingest) -> None:
        retries = 0
        while not (before := ingest.received) or before < want.descriptor.size:
            try:
                self._carry_body(want, ingest)
                break
            except UnavailableError as error:
                retries = 0 if ingest.received >= before + MIN_PROGRESS_BYTES else retries + 1
                pause = error.retry_after_seconds or RETRY_PAUSE_SECONDS * 2**retries
                hopeless = isinstance(error, UnreachableError) and ingest.received == ingest.kept
                if retries >= MAX_BODY_RETRIES or hopeless or pause > RETRY_PAUSE_MAX_SECONDS:
                    raise
                if self._stopped.wait(pause):
                    raise CancelledError("cancelled") from error

    def _carry_body(self, want: Want, ingest: _core.Ingest) -> None:
        body = self._open(want, ingest.received)
        want.body = body
        if want.given == "nothing":
            want.source = body.source
        try:
            if self._stopped.is_set():
                raise CancelledError("cancelled")
            most = self._connections_of(want) if body.offset == ingest.received else 1
            skip(body, ingest.received)
            self._feed(want, ingest, body, most)
        finally:
            want.body = None
            body.close()

    def _connections_of(self, want: Want) -> int:
        """How many a want may come over."""
        if want.whole or want.is_stored or not want.resumable or want.descriptor.size < SPREAD_MIN_BYTES:
            return 1
        return min(self._rooms.settings.layer_connections, self._rooms.settings.concurrency)

    def _feed(self, want: Want, ingest: _core.Ingest, body: Body, most: int) -> None:
        """Hand over what comes, and see whether it would come faster over more connections."""
        pace = Pace(self._connections)
        more = True
        while more:
            before = ingest.received
            more = feed_block(ingest, body)
            self._connections.count(ingest.received - before)
            if most > 1 and more:
                rates = pace.note(ingest.received - before, ingest.backlog)
                more = rates is None or not self._spread(want, ingest, body, pace, rates, most)

    def _spread(self, want: Want, ingest: _core.Ingest, body: Body, pace: Pace, rates: Rates, most: int) -> bool:
        """Try more connections; whether they brought the rest."""
        from pyctrd.flows.ranges import Spread, gives_ranges

        if not gives_ranges(body):
            return False
        size = want.descriptor.size
        spread = Spread(ingest, body, size=size, connections=self._connections, pace=pace, rates=rates, most=most)
        want.body = spread
        try:
            if self._stopped.is_set():
                raise CancelledError("cancelled")
            return spread.carry()
        finally:
            want.is_spread = want.is_spread or spread.is_proven
            want.body = body

    def _open(self, want: Want, offset: int) -> Body:
        if want.given == "blob":
            return FileBody(self._rooms.blobs.path(want.descriptor.digest), offset)
        return want.opens(offset)


def _tell_oddities(want: Want, result: _core.Ingested) -> None:
    """Log what is odd of a layer and no reason to refuse it: its bytes are the ones that the manifest names."""
    named = layer_compression(want.descriptor.media_type)
    if named is not None and named != result.compression:
        logger.debug("layer %s: media type says %s, content is %s", result.digest, named, result.compression)
    if result.skipped_xattrs:
        logger.debug("layer %s: %d extended attributes were not set", result.digest, result.skipped_xattrs)


def of_layer(error: UnsafeArchiveError, digest: str) -> UnsafeArchiveError:
    """The error with the layer's name: the archive does not know its own."""
    entry = f"{error.entry!r:.200}: "[1:] if error.entry else ""
    return UnsafeArchiveError(
        f"unsafe archive: layer {digest}: {entry}{error.reason} (at byte {error.offset})",
        entry=error.entry,
        offset=error.offset,
        reason=error.reason,
        limit=error.limit,
        hint=error.hint,
    )
