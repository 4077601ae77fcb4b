"""Bodies: where blobs' bytes come from, how they go into an ingest, and how many come from one place at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from pyctrd.errors import CancelledError
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd import _core

# How often a carrier that waits for its turn looks whether its transfer was given up.
TURN_SECONDS = 0.1
# A body that breaks off is asked for again from where it broke, after a pause.
RETRY_PAUSE_SECONDS = 0.5
# For so long bytes are counted before anything is made of their number; twice in a row, since one window may be that in
# which TCP gets going, or the disk stood still.
WINDOW_SECONDS = 0.3
# Blocks that the stages have not begun: with so few they have nothing to do but wait for the next one.
STARVED_BLOCKS = 2
# In nine of ten looks they must have been waiting for bytes.
STARVED_SHARE = 0.9
# A connection that brings more each second is not what is worth to be helped: our stages are nearly as slow.
FAST_BYTES = 100e6
# A layer that gained nothing from a second connection tries again after so long, then after twice as long, and so on.
REST_SECONDS = 8.0


class Body(Protocol):
    """Where a blob's bytes come from: a registry's answer, or a file.

    Attributes:
        offset: Which byte comes first.
        source: What that is called, as progress says it.
    """

    offset: int
    source: str

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; 0 at the end."""
        ...

    def close(self) -> None:
        """End it, from any thread."""
        ...


class FileBody:
    """A blob of this store as a body."""

    source = "store"

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._file.seek(offset)
        self.offset = offset

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; 0 at the end."""
        return self._file.readinto(buffer)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def feed_block(ingest: _core.Ingest, body: Body, most: int | None = None) -> bool:
    """Fill one block of the ingest from the body and hand it over; whether more may come.

    Args:
        ingest: Whose block.
        body: At the byte that the ingest is to get next.
        most: Bytes that it gets at the most; None for as many as a block has.
    """
    filled = 0
    more = True
    try:
        with ingest.buffer() as view:
            end = len(view) if most is None else min(most, len(view))
            while filled < end:
                with view[filled:end] as rest:
                    count = body.readinto(rest)
                if count == 0:
                    more = False
                    break
                filled += count
    finally:
        # What came before a connection broke is good: the next body starts behind it.
        if filled or not more:
            ingest.commit(filled)
    return more


def skip(body: Body, target: int) -> None:
    """Read past what is there already, where the server ignored the range that was asked for."""
    left = target - body.offset
    scratch = bytearray(min(left, 1 << 16))
    while left > 0:
        with memoryview(scratch)[: min(left, len(scratch))] as view:
            count = body.readinto(view)
        if count == 0:
            return
        left -= count


class Connections:
    """How many bodies may come from one place at once, and what they bring together. Thread-safe.

    Each blob has one connection as its turn comes. What nobody waits for may be lent to blobs that have one already,
    and is given back when somebody does.

    Args:
        most: Bodies at once.
    """

    def __init__(self, most: int) -> None:
        self._changed = threading.Condition()
        self._free = most
        self._waiting = 0
        self._brought = 0
        self._changes = 0
        self._trier: object = None

    @contextmanager
    def turn(self, stopped: threading.Event) -> Iterator[None]:
        """One of them, waited for; nobody who has one waits for another's locks.

        Raises:
            CancelledError: ``stopped`` was set before one was free.
        """
        with self._changed:
            self._waiting += 1
            try:
                while not self._free:
                    if stopped.is_set():
                        raise CancelledError("cancelled")
                    self._changed.wait(TURN_SECONDS)
            finally:
                self._waiting -= 1
            self._free -= 1
            self._changes += 1
        try:
            yield
        finally:
            self.give_back()

    def take_spare(self) -> bool:
        """One that nobody waits for, if there is one; to be given back."""
        with self._changed:
            if self._waiting or not self._free:
                return False
            self._free -= 1
            self._changes += 1
            return True

    def give_back(self) -> None:
        """Let another have it."""
        with self._changed:
            self._free += 1
            self._changes += 1
            self._changed.notify()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for one: who has a spare one gives it back."""
        return self._waiting > 0

    @property
    def brought(self) -> int:
        """Bytes that came by all of them."""
        return self._brought

    @property
    def changes(self) -> int:
        """How often one was taken or given back: rates compare only while it stays."""
        return self._changes

    def count(self, number: int) -> None:
        """Note bytes that came."""
        with self._changed:
            self._brought += number

    def try_alone(self, trier: object) -> bool:
        """Whether nobody else is trying another number of connections: what two try at once says nothing of either."""
        with self._changed:
            if self._trier is None:
                self._trier = trier
            return self._trier is trier

    def end_trial(self, trier: object) -> None:
        """Let others try."""
        with self._changed:
            if self._trier is trier:
                self._trier = None


class Rates(NamedTuple):
    """Bytes a second: of one blob's connections, and of all that come from the same place."""

    own: float
    all: float


class Pace:
    """How fast a blob comes, and whether what carries it is what it waits for. For one thread.

    Args:
        connections: Of its place.
        clock: Seconds.
    """

    def __init__(self, connections: Connections, clock: Callable[[], float] = time.monotonic) -> None:
        self._connections = connections
        self._clock = clock
        self._rested_until = 0.0
        self._rest_seconds = REST_SECONDS
        self._last: Rates | None = None
        self.begin()

    def begin(self) -> None:
        """Count from now on, as if nothing had been counted."""
        self._last = None
        self._start()

    def _start(self) -> None:
        self._since = self._clock()
        self._own = self._looks = self._starved = 0
        self._brought = self._connections.brought
        self._changes = self._connections.changes

    def rest(self) -> None:
        """Another connection gained nothing: do not look again for a while."""
        self._rested_until = self._clock() + self._rest_seconds
        self._rest_seconds *= 2
        self.begin()

    def note(self, count: int, backlog: int, *, carried_by: int = 1) -> Rates | None:
        """Count bytes that came; at a window's end, if its connections are what the blob waits for, how fast they are.

        So it must have been in the window before as well; of both, the faster counts.

        Args:
            count: Bytes since the last note.
            backlog: Blocks that the stages have not begun.
            carried_by: The blob's connections.
        """
        self._own += count
        self._looks += 1
        self._starved += backlog <= STARVED_BLOCKS
        now = self._clock()
        if (passed := now - self._since) < WINDOW_SECONDS:
            return None
        rates = Rates(self._own / passed, (self._connections.brought - self._brought) / passed)
        is_slow = (
            self._own > 0
            and self._starved >= STARVED_SHARE * self._looks
            and rates.own < FAST_BYTES * carried_by
            and self._changes == self._connections.changes
            and now >= self._rested_until
        )
        self._start()
        last, self._last = self._last, rates if is_slow else None
        return Rates(*map(max, rates, last)) if is_slow and last is not None else None
