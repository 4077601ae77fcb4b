"""Convert: an image's layers become other blobs of the same tars, and with them a new image."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pyctrd import _core
from pyctrd.errors import CancelledError, InvalidError, NotFoundError, UnsafeArchiveError
from pyctrd.flows.bodies import FileBody
from pyctrd.flows.fetch import Fetch, of_layer
from pyctrd.flows.lease import HeldLease, kept, resources_of
from pyctrd.flows.log import logger
from pyctrd.flows.progress import PROGRESS_INTERVAL_SECONDS, LayerProgress, LayerState, Telling
from pyctrd.flows.pull import BytesBody, is_present, record_content, swept_after_failure
from pyctrd.flows.wants import Want
from pyctrd.metadata.leases import LeaseResource
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.derived import repack_descriptor, repack_manifest
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import DOCKER_MANIFEST, layer_compression

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.database import Tables
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.oci.reference import Reference

Packing = Literal["gzip", "zstd", "zstd:chunked", "none"]
PACKINGS: tuple[Packing, ...] = ("gzip", "zstd", "zstd:chunked", "none")
# Without it nobody finds the table of contents, whatever the blob has.
TABLE_ANNOTATION = "io.github.containers.zstd-chunked.manifest-checksum"
# zstd's levels above take 30 to 90 MB for what they compress: then one layer comes after the other.
MAX_LEVEL_AT_ONCE = 9
# Bytes that tell how a blob is compressed.
PREFIX_BYTES = 4


class _Layer(NamedTuple):
    """A layer of the image, and where its tar is read from; nowhere for one that stays as it is."""

    descriptor: Descriptor
    diff_id: str
    source: Path | None = None
    is_blob: bool = True


def convert_image(
    rooms: Rooms,
    source: ImageRecord,
    target: Reference,
    *,
    compression: Packing,
    told: Telling,
    level: int | None = None,
) -> ImageRecord:
    """Make an image of another one's layers in another form; see ``Images.convert``.

    The blobs are written to a directory of their own, where their digests become known; from there on they come into
    the store as pulled ones do: reserved, verified, published, recorded.

    Returns:
        The image's record, durable.
    """
    check_packing(compression, level)
    if target.digest is not None:
        raise InvalidError(
            f"invalid reference: {target}: a new image has no digest yet; give it a tag",
            field="reference",
            value=str(target),
        )
    with swept_after_failure(rooms), kept(rooms, "convert", _resources_of(rooms, source)) as lease:
        manifest, config = _documents_of(rooms, source)  # looked up while it is kept
        diff_ids = [str(diff_id) for diff_id in config.rootfs.diff_ids]
        layers = [
            _plan(rooms, source, layer, diff_id, compression=compression, level=level)
            for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)
        ]
        with _core.Workspace(str(rooms.root), os.urandom(16).hex()) as workspace:
            conversions = _Conversions(rooms, workspace.path, layers, compression=compression, level=level)
            told.begin(source.target_digest, conversions.progress)
            made = conversions.run(told)
            docker = manifest.media_type == DOCKER_MANIFEST and not compression.startswith("zstd")
            base = compression.partition(":")[0]
            descriptors = [
                repack_descriptor(
                    layer.descriptor, base, new.digest, new.size_bytes, dict(new.annotations), docker=docker
                )
                if (new := made.get(layer.diff_id)) is not None and layer.source is not None
                else layer.descriptor
                for layer in layers
            ]
            media_type, body = repack_manifest(manifest, descriptors)
            described = Descriptor(media_type, Digest.parse(_core.digest_bytes(body)), len(body))
            wants = [
                Want(descriptor, partial(FileBody, workspace.path / _name_of(layer.diff_id)), diff_id=layer.diff_id)
                for layer, descriptor in zip(layers, descriptors, strict=True)
                if layer.source is not None
            ]
            wants = [*{str(want.descriptor.digest): want for want in wants}.values()]
            wants.append(Want(described, partial(BytesBody, body)))
            record = source._replace(
                name=str(target),
                target_digest=str(described.digest),
                target_media_type=media_type,
                target_size=described.size,
                manifest_digest=str(described.digest),
            )
            return _store(rooms, lease, wants, record)


def check_packing(compression: str, level: int | None) -> None:
    """Raise unless there is such a form of a layer, and it has the level.

    Raises:
        InvalidError: There is none.
    """
    if compression not in PACKINGS:
        raise InvalidError(
            f"invalid compression: {compression[:80]!r}: expected {', '.join(PACKINGS)}",
            field="compression",
            value=compression[:80],
        )
    if level is None:
        return
    levels = {name: (least, most) for name, least, _, most in _core.COMPRESSION_LEVELS}
    least, most = levels.get(compression, (1, 0))
    if not least <= level <= most:
        allowed = f"{compression} has {least} to {most}" if most else f"{compression!r} has no levels"
        raise InvalidError(f"invalid level: {level}: {allowed}", field="level", value=level)


def _resources_of(rooms: Rooms, source: ImageRecord) -> list[LeaseResource]:
    manifest, config = _documents_of(rooms, source)
    digests = (source.manifest_digest, source.config_digest, *(layer.digest for layer in manifest.layers))
    return [
        *(LeaseResource("blob", str(digest)) for digest in digests),
        *(LeaseResource("layer", str(diff_id)) for diff_id in config.rootfs.diff_ids),
    ]


def _documents_of(rooms: Rooms, source: ImageRecord) -> tuple[Manifest, ImageConfig]:
    digests = (source.manifest_digest, source.config_digest)
    if rooms.database.images.find(source.namespace, source.name) is None or any(
        rooms.database.content.find(source.namespace, digest) is None for digest in digests
    ):
        raise NotFoundError(f"image not found: {source.name}: it was removed meanwhile", kind="image", name=source.name)
    manifest = Manifest.parse(rooms.blobs.read(source.manifest_digest))
    manifest.check_is_image(source.name)
    return manifest, ImageConfig.parse(rooms.blobs.read(source.config_digest))


def _plan(
    rooms: Rooms, image: ImageRecord, layer: Descriptor, diff_id: str, *, compression: Packing, level: int | None
) -> _Layer:
    """What to do with a layer: nothing, where its blob is there in the wanted form and no level is asked for."""
    digest = str(layer.digest)
    record = rooms.database.content.find(rooms.namespace, digest)
    if record is not None and record.is_stored:
        path = rooms.blobs.path(digest)
        if level is None and _is_packed(path, layer, compression):
            return _Layer(layer, diff_id)
        return _Layer(layer, diff_id, path)
    if rooms.database.layers.belongs_to(rooms.namespace, diff_id) and rooms.layers.exists(diff_id):
        return _Layer(layer, diff_id, rooms.layers.path(diff_id), is_blob=False)
    raise NotFoundError(
        f"layer not found: {image.name}: {digest}: neither its blob is stored nor is it unpacked",
        kind="layer",
        name=digest,
        hint=f"bring it in again: pyctrd pull {image.name.partition('@')[0]}",
    )


def _is_packed(path: Path, layer: Descriptor, compression: Packing) -> bool:
    """Whether a blob has the form already: by its descriptor, and by its first bytes, which a media type may belie."""
    base = compression.partition(":")[0]
    if layer_compression(layer.media_type) != base:
        return False
    if compression == "zstd:chunked" and TABLE_ANNOTATION not in layer.annotations:
        return False
    with path.open("rb") as file:
        return _core.detect_compression(file.read(PREFIX_BYTES)) == base


def _name_of(diff_id: str) -> str:
    return diff_id.partition(":")[2]


class _Conversions:
    """Layers on their way into files of a directory, several at once, the largest first."""

    def __init__(
        self, rooms: Rooms, directory: Path, layers: Sequence[_Layer], *, compression: Packing, level: int | None
    ) -> None:
        self._rooms = rooms
        self._directory = directory
        self._layers = layers
        self._compression = compression
        self._level = level
        self._lock = threading.Lock()
        self._running: dict[str, _core.Conversion] = {}
        self._states: dict[str, LayerState] = {
            layer.diff_id: "present" if layer.source is None else "waiting" for layer in layers
        }
        self._made: dict[str, _core.Converted] = {}
        self._is_stopped = False

    def run(self, told: Telling) -> Mapping[str, _core.Converted]:
        """Write all that are to be written; what they came to, by diff_id. The first failure ends the others."""
        # A layer that the image has twice is converted once: its tar is the same.
        jobs = {layer.diff_id: layer for layer in self._layers if layer.source is not None}
        ordered = sorted(jobs.values(), key=lambda layer: -layer.descriptor.size)
        if not ordered:
            return {}
        with ThreadPoolExecutor(min(len(ordered), self._at_once()), thread_name_prefix="pyctrd-convert") as pool:
            try:
                pending = {pool.submit(self._convert, layer) for layer in ordered}
                while pending:
                    pause = None if told.watch is None else PROGRESS_INTERVAL_SECONDS
                    done, pending = wait(pending, pause, FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    told.tell()
            except BaseException:
                # Ctrl-C lands here, in the main thread.
                self._stop()
                raise
        return self._made

    def _at_once(self) -> int:
        if self._level is not None and self._level > MAX_LEVEL_AT_ONCE and self._compression.startswith("zstd"):
            return 1
        return min(self._rooms.settings.concurrency, os.cpu_count() or 1)

    def _convert(self, layer: _Layer) -> None:
        digest, rooms = str(layer.descriptor.digest), self._rooms
        if layer.source is None:
            return
        with self._lock:
            if self._is_stopped:
                raise CancelledError("cancelled")
            conversion = self._running[layer.diff_id] = _core.Conversion(
                layer.source,
                self._directory / _name_of(layer.diff_id),
                diff_id=layer.diff_id,
                digest=digest if layer.is_blob else None,
                size=layer.descriptor.size,
                compression=self._compression,
                level=self._level,
                limits=rooms.settings.limits,
            )
            self._states[layer.diff_id] = "converting"
        try:
            made = conversion.run()
        except UnsafeArchiveError as error:
            raise of_layer(error, digest) from error
        if self._compression == "zstd:chunked" and made.without_table:
            logger.debug("layer %s: written without a table of contents: %s", digest, made.without_table)
        with self._lock:
            self._made[layer.diff_id] = made
            self._states[layer.diff_id] = "done"

    def _stop(self) -> None:
        """Give up all that are under way; none begins any more."""
        with self._lock:
            self._is_stopped = True
            running = list(self._running.values())
        for conversion in running:
            conversion.cancel()

    def progress(self) -> list[LayerProgress]:
        """How far each layer is."""
        with self._lock:
            states, running = dict(self._states), dict(self._running)
        return [_progress_of(layer, states[layer.diff_id], running.get(layer.diff_id)) for layer in self._layers]


def _progress_of(layer: _Layer, state: LayerState, conversion: _core.Conversion | None) -> LayerProgress:
    size = layer.descriptor.size
    # Of a tree more is read than its blob had.
    read = 0 if conversion is None else min(conversion.bytes_read, size)
    return LayerProgress(
        digest=str(layer.descriptor.digest),
        state=state,
        received_bytes=size if state in ("present", "done") else read,
        size_bytes=size,
        unpacked_bytes=0,
        source="store",
    )


def _store(rooms: Rooms, lease: HeldLease, wants: Sequence[Want], record: ImageRecord) -> ImageRecord:
    """Bring in what is missing. The image gets its name in the transaction that records the last of it."""
    with rooms.database.write() as tx:
        tx.leases.keep(lease.record.id, resources_of(wants))
    now = time.time_ns()
    record = record._replace(created_ns=now, updated_ns=now)
    named: list[ImageRecord] = []

    def record_all(tx: Tables, brought: Sequence[Want]) -> None:
        record_content(rooms, "", tx, brought)
        if all(want.state in ("present", "done") for want in wants):
            named.append(tx.images.put(record, by="convert"))

    Fetch(rooms, is_present=partial(is_present, rooms), record=record_all).run(wants)
    if not named:  # all of it was there: somebody made the same before
        with rooms.database.write() as tx:
            named.append(tx.images.put(record, by="convert"))
    return named[-1]
