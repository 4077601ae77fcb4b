"""Collection: what nothing reaches goes, beside whoever else is at work.

Each step is a page: a look, and where that finds something, a short transaction that looks again and removes the
records, and writes down what lost its last one. Then that goes from disk, each thing under its own lock. A pull keeps
what it wants by a lease before it looks for it; so it never finds what goes, and never waits longer than for one step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pyctrd.errors import ConflictError, PyctrdError
from pyctrd.flows.choose import SNAPSHOTTERS, open_snapshotter
from pyctrd.flows.lease import end_dead_leases
from pyctrd.flows.load import get_image
from pyctrd.flows.log import logger
from pyctrd.flows.objects import SweptObjects, sweep_objects, sweep_stacks
from pyctrd.flows.reach import learn_needs, learn_new_needs
from pyctrd.flows.recover import recover
from pyctrd.flows.removal import empty_trash
from pyctrd.flows.remove import (
    PAGE,
    find_unrecorded,
    own_bytes,
    remove_doomed,
    remove_unrecorded,
    size_on_disk,
    walk_trash,
)
from pyctrd.metadata.events import STORE
from pyctrd.metadata.reachability import KeptBlob, KeptLayer
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.database import Tables

# Whoever reads layers or makes a container holds the lock for milliseconds, a check for minutes; waiting longer for it
# would make `rmi` seem to hang.
COLLECTION_WAIT_SECONDS = 2.0


class Swept(NamedTuple):
    """What a collection removed.

    Attributes:
        blobs: Records of blobs, by namespace.
        layers: Records of layers, with what their own directories had of files' content.
        orphans: What was on disk without a record, or on its way out: kind, name and bytes.
        objects: Files' contents that no layer has any more.
        freed_bytes: On disk, of all.
        skipped: Why it ended early; "" where it did not.
        damaged: By namespace, an image of which nobody knows what it needs: so nothing of that namespace went, and no
            layer.
    """

    blobs: list[KeptBlob]
    layers: list[KeptLayer]
    orphans: list[tuple[str, str, int]]
    objects: SweptObjects
    freed_bytes: int
    skipped: str
    damaged: dict[str, str]


class _StoreBusyError(Exception):
    """Somebody reads the store for longer than a collection waits."""


def remove_image(rooms: Rooms, name: str, *, force: bool = False, collect_after: bool = True) -> None:
    """Take an image's name away, then free what nothing reaches.

    Raises:
        NotFoundError: There is no such image.
        ConflictError: A container was made from it, or has it mounted, and ``force`` is not set.
    """
    record = get_image(rooms, name)
    if not force and (user := _user_of(rooms, record.manifest_digest)) is not None:
        raise ConflictError(
            f"image in use: {record.name}: by container {user}",
            kind="image",
            name=record.name,
            state="in use",
            allowed="unused",
            hint=f"delete the container first: pyctrd rm {user}",
        )
    with rooms.database.write() as tx:
        tx.images.delete(rooms.namespace, record.name)
        repository, _, tag = record.name.rpartition(":")
        tx.repositories.forget_tag(rooms.namespace, repository, tag)
    if collect_after:
        collect(rooms)


def _user_of(rooms: Rooms, digest: str) -> str | None:
    """The name of a container that was made from an image, or has it mounted."""
    for container in rooms.database.containers.list(rooms.namespace):
        if container.image_digest == digest:
            return container.name
    if not rooms.database.snapshots.of_images():
        return None
    from pyctrd.flows.image_mounts import image_user

    return image_user(rooms, digest)


def let_go(tx: Tables, namespace: str, digest: str) -> bool:
    """Take a blob from a namespace; whether that was the last for which it was kept, and it goes from disk."""
    before = tx.content.find(namespace, digest)
    tx.content.delete(namespace, digest)
    tx.repositories.forget_blob(namespace, digest)
    tx.layers.forget_unpacked(namespace, digest, before.claimed if before is not None else "")
    if not tx.content.is_recorded(digest):
        tx.layers.forget_blob(digest)
    if before is None or not before.is_stored or tx.content.is_stored(digest):
        return False
    tx.doomed.add([("blob", digest)])
    return True


def collect(rooms: Rooms) -> None:
    """Free what no image, lease or container of any namespace reaches; skipped where others read for long.

    Of very much, some goes from disk after this, in the background.
    """
    sweep = _Sweep(rooms)
    with _removed_after_failure(rooms):
        try:
            sweep.records()
        except _StoreBusyError as error:
            logger.debug("collection skipped: %s", error)
        if sweep.layers:
            sweep_stacks(rooms)
    rooms.removal.begin(objects=bool(sweep.layers))  # each object is looked at: not for nothing


def sweep_store(rooms: Rooms) -> Swept:
    """As ``collect``, and free what else no record names: what killed processes left, and what nobody recorded."""
    sweep = _Sweep(rooms)
    sweep.count_trash()
    recover(rooms)
    skipped = ""
    with _removed_after_failure(rooms):
        try:
            sweep.records()
        except _StoreBusyError as error:
            skipped = str(error)
        sweep.disk()
        sweep_stacks(rooms)
    empty_trash(rooms)
    objects = sweep_objects(rooms)
    freed = sweep.freed_bytes + objects.bytes
    return Swept(sweep.blobs, sweep.layers, sweep.orphans, objects, freed, skipped, sweep.damaged)


@contextmanager
def _removed_after_failure(rooms: Rooms) -> Iterator[None]:
    """Begin with what was taken away already, where the rest of the collection fails."""
    try:
        yield
    except BaseException:
        with suppress(PyctrdError, OSError):  # what failed first is the one to be told
            rooms.removal.begin()
        raise


class _Sweep:
    """One collection. Any number of them may run at once: each step looks again before it removes."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self.blobs: list[KeptBlob] = []
        self.layers: list[KeptLayer] = []
        self.orphans: list[tuple[str, str, int]] = []
        self.freed_bytes = 0
        self.damaged: dict[str, str] = {}

    def records(self) -> None:
        """Remove records that nothing keeps, page by page, and then what they named.

        Raises:
            _StoreBusyError: Somebody holds the collection lock.
        """
        self.damaged = learn_needs(self._rooms)
        end_dead_leases(self._rooms)
        try:
            for page in self._pages_of_blobs():
                self._remove_blobs(page)
            unkept = [layer.diff_id for layer in self._rooms.database.reachability.layers() if not _is_kept(layer)]
            for start in range(0, len(unkept), PAGE):
                self._remove_layers(unkept[start : start + PAGE])
        finally:
            remove_doomed(self._rooms)
            self._forget_needs()

    def count_trash(self) -> None:
        """Take what is on its way out for what this collection frees."""
        for name, size in walk_trash(self._rooms):
            self.orphans.append(("trash", name, size))
            self.freed_bytes += size

    def disk(self) -> None:
        """Remove what is on disk and recorded nowhere."""
        for kind, name in find_unrecorded(self._rooms):
            size = size_on_disk(self._rooms, kind, name)
            if remove_unrecorded(self._rooms, kind, name) and size:
                self.orphans.append((kind, name, size))
                self.freed_bytes += size

    def _pages_of_blobs(self) -> Iterator[list[KeptBlob]]:
        """Blobs that nothing keeps, as far as a look without a lock can tell."""
        after = ("", "")
        while page := self._rooms.database.reachability.blobs(PAGE, after=after):
            after = page[-1].namespace, page[-1].digest
            if unkept := [blob for blob in page if not _is_kept(blob)]:
                yield unkept

    def _remove_blobs(self, looked: Sequence[KeptBlob]) -> None:
        removed: list[KeptBlob] = []
        freed = 0
        with self._alone() as tx:
            for namespace, digest, *_ in looked:
                blob = tx.reachability.find_blob(namespace, digest)
                if blob is None or _is_kept(blob) or namespace in self.damaged:
                    continue
                removed.append(blob)
                freed += blob.size if let_go(tx, namespace, digest) else 0
            # A namespace hears of its own blobs; layers are the store's.
            for namespace, count in Counter(blob.namespace for blob in removed).items():
                tx.events.add(namespace, "gc", "freed", "", {"blobs": count})
        self.blobs += removed
        self.freed_bytes += freed
        # Page by page: what is written down is gone before the next is.
        remove_doomed(self._rooms)

    def _remove_layers(self, looked: Sequence[str]) -> None:
        removed: list[KeptLayer] = []
        with self._alone() as tx:
            used = {diff_id for snapshot in tx.snapshots.list() for diff_id in snapshot.diff_ids}
            for diff_id in [] if self.damaged else looked:
                layer = tx.reachability.find_layer(diff_id)
                if layer is None or _is_kept(layer) or diff_id in used:
                    continue
                removed.append(layer._replace(bytes=own_bytes(self._rooms, layer)))
                tx.layers.delete(diff_id)
            tx.doomed.add(("layer", layer.diff_id) for layer in removed)
            if removed:
                # In the transaction: a stack that gets its layer back must not find its fix-up, and lose it then.
                self._remove_fixups(tx)
                tx.events.add(STORE, "gc", "freed", "", {"layers": len(removed)})
        self.layers += removed
        self.freed_bytes += sum(layer.bytes for layer in removed)
        remove_doomed(self._rooms)

    def _remove_fixups(self, tx: Tables) -> None:
        recorded = [layer.diff_id for layer in tx.layers.list()]
        for name in SNAPSHOTTERS:
            open_snapshotter(self._rooms, name).collect(recorded)

    def _forget_needs(self) -> None:
        while True:
            with self._rooms.database.write() as tx:
                if tx.reachability.forget_removed(PAGE) < PAGE:
                    return

    @contextmanager
    def _alone(self) -> Iterator[Tables]:
        """A transaction in which every image's needs are known, and nobody uses what he has just looked up."""
        rooms = self._rooms
        lock = rooms.collection_lock(shared=False)
        if not lock.acquire(timeout=COLLECTION_WAIT_SECONDS):
            raise _StoreBusyError("the store is in use by a check, or by somebody who reads layers")
        try:
            with rooms.database.write() as tx:
                self.damaged |= learn_new_needs(rooms, tx)
                yield tx
        finally:
            lock.release()


def _is_kept(thing: KeptBlob | KeptLayer) -> bool:
    return thing.image is not None or thing.lease is not None
