"""Small disks of a test's own: ext4 in a file, to be filled up, copied while it is in use, and mounted again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.children import until

MIB = 1 << 20
# The journal is committed by flushes alone, not every five seconds while a copy is being made.
OPTIONS = "loop,commit=600"


class Disk:
    """A file with ext4 in it, mounted for the length of a ``with`` block.

    Args:
        image: The file; made anew.
        target: The mount point.
        size_bytes: Of the disk.
        inodes: How many files it has room for; the file system's own choice by default.
        beside: A directory elsewhere in which files of the disk may be mounted.
    """

    def __init__(
        self,
        image: Path,
        target: Path,
        *,
        size_bytes: int = 64 * MIB,
        inodes: int = 0,
        beside: Path | None = None,
    ) -> None:
        self.image = image
        self.target = target
        self._beside = beside
        with image.open("wb") as file:
            file.truncate(size_bytes)
        words = [
            "-q",
            "-F",
            "-b",
            "4096",
            "-m",
            "0",
            "-J",
            "size=4",
            "-E",
            "nodiscard,lazy_itable_init=1,root_owner=0:0",
        ]
        words += ["-N", str(inodes)] if inodes else []
        subprocess.run(["mkfs.ext4", *words, str(image)], check=True)
        target.mkdir()

    def mount(self, options: str = OPTIONS) -> None:
        """Mount it; a journal that was not empty is replayed."""
        subprocess.run(["mount", "-t", "ext4", "-o", options, str(self.image), str(self.target)], check=True)

    def unmount(self) -> None:
        """Unmount it, and first what is mounted in it."""
        for directory in (self.target, self._beside):
            for mounted in mounts_below(directory)[::-1] if directory is not None else []:
                subprocess.run(["umount", mounted], check=True)
        if self.target.is_mount():
            # The kernel may hold it for a moment after an overlay on it is gone.
            until(
                lambda: subprocess.run(["umount", str(self.target)], check=False, capture_output=True).returncode == 0
            )

    def copy(self, target: Path) -> Path:
        """What a power cut would leave at this moment: nothing that is only in memory is in the file."""
        subprocess.run(["cp", "--sparse=always", str(self.image), str(target)], check=True)
        return target

    def take(self, image: Path) -> None:
        """Put another disk in the place of this one, and mount it."""
        self.unmount()
        subprocess.run(["cp", "--sparse=always", str(image), str(self.image)], check=True)
        self.mount()

    def free_bytes(self) -> int:
        """Room that is left."""
        stat = os.statvfs(self.target)
        return stat.f_bavail * stat.f_frsize

    def fill(self, leave_bytes: int = 0) -> Path:
        """Fill it up but for so much: the file that does it."""
        ballast = self.target / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 16, 1 << 10):
                _write_until_full(file.fileno(), size)
            file.truncate(max(0, file.tell() - leave_bytes))
            os.fsync(file.fileno())
        return ballast

    def __enter__(self) -> Self:
        self.mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unmount()


def _write_until_full(descriptor: int, size: int) -> None:
    block = bytes(size)
    try:
        while True:
            os.write(descriptor, block)
            os.fsync(descriptor)  # or a promise would be taken for room
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """A directory for images of disks, in memory where there is such: what they flush need not go to a real disk."""
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="pyctrd-disks-", dir=memory if memory.is_dir() else otherwise))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def mounts_below(directory: Path) -> list[str]:
    """What is mounted beneath a directory, in the order in which it was."""
    found = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [target for target in found if target.startswith(f"{directory}/")]


def why_not() -> str:
    """Why no such disk can be made here, "" where one can."""
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/dev/loop-control").exists():
        return "no loop devices"
    return "" if any(Path(where, "mkfs.ext4").exists() for where in ("/usr/sbin", "/sbin")) else "no mkfs.ext4"
