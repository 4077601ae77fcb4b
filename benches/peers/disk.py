"""A fresh ext4 of the benchmark's own, on a loop device.

Deleting a store slows the next one: ext4 passes over recently deleted inodes at every create, for minutes. So nothing
is deleted while it is measured: each store gets a directory of its own, and the file system goes as a whole.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

_INODES_PER_GIB = 50_000


def drop_caches() -> None:
    """Flush, and let each run begin with the same free memory."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1")


@contextlib.contextmanager
def fresh_disk(directory: Path, *, size_gib: int) -> Iterator[Path]:
    """Mount a new file system; it and its image are gone at the end."""
    image, mount = directory / "disk.img", directory / "disk"
    mount.mkdir()
    subprocess.run(["fallocate", "-l", f"{size_gib}G", str(image)], check=True)
    try:
        inodes = str(size_gib * _INODES_PER_GIB)
        # Initialised now: the kernel would do it behind the first runs' backs.
        options = "lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, "-N", inodes, str(image)], check=True)
        attach = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
        device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
        try:
            subprocess.run(["mount", device, str(mount)], check=True)
            try:
                yield mount
            finally:
                unmount_beneath(mount)
                subprocess.run(["umount", mount], check=True)
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)
    finally:
        image.unlink()


def unmount_beneath(directory: Path) -> None:
    """Detach what a tool left mounted, the last mounted first."""
    with Path("/proc/self/mounts").open() as file:
        targets = [line.split()[1] for line in file]
    for target in reversed(targets):
        if target.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", target], check=True)
