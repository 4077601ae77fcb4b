"""What a collection frees and keeps, and why: as one namespace may know it, or as the store's owner does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pyctrd.flows.collect import Swept, sweep_store
from pyctrd.flows.image_mounts import owner_of
from pyctrd.flows.lease import end_dead_leases
from pyctrd.flows.objects import CountedObjects, count_objects
from pyctrd.flows.reach import learn_needs
from pyctrd.flows.recover import is_held
from pyctrd.flows.remove import PAGE, find_unrecorded, own_bytes, size_on_disk, walk_trash
from pyctrd.flows.resume import is_kept, kept_bytes
from pyctrd.metadata.reachability import KeptBlob, KeptLayer
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms

NOTHING = "nothing needs it"
REMOVED = "removed already"


class Collected(NamedTuple):
    """One thing that a collection looked at.

    Attributes:
        kind: "blob", "layer", "ingest", "lease", "trash", or "objects": contents of files, all that are kept together,
            and all that go.
        name: Digest, diff_id, id; of objects how many.
        bytes: What its removal frees, as if the namespace were alone: of a layer its files' content, of a lease 0. Of
            all namespaces, objects are told by themselves, and not with their layers.
        kept: Whether it stays.
        reason: Why it stays, or goes.
        namespace: Whose; "" for what belongs to the store.
    """

    kind: str
    name: str
    bytes: int
    kept: bool
    reason: str
    namespace: str


class Collection(NamedTuple):
    """What a collection did, or would do.

    Attributes:
        items: What was freed; of a dry run all that was looked at.
        freed_bytes: Of all that went. For one namespace as if it were alone, for all what the disk has got back.
        skipped: Why it ended before it was done; "" where it did not.
    """

    items: tuple[Collected, ...]
    freed_bytes: int
    skipped: str


def gc(rooms: Rooms, *, all_namespaces: bool = False) -> Collection:
    """Free what nothing needs, of every namespace; see ``Engine.gc``."""
    if all_namespaces:
        swept = sweep_store(rooms)
        skipped = swept.skipped or next(iter(swept.damaged.values()), swept.objects.skipped)
        return Collection(tuple(_all_of(swept)), swept.freed_bytes, skipped)
    # Whether a layer leaves the disk depends on other namespaces; whether this one needs it does not.
    damaged = _prepare(rooms)
    layers = [item for item in _survey_layers(rooms, rooms.namespace, damaged) if not item.kept]
    swept = sweep_store(rooms)
    blobs = [_of_blob(blob) for blob in swept.blobs if blob.namespace == rooms.namespace]
    skipped = swept.skipped or swept.damaged.get(rooms.namespace, "")
    items = (*blobs, *(() if skipped else layers))
    return Collection(items, sum(item.bytes for item in items), skipped)


def survey(rooms: Rooms, *, all_namespaces: bool = False) -> Collection:
    """What ``gc`` would free and keep; nothing is removed but leases that are dead."""
    damaged = _prepare(rooms)
    namespace = "" if all_namespaces else rooms.namespace
    items = [
        *_survey_blobs(rooms, namespace, damaged),
        *_survey_layers(rooms, namespace, damaged),
        *_survey_ingests(rooms, namespace),
        *_survey_leases(rooms, namespace),
        *(_survey_disk(rooms) if all_namespaces else ()),
    ]
    if all_namespaces:
        going = [item.name for item in items if item.kind == "layer" and not item.kept]
        items += _of_objects(count_objects(rooms, without=going))
    freed = sum(item.bytes for item in items if not item.kept)
    if all_namespaces:
        freed -= _counted_again(items)
    return Collection(tuple(items), freed, "")


def _prepare(rooms: Rooms) -> dict[str, str]:
    """Let the database tell who keeps what; as ``learn_needs``."""
    end_dead_leases(rooms)
    return learn_needs(rooms)


def _unknown_in(damaged: Mapping[str, str], namespace: str) -> str | None:
    """Why something of a namespace stays although nothing seems to need it; "" for all namespaces."""
    return damaged.get(namespace) if namespace else next(iter(damaged.values()), None)


def _survey_blobs(rooms: Rooms, namespace: str, damaged: Mapping[str, str]) -> Iterator[Collected]:
    after = (namespace, "")
    while page := rooms.database.reachability.blobs(PAGE, after=after):
        after = page[-1].namespace, page[-1].digest
        for blob in page:
            if namespace and blob.namespace != namespace:
                return
            yield _of_blob(blob, _unknown_in(damaged, blob.namespace))


def _survey_layers(rooms: Rooms, namespace: str, damaged: Mapping[str, str]) -> Iterator[Collected]:
    users = _users_of_layers(rooms, namespace)
    for layer in rooms.database.reachability.layers(namespace):
        reason = _keeper(layer) or users.get(layer.diff_id) or _unknown_in(damaged, namespace)
        size = layer.bytes if namespace else own_bytes(rooms, layer)
        yield Collected("layer", layer.diff_id, size, reason is not None, reason or NOTHING, namespace)


def _users_of_layers(rooms: Rooms, namespace: str) -> dict[str, str]:
    """For each layer of a snapshot, the container or mount that it is for."""
    database = rooms.database
    names = {
        container.snapshot_key: container.name
        for known in database.namespaces.list()
        for container in database.containers.list(known.name)
    }
    users = {}
    for snapshot in database.snapshots.list():
        if namespace in ("", snapshot.namespace):
            name = names.get(snapshot.key) or names.get(f"container-{owner_of(snapshot.key)[0]}")
            user = f"mounted on {snapshot.target}" if name is None else f"container {name}"
            users.update(dict.fromkeys(snapshot.diff_ids, user))
    return users


def _survey_ingests(rooms: Rooms, namespace: str) -> Iterator[Collected]:
    for reserved in rooms.database.ingests.list():
        if namespace in ("", reserved.namespace):
            if is_held(rooms, reserved):
                size, kept, reason = reserved.size, True, "on its way in"
            else:
                size, kept = kept_bytes(rooms, reserved), is_kept(rooms, reserved)
                reason = "its process is gone" + (": a pull may go on from it" if kept else "")
            yield Collected("ingest", reserved.id, size, kept, reason, reserved.namespace)


def _survey_leases(rooms: Rooms, namespace: str) -> Iterator[Collected]:
    for lease in rooms.database.leases.list():
        if namespace in ("", lease.namespace):
            reason = f"{lease.purpose} under way" if lease.purpose else "held, or not expired"
            yield Collected("lease", lease.id, 0, kept=True, reason=reason, namespace=lease.namespace)


def _survey_disk(rooms: Rooms) -> Iterator[Collected]:
    busy = {name for reserved in rooms.database.ingests.list() for name in (reserved.digest, reserved.diff_id)}
    for kind, name in find_unrecorded(rooms):
        if name not in busy:
            yield Collected(kind, name, size_on_disk(rooms, kind, name), False, "no record names it", "")  # noqa: FBT003 - a record's field
    for name, size in walk_trash(rooms):
        yield Collected("trash", name, size, False, REMOVED, "")  # noqa: FBT003 - a record's field


def _counted_again(items: list[Collected]) -> int:
    """Bytes of blobs that leave one namespace and stay in another, or leave several and are on disk once."""
    kept = {item.name for item in items if item.kind == "blob" and item.kept}
    again = 0
    for item in items:
        if item.kind == "blob" and not item.kept:
            again += item.bytes if item.name in kept else 0
            kept.add(item.name)
    return again


def _all_of(swept: Swept) -> Iterator[Collected]:
    yield from (_of_blob(blob) for blob in swept.blobs)
    for layer in swept.layers:
        yield Collected("layer", layer.diff_id, layer.bytes, kept=False, reason=NOTHING, namespace="")
    for kind, name, size in swept.orphans:
        reason = REMOVED if kind == "trash" else "no record names it"
        yield Collected(kind, name, size, kept=False, reason=reason, namespace="")
    yield from _of_objects(CountedObjects(unnamed=swept.objects.number, unnamed_bytes=swept.objects.bytes))


def _of_objects(counted: CountedObjects) -> Iterator[Collected]:
    if counted.named:
        reason = "files of layers that stay"
        yield Collected("objects", str(counted.named), counted.named_bytes, kept=True, reason=reason, namespace="")
    if counted.unnamed:
        reason = "no layer has them"
        yield Collected("objects", str(counted.unnamed), counted.unnamed_bytes, kept=False, reason=reason, namespace="")


def _of_blob(blob: KeptBlob, otherwise: str | None = None) -> Collected:
    reason = _keeper(blob) or otherwise
    return Collected("blob", blob.digest, blob.size, reason is not None, reason or NOTHING, blob.namespace)


def _keeper(thing: KeptBlob | KeptLayer) -> str | None:
    """What keeps it, in words."""
    if thing.image is not None:
        return f"image {thing.image}"
    if thing.lease is None:
        return None
    purpose, _, lease_id = thing.lease.rpartition(" ")
    return f"{purpose} under way" if purpose else f"lease {lease_id}"
