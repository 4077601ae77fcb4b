"""Which snapshotter this host gets, and why not a better one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.runtime.boot import boot_id
from pyctrd.snapshots.composefs import Composefs
from pyctrd.snapshots.erofs import Erofs
from pyctrd.snapshots.imaged import Imaged
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlayfs import Overlayfs, in_user_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.snapshots.protocol import LayerForm, LayerRef, Snapshotter

# Best first: ARCHITECTURE.md has the figures.
SNAPSHOTTERS: dict[str, type[Overlayfs | Native | Composefs | Erofs]] = {
    "composefs": Composefs,
    "erofs": Erofs,
    "overlayfs": Overlayfs,
    "native": Native,
}

# Those of what is no image's are for nobody to choose.
DIRECTORY = "directory"


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
        reason = _why_not(rooms, name)
        if reason is None:
            return open_snapshotter(rooms, name)
        reasons.append(f"{name}: {reason}")
    raise UnsupportedError(
        f"no snapshotter works here: {'; '.join(reasons)}", feature="snapshots", needs="; ".join(reasons)
    )


def choose_for(rooms: Rooms, layers: Sequence[LayerRef]) -> Snapshotter:
    """The engine's own; where none was asked for, and layers came in when another was the best, one that takes them."""
    own = rooms.snapshotter
    if rooms.settings.snapshotter is not None or _have_form(rooms, layers, own.form):
        return own
    for name, kind in SNAPSHOTTERS.items():
        if kind.form != own.form and _have_form(rooms, layers, kind.form) and _why_not(rooms, name) is None:
            return open_snapshotter(rooms, name)
    return own


def open_snapshotter(rooms: Rooms, name: str) -> Snapshotter:
    """One of them over the engine's directories, with no look at whether it works here."""
    return rooms.opened_snapshotters.get(name) or rooms.opened_snapshotters.setdefault(name, _open(rooms, name))


def _open(rooms: Rooms, name: str) -> Snapshotter:
    if name.startswith(DIRECTORY):
        from pyctrd.snapshots.directory import Directory, DirectoryOverlay

        return Directory(rooms.root) if name == Directory.name else DirectoryOverlay(rooms.root)
    kind = SNAPSHOTTERS[name]
    if issubclass(kind, Imaged):
        return kind(rooms.root, rooms.settings.state)
    return kind(rooms.root)


def _have_form(rooms: Rooms, layers: Sequence[LayerRef], form: LayerForm) -> bool:
    return all(rooms.layers.may_have_form(layer.diff_id, form) for layer in layers)


def _why_not(rooms: Rooms, name: str) -> str | None:
    """Why one does not work here; None where it does."""
    kind = SNAPSHOTTERS[name]
    if not issubclass(kind, Imaged):
        return kind.probe(rooms.root)
    # It takes milliseconds: where it worked once since the machine was started it is not tried again.
    known = _mark_of(rooms, name)
    if known.exists():
        return None
    reason = kind.probe(rooms.root)
    if reason is None:
        known.parent.mkdir(mode=0o700, exist_ok=True)
        known.touch(mode=0o600)
    return reason


def _mark_of(rooms: Rooms, name: str) -> Path:
    stat = rooms.root.stat()
    subject = f"{boot_id()} {stat.st_dev} {stat.st_ino} {os.geteuid()} {in_user_namespace()}"
    return rooms.settings.state / "probed" / f"{name}-{_core.digest_bytes(subject.encode()).partition(':')[2][:16]}"


def why_not(rooms: Rooms) -> dict[str, str]:
    """For each snapshotter that does not work here, the reason."""
    found = {name: _why_not(rooms, name) for name in SNAPSHOTTERS}
    return {name: reason for name, reason in found.items() if reason is not None}
