"""Ranges: one blob over several connections, where one is what it waits for and more of them bring it sooner.

A blob begins to come over one connection. If that is too slow (`Pace`), another takes a range from some way ahead on,
and the first goes on meanwhile. Did more come in all, then as many again are tried, until they gain nothing or are as
many as may be; if not, the first goes on alone, and nothing is lost but what came ahead. Once more are known to pay,
the first is closed, and all of them take ranges of a few megabytes, in their order.

What comes before its turn is held in blocks of the pipeline's supply, whose number is bounded for the whole process.
The range whose turn it is gets blocks of those that its blob is owed, so that no blob waits for another. The ingest
gets the bytes in their order: what is on disk, what is told, and what another process goes on from is always a prefix.
"""

from __future__ import annotations

import errno
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeGuard

from pyctrd import _core
from pyctrd.errors import NotFoundError, RegistryError, UnavailableError
from pyctrd.flows.bodies import RETRY_PAUSE_SECONDS, Rates, feed_block
from pyctrd.flows.log import logger
from pyctrd.registry.body import BlobBody, RangeRefusedError

if TYPE_CHECKING:
    from pyctrd.flows.bodies import Body, Connections, Pace

# Of six connections all that is held at once is under the 32 MiB that there are; and at 20 MB/s, a request for each of
# them with 50 ms of latency costs a fifth of a connection's time. Of the last ones each connection gets two.
RANGE_MAX_BYTES = 16 * _core.BLOCK_BYTES
RANGE_MIN_BYTES = 2 * _core.BLOCK_BYTES
# Where the second connection begins: so far ahead that by then it is known whether it pays.
AHEAD_SECONDS = 0.8
AHEAD_MIN_BYTES = 4 * _core.BLOCK_BYTES
AHEAD_MAX_BYTES = 96 * _core.BLOCK_BYTES
# A trial's length, from the first bytes of its last connection on; and what it may take until these come.
TRIAL_SECONDS = 0.4
BEGIN_SECONDS = 3.0
# What part of a connection's bytes must have come for it to be kept; of a line that is full, it gains less from others.
PAYS_FROM = 0.4
# Less than this, or what comes in this time, is there before another connection has paid for its beginning.
WORTH_BYTES = 32 * _core.BLOCK_BYTES
WORTH_SECONDS = 1.0
# A range that breaks off with fewer has brought nothing on: its connection is given up.
PROGRESS_MIN_BYTES = 512
# How often one that waits for blocks or bytes looks again.
TICK_SECONDS = 0.05


@dataclass(eq=False, slots=True)
class _Range:
    """A run of bytes that one connection brings: ``at`` is the next byte to come; what came is in ``blocks``."""

    at: int
    end: int
    blocks: deque[tuple[_core.Block, int]] = field(default_factory=deque)


@dataclass(eq=False, slots=True)
class _Reader:
    """One connection's thread; ``is_lent`` where its place has to be given back."""

    is_lent: bool
    thread: threading.Thread | None = None
    body: BlobBody | None = None
    is_opening: bool = False
    has_begun: bool = False


class Ahead:
    """Connections that bring what stands ahead of a blob's first one, and what they brought.

    ``next_block`` and ``grow`` are for the thread that has the ingest.

    Args:
        ingest: Gives the blocks.
        first: The blob's first body, which says how ranges are asked for.
        start: The first byte that is brought.
        size: The blob's.
        connections: Of its place.
    """

    def __init__(
        self, ingest: _core.Ingest, first: BlobBody, *, start: int, size: int, connections: Connections
    ) -> None:
        self._ingest = ingest
        self._first = first
        self.start = start
        self._size = size
        self._connections = connections
        self._changed = threading.Condition()
        self._next = start
        self._ranges: deque[_Range] = deque()  # in their order, without gaps
        self._left: list[_Range] = []  # of these, what nobody brings any more
        self._turn: _Range | None = None
        self._readers: list[_Reader] = []
        self._wanted = 0
        self._failure: Exception | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._readers)

    @property
    def unasked(self) -> int:
        """Bytes that no connection has taken on."""
        return self._size - self._next

    @property
    def have_begun(self) -> bool:
        """Whether each of the connections has brought something."""
        with self._changed:
            return all(reader.has_begun for reader in self._readers)

    def grow(self, count: int) -> int:
        """Add connections, as far as there are places that nobody waits for: how many."""
        for started in range(count):
            if not self._connections.take_spare():
                return started
            if not self._start(_Reader(is_lent=True)):
                self._connections.give_back()
                return started
        return count

    def take_over(self, position: int) -> None:
        """Bring what stands in front as well, from a byte on, over one more connection: the first body's place is free.

        It is a moment's worth, and all of it is somebody's turn at once.
        """
        with self._changed:
            spans = [(at, min(at + RANGE_MAX_BYTES, self.start)) for at in range(position, self.start, RANGE_MAX_BYTES)]
            self._left[:0] = [_Range(at, end) for at, end in spans]
            self._ranges.extendleft(reversed(self._left[: len(spans)]))
            self.start = position
        self._start(_Reader(is_lent=False))

    def shrink(self, count: int) -> None:
        """Go on with so many; each of the others ends with its range."""
        with self._changed:
            self._wanted = min(self._wanted, count)

    def next_block(self) -> tuple[_core.Block, int] | None:
        """The next bytes in the blob's order; None where there are none after a moment.

        Raises:
            UnavailableError: No connection is left that would bring them.
            PyctrdError, OSError: What ended the ingest.
        """
        with self._changed:
            while self._ranges and self._ranges[0].at == self._ranges[0].end and not self._ranges[0].blocks:
                self._ranges.popleft()
            before, self._turn = self._turn, self._ranges[0] if self._ranges else None
            if self._turn is not before:
                self._changed.notify_all()  # who brings it need not wait for a block any more
            if self._turn is None or not self._turn.blocks:
                if not self._readers:
                    raise _as_unavailable(self._failure)
                self._changed.wait(TICK_SECONDS)
            return self._turn.blocks.popleft() if self._turn is not None and self._turn.blocks else None

    def close(self) -> None:
        """End all of them, from any thread; idempotent. What came and was not taken is let go of."""
        with self._changed:
            self._closed = True
            self._ranges.clear()
            self._left.clear()
            self._turn = None
            readers = list(self._readers)
            self._changed.notify_all()
        for reader in readers:
            if (body := reader.body) is not None:
                body.close()

    def join(self) -> None:
        """Wait until none of them has anything of the ingest, after ``close``.

        One that waits for an answer has nothing, and is left to itself: a registry may take minutes to say nothing.
        """
        with self._changed:
            threads = [reader.thread for reader in self._readers if not reader.is_opening]
        for thread in threads:
            if thread is not None:
                thread.join()

    def _start(self, reader: _Reader) -> bool:
        # A daemon: see `join`.
        reader.thread = threading.Thread(target=self._work, args=(reader,), name="pyctrd-range", daemon=True)
        with self._changed:
            self._readers.append(reader)
            self._wanted += 1
        try:
            reader.thread.start()
        except RuntimeError as error:  # no memory for a stack, or no more processes for this user
            with self._changed:
                self._readers.remove(reader)
                self._wanted -= 1
                self._failure = OSError(errno.EAGAIN, "no thread can be started", str(error))
            return False
        return True

    def _work(self, reader: _Reader) -> None:
        taken: _Range | None = None
        failure: Exception | None = None
        try:
            while (taken := self._take(reader)) is not None:
                self._read(reader, taken)
                self._put_back(taken)
        except Exception as error:  # noqa: BLE001 - told by `next_block`, if it leaves nobody to go on
            failure = error
            logger.debug("a range was given up: %s", error)
        finally:
            _shut(reader)
            with self._changed:
                if taken is not None:
                    self._put_back(taken)
                self._readers.remove(reader)
                self._wanted = min(self._wanted, len(self._readers))
                self._failure = failure or self._failure
                self._changed.notify_all()
            if reader.is_lent:
                self._connections.give_back()

    def _take(self, reader: _Reader) -> _Range | None:
        """What a connection is to bring next; None where it is to end."""
        with self._changed:
            others = len(self._readers) - 1
            returned = reader.is_lent and others and self._connections.is_wanted
            if self._closed or others >= self._wanted or returned:
                return None
            if self._left:
                return self._left.pop(0)
            if self._next >= self._size:
                return None
            share = (self._size - self._next) // (2 * len(self._readers))
            length = max(RANGE_MIN_BYTES, min(RANGE_MAX_BYTES, share - share % _core.BLOCK_BYTES))
            taken = _Range(self._next, min(self._next + length, self._size))
            self._next = taken.end
            self._ranges.append(taken)
            return taken

    def _put_back(self, taken: _Range) -> None:
        with self._changed:
            if taken.at < taken.end and not self._closed:
                self._left.append(taken)
                self._left.sort(key=lambda left: left.at)

    def _read(self, reader: _Reader, taken: _Range) -> None:
        """Bring a range, or what of it can be: another may have to be brought first."""
        opened_at = taken.at
        while taken.at < taken.end:
            if reader.body is None:
                opened_at = taken.at
                if not self._open(reader, taken):
                    return
            if (block := self._block(taken)) is None:
                _shut(reader)
                return
            try:
                self._fill(reader, taken, block)
            except UnavailableError:
                _shut(reader)
                if taken.at < opened_at + PROGRESS_MIN_BYTES:
                    raise
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, RETRY_PAUSE_SECONDS)
        _shut(reader)  # at its end its connection went back to the pool

    def _open(self, reader: _Reader, taken: _Range) -> bool:
        if not self._set_opening(reader, opening=True):
            return False
        body = None
        try:
            body = self._first.open_range(taken.at, taken.end, self._size)
        finally:
            if self._set_opening(reader, opening=False):
                reader.body = body
            elif body is not None:
                body.close()
        return reader.body is not None

    def _set_opening(self, reader: _Reader, *, opening: bool) -> bool:
        """Whether there is anybody left for whom to open it."""
        with self._changed:
            reader.is_opening = opening and not self._closed
            return not self._closed

    def _block(self, taken: _Range) -> _core.Block | None:
        """A free block, waited for; None where what is taken is not to be brought now."""
        while True:
            with self._changed:
                is_turn = taken is self._turn
                # Nobody brings what stands in front of it, and perhaps no block comes free before that was brought.
                is_early = not is_turn and self._left and self._left[0].at < taken.at
                if self._closed or is_early:
                    return None
            block = self._ingest.block() if is_turn else self._ingest.block_ahead()
            if block is not None:
                return block
            with self._changed:
                self._changed.wait(TICK_SECONDS)

    def _fill(self, reader: _Reader, taken: _Range, block: _core.Block) -> None:
        body, filled = reader.body, 0
        try:
            with block.view() as view:
                end = min(len(view), taken.end - taken.at)
                while filled < end:
                    with view[filled:end] as rest:
                        count = body.readinto(rest) if body is not None else 0
                    if count == 0:
                        raise UnavailableError("connection broke: a range ended too early")
                    filled += count
        finally:
            self._connections.count(filled)
            with self._changed:
                reader.has_begun = reader.has_begun or filled > 0
                taken.at += filled
                if filled and not self._closed:
                    taken.blocks.append((block, filled))
                    self._changed.notify_all()


@dataclass(slots=True)
class _Trial:
    """Whether more connections bring more.

    Attributes:
        before: How many there were.
        tried: How many there are.
        rates: What those before brought.
        deadline: When all must have begun.
        since: When they had; None until then. What follows is of that time.
        brought: Bytes of all connections.
        changes: Of their number.
    """

    before: int
    tried: int
    rates: Rates
    deadline: float
    since: float | None = None
    brought: int = 0
    changes: int = 0

    def begin(self, now: float, connections: Connections) -> None:
        """All have begun: count from now on."""
        self.since, self.brought, self.changes = now, connections.brought, connections.changes


class Spread:
    """A blob's rest, over as many connections as pay. ``carry`` is for one thread, ``close`` for any.

    Args:
        ingest: Gets the bytes.
        first: The body that brought them so far.
        size: The blob's.
        connections: Of its place.
        pace: Of the blob.
        rates: What it was last.
        most: Connections that the blob may have.

    Attributes:
        is_proven: More than one brought more: some of what the ingest has came ahead.
    """

    def __init__(
        self,
        ingest: _core.Ingest,
        first: BlobBody,
        *,
        size: int,
        connections: Connections,
        pace: Pace,
        rates: Rates,
        most: int,
    ) -> None:
        self._ingest = ingest
        self._first: BlobBody | None = first
        self._size = size
        self._connections = connections
        self._pace = pace
        self._rates = rates
        self._most = most
        self._trial: _Trial | None = None
        self.is_proven = False
        distance = max(AHEAD_MIN_BYTES, min(AHEAD_MAX_BYTES, int(rates.own * AHEAD_SECONDS)))
        start = min(size, ingest.received + distance - distance % _core.BLOCK_BYTES)
        self._ahead = Ahead(ingest, first, start=start, size=size, connections=connections)

    def carry(self) -> bool:
        """Bring the rest.

        Returns:
            Whether all came, or the first body ended before; if not, that goes on alone.

        Raises:
            UnavailableError: A connection broke, and none is left to go on.
            PyctrdError, OSError: What ended the ingest.
        """
        try:
            self._try_more(self._rates)
            while (before := self._ingest.received) < self._size:
                if self._first is not None and self._trial is not None and before >= self._ahead.start:
                    self._judge(self._trial, time.monotonic())  # the first must not bring what was brought
                if self._first is not None and self._trial is None:
                    return False
                if not self._bring(before):
                    break
                self._look(self._ingest.received - before)
            return True
        finally:
            self.close_ahead()

    def close(self) -> None:
        """End every connection; idempotent."""
        if (first := self._first) is not None:
            first.close()
        self._ahead.close()

    def close_ahead(self) -> None:
        """End all but the first, and wait until none of them has anything of the ingest."""
        self._connections.end_trial(self)
        self._ahead.close()
        self._ahead.join()

    @property
    def _over(self) -> int:
        return len(self._ahead) + (self._first is not None)

    def _bring(self, position: int) -> bool:
        """Hand over what comes next; False where the first body has ended."""
        if self._first is not None:
            more = feed_block(self._ingest, self._first, self._ahead.start - position)
            self._connections.count(self._ingest.received - position)
            return more
        if (found := self._ahead.next_block()) is not None:
            self._ingest.push(*found)
        return True

    def _look(self, count: int) -> None:
        """What the number of connections should be, by what came."""
        trial, now = self._trial, time.monotonic()
        if trial is None:
            rates = self._pace.note(count, self._ingest.backlog, carried_by=self._over)
            if rates is not None:
                self._try_more(rates)
        elif trial.since is None:
            if self._over < trial.tried or now > trial.deadline:
                self._judge(trial, now)
            elif self._ahead.have_begun:
                trial.begin(now, self._connections)
        elif trial.changes != self._connections.changes and self._over == trial.tried:
            trial.begin(now, self._connections)
        elif now >= trial.since + TRIAL_SECONDS or self._over < trial.tried:
            self._judge(trial, now)

    def _judge(self, trial: _Trial, now: float) -> None:
        """End a trial: kept are as many as would bring what came, if each brought about as much as those before."""
        kept, rates = trial.before, trial.rates
        if trial.since is not None and now >= trial.since + TRIAL_SECONDS / 2 and self._over == trial.tried:
            more = (self._connections.brought - trial.brought) / (now - trial.since) - rates.all
            gained = math.ceil(more * trial.before / rates.own - PAYS_FROM)
            kept = max(trial.before, min(trial.tried, trial.before + gained))
            rates = Rates(rates.own + more, rates.all + more)
        self._end_trial(trial, kept)
        if kept == trial.tried:
            self._try_more(rates)

    def _try_more(self, rates: Rates) -> None:
        """Twice as many connections, if there is enough left for them and nobody else is trying."""
        over = self._over
        more = min(over, self._most - over)
        if more < 1 or self._ahead.unasked < max(WORTH_BYTES, rates.own * WORTH_SECONDS):
            return
        if not self._connections.try_alone(self):
            return
        if added := self._ahead.grow(more):
            self._trial = _Trial(over, over + added, rates, time.monotonic() + BEGIN_SECONDS)
        else:
            self._connections.end_trial(self)

    def _end_trial(self, trial: _Trial, kept: int) -> None:
        self._trial = None
        self._connections.end_trial(self)
        if self._first is not None and kept > 1:
            self.is_proven = True
            self._first.close()
            self._first = None
            self._ahead.take_over(self._ingest.received)
        self._ahead.shrink(kept - (self._first is not None))
        if kept < trial.tried:
            self._pace.rest()
        else:
            self._pace.begin()
        logger.debug("%d connections, after %d: %d are kept", trial.tried, trial.before, kept)


def gives_ranges(body: Body) -> TypeGuard[BlobBody]:
    """Whether parts of what a body is of can be asked for: of a registry that was not seen to give wrong ones."""
    return isinstance(body, BlobBody) and not body.ranges.is_refused


def _shut(reader: _Reader) -> None:
    body, reader.body = reader.body, None
    if body is not None:
        body.close()


def _as_unavailable(failure: Exception | None) -> Exception:
    """What tells that nobody brings a range any more: of a registry's reasons, that the rest is to be asked for.

    It may refuse many connections and not one; if it refuses that as well, it says why again.
    """
    if failure is None or isinstance(failure, RangeRefusedError | RegistryError | NotFoundError):
        return UnavailableError(f"connection broke: a range was not given: {failure}")
    return failure
