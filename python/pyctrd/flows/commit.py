"""Commit: what a container changed becomes one more layer, and with it a new image."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import InvalidError, NotFoundError
from pyctrd.flows.bodies import FileBody
from pyctrd.flows.fetch import Fetch
from pyctrd.flows.freeze import held_still
from pyctrd.flows.lease import kept, resources_of
from pyctrd.flows.pull import BytesBody, is_present, note_unpacked, record_content, swept_after_failure
from pyctrd.flows.wants import Want
from pyctrd.metadata.images import ImageRecord
from pyctrd.metadata.leases import LeaseResource
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.derived import derive_config, derive_manifest
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import OCI_CONFIG, OCI_MANIFEST, layer_media_type
from pyctrd.snapshots.protocol import Change, LayerRef

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.metadata.database import Tables
    from pyctrd.oci.changes import ConfigChanges
    from pyctrd.oci.reference import Reference
    from pyctrd.snapshots.protocol import Compression, Snapshotter


def commit_container(
    rooms: Rooms,
    container: ContainerRecord,
    reference: Reference,
    *,
    author: str = "",
    message: str = "",
    changes: ConfigChanges | None = None,
    compression: Compression = "gzip",
    pause: bool = True,
    clamp_mtime: int | None = None,
) -> ImageRecord:
    """Make an image of a container; see ``Container.commit``.

    The layer is written to a directory of its own, where its digests become known; from there on it comes into the
    store as a pulled one does: reserved, verified, unpacked, published, recorded.

    Returns:
        The image's record, durable.
    """
    if reference.digest is not None:
        raise InvalidError(
            f"invalid reference: {reference}: a new image has no digest yet; give it a tag",
            field="reference",
            value=str(reference),
        )
    created = time.time() if clamp_mtime is None else clamp_mtime
    with (
        swept_after_failure(rooms),
        _core.Workspace(str(rooms.root), os.urandom(16).hex()) as workspace,
    ):
        manifest, config = _base_of(rooms, container)
        made = workspace.path / "layer"
        snapshotter = _snapshotter_of(rooms, container)
        with held_still(rooms, container) if pause else nullcontext():
            diffed = snapshotter.diff(container.snapshot_key, made, compression=compression, clamp_mtime=clamp_mtime)
        layer = Descriptor(layer_media_type(compression), Digest.parse(diffed.digest), diffed.size_bytes)
        config_body = derive_config(
            config,
            diffed.diff_id,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created)),
            created_by=" ".join(container.command),
            author=author,
            comment=message,
            changes=changes,
        )
        described = _describe(OCI_CONFIG, config_body)
        manifest_body = derive_manifest(manifest, described, layer)
        target = _describe(OCI_MANIFEST, manifest_body)
        wants = [
            Want(layer, partial(FileBody, made), diff_id=diffed.diff_id, unpack=True, form=snapshotter.form),
            Want(described, partial(BytesBody, config_body)),
            Want(target, partial(BytesBody, manifest_body)),
        ]
        made_config = ImageConfig.parse(config_body)
        with kept(rooms, "commit", [*_resources_of_base(container, manifest, config), *resources_of(wants)]):
            _base_of(rooms, container)  # nothing kept it until now
            record = _store(rooms, wants, _record_of(rooms, reference, target, described, made_config))
            # Whatever the layers need beside them is made now, so that the first container need not wait for it.
            refs = [LayerRef(str(diff_id), rooms.layers.path(diff_id)) for diff_id in made_config.rootfs.diff_ids]
            snapshotter.settle(refs)
        return record


def list_changes(rooms: Rooms, container: ContainerRecord) -> list[Change]:
    """What a container changed; see ``Container.diff``."""
    return _snapshotter_of(rooms, container).changes(container.snapshot_key)


def _snapshotter_of(rooms: Rooms, container: ContainerRecord) -> Snapshotter:
    snapshotter = rooms.snapshotter_of(container.snapshot_key)
    if snapshotter is None:
        key = container.snapshot_key
        raise NotFoundError(f"snapshot not found: {key}", kind="snapshot", name=key)
    return snapshotter


def _base_of(rooms: Rooms, container: ContainerRecord) -> tuple[Manifest, ImageConfig]:
    """The documents of the image that the container was made from."""
    digest = container.image_digest
    if rooms.database.content.find(container.namespace, digest) is not None:
        manifest = Manifest.parse(rooms.blobs.read(digest))
        needed = [manifest.config, *manifest.layers]
        if all(rooms.database.content.find(container.namespace, str(blob.digest)) is not None for blob in needed):
            return manifest, ImageConfig.parse(rooms.blobs.read(manifest.config.digest))
    raise NotFoundError(
        f"image not found: {container.image_name}: {digest}: its blobs were removed, and a new image needs them",
        kind="image",
        name=container.image_name,
        hint=f"bring them in again: pyctrd pull {container.image_name.partition('@')[0]}",
    )


def _resources_of_base(container: ContainerRecord, manifest: Manifest, config: ImageConfig) -> list[LeaseResource]:
    """The image that the container was made from, whose layers the new one has too."""
    digests = (container.image_digest, manifest.config.digest, *(layer.digest for layer in manifest.layers))
    return [
        *(LeaseResource("blob", str(digest)) for digest in digests),
        *(LeaseResource("layer", str(diff_id)) for diff_id in config.rootfs.diff_ids),
    ]


def _store(rooms: Rooms, wants: Sequence[Want], record: ImageRecord) -> ImageRecord:
    """Bring in what is missing. The image gets its name in the transaction that records the last of it."""
    named: list[ImageRecord] = []

    def record_all(tx: Tables, brought: Sequence[Want]) -> None:
        record_content(rooms, "", tx, brought)
        if all(want.state in ("present", "done") for want in wants):
            note_unpacked(rooms, tx, wants)
            named.append(tx.images.put(record, by="commit"))

    Fetch(rooms, is_present=partial(is_present, rooms), record=record_all).run(wants)
    if not named:  # all of it was there: somebody made the same before
        with rooms.database.write() as tx:
            note_unpacked(rooms, tx, wants)
            named.append(tx.images.put(record, by="commit"))
    return named[-1]


def _record_of(
    rooms: Rooms, reference: Reference, target: Descriptor, described: Descriptor, config: ImageConfig
) -> ImageRecord:
    now = time.time_ns()
    return ImageRecord(
        namespace=rooms.namespace,
        name=str(reference),
        target_digest=str(target.digest),
        target_media_type=target.media_type,
        target_size=target.size,
        manifest_digest=str(target.digest),
        config_digest=str(described.digest),
        platform=str(config.platform),
        created_ns=now,
        updated_ns=now,
    )


def _describe(media_type: str, body: bytes) -> Descriptor:
    return Descriptor(media_type, Digest.parse(_core.digest_bytes(body)), len(body))
