"""Images mounted in containers beside their own: held as long as the container is, mounted again for each start.

Each is a snapshot, ``mount-<container>-<number>``, whose record keeps its layers, mounted in the container's bundle.
Which images they are stands in the bundle's ``images.json``, which is there before the first of them is recorded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyctrd import _core
from pyctrd.errors import AlreadyExistsError, IntegrityError, NotFoundError
from pyctrd.flows.load import get_image, image_layers
from pyctrd.flows.mount import record_snapshot
from pyctrd.flows.run import IMAGES
from pyctrd.oci.value import NamedTuple
from pyctrd.runtime.life import replace_durably
from pyctrd.runtime.mounts import Bind, ImageMount
from pyctrd.snapshots.protocol import LayerRef

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.runtime.mounts import Mount

DIRECTORY = "images"
_KEY = "mount-"


class HeldImage(NamedTuple):
    """One of a container's.

    Attributes:
        image: Its name then.
        digest: Of its manifest.
        destination: Absolute, in the container.
        writable: What is written goes to a layer of the container's own.
        subpath: What of it is mounted; "" is all.
        source: The host's path of that, as the container's spec has it.
    """

    image: str
    digest: str
    destination: str
    writable: bool
    subpath: str
    source: str = ""


def resolve_images(rooms: Rooms, record: ContainerRecord, mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """A container's mounts, with a part of the host in the place of each image: mounted by then.

    Args:
        rooms: The engine's rooms; the lock of those that make containers is held.
        record: The container, which is recorded, with a bundle.
        mounts: As they were asked for; their images are unpacked.

    Raises:
        NotFoundError: There is no such image, or nothing at a ``subpath`` of it.
    """
    bundle = rooms.bundle(record.namespace, record.id)
    wanted = [mount for mount in mounts if isinstance(mount, ImageMount)]
    images = [get_image(rooms, mount.image) for mount in wanted]
    held = [
        HeldImage(image.name, image.manifest_digest, mount.destination, mount.writable, mount.subpath)
        for mount, image in zip(wanted, images, strict=True)
    ]
    _write(bundle, held)
    for number, image in enumerate(images):
        with rooms.collection_lock(shared=True):
            layers = image_layers(rooms, image)
            _record(rooms, record, number, layers, writable=held[number].writable)
        _make(rooms, _key(record, number), layers, writable=held[number].writable)
    held = [one._replace(source=_source(rooms, record, number, one)) for number, one in enumerate(held)]
    _write(bundle, held)
    sources = iter(held)
    return tuple(
        Bind(next(sources).source, mount.destination, read_only=not mount.writable, recursive=False)
        if isinstance(mount, ImageMount)
        else mount
        for mount in mounts
    )


def mount_images(rooms: Rooms, record: ContainerRecord) -> None:
    """Mount what is not any more: after a reboot nothing is.

    Raises:
        NotFoundError: What was written to one is gone.
        IntegrityError: The container has put another thing, as a link out of it, where its part of an image was.
    """
    for number, held in enumerate(read_images(rooms.bundle(record.namespace, record.id))):
        if (found := _source(rooms, record, number, held)) != held.source:
            raise IntegrityError(
                f"image mount: {held.destination}: {held.subpath} is another place now",
                subject=f"container {record.name}",
                expected=held.source,
                actual=found,
                hint=f"it was changed in the container: make another one, pyctrd rm {record.name}",
            )


def fork_images(rooms: Rooms, source: ContainerRecord, record: ContainerRecord) -> None:
    """Give a forked container images of its own, with what was written to them; its spec names their places already."""
    held = read_images(rooms.bundle(source.namespace, source.id))
    if not held:
        return
    renamed = [one._replace(source=one.source.replace(source.id, record.id)) for one in held]
    _write(rooms.bundle(record.namespace, record.id), renamed)
    for number, one in enumerate(held):
        layers = _recorded_layers(rooms, _key(source, number))
        _record(rooms, record, number, layers, writable=one.writable, like=_key(source, number))
        if one.writable:
            rooms.snapshotter_for(_key(source, number)).duplicate(_key(source, number), _key(record, number))
        else:
            _make(rooms, _key(record, number), layers, writable=False)
    mount_images(rooms, record)


def read_images(bundle: Path) -> list[HeldImage]:
    """What a bundle says of them."""
    import orjson

    try:
        entries: list[dict[str, Any]] = orjson.loads((bundle / IMAGES).read_bytes())
    except FileNotFoundError:
        return []
    return [HeldImage(**entry) for entry in entries]


def image_user(rooms: Rooms, digest: str) -> str | None:
    """The name of a container of the namespace that has an image mounted, by its manifest's digest."""
    owners = {snapshot.key[len(_KEY) :].partition("-")[0] for snapshot in rooms.database.snapshots.of_images()}
    for owner in sorted(owners):
        record = rooms.database.containers.find(rooms.namespace, owner)
        if record is not None and any(
            held.digest == digest for held in read_images(rooms.bundle(record.namespace, record.id))
        ):
            return record.name
    return None


def owner_of(key: str) -> tuple[str, str]:
    """Of a snapshot's key the container's id, and which of its images it is; "" for its root file system."""
    if not key.startswith(_KEY):
        return key.removeprefix("container-"), ""
    owner, _, number = key[len(_KEY) :].partition("-")
    return owner, number


def _key(record: ContainerRecord, number: int) -> str:
    return f"{_KEY}{record.id}-{number}"


def _record(
    rooms: Rooms,
    record: ContainerRecord,
    number: int,
    layers: Sequence[LayerRef],
    *,
    writable: bool,
    like: str = "",
) -> None:
    """Say durably that there will be one: from here on its layers stay."""
    target = rooms.bundle(record.namespace, record.id) / DIRECTORY / str(number)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    record_snapshot(
        rooms,
        _key(record, number),
        kind="active" if writable else "view",
        layers=layers,
        target=target,
        snapshotter=rooms.snapshotter_for(like) if like else None,
    )


def _make(rooms: Rooms, key: str, layers: Sequence[LayerRef], *, writable: bool) -> None:
    snapshotter = rooms.snapshotter_for(key)
    if writable:
        snapshotter.prepare(key, layers)
    else:
        snapshotter.view(key, layers)


def _source(rooms: Rooms, record: ContainerRecord, number: int, held: HeldImage) -> str:
    """The host's path of what is mounted, once it is there."""
    key = _key(record, number)
    snapshotter = rooms.snapshotter_for(key)
    if (snapshot := snapshotter.find(key)) is None and not held.writable:
        # There is nothing in it but its image's: it is made again. Another process may be as fast.
        with suppress(AlreadyExistsError):
            _make(rooms, key, _recorded_layers(rooms, key), writable=False)
        snapshot = snapshotter.find(key)
    if snapshot is None:
        raise NotFoundError(
            f"snapshot not found: {key}: what was written to {held.image} at {held.destination}",
            kind="snapshot",
            name=key,
            hint=f"the container cannot be used any more: pyctrd rm {record.name}",
        )
    path = snapshot.path
    if path is None:
        path = rooms.bundle(record.namespace, record.id) / DIRECTORY / str(number)
        if not path.is_mount():
            snapshotter.mount(snapshot, path)
    return _beneath(path, held) if held.subpath else str(path)


def _beneath(path: Path, held: HeldImage) -> str:
    """A part of an image, links within it followed; what they lead to stays in it."""
    root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        node = _core.open_node(root, held.subpath)
        try:
            return os.readlink(f"/proc/self/fd/{node}")  # noqa: PTH115 - as the kernel says it
        finally:
            os.close(node)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"image mount: {held.destination}: {held.image} has no {held.subpath}", kind="file", name=held.subpath
        ) from error
    finally:
        os.close(root)


def _recorded_layers(rooms: Rooms, key: str) -> list[LayerRef]:
    recorded = rooms.database.snapshots.find(key)
    diff_ids = () if recorded is None else recorded.diff_ids
    return [LayerRef(diff_id, rooms.layers.path(diff_id)) for diff_id in diff_ids]


def _write(bundle: Path, held: Sequence[HeldImage]) -> None:
    import orjson

    replace_durably(bundle / IMAGES, orjson.dumps([one._asdict() for one in held]))
