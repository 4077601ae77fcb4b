"""Room that the store keeps for the day on which the disk is full: without it nobody could read, or remove anything."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from pyctrd.metadata import DATABASE

FILES = 6
FILE_BYTES = 192 << 10
# With less than this a database is not opened: SQLite maps its log's index, and where the kernel finds no room for what
# is written into the map it ends the process (on file systems whose blocks are smaller than a page).
NEEDED_BYTES = 128 << 10
# The log, its index, and whatever is written beside them.
NEEDED_FILES = 3
# Where there is not much more than what is kept, others need it more.
PLENTY_BYTES = 16 * FILES * FILE_BYTES
PLENTY_FILES = 16 * FILES


class Reserve:
    """Files with room and no content, in a directory of a root.

    Args:
        root: The root directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._directory = root / "reserve"

    def prepare(self) -> None:
        """Give what is kept back where there is nothing left, or keep it again where there is plenty.

        Raises:
            OSError: The disk is full, and nothing is kept any more.
        """
        if _has_room(self._root, NEEDED_BYTES, NEEDED_FILES):
            # The first is the first to be given back: where it is, all are.
            if not self._path(0).exists() and _has_room(self._root, PLENTY_BYTES, PLENTY_FILES):
                self._keep()
            return
        for number in range(FILES):
            if _take(self._root):
                return
            # No more than is needed, or whatever comes in next would use it up.
            with suppress(FileNotFoundError):
                self._path(number).unlink()
        if not _take(self._root):
            raise OSError(errno.ENOSPC, "database: no room left to open it", str(self._root / DATABASE))

    def _keep(self) -> None:
        """What can be had now; more another time."""
        with suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            for number in reversed(range(FILES)):
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(self._path(number), flags, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, FILE_BYTES)
                finally:
                    os.close(descriptor)

    def _path(self, number: int) -> Path:
        return self._directory / str(number)


def _has_room(directory: Path, size: int, files: int) -> bool:
    """Whether anybody may still use so much; root may use more than that, and a file system keep some for itself."""
    found = os.statvfs(directory)
    # Some file systems make files as long as there are blocks, and say that they have none.
    return found.f_bavail * found.f_frsize >= size and (found.f_files == 0 or found.f_favail >= files)


def _take(directory: Path) -> bool:
    """Take what is needed, and give it back: the kernel's own answer. Where it cannot be asked, there may be room."""
    taken: list[int] = []
    try:
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        taken.extend(os.open(directory, flags, 0o600) for _ in range(NEEDED_FILES))
        os.posix_fallocate(taken[0], 0, NEEDED_BYTES)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    finally:
        for descriptor in taken:
            os.close(descriptor)
    return True
