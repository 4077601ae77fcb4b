"""What a container wrote: shown, copied in and out, kept, set back, made an image of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Literal

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord


class ContainerFiles:
    """The part of a container that its files are."""

    def __init__(self, rooms: Rooms, record: ContainerRecord) -> None:
        self._rooms = rooms
        self._record = record

    def diff(self) -> list[pyctrd.Change]:
        """What it added ("A"), changed ("C") and deleted ("D") of its image, sorted by path, parents first.

        A directory is listed also for what is in it. Sockets are not.

        Raises:
            UnsupportedError: Something that no layer can say, as a name that begins with ``.wh.``.
            ConflictError: It works on its files meanwhile.
        """
        from pyctrd.flows.commit import list_changes

        return list_changes(self._rooms, self._record)

    def commit(
        self,
        reference: str,
        *,
        author: str = "",
        message: str = "",
        changes: pyctrd.ConfigChanges | Sequence[str] = (),
        compression: Literal["gzip", "zstd", "none"] = "gzip",
        pause: bool = True,
        clamp_mtime: int | None = None,
    ) -> pyctrd.Image:
        """Make an image of it: its image's layers, and one with what it changed. Binds are not among that.

        Args:
            reference: The new image's name, with a tag.
            author: Who made it.
            message: What for; goes into the image's history.
            changes: What its config says otherwise, also as lines of a Dockerfile: ``CMD ["a"]``, ``ENV A=b``.
            compression: Of the new layer.
            pause: Freeze its processes while its files are read, if it runs. Another commit of it waits meanwhile.
                Where this process is killed then, the next engine that opens the root or looks at it lets it go on.
            clamp_mtime: Seconds since 1970 that no time in the image is after, ``created`` among them: the same
                changes give the same image then.

        Returns:
            The image, unpacked; it survives a power cut from here on (see ``durability``).

        Raises:
            InvalidError: The reference has a digest, or a change cannot be read.
            NotFoundError: Blobs of its image were removed: a new image would lack them.
            UnsupportedError: Something that no layer can say, as a name that begins with ``.wh.``.
            ConflictError: It works on its files meanwhile: it was not paused.
            QuotaError: The namespace may not have so much; nothing is left.
            OSError: The disk; nothing half-made is left.

        Spec:
            image-spec v1.1 layer.md, "Creating Changesets"; config.md; manifest.md.
        """
        from pyctrd.flows.commit import commit_container
        from pyctrd.image import Image
        from pyctrd.oci.changes import ConfigChanges
        from pyctrd.oci.reference import Reference

        if isinstance(changes, str):
            raise InvalidError(
                f"invalid changes: {changes!r}: expected a sequence of lines", field="changes", value=changes
            )
        record = commit_container(
            self._rooms,
            self._record,
            Reference.parse(reference),
            author=author,
            message=message,
            changes=changes if isinstance(changes, ConfigChanges) else ConfigChanges.parse(changes),
            compression=compression,
            pause=pause,
            clamp_mtime=clamp_mtime,
        )
        return Image(self._rooms, record)

    def copy_to(self, path: str, data: bytes | IO[bytes], *, archive: bool = False) -> None:
        """Unpack a tar, compressed or not, into one of its directories, whether it runs or not.

        Files are replaced, directories are put together and keep their own attributes. Its links lead where they lead
        in it, never out. An archive that is refused changes nothing. What is mounted in it is seen while it runs.

        Args:
            path: Of a directory, in the container.
            data: The archive, or a file that it is read from.
            archive: Keep the archive's owners; else everything becomes the container's user's.

        Raises:
            NotFoundError, InvalidError: The path is none of a directory.
            UnsafeArchiveError: The archive leaves its directory, or cannot be trusted otherwise, as a layer.
            ConflictError: A directory would take the place of something else, or the other way round.
            OSError: The disk; what was copied by then stays.
        """
        from pyctrd.flows.container_files import copy_archive_in

        copy_archive_in(self._rooms, self._record, path, data, archive=archive)

    def copy_from(self, path: str) -> Iterator[bytes]:
        """What is at one of its paths, as a tar in pieces: the file, or the directory with all that is in it.

        A link at the path's end is not followed; of a path that ends with "/" or "/." the archive has the content only.
        What is wrong is raised by the first piece.

        Args:
            path: In the container.

        Raises:
            NotFoundError: There is nothing.
            ConflictError: A file changes while it is read.
        """
        from pyctrd.flows.container_files import copy_archive_out

        return copy_archive_out(self._rooms, self._record, path)

    def copy_file_to(self, source: str | os.PathLike[str], path: str, *, archive: bool = False) -> None:
        """Copy a file or directory of the host into it, as ``docker cp`` does.

        Args:
            source: On the host; with "/." at its end a directory's content. A link is copied as a link.
            path: A directory to copy into, or the new name in one.
            archive: Keep the owners; else everything becomes the container's user's.

        Raises:
            As ``copy_to``.
        """
        from pyctrd.flows.container_files import copy_in

        copy_in(self._rooms, self._record, source, path, archive=archive)

    def copy_file_from(self, path: str, target: str | os.PathLike[str], *, archive: bool = False) -> None:
        """Copy one of its files or directories to the host, as ``docker cp`` does; links are copied as links.

        Args:
            path: In the container; with "/." at its end a directory's content.
            target: A directory of the host to copy into, or the new name in one.
            archive: Keep the owners; else everything becomes this process' user's.

        Raises:
            As ``copy_to``.
        """
        from pyctrd.flows.container_files import copy_out

        copy_out(self._rooms, self._record, path, target, archive=archive)

    def export(self, target: str | os.PathLike[str] | IO[bytes], *, pause: bool = True) -> None:
        """Write its whole root file system as a tar: sorted by name, without mounts and sockets.

        Args:
            target: A file, which is replaced, or an open one.
            pause: Freeze its processes meanwhile, if it runs.

        Raises:
            ConflictError: A file changes while it is read.
            OSError: The disk.
        """
        from pyctrd.flows.container_files import export_container

        export_container(self._rooms, self._record, target, pause=pause)

    def fork(self, *, name: str = "") -> pyctrd.Container:
        """Make a container, not yet running, that begins with what this one has written.

        It has the same image, command, options and labels, and goes its own way: neither sees what the other one does
        from here on, and each may be deleted. What this one wrote while it was stopped is not copied: both lie on it.
        Where it runs, its processes are frozen while it is copied, with extents shared where the file system can.
        Volumes and binds are the same ones.

        Args:
            name: Unique in the namespace; the beginning of its id by default.

        Raises:
            AlreadyExistsError: The name is taken.
            ConflictError: Somebody else writes to its mounted root file system.
            UnsupportedError: It lies on a hundred others already.
        """
        from pyctrd.flows.fork import fork_container

        return pyctrd.Container(self._rooms, fork_container(self._rooms, self._record, name=name))

    def snapshot(self, name: str = "") -> str:
        """Keep its files as they are now, to be set back to them by ``rollback``; as ``fork`` if it runs.

        They outlive no container: they go with it. They are as durable as what it wrote itself.

        Args:
            name: Unique among its snapshots; some letters and digits by default.

        Returns:
            The name.

        Raises:
            AlreadyExistsError: The name is taken.
            InvalidError: It has other characters than letters, digits, dots, dashes and underscores.
            ConflictError, UnsupportedError: As ``fork``.
        """
        from pyctrd.flows.fork import snapshot_container

        return snapshot_container(self._rooms, self._record, name=name)

    def snapshots(self) -> list[pyctrd.ContainerSnapshot]:
        """What it can be set back to, the oldest first: ``name``, ``created_ns``."""
        from pyctrd.flows.fork import list_snapshots

        return list_snapshots(self._rooms, self._record)

    def rollback(self, name: str, *, restart: bool = False) -> None:
        """Set its files back to a snapshot, in one step; the snapshot stays. What was written since is lost.

        Args:
            name: Of the snapshot.
            restart: Kill it first, if it runs, and start it again, with no input.

        Raises:
            NotFoundError: It has no such snapshot.
            ConflictError: It runs, and ``restart`` is not set.
        """
        from pyctrd.flows.fork import rollback_container

        rollback_container(self._rooms, self._record, name, restart=restart)

    def delete_snapshot(self, name: str) -> None:
        """Forget a snapshot, and free what only it needed; again is a no-op."""
        from pyctrd.flows.fork import delete_snapshot

        delete_snapshot(self._rooms, self._record, name)
