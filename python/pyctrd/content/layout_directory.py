"""An OCI layout that is being written: a new directory, or one that has images already."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pyctrd.content.copies import prove
from pyctrd.content.layout import Layout
from pyctrd.content.members import Directory
from pyctrd.content.new_files import NewFile
from pyctrd.errors import AlreadyExistsError, IntegrityError, InvalidError, NotFoundError, naming
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.index import Index
from pyctrd.oci.listings import INDEX_FILE, LAYOUT_FILE, layout_file, layout_index

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# One that is no regular file is not waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755
_BLOBS = "blobs"
# What whoever was killed before the index was written has left of a layout.
_UNFINISHED = frozenset({_BLOBS, LAYOUT_FILE})


class LayoutDirectory:
    """A layout to which blobs are added, and then the images that need them.

    A new directory has its name once it is whole. One that exists is locked until the end; blobs come into it under
    their names, and the index is replaced last: whoever reads it meanwhile sees the layout of before. Nothing is opened
    through a symbolic link beneath it.

    Args:
        path: The directory, which is made if nothing is there.
        flush: Have the disk write what is added before it is named.

    Raises:
        InvalidError: There is something else than a layout or an empty directory.
        NotFoundError: There is no directory that it could be made in.
        UnsupportedError: It is a layout of another version.
        OSError: It cannot be made or entered.
    """

    def __init__(self, path: Path, *, flush: bool) -> None:
        self._path = path
        self._flush = flush
        self._before: Index | None = None
        self._places: dict[str, int] = {}
        self._added: list[Digest] = []
        self._is_over = False
        self._made: Path | None = None
        self._fd = -1
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            self._fd = os.open(self._path, _DIRECTORY)
        except FileNotFoundError:
            self._make()
            return
        except NotADirectoryError as error:
            raise self._no_layout("it is no directory") from error
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        found = {entry.name for entry in self._path.iterdir()}
        if found <= _UNFINISHED:
            return
        if INDEX_FILE not in found or LAYOUT_FILE not in found:
            raise self._no_layout(f"it has files, and no {LAYOUT_FILE} and {INDEX_FILE}")
        with closing(Directory(self._path)) as members:
            self._before = Layout(members).index

    def _make(self) -> None:
        """Make a directory that is going to be the layout, and take away those of whoever was killed meanwhile."""
        parent, name = self._path.parent, self._path.name[:64]
        try:
            for stale in [path for path in parent.iterdir() if _is_passing(path.name, name)]:
                _remove_unlocked(stale)
            while self._made is None:
                made = parent / f".{name}.{os.urandom(8).hex()}"
                made.mkdir(_DIRECTORY_MODE)
                self._fd = os.open(made, _DIRECTORY)
                fcntl.flock(self._fd, fcntl.LOCK_EX)
                if made.exists():  # else somebody took it for one that was left
                    self._made = made
                else:
                    os.close(self._fd)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"directory not found: {parent}", kind="directory", name=str(parent)) from error

    def _no_layout(self, why: str) -> InvalidError:
        return InvalidError(
            f"no OCI layout: {self._path}: {why}",
            field="dest",
            value=str(self._path),
            hint="give a new directory, or one that has a layout",
        )

    def has(self, blob: Descriptor) -> bool:
        """Whether a blob is there, and is what its name says; one that is damaged is going to be replaced."""
        digest = blob.digest
        try:
            fd = os.open(digest.hex, _FILE, dir_fd=self._place(digest.algorithm))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                return False
            raise
        try:
            prove(fd, blob)
        except IntegrityError:
            return False
        finally:
            os.close(fd)
        return True

    def new_blob(self, digest: Digest) -> NewFile:
        """A file for a blob; ``add`` gives it its name."""
        return NewFile(self._place(digest.algorithm), digest.hex, mode=_FILE_MODE)

    def add(self, digest: Digest, file: NewFile) -> None:
        """Name a blob whose bytes were verified."""
        self._added.append(digest)
        with naming(self._path):
            file.publish(replace=True, flush=self._flush)

    def _place(self, algorithm: str) -> int:
        if algorithm not in self._places:
            blobs = self._enter(self._fd, _BLOBS)
            try:
                self._places[algorithm] = self._enter(blobs, algorithm)
            finally:
                os.close(blobs)
        return self._places[algorithm]

    def _enter(self, parent: int, name: str) -> int:
        with suppress(FileExistsError):
            os.mkdir(name, _DIRECTORY_MODE, dir_fd=parent)
        try:
            return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise self._no_layout(f"{name} in it is no directory") from error
            raise

    def finish(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Name images, in place of those that are called so, and give a new directory its name.

        Raises:
            AlreadyExistsError: Something else came there meanwhile.
            OSError: The disk.
        """
        if self._flush:
            for place in self._places.values():
                os.fsync(place)
        index = layout_index(entries, before=self._before)
        for name, content in ((LAYOUT_FILE, layout_file()), (INDEX_FILE, index)):
            if name == INDEX_FILE or self._before is None:
                with NewFile(self._fd, name, mode=_FILE_MODE) as file, naming(self._path / name):
                    with os.fdopen(os.dup(file.fd), "wb") as written:
                        written.write(content)
                    file.publish(replace=True, flush=self._flush)
        if self._flush:
            os.fsync(self._fd)
        if self._made is not None:
            self._name()
        self._is_over = True

    def _name(self) -> None:
        made, self._made = self._made, None
        if made is None:
            return
        try:
            made.rename(self._path)
        except OSError as error:
            self._made = made
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise AlreadyExistsError(
                    f"already exists: {self._path}: it came there meanwhile", kind="directory", name=str(self._path)
                ) from error
            raise
        if self._flush:
            flush_directory(self._path.parent)

    def close(self) -> None:
        """Close it; what was added without an end goes. Idempotent."""
        if not self._is_over and self._made is None:
            for digest in self._added:  # the lock is ours: nobody else counts on them
                with suppress(FileNotFoundError):
                    os.unlink(digest.hex, dir_fd=self._place(digest.algorithm))
        self._added = []
        places, self._places = self._places, {}
        for place in places.values():
            os.close(place)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        made, self._made = self._made, None
        if made is not None:
            shutil.rmtree(made)


def _is_passing(found: str, name: str) -> bool:
    return found.startswith(f".{name}.") and re.fullmatch(r"[0-9a-f]{16}", found[len(name) + 2 :]) is not None


def _remove_unlocked(directory: Path) -> None:
    """Remove a directory that nobody is writing to any more."""
    try:
        fd = os.open(directory, _DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return  # no directory, not ours to enter, or gone
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def flush_directory(path: Path) -> None:
    """Have the disk write a directory's names."""
    fd = os.open(path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
