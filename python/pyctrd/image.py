"""An image of the store: what it says of itself, its files, and its mounts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.errors import IntegrityError, InvalidError

if TYPE_CHECKING:
    from pyctrd.flows.files import ImageFiles
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord


class Image:
    """One image of one platform, in one namespace.

    Values are read from the store when they are first asked for; an image that is removed meanwhile raises
    ``NotFoundError`` then. For its files the engine keeps the merged view open, a descriptor for each layer: it has the
    views of the few images that were read last.
    """

    def __init__(self, rooms: Rooms, record: ImageRecord) -> None:
        self._rooms = rooms
        self._record = record

    @property
    def name(self) -> str:
        """The full reference: ``registry/repository:tag`` or ``…@digest``."""
        return self._record.name

    @property
    def digest(self) -> str:
        """The digest that the reference named when it was pulled: an index's, or a manifest's."""
        return self._record.target_digest

    @property
    def manifest_digest(self) -> str:
        """The digest of the manifest that was chosen for this platform."""
        return self._record.manifest_digest

    @property
    def platform(self) -> str:
        """``os/architecture[/variant]``; "" for an artifact that is no image."""
        return self._record.platform

    @property
    def platforms(self) -> tuple[str, ...]:
        """All platforms of which the namespace has the whole image, ``platform`` first.

        Where a document of the others is damaged, ``platform`` alone: ``Engine.check`` tells of it.
        """
        from pyctrd.flows.reach import walk_held

        try:
            _, held = walk_held(self._rooms, self._record)
        except IntegrityError:
            return (self.platform,) if self.platform else ()
        return tuple(dict.fromkeys(each.platform for each in held if each.platform))

    @property
    def created_ns(self) -> int:
        """When it was pulled, in nanoseconds since 1970."""
        return self._record.created_ns

    @property
    def manifest(self) -> pyctrd.Manifest:
        """The manifest, decoded."""
        from pyctrd.flows.load import load_manifest

        return load_manifest(self._rooms, self._record)

    @property
    def config(self) -> pyctrd.ImageConfig:
        """The image config, decoded: environment, entrypoint, user, diff_ids.

        Raises:
            InvalidError: It is no image but another kind of artifact.
        """
        from pyctrd.flows.load import load_config

        return load_config(self._rooms, self._record)

    @property
    def size_bytes(self) -> int:
        """Compressed bytes of all layers and the config, as the manifest counts them."""
        manifest = self.manifest
        return manifest.config.size + sum(layer.size for layer in manifest.layers)

    def read_file(self, path: str | bytes | os.PathLike[str]) -> bytes:
        """Read a regular file of the image's merged view, with no mount; symbolic links are followed.

        Args:
            path: Absolute within the image.

        Raises:
            NotFoundError: There is no such file, or it is no regular file; the image was not unpacked.
        """
        with self.open(path) as file:
            return file.read()

    def open(self, path: str | bytes | os.PathLike[str]) -> IO[bytes]:
        """Open a regular file of the merged view for reading, with no mount; symbolic links are followed inside it.

        Args:
            path: Absolute within the image.

        Returns:
            A binary file over a descriptor, readable and seekable; it stays whole if the image is removed.

        Raises:
            NotFoundError: As ``read_file``.
            OSError: This user may not read it.
        """
        return self._files().open(os.fsencode(path))

    def stat(self, path: str | bytes | os.PathLike[str]) -> pyctrd.FileEntry:
        """What a path of the merged view leads to, symbolic links followed.

        Raises:
            NotFoundError: There is nothing, or links lead nowhere; the image was not unpacked.
        """
        return self._files().stat(os.fsencode(path))

    def lstat(self, path: str | bytes | os.PathLike[str]) -> pyctrd.FileEntry:
        """As ``stat``, but a symbolic link at the end of the path is not followed."""
        return self._files().lstat(os.fsencode(path))

    def walk(
        self, path: str | bytes | os.PathLike[str] = "/", *, depth: int | None = None
    ) -> Iterator[pyctrd.FileEntry]:
        """Go through the merged view: what a path leads to, and all below it, with no mount and no look at the files.

        Every layer has its say, whiteouts among them, as in a container. Parents come before what is in them, names in
        the order of their bytes. Paths are those in the image: below a path that leads through a symbolic link, the
        target's.

        Args:
            path: Absolute within the image; symbolic links are followed.
            depth: Levels below it to go down; 0 gives what the path leads to alone. All by default.

        Raises:
            NotFoundError: There is no such path; the image was not unpacked. At once, not at the first entry.
        """
        if depth is not None and depth < 0:
            raise InvalidError(f"invalid depth: {depth}: must be 0 or more", field="depth", value=depth)
        return self._files().walk(os.fsencode(path), depth=depth)

    def diff(self, other: Image) -> Iterator[pyctrd.FileChange]:
        """What another image has otherwise than this one: added, changed and removed, in the order of ``walk``.

        Two names are the same if kind, mode, owner, size, time, link target, device and xattrs are, and for a file the
        content. Content is read only where all else is equal and the two are not the same layer's file; so images with
        layers in common are compared without reading these. Which names are hard links of each other is left out.

        Args:
            other: The one that is there afterwards; of this engine or another.

        Raises:
            NotFoundError: One of them was not unpacked.
            OSError: A file cannot be read; while the iterator runs.
        """
        return self._files().changes(other._files())

    def _files(self) -> ImageFiles:
        return self._rooms.open_images.get(self._rooms, self._record)

    def mount(
        self,
        target: str | os.PathLike[str],
        *,
        uids: Sequence[pyctrd.IdRange] | None = None,
        gids: Sequence[pyctrd.IdRange] | None = None,
    ) -> None:
        """Mount the image's merged view read-only on an existing directory.

        With ``uids`` or ``gids`` its files are seen with other owners, as a user namespace with these ids wants
        them, and nothing is copied: each tenant may have one image with owners of its own. An owner that is in no
        range is seen as nobody (65534).

        Args:
            target: The directory.
            uids: What users become: ``IdRange(0, 100000, 65536)`` shows root as 100000. As ``gids`` if only that is
                given.
            gids: What groups become; as ``uids`` if only that is given.

        Raises:
            NotFoundError: There is no such directory.
            InvalidError: The ranges overlap, or are none.
            UnsupportedError: The host cannot mount it, or, with ``uids``, not so (Linux 5.19).

        Spec:
            mount_setattr(2), "ID-mapped mounts"; user_namespaces(7).
        """
        from pyctrd.flows.mount import mount_image

        mount_image(self._rooms, self._record, Path(target), uids=uids, gids=gids)

    @contextmanager
    def mounted(self, target: str | os.PathLike[str]) -> Iterator[Path]:
        """Mount for the length of a ``with`` block."""
        from pyctrd.flows.mount import unmount_image

        self.mount(target)
        try:
            yield Path(target)
        finally:
            unmount_image(self._rooms, Path(target))

    def __repr__(self) -> str:
        return f"<Image {self.name} {self.digest}>"
