"""Trees copied from one directory's descriptor to another's, with all that belongs to them.

Nothing is reached by a path that somebody else could change meanwhile: each step is a name in an open directory, and no
link is followed but one that the kernel resolves beneath a root.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import ConflictError, InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# ioctl_ficlonerange(2); for file systems that share extents.
_FICLONE = 0x40049409
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO that took a file's place in the meantime is not waited for.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_COPY_BYTES = 1 << 30
# What overlayfs writes to its upper directory, and what of it is nothing to anybody else.
_MARKS = ("trusted.overlay.", "user.overlay.")
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


class TreeCopy:
    """One copy of a directory's content into another directory.

    Args:
        target: The directory's descriptor.
        marks: What overlayfs keeps with files is copied as well: of its upper directories.
        owner: Whose all of it becomes; None for whose it is.
        shift: What an owner and a group are in the target; None for the same.
        root: Where the target may have names already: the root directory that its links are resolved in. Directories
            are put together then, and files replaced.
        at: Where the target is beneath ``root``.
    """

    def __init__(
        self,
        target: int,
        *,
        marks: bool = False,
        owner: tuple[int, int] | None = None,
        shift: Callable[[int, int], tuple[int, int]] | None = None,
        root: int | None = None,
        at: bytes = b"",
    ) -> None:
        self._target = target
        self._marks = marks
        self._owner = owner
        self._shift = shift
        self._root = root
        self._at = at
        # Of files with several names, the first one's path beneath ``_target``, or ``root``.
        self._linked: dict[tuple[int, int], bytes] = {}

    def run(self, source: int) -> None:
        """Copy what is in a directory; its own attributes are left to ``copy_attributes``.

        Raises:
            ConflictError: A directory would take the place of something else, or the other way round.
            OSError: The disk.
        """
        self._directory(source, self._target, self._at)

    def add(self, parent: int, name: bytes, as_name: bytes) -> None:
        """Copy one thing, whatever it is, under another name.

        Raises:
            As ``run``.
        """
        self._entry(parent, name, self._target, as_name, self._at + b"/" + as_name)

    def _whose(self, found: os.stat_result) -> tuple[int, int]:
        if self._owner is not None:
            return self._owner
        return (found.st_uid, found.st_gid) if self._shift is None else self._shift(found.st_uid, found.st_gid)

    def _directory(self, source: int, target: int, path: bytes) -> None:
        for name in sorted(map(os.fsencode, os.listdir(source))):
            self._entry(source, name, target, name, path + b"/" + name)

    def _entry(self, source: int, name: bytes, target: int, as_name: bytes, path: bytes) -> None:
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            self._subdirectory(source, name, target, as_name, path)
            return
        self._make_room(target, as_name, path)
        key = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and (first := self._linked.get(key)) is not None:
            self._link(first, target, as_name)
            return
        if stat.S_ISREG(found.st_mode):
            self._file(source, name, target, as_name)
        else:
            self._node(source, name, found, target, as_name)
        if found.st_nlink > 1:
            self._linked[key] = path

    def _subdirectory(self, source: int, name: bytes, target: int, as_name: bytes, path: bytes) -> None:
        with opened(name, _DIRECTORY, source) as below:
            is_new = True
            try:
                os.mkdir(as_name, 0o700, dir_fd=target)
            except FileExistsError:
                is_new = False
                if self._root is None:
                    raise
            if not is_new and _is_link(target, as_name):
                # As an image has /bin: the directory that it leads to is meant.
                with self._followed(path) as inside:
                    self._directory(below, inside, path)
                return
            if not is_new and not _is_directory(target, as_name):
                raise _in_the_way(path, "something that is no directory")
            with opened(as_name, _DIRECTORY, target) as made:
                self._directory(below, made, path)
                self.copy_attributes(below, made)

    @contextmanager
    def _followed(self, path: bytes) -> Iterator[int]:
        assert self._root is not None  # noqa: S101 - a name can be taken only then
        try:
            node = _core.open_node(self._root, os.fsdecode(path))
        except FileNotFoundError as error:
            raise _in_the_way(path, "a link that leads nowhere") from error
        try:
            if not stat.S_ISDIR(os.fstat(node).st_mode):
                raise _in_the_way(path, "a link that leads to no directory")
            with opened(b".", _DIRECTORY, node) as inside:
                yield inside
        finally:
            os.close(node)

    def _make_room(self, target: int, name: bytes, path: bytes) -> None:
        if self._root is None:
            return
        try:
            os.unlink(name, dir_fd=target)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError) as error:
            if _is_directory(target, name):
                raise _in_the_way(path, "a directory") from error
            raise

    def _link(self, first: bytes, target: int, name: bytes) -> None:
        """Another name of a file that was copied; whatever has its path by now is beneath the same root."""
        node = _core.open_node(self._target if self._root is None else self._root, os.fsdecode(first), follow=False)
        try:
            # With a directory's descriptor it is linkat(2) that is called: link(2) would link the symbolic link.
            os.link(f"/proc/self/fd/{node}", name, dst_dir_fd=target, follow_symlinks=True)
        finally:
            os.close(node)

    def _file(self, source: int, name: bytes, target: int, as_name: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with opened(name, _READ, source) as content:
            if not stat.S_ISREG(os.fstat(content).st_mode):
                raise ConflictError(
                    f"changed while it is copied: {os.fsdecode(name)!r}",
                    kind="file",
                    name=os.fsdecode(name),
                    state="written to",
                )
            with opened(as_name, flags, target, 0o600) as copy:
                copy_content(content, copy)
                self.copy_attributes(content, copy)

    def _node(self, source: int, name: bytes, found: os.stat_result, target: int, as_name: bytes) -> None:
        """A link, a device, a FIFO or a socket."""
        uid, gid = self._whose(found)
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), as_name, dir_fd=target)
        elif stat.S_ISSOCK(found.st_mode) and not self._marks:
            return  # whoever listens on it is elsewhere
        else:
            os.mknod(as_name, found.st_mode, found.st_rdev, dir_fd=target)
        os.chown(as_name, uid, gid, dir_fd=target, follow_symlinks=False)
        with node_path(source, name) as there, node_path(target, as_name) as here:
            _copy_xattrs(there, here, follow=False, marks=self._marks)
            if not stat.S_ISLNK(found.st_mode):
                os.chmod(here, stat.S_IMODE(found.st_mode))  # noqa: PTH101 - beneath a descriptor
        os.utime(as_name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)

    def copy_attributes(self, source: int, target: int) -> None:
        """Give an open file or directory what another has: owner, xattrs, mode and times, in the kernel's order."""
        found = os.fstat(source)
        # A new owner takes set-id bits and capabilities away.
        os.fchown(target, *self._whose(found))
        _copy_xattrs(source, target, follow=True, marks=self._marks)
        os.fchmod(target, stat.S_IMODE(found.st_mode))
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


@contextmanager
def opened(name: bytes | str, flags: int, directory: int | None = None, mode: int = 0) -> Iterator[int]:
    """A name in a directory, opened for the length of a ``with`` block."""
    descriptor = os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def node_path(directory: int, name: bytes) -> Iterator[str]:
    """A path that stands for a name of an open directory, whoever renames what: for calls without descriptors."""
    yield f"/proc/self/fd/{directory}/{os.fsdecode(name)}"


def copy_content(source: int, target: int) -> None:
    """Copy a file's bytes: shared where the file system can, else by the kernel, with the holes where they were."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
    else:
        return
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            raise
        at = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(target, start, os.SEEK_SET)
        while start < at:
            done = os.sendfile(target, source, start, min(_COPY_BYTES, at - start))
            if not done:
                return  # it was cut off meanwhile
            start += done


def copy_tree(source: os.PathLike[str] | str, target: os.PathLike[str] | str, *, marks: bool) -> None:
    """Copy a directory of ours with its own attributes into an empty one, and flush what was copied."""
    with opened(os.fspath(source), _DIRECTORY) as there, opened(os.fspath(target), _DIRECTORY) as here:
        copy = TreeCopy(here, marks=marks)
        copy.run(there)
        copy.copy_attributes(there, here)
    _core.flush_tree(Path(target))


def _copy_xattrs(source: int | str, target: int | str, *, follow: bool, marks: bool) -> None:
    for name in os.listxattr(source, follow_symlinks=follow):
        if not marks and name.startswith(_MARKS):
            continue
        with suppress(FileNotFoundError):
            value = os.getxattr(source, name, follow_symlinks=follow)
            try:
                os.setxattr(target, name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EPERM) or not name.startswith(("security.", "system.")):
                    raise InvalidError(
                        f"xattr cannot be copied: {name}: {error.strerror}", field="xattrs", value=name
                    ) from error


def _is_link(directory: int, name: bytes) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)


def _is_directory(directory: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)


def _in_the_way(path: bytes, what: str) -> ConflictError:
    shown = os.fsdecode(path)
    return ConflictError(
        f"cannot be replaced: /{shown}: {what} has its name", kind="file", name=shown, state="another kind"
    )
