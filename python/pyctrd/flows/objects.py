"""Objects, and the images that name them: looked at, and removed where nothing needs them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import InvalidError, NotFoundError, PyctrdError
from pyctrd.flows.load import load_config
from pyctrd.flows.log import logger
from pyctrd.metadata.events import STORE
from pyctrd.oci.value import NamedTuple
from pyctrd.snapshots.imaged import Stacks

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms

BEING_WRITTEN = "objects not swept: a layer is being written"


class CountedObjects(NamedTuple):
    """Objects on disk, and what they take there.

    Attributes:
        named: Those that layers name.
        named_bytes: On disk.
        unnamed: Those that no layer names.
        unnamed_bytes: On disk.
    """

    named: int = 0
    named_bytes: int = 0
    unnamed: int = 0
    unnamed_bytes: int = 0


class SweptObjects(NamedTuple):
    """What became of the objects in a collection.

    Attributes:
        number: How many went.
        bytes: On disk, of these.
        skipped: Why those could not go that did not; "" where all went that could.
        may_go_on: Whether another sweep may find more.
    """

    number: int = 0
    bytes: int = 0
    skipped: str = ""
    may_go_on: bool = False


def sweep_stacks(rooms: Rooms) -> None:
    """Remove images of stacks that no image or snapshot has."""
    stacks = Stacks(rooms.root)
    if stacks.exist() and (needed := _needed_stacks(rooms)) is not None:
        stacks.keep(needed)


def sweep_objects(rooms: Rooms, *, seconds: float | None = None) -> SweptObjects:
    """Remove objects that no layer on disk names.

    While a layer is being written no object is swept, by a lock of their own, and a sweep ends where somebody begins to
    write one; the next collection does the rest.

    Args:
        rooms: The engine's rooms.
        seconds: For so long; None for all of them.
    """
    if not (rooms.root / "objects").is_dir():
        return SweptObjects()
    try:
        swept = _core.sweep_objects(rooms.root, seconds=seconds)
    except (InvalidError, NotFoundError) as error:
        # A layer that cannot be read may name any of them: `check` finds it, and a repair comes before the next sweep.
        logger.debug("objects not swept: %s", error)
        return SweptObjects(skipped=f"objects not swept: {error}")
    if swept is None:
        logger.debug("objects not swept: a layer is being written")
        return SweptObjects(skipped=BEING_WRITTEN, may_go_on=True)
    number, freed, ended_early = swept
    if number:
        with rooms.database.write() as tx:
            tx.events.add(STORE, "gc", "freed", "", {"objects": number})
    return SweptObjects(number, freed, BEING_WRITTEN if ended_early else "", ended_early)


def count_objects(rooms: Rooms, *, without: Collection[str] = ()) -> CountedObjects:
    """Count the objects on disk, as if some layers, by diff_id, were gone; none where a layer cannot be read."""
    if not (rooms.root / "objects").is_dir():
        return CountedObjects()
    try:
        return CountedObjects(*_core.count_objects(rooms.root, without=set(without)))
    except (InvalidError, NotFoundError) as error:
        logger.debug("objects not counted: %s", error)
        return CountedObjects()


def _needed_stacks(rooms: Rooms) -> set[tuple[str, ...]] | None:
    """The stacks of layers of all images and snapshots; None where an image cannot say which it has."""
    needed = {snapshot.diff_ids for snapshot in rooms.database.snapshots.list()}
    for namespace in rooms.database.namespaces.list():
        for record in rooms.database.images.list(namespace.name):
            try:
                needed.add(tuple(map(str, load_config(rooms, record).rootfs.diff_ids)))
            except InvalidError:
                continue  # no image, but another kind of artifact
            except (PyctrdError, OSError) as error:
                logger.debug("images of stacks not swept: %s", error)
                return None
    return needed


def object_path(rooms: Rooms, key: str) -> Path:
    """Where an object is, or would be."""
    return rooms.root / "objects" / key[:2] / key[2:]


def named_objects(rooms: Rooms) -> dict[_core.ObjectRef, list[str]]:
    """The objects that recorded layers name, with the diff_ids of these. A layer that cannot be read names none."""
    found: dict[_core.ObjectRef, list[str]] = {}
    for layer in rooms.database.layers.list():
        try:
            if not rooms.layers.has_form(layer.diff_id, "objects"):
                continue
            named = _core.layer_objects(rooms.layers.path(layer.diff_id))
        except (InvalidError, NotFoundError, OSError):
            continue  # what is wrong with it is told of the layer
        for ref in named:
            found.setdefault(ref, []).append(layer.diff_id)
    return found
