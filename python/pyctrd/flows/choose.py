"""Which snapshotter this host gets, and why not a better one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.snapshots.composefs import Composefs
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlayfs import Overlayfs

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.snapshots.protocol import Snapshotter

# Best first; what stands behind "native", which works everywhere, is had by asking for it.
SNAPSHOTTERS: dict[str, type[Overlayfs | Native | Composefs]] = {
    "overlayfs": Overlayfs,
    "native": Native,
    "composefs": Composefs,
}


def choose_snapshotter(rooms: Rooms) -> Snapshotter:
    """The one that was asked for, or the best that works beneath the root.

    Raises:
        InvalidError: There is none of that name.
        UnsupportedError: The one asked for cannot work here, or none can.
    """
    wanted = rooms.settings.snapshotter
    if wanted is not None and wanted not in SNAPSHOTTERS:
        raise InvalidError(
            f"invalid snapshotter: {wanted!r}: expected {' or '.join(SNAPSHOTTERS)}",
            field="snapshotter",
            value=wanted,
        )
    reasons = []
    for name in [wanted] if wanted else SNAPSHOTTERS:
        kind = SNAPSHOTTERS[name]
        reason = kind.probe(rooms.root)
        if reason is None:
            return open_snapshotter(rooms, name)
        reasons.append(f"{name}: {reason}")
    raise UnsupportedError(
        f"no snapshotter works here: {'; '.join(reasons)}", feature="snapshots", needs="; ".join(reasons)
    )


def open_snapshotter(rooms: Rooms, name: str) -> Snapshotter:
    """One of them over the engine's directories, with no look at whether it works here."""
    kind = SNAPSHOTTERS[name]
    if issubclass(kind, Composefs):
        return kind(rooms.root, rooms.settings.state)
    return kind(rooms.root)


def why_not(rooms: Rooms) -> dict[str, str]:
    """For each snapshotter that does not work here, the reason."""
    found = {name: kind.probe(rooms.root) for name, kind in SNAPSHOTTERS.items()}
    return {name: reason for name, reason in found.items() if reason is not None}
