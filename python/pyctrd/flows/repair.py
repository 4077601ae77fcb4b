"""Repair: what ``check`` finds is mended, or taken out of the way; nothing that is reachable and good is touched."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd.errors import (
    ConflictError,
    DeadlineError,
    IntegrityError,
    NotFoundError,
    PyctrdError,
    RegistryError,
    UnavailableError,
)
from pyctrd.flows.bodies import Body, FileBody
from pyctrd.flows.check import STAGES, Finding, check_image, diff_ids_of
from pyctrd.flows.fetch import Fetch
from pyctrd.flows.freeze import thaw
from pyctrd.flows.objects import named_objects, object_path
from pyctrd.flows.pull import BytesBody, record_layer
from pyctrd.flows.recover import undo
from pyctrd.flows.resolve import RegistryOrigin
from pyctrd.flows.share import has_content
from pyctrd.flows.wants import Want
from pyctrd.metadata import DATABASE
from pyctrd.metadata.salvage import flush_directory
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index, is_manifest
from pyctrd.oci.reference import Reference
from pyctrd.snapshots.imaged import IMAGE, Stacks
from pyctrd.snapshots.protocol import LayerForm

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.content import ContentRecord
    from pyctrd.metadata.database import Tables

# Pulls under way are waited for; a registry that is slow may hold one for longer.
STORE_WAIT_SECONDS = 60.0
PRIVATE_MODE = 0o700
FORMS: tuple[LayerForm, ...] = ("tree", "objects", "blocks")


def repair(rooms: Rooms, *, digests: bool = False) -> list[Finding]:
    """Check, and mend what is found; see ``Engine.check``.

    Returns:
        What was found, each with what was done about it.
    """
    with ExitStack() as held:
        for lock in (rooms.arrival_lock(shared=False), rooms.collection_lock(shared=False)):
            if not lock.acquire(timeout=STORE_WAIT_SECONDS):
                raise DeadlineError(
                    f"store in use: {rooms.root}: by process {lock.holder}",
                    operation="repair",
                    timeout_seconds=STORE_WAIT_SECONDS,
                    hint="wait until pulls are done, and try again",
                )
            held.callback(lock.release)
        done = _repair_database(rooms)
        for stage in STAGES:
            for finding in list(stage(rooms, digests)):
                done.append(_mend(rooms, finding))
        return done


def quarantine(rooms: Rooms, path: Path) -> Path:
    """Move something out of the way, for somebody to look at: where it is now."""
    directory = rooms.root / "quarantine"
    directory.mkdir(mode=PRIVATE_MODE, exist_ok=True)
    target = directory / f"{time.time_ns()}-{path.parent.name}-{path.name}"
    path.rename(target)
    for touched in (path.parent, directory):
        flush_directory(touched)  # or a power cut would bring it back after it was told as gone
    return target


def _repair_database(rooms: Rooms) -> list[Finding]:
    name = rooms.root / DATABASE
    try:
        damage = rooms.database.find_damage()
    except IntegrityError as error:
        damage = [str(error)]
    if not damage:
        return []
    from pyctrd.flows.salvage import build_anew

    return [Finding("database", str(name), damage[0], "damaged", build_anew(rooms), repaired=True)]


def _mend(rooms: Rooms, finding: Finding) -> Finding:
    try:
        text, repaired = _MENDING[finding.kind](rooms, finding)
    except (PyctrdError, OSError) as error:
        text, repaired = f"failed: {error}", False
    return finding._replace(repair=text, repaired=repaired)


def _mend_ingest(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    if (reserved := rooms.database.ingests.find(finding.name)) is not None:
        undo(rooms, reserved)  # those who could work on it wait for the store
    return "undone", True


def _mend_blob(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    done = []
    if finding.cause != "missing":
        done.append(f"moved to {quarantine(rooms, rooms.blobs.path(finding.name))}")
    if finding.cause == "unrecorded":
        return done[0], True
    owners = rooms.database.content.holders(finding.name)
    try:
        source = _fetch_again(rooms, owners)
    except UnavailableError as error:
        return "; ".join([*done, f"cannot be fetched again now: {error}"]), False
    if source:
        return "; ".join([*done, f"fetched again from {source}"]), True
    with rooms.database.write() as tx:
        for owner in owners:
            if owner.is_stored:  # one that has the layer alone lacks nothing
                tx.content.delete(owner.namespace, owner.digest)
        if not tx.content.is_recorded(finding.name):
            tx.layers.forget_blob(finding.name)
    return "; ".join([*done, "record dropped: nobody has it to give"]), True


def _fetch_again(rooms: Rooms, owners: list[ContentRecord]) -> str:
    """Fetch a blob from the first of its sources that has it: which one; "" where none has.

    Raises:
        UnavailableError: None gave it, and one of them may later.
    """
    unavailable: UnavailableError | None = None
    for owner in owners:
        if not owner.source:
            continue
        descriptor = Descriptor(owner.media_type, Digest.parse(owner.digest), owner.size)
        try:
            origin = RegistryOrigin(rooms, Reference.parse(owner.source))
            opens: Callable[[int], Body] = partial(origin.open_blob, descriptor)
            if is_manifest(owner.media_type) or is_index(owner.media_type):
                opens = partial(BytesBody, origin.read_manifest(descriptor))
            _bring_in(rooms, Want(descriptor, opens))
        except UnavailableError as error:
            unavailable = error
        except PyctrdError:
            continue  # this source has it no more, or other bytes, or not for us
        else:
            return owner.source
    if unavailable is not None:
        raise unavailable
    return ""


def _bring_in(rooms: Rooms, want: Want) -> None:
    """Verify and publish; whose it is stays as it is recorded."""
    Fetch(rooms, is_present=lambda _want: False, record=_record_layers, charged=False).run([want])


def _record_layers(tx: Tables, wants: Sequence[Want]) -> None:
    for want in wants:
        if want.unpack and want.diff_id is not None:
            # What is there now is counted anew. Until here its record stays: a layer that could not be unpacked
            # again is found again.
            tx.layers.delete(want.diff_id)
        record_layer(tx, want)


def _mend_object(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    done = []
    owners = next((owners for ref, owners in named_objects(rooms).items() if ref.key == finding.name), [])
    if finding.cause != "missing":
        done.append(f"moved to {quarantine(rooms, object_path(rooms, finding.name))}")
    for diff_id in owners:
        if blob := _unpack_from_any(rooms, _sources_of(rooms, diff_id), diff_id, forms=["objects"]):
            return "; ".join([*done, f"written again from {blob}"]), True
    return "; ".join([*done, "no blob of a layer that names it is here"]), False


def _mend_stack(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    Stacks(rooms.root).drop_image(rooms.root / "snapshots" / finding.name / IMAGE)
    return "removed: it is made anew when it is needed", True


def _mend_layer(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    done = []
    forms: list[LayerForm | None] = [form for form in FORMS if rooms.layers.may_have_form(finding.name, form)]
    if finding.cause != "missing":
        done.append(f"moved to {quarantine(rooms, rooms.layers.path(finding.name))}")
    if finding.cause == "unrecorded":
        return done[0], True
    sources = _sources_of(rooms, finding.name)
    try:
        if blob := _unpack_from_any(rooms, sources, finding.name, forms=forms or [None]):
            return "; ".join([*done, f"unpacked again from {blob}"]), True
    except UnavailableError as error:
        return "; ".join([*done, f"its blob cannot be fetched now: {error}"]), False
    if lost := [source.digest for source in sources if source.is_stored]:
        # Its own finding says why it was not fetched again; it would have dropped the record, were it gone for good.
        return "; ".join([*done, f"its blob {lost[0]} is not here; repair again when it can be fetched"]), False
    with rooms.database.write() as tx:
        tx.layers.delete(finding.name)
    return "; ".join([*done, "record dropped: its blob is not here any more; pull its images again"]), True


def _sources_of(rooms: Rooms, diff_id: str) -> list[ContentRecord]:
    """The blobs that are a layer: those on disk, then those that never were, and what was only taken for it."""
    content = rooms.database.content
    seen = [item for digest in rooms.database.layers.blobs_of(diff_id) for item in content.holders(digest)]
    known = [*(item for item in seen if not item.claimed), *content.claims(diff_id)]
    return sorted(known, key=lambda item: (bool(item.claimed), not rooms.blobs.exists(item.digest)))


def _unpack_from_any(
    rooms: Rooms, sources: Sequence[ContentRecord], diff_id: str, *, forms: Sequence[LayerForm | None]
) -> str:
    """Unpack a layer again from the first of some blobs that can be read: which one; "" where none can.

    Raises:
        UnavailableError: None could, and one of them may later.
    """
    unavailable: UnavailableError | None = None
    for source in sources:
        try:
            for form in forms:
                if (want := _want_of(rooms, source, diff_id, form)) is None:
                    break
                _bring_in(rooms, want)
            else:
                return source.digest
        except UnavailableError as error:
            unavailable = error
        except (RegistryError, NotFoundError):
            continue  # it has it no more, or not for us
    if unavailable is not None:
        raise unavailable
    return ""


def _want_of(rooms: Rooms, source: ContentRecord, diff_id: str, form: LayerForm | None) -> Want | None:
    """A layer from its blob: from disk, or where that was never kept, from where it came; None where it is lost."""
    descriptor = Descriptor(source.media_type, Digest.parse(source.digest), source.size)
    if rooms.blobs.exists(source.digest):
        opens: Callable[[int], Body] = partial(FileBody, rooms.blobs.path(source.digest))
        return Want(descriptor, opens, diff_id=diff_id, unpack=True, form=form, local=True)
    if source.is_stored or not source.source:
        return None
    opens = partial(RegistryOrigin(rooms, Reference.parse(source.source)).open_blob, descriptor)
    return Want(descriptor, opens, diff_id=diff_id, unpack=True, form=form, keep=False)


def _mend_file(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    return f"moved to {quarantine(rooms, Path(finding.name))}", True


def _mend_snapshot(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    return f"moved to {quarantine(rooms, rooms.root / 'snapshots' / finding.name)}", True


def _mend_volume(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    return f"moved to {quarantine(rooms, rooms.root / 'volumes' / finding.namespace / finding.name)}", True


def _mend_image(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    """Give an image back what it had: that its name is recorded says that its namespace had all of it."""
    record = rooms.database.images.find(finding.namespace, finding.name)
    if record is None:
        return "gone meanwhile", True
    manifest = config = None
    lost = record.manifest_digest
    if rooms.blobs.exists(record.manifest_digest):
        manifest = Manifest.parse(rooms.blobs.read(record.manifest_digest))
        config = manifest.config if rooms.blobs.exists(manifest.config.digest) else None
        lost = str(manifest.config.digest)
    if (manifest is None or config is None) and rooms.database.content.find(record.namespace, lost) is not None:
        # Its own finding says why it was not fetched again; it would have dropped the record, were it gone for good.
        return f"{lost} is not here; repair again when it can be fetched", False
    if manifest is None or config is None:
        with rooms.database.write() as tx:
            tx.images.delete(record.namespace, record.name)
        return f"name dropped: its documents are lost; pull it again: {record.name}", True
    known = [item for item in rooms.database.content.walk(record.namespace) if item.source]
    source = next((item.source for item in known if item.digest == record.manifest_digest), "")
    missing = []
    diff_ids = diff_ids_of(rooms, record, manifest)
    for descriptor in (manifest.config, *manifest.layers):
        digest = str(descriptor.digest)
        if has_content(rooms.database, record.namespace, digest, diff_ids.get(digest)):
            continue
        if rooms.blobs.exists(digest):
            rooms.blobs.verify(digest)
        else:
            _bring_in(rooms, Want(descriptor, partial(_origin(rooms, source, digest).open_blob, descriptor)))
        missing.append(digest)
        with rooms.database.write() as tx:
            tx.content.add(
                record.namespace, digest, size=descriptor.size, media_type=descriptor.media_type, source=source
            )
    left = [problem.problem for problem in check_image(rooms, record)]
    done = f"recorded again: {', '.join(missing)}" if missing else "done with another finding"
    return (left[0], False) if left else (done, True)


def _origin(rooms: Rooms, source: str, digest: str) -> RegistryOrigin:
    if not source:
        raise ConflictError(
            f"blob lost: {digest}: it was brought in from files, or by a commit: load or pull the image again",
            kind="blob",
            name=digest,
            state="lost",
        )
    return RegistryOrigin(rooms, Reference.parse(source))


def _mend_container(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    record = rooms.database.containers.find(finding.namespace, finding.name)
    if record is None:
        return "gone meanwhile", True
    if finding.cause == "frozen":
        thaw(rooms, record)
        return "goes on", True
    if finding.cause == "orphaned":
        from pyctrd.flows.runs import notice

        notice(rooms, record)  # any look at it does the same
        return "ended, and recorded as ended", True
    from pyctrd.flows.run import delete_container

    delete_container(rooms, record)
    return "deleted: it cannot run without its files", True


def _mend_manifest(rooms: Rooms, finding: Finding) -> tuple[str, bool]:
    """Give a repository's manifest back what is on disk; that it is recorded says that its namespace had all of it."""
    repository, _, digest = finding.name.rpartition("@")
    tables = rooms.database.repositories
    row = tables.find_manifest(finding.namespace, repository, digest)
    if row is None:
        return "gone meanwhile", True
    needed = {digest: (row.media_type, row.size)}
    for ref in tables.refs(finding.namespace, repository, digest):
        if ref.required:
            needed[ref.name] = ref.media_type, ref.size
    for name, (media_type, size) in needed.items():
        if rooms.database.content.find(finding.namespace, name) is not None:
            continue
        if not rooms.blobs.exists(name):
            with rooms.database.write() as tx:
                tx.repositories.delete_manifest(finding.namespace, repository, digest)
            return f"dropped: {name} is lost; send it again", True
        rooms.blobs.verify(name)
        with rooms.database.write() as tx:
            tx.content.add(finding.namespace, name, size=size, media_type=media_type, source="")
    return "recorded again", True


_MENDING: dict[str, Callable[[Rooms, Finding], tuple[str, bool]]] = {
    "ingest": _mend_ingest,
    "blob": _mend_blob,
    "layer": _mend_layer,
    "object": _mend_object,
    "stack": _mend_stack,
    "file": _mend_file,
    "image": _mend_image,
    "manifest": _mend_manifest,
    "snapshot": _mend_snapshot,
    "volume": _mend_volume,
    "container": _mend_container,
}
