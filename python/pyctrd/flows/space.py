"""What takes the disk: by image and container for a namespace, by namespace for whoever keeps the store."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pyctrd.errors import NotFoundError
from pyctrd.flows.objects import count_objects
from pyctrd.flows.reach import learn_needs
from pyctrd.flows.remove import walk_trash
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.reachability import ImageSize


class ImageSpace(NamedTuple):
    """The blobs that an image needs, among those of its namespace.

    Attributes:
        name: The image's.
        bytes: All of them.
        unique_bytes: Those that no other name of the namespace needs: what the namespace would be charged less for
            without this one.
        shared_bytes: The rest.
    """

    name: str
    bytes: int
    unique_bytes: int
    shared_bytes: int


class ContainerSpace(NamedTuple):
    """What a container wrote, or for a mounted image whoever has it mounted.

    Attributes:
        name: The container's name, or where the image is mounted.
        bytes: On disk; with the "native" snapshotter the whole copy of its image.
    """

    name: str
    bytes: int


class VolumeSpace(NamedTuple):
    """What is in a volume.

    Attributes:
        name: The volume's.
        bytes: On disk.
    """

    name: str
    bytes: int


class NamespaceSpace(NamedTuple):
    """What a namespace costs the store.

    Attributes:
        name: The namespace's.
        charged_bytes: All blobs that it has, as if it were alone.
        exclusive_bytes: Those that no other namespace has.
        container_bytes: What its containers wrote.
    """

    name: str
    charged_bytes: int
    exclusive_bytes: int
    container_bytes: int


class StoreSpace(NamedTuple):
    """The store as a whole.

    Attributes:
        blobs: How many.
        blob_bytes: Each counted once, whoever has it.
        layers: How many are unpacked.
        layer_bytes: Their files' content, wherever it is.
        objects: Contents of files that layers share, under "composefs".
        object_bytes: On disk.
        removed_bytes: On disk as well, of what was removed and is on its way out: a `gc` frees it now.
    """

    blobs: int
    blob_bytes: int
    layers: int
    layer_bytes: int
    objects: int
    object_bytes: int
    removed_bytes: int


class Space(NamedTuple):
    """What takes the disk.

    Attributes:
        charged_bytes: All blobs of the engine's namespace.
        images: Those of the namespace, by name.
        containers: Likewise; with mounts of images.
        namespaces: All of the store, only if they were asked for.
        store: As well.
        volumes: Those of the namespace, by name.
    """

    charged_bytes: int
    images: tuple[ImageSpace, ...]
    containers: tuple[ContainerSpace, ...]
    namespaces: tuple[NamespaceSpace, ...] = ()
    store: StoreSpace | None = None
    volumes: tuple[VolumeSpace, ...] = ()


def survey_space(rooms: Rooms, *, all_namespaces: bool = False) -> Space:
    """See ``Engine.df``."""
    learn_needs(rooms)  # an image whose documents are damaged shows with what is known of it: nothing
    database = rooms.database
    sizes = {size.image: size for size in database.reachability.image_sizes(rooms.namespace)}
    images = tuple(_image(image.name, sizes.get(image.name)) for image in database.images.list(rooms.namespace))
    containers = tuple(ContainerSpace(name, count) for name, count in _written(rooms, rooms.namespace))
    volumes = tuple(_volumes(rooms, rooms.namespace))
    own = Space(database.usage.charged(rooms.namespace), images, containers, volumes=volumes)
    if not all_namespaces:
        return own
    namespaces = tuple(
        NamespaceSpace(
            known.name,
            database.usage.charged(known.name),
            database.usage.exclusive(known.name),
            sum(count for _, count in _written(rooms, known.name)),
        )
        for known in database.namespaces.list()
    )
    counted = count_objects(rooms)
    objects = counted.named + counted.unnamed, counted.named_bytes + counted.unnamed_bytes
    removed = sum(size for _, size in walk_trash(rooms))
    return own._replace(namespaces=namespaces, store=StoreSpace(*database.usage.stored(), *objects, removed))


def _volumes(rooms: Rooms, namespace: str) -> Iterator[VolumeSpace]:
    from pyctrd.snapshots.store import directory_bytes

    for record in rooms.database.volumes.list(namespace):
        with suppress(FileNotFoundError):
            yield VolumeSpace(record.name, directory_bytes(rooms.root / "volumes" / namespace / record.name))


def _frozen_bytes(rooms: Rooms, frozen: str) -> int:
    from pyctrd.snapshots import FROZEN
    from pyctrd.snapshots.store import directory_bytes

    with suppress(FileNotFoundError):
        return directory_bytes(rooms.root / "snapshots" / f"{FROZEN}{frozen}")
    return 0


def _image(name: str, size: ImageSize | None) -> ImageSpace:
    if size is None:
        return ImageSpace(name, 0, 0, 0)
    return ImageSpace(name, size.bytes, size.unique_bytes, size.bytes - size.unique_bytes)


def _written(rooms: Rooms, namespace: str) -> list[tuple[str, int]]:
    """What stands in the writable part of each container and mount of a namespace."""
    database = rooms.database
    names = {container.snapshot_key: container.name for container in database.containers.list(namespace)}
    found = []
    seen: set[str] = set()
    for snapshot in database.snapshots.list():
        if snapshot.namespace != namespace:
            continue
        snapshotter = rooms.snapshotter_of(snapshot.key)
        # One that goes at this moment takes nothing any more.
        with suppress(NotFoundError, FileNotFoundError):
            if snapshotter is not None:
                # What several lie on is counted with the first.
                below = [frozen for frozen in snapshot.frozen if frozen not in seen]
                seen.update(below)
                size = snapshotter.usage(snapshot.key) + sum(_frozen_bytes(rooms, frozen) for frozen in below)
                found.append((names.get(snapshot.key, snapshot.target), size))
    return sorted(found)
