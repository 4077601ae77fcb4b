"""New files: without a name until they are whole, wherever the file system can keep one so."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Self

_FLAGS = os.O_RDWR | os.O_CLOEXEC
# What kernels and file systems say that keep no file without a name, or make no second name for one.
_NO_UNNAMED = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})
_NO_LINKS = frozenset({errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK, errno.ENOENT})
# The kernel's name of an open file: /proc may be missing in a container.
_OPEN_FILES = "/proc/self/fd"


class NewFile:
    """A file that is being written in a directory. A process that dies meanwhile leaves nothing of it.

    Where the file system cannot keep it without a name (some network file systems), it has one that begins with a dot.

    Args:
        directory: A descriptor of the directory; not closed here.
        name: What it is to be called there.
        mode: Its permissions, less the umask.

    Raises:
        OSError: It cannot be made there.
    """

    def __init__(self, directory: int, name: str, *, mode: int) -> None:
        self._directory = directory
        self._name = name
        self._passing = f".{name[:64]}.{os.urandom(8).hex()}"  # with a name that is as long as one may be
        self._is_unnamed = os.path.isdir(_OPEN_FILES)  # noqa: PTH112 - one of thousands
        self.fd = self._open(mode)

    def _open(self, mode: int) -> int:
        if self._is_unnamed:
            try:
                return os.open(".", os.O_TMPFILE | _FLAGS, mode, dir_fd=self._directory)
            except OSError as error:
                if error.errno not in _NO_UNNAMED:
                    raise
                self._is_unnamed = False
        return os.open(self._passing, os.O_CREAT | os.O_EXCL | _FLAGS, mode, dir_fd=self._directory)

    def publish(self, *, replace: bool, flush: bool) -> bool:
        """Give it its name.

        Args:
            replace: Take the place of a file that has the name.
            flush: Have the disk write its bytes before.

        Returns:
            False where something has the name and stays.

        Raises:
            OSError: The disk, or what has the name is a directory.
        """
        if flush:
            os.fsync(self.fd)
        if self._is_unnamed and not self._link(self._name):
            if not replace:
                return False
            self._link(self._passing)
            self._is_unnamed = False
        if not self._is_unnamed:
            return self._rename(replace=replace)
        return True

    def _link(self, name: str) -> bool:
        try:
            os.link(f"{_OPEN_FILES}/{self.fd}", name, dst_dir_fd=self._directory, follow_symlinks=True)
        except FileExistsError:
            return False
        return True

    def _rename(self, *, replace: bool) -> bool:
        if replace:
            os.replace(self._passing, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            return True
        try:
            os.link(self._passing, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._rename(replace=True)  # whoever came first wrote the same: its name is its digest
        return True

    def close(self) -> None:
        """Close it; without a name it is gone. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        os.close(fd)
        if not self._is_unnamed:
            with suppress(FileNotFoundError):
                os.unlink(self._passing, dir_fd=self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
