"""Parts: of a layer with a table of contents, what is not here is fetched, and the layer's tar made again from that.

It is done where blobs are not kept, since afterwards there is none. The tar is hashed like any other: what comes of it
is the layer of the wanted diff_id, or nothing, and then the whole layer is fetched. What is here is looked for among
the layers of the engine's own namespace alone: that another tenant has a content must not show.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Self

from pyctrd import _core
from pyctrd.content import INGESTS
from pyctrd.errors import CancelledError, InvalidError, UnavailableError
from pyctrd.flows.log import logger
from pyctrd.oci.toc import TABLE_MAX_BYTES, find_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from pyctrd.flows.rooms import Rooms
    from pyctrd.flows.wants import Want
    from pyctrd.oci.toc import Table

# A smaller layer is here before its table was looked at.
LAYER_MIN_BYTES = 1 << 20
# What one more request costs: the bytes that come in 20 ms, a round trip, at 100 Mbit/s. So gaps that are smaller are
# fetched too.
REQUEST_BYTES = 256 << 10
# What parts may cost of what the whole layer does: to make a tar again is work as well.
PARTS_MAX_SHARE = 0.75
# The layers that came last are looked at: of a store of thousands, the lists of all would be read for each layer.
LAYERS_MAX = 256
# Each range is asked for so often; then the whole layer is.
TRIES = 3
_BLOCK_BYTES = 256 << 10

# One table at a time is taken apart, which takes more memory than it has bytes.
_reading = threading.Lock()


class Parts:
    """A layer that is worth to be fetched in parts: which, and where they are put. A context manager.

    Args:
        rooms: The engine's.
        want: Which layer.
        plan: What is fetched of it.
    """

    def __init__(self, rooms: Rooms, want: Want, plan: _core.LayerPlan) -> None:
        self._want = want
        self._plan = plan
        # Without a name, so that nothing is left of it, and with holes for what is not fetched.
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        self._file = os.open(rooms.root / INGESTS, flags, 0o600)

    def fetch(self, stopped: threading.Event) -> None:
        """Fetch all ranges.

        Raises:
            RegistryError, NotFoundError: The registry, also where it does not serve ranges.
            CancelledError: It was given up.
            OSError: The disk.
        """
        with memoryview(bytearray(_BLOCK_BYTES)) as block:
            for start, end in self._plan.ranges:

                def put(piece: memoryview, at: int) -> None:
                    while piece:
                        count = os.pwrite(self._file, piece, at)
                        piece, at = piece[count:], at + count

                _read_range(self._want, start, end, block, put, stopped)

    def rebuild(self, ingest: _core.Ingest) -> None:
        """Write the layer's tar into an ingest, which sees whether it is the right one.

        Raises:
            PyctrdError, OSError: It cannot be made.
        """
        self._plan.rebuild(ingest, self._file, size=self._want.descriptor.size)

    def close(self) -> None:
        """Let go of what was fetched; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def choose_parts(rooms: Rooms, want: Want, stopped: threading.Event) -> Parts | None:
    """Which parts of a layer to fetch; None where the whole of it comes sooner.

    Args:
        rooms: The engine's.
        want: A layer of which ranges can be asked for.
        stopped: Set where the transfer is given up.

    Raises:
        PyctrdError: There is no table, or not the one that the manifest means.
        OSError: The disk.
    """
    size = want.descriptor.size
    table = find_table(want.descriptor)
    if table is None or size < LAYER_MIN_BYTES:
        return None
    layers = known_layers(rooms)
    if not layers:
        return None
    plan = _plan(rooms, want, table, layers, stopped)
    cost = plan.fetched_bytes + plan.range_count * REQUEST_BYTES
    logger.debug(
        "layer %s: %d bytes in %d ranges of %d; %d bytes are here",
        *(want.descriptor.digest, plan.fetched_bytes, plan.range_count, size, plan.known_bytes),
    )
    return Parts(rooms, want, plan) if cost <= size * PARTS_MAX_SHARE else None


def known_layers(rooms: Rooms) -> list[Path]:
    """The layers of the engine's namespace that have a list of what they hold, the newest first."""
    newest = rooms.database.reachability.newest_layers(rooms.namespace, LAYERS_MAX)
    return [rooms.layers.path(diff_id) for diff_id in newest if rooms.layers.lists_contents(diff_id)]


def _plan(rooms: Rooms, want: Want, table: Table, layers: list[Path], stopped: threading.Event) -> _core.LayerPlan:
    limits = rooms.settings.limits
    if table.place is not None and table.end is not None:
        first = min(table.place[0], table.split[0]) if table.split else table.place[0]
        last = max(table.place[1], table.split[1]) if table.split else table.place[1]
        both = _fetch_small(want, first, last, stopped)
        split = both[table.split[0] - first : table.split[1] - first] if table.split else None
        own = both[table.place[0] - first : table.place[1] - first]
        with _reading:
            return _core.LayerPlan.zstd_chunked(
                own, split, digest=table.digest, end=table.end, layers=layers, gap=REQUEST_BYTES, limits=limits
            )
    size, footer = want.descriptor.size, _core.ESTARGZ_FOOTER_BYTES
    start = _core.estargz_table_offset(_fetch_small(want, size - footer, size, stopped))
    member = _fetch_small(want, start, size - footer, stopped)
    with _reading:
        return _core.LayerPlan.estargz(
            member, digest=table.digest, start=start, layers=layers, gap=REQUEST_BYTES, limits=limits
        )


def _fetch_small(want: Want, start: int, end: int, stopped: threading.Event) -> bytes:
    """A range that is held in memory."""
    if not 0 < end - start <= 2 * TABLE_MAX_BYTES:
        raise InvalidError(
            f"invalid table of contents: {want.descriptor.digest}: at bytes {start} to {end}",
            field="table of contents",
            value=str(want.descriptor.digest),
        )
    found = bytearray(end - start)
    with memoryview(bytearray(min(len(found), _BLOCK_BYTES))) as block:

        def put(piece: memoryview, at: int) -> None:
            found[at - start : at - start + len(piece)] = piece

        _read_range(want, start, end, block, put, stopped)
    return bytes(found)


def _read_range(
    want: Want,
    start: int,
    end: int,
    block: memoryview,
    put: Callable[[memoryview, int], None],
    stopped: threading.Event,
) -> None:
    """Ask for a range until all of it came; what breaks off is gone on with."""
    at = start
    for left in reversed(range(TRIES)):
        try:
            at = _read_body(want, at, end, block, put, stopped)
        except UnavailableError:
            if left == 0 or stopped.is_set():
                raise
        if at == end:
            return
    raise UnavailableError(f"connection broke: {want.descriptor.digest}: bytes {at} to {end} did not come")


def _read_body(
    want: Want,
    start: int,
    end: int,
    block: memoryview,
    put: Callable[[memoryview, int], None],
    stopped: threading.Event,
) -> int:
    """Read what one answer has of a range: up to which byte."""
    assert want.ranges is not None  # noqa: S101 - or nobody would ask for parts
    body = want.body = want.ranges(start, end)
    want.source = body.source
    at = start
    try:
        while at < end:
            if stopped.is_set():
                raise CancelledError("cancelled")
            count = body.readinto(block[: end - at])
            if count == 0:
                break
            put(block[:count], at)
            at += count
    finally:
        want.body = None
        body.close()
    return at
