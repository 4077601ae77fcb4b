"""Pull: a reference becomes an image whose every byte was checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from pyctrd.errors import PyctrdError, QuotaError, UnsafeArchiveError
from pyctrd.flows.bodies import Body, FileBody
from pyctrd.flows.fetch import MAX_CLAIMED, Fetch
from pyctrd.flows.lease import kept, resources_of
from pyctrd.flows.progress import PROGRESS_INTERVAL_SECONDS, LayerProgress, Telling
from pyctrd.flows.resolve import Origin, RegistryOrigin, Resolved
from pyctrd.flows.share import has_layer, knows_layer, share
from pyctrd.flows.threads import OwnThread
from pyctrd.flows.wants import Want
from pyctrd.metadata.images import ImageRecord
from pyctrd.oci.media_types import layer_media_type
from pyctrd.snapshots.protocol import LayerRef

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.bodies import Connections
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.database import Tables
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.oci.digest import Digest
    from pyctrd.snapshots.protocol import Snapshotter

# Of an archive's images, so many are settled before they have their names.
MAX_SETTLING = 16
# Publishing still has in memory what was unpacked: of 100,000 files (12 MB of indexes), settled beside it, a pull took
# 149 MiB where it takes 109. The indexes of pyapp's 25,900 names have 4 MB.
MAX_SETTLING_BYTES = 8 * 1024 * 1024


def bring(
    rooms: Rooms,
    resolved: Resolved,
    *,
    unpack: bool,
    keep_blobs: bool,
    told: Telling,
    bodies: Connections | None = None,
    claims: int = MAX_CLAIMED,
    origin: RegistryOrigin | None = None,
) -> ImageRecord:
    """Bring an image in that was resolved: transfer what is missing, publish, record.

    Args:
        rooms: The engine's rooms.
        resolved: What a registry said that the image is.
        unpack: Make each layer's tree while its bytes arrive. An artifact that is no image can only be stored.
        keep_blobs: Store the blobs of layers that are unpacked too. All else is always stored.
        told: Told a few times a second, in the calling thread; what it raises gives the pull up.
        bodies: Taken while a layer's bytes come; None where this pull alone decides how many do at once.
        claims: Blobs that may have locks and files open at once.
        origin: The repository, where something was asked of it already.

    Returns:
        The image's record, durable.

    Raises:
        RegistryError, NotFoundError, InvalidError: The registry, or what it sent.
        IntegrityError, UnsafeArchiveError: Bytes that are not what they should be.
        QuotaError: More than the namespace may have.
        OSError: The disk.

    Spec:
        distribution-spec v1.1, "Pulling blobs"; image-spec v1.1.
    """
    reference = resolved.reference
    if unpack:
        resolved.manifest.check_is_image(str(reference))
    origin = origin or RegistryOrigin(rooms, reference)
    wants = wants_of(rooms, resolved, origin, unpack=unpack, keep_blobs=keep_blobs)
    told.begin(str(resolved.target.digest), partial(look_at, wants))
    if (known := _find_known(rooms, resolved, wants, unpack=unpack)) is not None:
        return known
    # What is wanted is kept before it is looked for: whatever is there now stays there.
    with swept_after_failure(rooms), kept(rooms, "pull", resources_of(wants)) as lease:
        stacks = [resolved.config.rootfs.diff_ids] if unpack and resolved.config is not None else []
        fetch = Fetch(
            rooms,
            is_present=partial(is_present, rooms),
            record=partial(record_content, rooms, reference.repository_name),
            share=partial(share, rooms, reference),
            watch=told.watch,
            watch_seconds=PROGRESS_INTERVAL_SECONDS,
            bodies=bodies,
            claims=claims,
            flushes=False,
            publishing=partial(settling, rooms, stacks),
        )
        fetch.run(wants)
        for diff_ids in stacks:
            settle(rooms, diff_ids)
        with rooms.database.write() as tx:
            lease.end(tx)
            note_unpacked(rooms, tx, wants)
            return tx.images.put(image_record(rooms, resolved), by="pull")


def _find_known(rooms: Rooms, resolved: Resolved, wants: Sequence[Want], *, unpack: bool) -> ImageRecord | None:
    """The image's record, where the namespace has all of it already by this very name: then nothing is written.

    No lease is needed: the image keeps what it has. Where somebody removes it meanwhile, it is as if they had done so
    after the pull.
    """
    found = rooms.database.images.find(rooms.namespace, str(resolved.reference))
    wanted = image_record(rooms, resolved)
    if found is None or wanted._replace(created_ns=found.created_ns, updated_ns=found.updated_ns) != found:
        return None
    if not all(is_present(rooms, want) for want in wants):
        return None
    if unpack and resolved.config is not None:
        diff_ids = resolved.config.rootfs.diff_ids
        if rooms.database.layers.unpacked_for(rooms.namespace, diff_ids) != set(diff_ids):
            return None
        try:
            settle(rooms, diff_ids)
        except (PyctrdError, OSError):
            return None  # the image is being removed, or damaged: with a lease it will be seen which
    if rooms.settings.durability != "none":
        rooms.database.flush()  # of what makes it whole, some may be news of another process that nobody flushed yet
    for want in wants:
        want.state = "present"
    return found


def ask_ahead(origin: RegistryOrigin, resolved: Resolved, *, unpack: bool, keep_blobs: bool) -> None:
    """Ask for the largest layer, which is going to be first, while a store is opened that has nothing yet."""
    if unpack and resolved.config is None:
        return  # it is going to be refused
    largest = max(resolved.manifest.layers, key=lambda layer: layer.size, default=None)
    if largest is None or (unpack and not keep_blobs and _ranges_of(origin, largest) is not None):
        return
    origin.ask_ahead(largest)


@contextmanager
def swept_after_failure(rooms: Rooms) -> Iterator[None]:
    """Collect after a failure that leaves blobs recorded which no image is going to need."""
    before = rooms.database.usage.charged(rooms.namespace)
    try:
        yield
    except UnsafeArchiveError:
        from pyctrd.flows.collect import collect

        # Each layer was good by itself and is recorded by now; that they do not fit one another makes them garbage.
        collect(rooms)
        raise
    except QuotaError:
        # Nearly always nothing had come yet. Somebody at their limit who tries again must not cost a sweep each time.
        if rooms.database.usage.charged(rooms.namespace) != before:
            from pyctrd.flows.collect import collect

            collect(rooms)
        raise


def settle(rooms: Rooms, diff_ids: Sequence[Digest]) -> None:
    """Make what an image's layers leave to one another: a link to nowhere fails now, not when a container is made."""
    rooms.snapshotter.settle([LayerRef(str(diff_id), rooms.layers.path(diff_id)) for diff_id in diff_ids])


@contextmanager
def settling(rooms: Rooms, stacks: Sequence[Sequence[Digest]], staged: Mapping[str, Path]) -> Iterator[None]:
    """Settle stacks while the layers that are staged get their names: the disk has more to do then than we have.

    What cannot be settled, or not yet, is left to ``settle``, which tells why. What the disk refuses is told here: that
    it takes the same a moment later says nothing of what it has lost.

    Raises:
        OSError: As ``settle``.
    """
    found = []
    for diff_ids in stacks:
        places = [staged.get(str(diff_id)) or rooms.layers.path(diff_id) for diff_id in diff_ids]
        if all(place.is_dir() for place in places) and rooms.layers.index_bytes(places) <= MAX_SETTLING_BYTES:
            found.append([LayerRef(str(diff_id), place) for diff_id, place in zip(diff_ids, places, strict=True)])
    with _settling_each(rooms.snapshotter, found[:MAX_SETTLING]) as makes:
        failures: list[OSError] = []

        def make_all() -> None:
            for make in makes:
                try:
                    with suppress(PyctrdError, FileNotFoundError):  # it has its name already
                        make()
                except OSError as error:
                    failures.append(error)

        thread = OwnThread(make_all, name="pyctrd-settling")
        try:
            with suppress(RuntimeError):  # no more threads
                thread.start()
            yield
        finally:
            thread.finish()
        if failures:
            raise failures[0]


@contextmanager
def _settling_each(
    snapshotter: Snapshotter, stacks: Sequence[Sequence[LayerRef]]
) -> Iterator[list[Callable[[], None]]]:
    # No ExitStack: an error that went through one is in a cycle, with the frames that Ctrl-C left and what they hold.
    if not stacks:
        yield []
        return
    with snapshotter.settling(stacks[0]) as make, _settling_each(snapshotter, stacks[1:]) as others:
        yield [make, *others]


def wants_of(rooms: Rooms, resolved: Resolved, origin: Origin, *, unpack: bool, keep_blobs: bool = True) -> list[Want]:
    """A want for each distinct blob of the image: its layers and its documents.

    Of its other platforms all is stored, and nothing unpacked. A layer that is claimed to be two is wanted twice: each
    claim is checked.
    """
    wants: dict[tuple[str, str], Want] = {}
    stored = {blob.digest for other in resolved.others for blob in other.manifest.layers}
    for image in (resolved, *resolved.others):
        for blob, diff_id in _blobs_of(image):
            unpacks = unpack and diff_id is not None and image is resolved
            keeps = keep_blobs or not unpacks or blob.digest in stored
            want = Want(
                descriptor=blob,
                opens=partial(_open_blob, rooms, origin, blob),
                diff_id=diff_id,
                unpack=unpacks,
                keep=keeps,
                shareable=True,
                resumable=not origin.is_local,
                ranges=None if keeps else _ranges_of(origin, blob),
            )
            wants.setdefault((str(blob.digest), diff_id or ""), want)
        for document in image.documents:
            described = document.descriptor
            # Of many images at once the documents need not be held in memory.
            again = (
                partial(_open_blob, rooms, origin, described) if origin.is_local else partial(BytesBody, document.body)
            )
            wants.setdefault((str(described.digest), ""), Want(descriptor=described, opens=again))
    return list(wants.values())


def _blobs_of(image: Resolved) -> list[tuple[Descriptor, str | None]]:
    """Blobs that are no documents, each with the layer that it is; of an artifact, the config is one as any other."""
    manifest, config = image.manifest, image.config
    if config is None:
        return [(blob, None) for blob in (manifest.config, *manifest.layers)]
    return [(blob, str(d)) for blob, d in zip(manifest.layers, config.rootfs.diff_ids, strict=True)]


def _ranges_of(origin: Origin, blob: Descriptor) -> Callable[[int, int], Body] | None:
    """What gives parts of a layer that has a table of contents; from files here the whole is as near."""
    return partial(origin.open_range, blob) if blob.has_table and isinstance(origin, RegistryOrigin) else None


def is_present(rooms: Rooms, want: Want) -> bool:
    """Whether this namespace has all that is wanted: the blob, if that is to be kept, and the tree if one is wanted.

    A blob that it does not have is taken for the layer that it is said to be, where it has that. What is recorded says
    already which layer it is, or was taken for: for another one its bytes must come.
    """
    record = rooms.database.content.find(rooms.namespace, str(want.descriptor.digest))
    want.local = record is not None and record.is_stored
    if record is None and want.ranges is not None and want.diff_id is not None:
        # The tar itself is what the namespace may be known to have: for that a config's word is enough.
        tar = rooms.database.content.find(rooms.namespace, want.diff_id)
        if tar is not None and has_layer(rooms, want, want.diff_id):
            return True
    knows = knows_layer(rooms, want)
    want.known = knows and (record is None or want.keep)
    if record is None or (want.keep and not want.local):
        return False
    if record.claimed:
        return knows and record.claimed == want.diff_id
    return has_layer(rooms, want)


def record_content(rooms: Rooms, source: str, tx: Tables, wants: Sequence[Want]) -> None:
    """Record blobs that were published, and the layers that they are; ``source``: "" for what was made here."""
    for want in wants:
        if want.given == "layer":
            record_claimed(rooms, source, tx, want)
            continue
        if want.rebuilt:
            _record_rebuilt(rooms, tx, want)
            continue
        digest = str(want.descriptor.digest)
        before = tx.content.find(rooms.namespace, digest)
        tx.content.add(
            rooms.namespace,
            digest,
            size=want.descriptor.size,
            media_type=want.descriptor.media_type,
            source=source,
            is_stored=want.keep,
        )
        if source and not want.is_stored:
            tx.content.add_source(digest, source)
        record_layer(tx, want)
        if before is not None and before.claimed not in ("", want.diff_id):
            tx.layers.forget_unpacked(rooms.namespace, digest, before.claimed)  # it is no such layer


def record_claimed(rooms: Rooms, source: str, tx: Tables, want: Want) -> None:
    """Record a blob that was not fetched, for a layer that the namespace has: which one it is nobody has seen.

    Its size is a manifest's word as well: it is charged as no less than the layer was.
    """
    descriptor, diff_id = want.descriptor, str(want.diff_id)
    size = max(descriptor.size, tx.usage.charged_as(rooms.namespace, diff_id))
    tx.usage.admit(rooms.namespace, {str(descriptor.digest): size})
    tx.content.add_claimed(
        rooms.namespace, str(descriptor.digest), diff_id, size=size, media_type=descriptor.media_type, source=source
    )


def _record_rebuilt(rooms: Rooms, tx: Tables, want: Want) -> None:
    """Record what was seen of a layer that was made from parts: a tar, and whose it is from now on.

    Not the blob: nobody hashed it, and who has a record of a blob is taken for one who could have it. It is charged as
    the blob that stands for it.
    """
    if want.diff_id is None:
        return
    media_type = layer_media_type("none")
    tx.content.add(
        rooms.namespace, want.diff_id, size=want.descriptor.size, media_type=media_type, source="", is_stored=False
    )
    record_layer(tx, want)


def record_layer(tx: Tables, want: Want) -> None:
    """Record which layer a blob turned out to be, and its tree, if it has one."""
    if want.diff_id is None or want.result is None:
        return
    blob = want.result.digest  # as it came: of a layer that was made from parts, its tar
    tx.layers.add_blob(blob, want.diff_id)
    if want.unpack and not want.known:
        tx.layers.add(
            want.diff_id,
            bytes=want.result.layer_bytes,
            entries=want.result.layer_entries,
            implied=want.result.implied,
            foreign_links=want.result.foreign_links,
            blob=blob,
        )


def note_unpacked(rooms: Rooms, tx: Tables, wants: Sequence[Want]) -> None:
    """Record which layers are unpacked for the namespace from now on: those that were before, for others, too."""
    tx.layers.note_unpacked(rooms.namespace, (want.diff_id for want in wants if want.unpack and want.diff_id))


def image_record(rooms: Rooms, resolved: Resolved) -> ImageRecord:
    """The record that gives the image its name: once it is there, the image is visible."""
    now = time.time_ns()
    return ImageRecord(
        namespace=rooms.namespace,
        name=str(resolved.reference),
        target_digest=str(resolved.target.digest),
        target_media_type=resolved.target.media_type,
        target_size=resolved.target.size,
        manifest_digest=str(resolved.manifest_descriptor.digest),
        config_digest=str(resolved.manifest.config.digest),
        platform=str(resolved.config.platform) if resolved.config is not None else "",
        created_ns=now,
        updated_ns=now,
    )


class BytesBody:
    """A document that was read already, as a body."""

    source = ""

    def __init__(self, content: bytes, offset: int) -> None:
        self._left = memoryview(content)[offset:]
        self.offset = offset

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; 0 at the end."""
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        """Nothing is open."""


def _open_blob(rooms: Rooms, origin: Origin, blob: Descriptor, offset: int) -> Body:
    record = rooms.database.content.find(rooms.namespace, str(blob.digest))
    if record is not None and record.is_stored:
        return FileBody(rooms.blobs.path(blob.digest), offset)
    return origin.open_blob(blob, offset)


def look_at(wants: Sequence[Want]) -> list[LayerProgress]:
    """How far the layers among some wants are."""
    return [want.progress() for want in wants if want.diff_id is not None]
