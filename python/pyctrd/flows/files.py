"""Files of an image, read through its layers' indexes with no mount."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Literal

from pyctrd import _core
from pyctrd.errors import NotFoundError
from pyctrd.flows.load import ensure_unpacked, image_layers
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord

# Entries that are Python's objects at a time: some hundred kilobytes.
CHUNK_ENTRIES = 1024
# What the kernel says of every symbolic link, whatever its archive said.
LINK_MODE = 0o777
# Whoever compares images reads two in turn.
OPEN_IMAGES_MAX = 4
_NO_XATTRS: Mapping[str, bytes] = MappingProxyType({})

EntryKind = Literal["file", "directory", "symlink", "character", "block", "fifo"]
ChangeKind = Literal["added", "changed", "removed"]


class FileEntry(NamedTuple):
    """One name of an image, as a container would see it.

    Attributes:
        path: Absolute in the image, "/" for its root; bytes that are not UTF-8 are surrogates, as ``os.fsdecode`` makes
            them, so that ``os.fsencode`` gives the name back as it is.
        kind: "file", "directory", "symlink", "character", "block" or "fifo".
        mode: Permission and set-id bits, 0 to 0o7777; of a symbolic link 0o777.
        uid: Owner.
        gid: Group.
        size_bytes: Of a file's content, holes included; of a symbolic link its target's length; else 0.
        mtime_ns: Last modification, in nanoseconds since 1970.
        link: Target of a symbolic link, as ``path`` is decoded; else None.
        device: Major and minor number of a device; else None.
        xattrs: Extended attributes by name.
        layer: The diff_id of the layer that it comes from; "" for the root of an image that has none.
        inode: The same for all names of one file in this image and for no other; no number of any mount's.
        offset: Where a file's content begins in its layer's uncompressed tar, in bytes: of a sparse file, its first
            stored piece. None where nothing is stored, and where the layer was unpacked before this was recorded.
        content_digest: ``blake3:`` and 64 hex digits of a file's content. None where the layer was unpacked by an
            engine without ``content_digests``, and of a file that its archive has as a sparse one.
    """

    path: str
    kind: EntryKind
    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_ns: int
    link: str | None
    device: tuple[int, int] | None
    xattrs: Mapping[str, bytes]
    layer: str
    inode: int
    offset: int | None
    content_digest: str | None = None


class FileChange(NamedTuple):
    """One difference between two images.

    Attributes:
        kind: "added", "changed" or "removed".
        path: As in ``FileEntry``.
        before: What was there; None for what was added.
        after: What is there; None for what was removed.
    """

    kind: ChangeKind
    path: str
    before: FileEntry | None
    after: FileEntry | None


class OpenImages:
    """The merged views that were read last, opened once: that reads an index for each of an image's layers.

    Thread-safe. A view costs a descriptor for each layer, and memory for each name; so there are few.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By name and manifest, the one that was used last at the end.
        self._opened: dict[tuple[str, str], ImageFiles] = {}

    def get(self, rooms: Rooms, record: ImageRecord) -> ImageFiles:
        """An image's view.

        Raises:
            NotFoundError: The image was removed, or a layer was not unpacked.
        """
        key = (record.name, record.manifest_digest)
        with self._lock:
            files = self._opened.pop(key, None)
        known = rooms.database.content.find(rooms.namespace, record.manifest_digest) is not None
        if files is None or not known or not files.is_current(rooms):
            files = ImageFiles(rooms, record)
        with self._lock:
            self._opened[key] = files
            while len(self._opened) > OPEN_IMAGES_MAX:
                del self._opened[next(iter(self._opened))]
        return files


class ImageFiles:
    """The merged view of one image's layers. It stays whole if the image is removed meanwhile.

    Args:
        rooms: The engine's.
        record: The image's.

    Raises:
        NotFoundError: A layer was not unpacked: the image was pulled with ``unpack=False``.
    """

    def __init__(self, rooms: Rooms, record: ImageRecord) -> None:
        self._name = record.name
        ensure_unpacked(rooms, record)
        with rooms.collection_lock(shared=True):
            layers = image_layers(rooms, record)
            self._diff_ids = [layer.diff_id for layer in layers]
            self._view = _core.ImageView([layer.path for layer in layers])

    def is_current(self, rooms: Rooms) -> bool:
        """Whether all of its layers are still there, also for the namespace, and not others of the same digest."""
        there = rooms.database.layers.unpacked_for(rooms.namespace, self._diff_ids)
        return there == set(self._diff_ids) and self._view.is_current()

    def stat(self, path: bytes) -> FileEntry:
        """What a path leads to, links followed."""
        return self._found(self._view.find(path), path)

    def lstat(self, path: bytes) -> FileEntry:
        """What stands at a path: links on the way are followed, one at its end is not."""
        return self._found(self._view.find_link(path), path)

    def open(self, path: bytes) -> IO[bytes]:
        """The regular file that a path leads to."""
        return os.fdopen(self._view.open(path), "rb")

    def walk(self, path: bytes, *, depth: int | None) -> Iterator[FileEntry]:
        """See ``Image.walk``; what is not there is told at once."""
        walk = self._view.walk(path, depth=depth)
        if walk is None:
            raise self._missing(path)
        return (_entry(found, self._diff_ids) for found in _read(walk))

    def changes(self, other: ImageFiles) -> Iterator[FileChange]:
        """See ``Image.diff``."""
        found = self._view.changes(other._view)
        while pairs := found.read(CHUNK_ENTRIES):
            for before, after in pairs:
                yield _change(
                    before and _entry(before, self._diff_ids),
                    after and _entry(after, other._diff_ids),
                )

    def _found(self, found: _core.Entry | None, path: bytes) -> FileEntry:
        if found is None:
            raise self._missing(path)
        return _entry(found, self._diff_ids)

    def _missing(self, path: bytes) -> NotFoundError:
        name = os.fsdecode(path)
        return NotFoundError(f"file not found: {name}: not in {self._name}", kind="file", name=name)


def _read(walk: _core.ViewWalk) -> Iterator[_core.Entry]:
    while found := walk.read(CHUNK_ENTRIES):
        yield from found


def _entry(found: _core.Entry, diff_ids: Sequence[str]) -> FileEntry:
    kind: EntryKind = found.kind  # type: ignore[assignment] # a merged view has no other kinds
    is_link = kind == "symlink"
    xattrs = found.xattrs
    return FileEntry(
        path=f"/{os.fsdecode(found.path)}",
        kind=kind,
        mode=LINK_MODE if is_link else found.mode,
        uid=found.uid,
        gid=found.gid,
        size_bytes=len(found.link) if is_link else found.size,
        mtime_ns=found.mtime_ns,
        link=os.fsdecode(found.link) if is_link else None,
        device=found.device if kind in ("character", "block") else None,
        xattrs=MappingProxyType({os.fsdecode(name): value for name, value in xattrs}) if xattrs else _NO_XATTRS,
        layer=diff_ids[found.layer] if diff_ids else "",
        inode=found.layer << 32 | found.position,
        offset=found.offset,
        content_digest=None if (blake3 := found.blake3) is None else f"blake3:{blake3.hex()}",
    )


def _change(before: FileEntry | None, after: FileEntry | None) -> FileChange:
    if before is None:
        assert after is not None  # noqa: S101 - one of them is there
        return FileChange("added", after.path, None, after)
    return FileChange("removed" if after is None else "changed", before.path, before, after)
