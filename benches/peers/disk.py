"""A fresh ext4 of the benchmark's own, on a loop device.

Deleting a store slows the next one: ext4 passes over recently deleted inodes at every create, for minutes. So nothing
is deleted while it is measured: each store gets a directory of its own, and the file system goes as a whole.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_INODES_PER_GIB = 50_000
_SECTOR_BYTES = 512
# In /sys/dev/block/<device>/stat, counted from 0 (the kernel's admin-guide/iostats).
_SECTORS_WRITTEN = 6
# An overlay that was unmounted lets go of its layers a moment later.
_UNMOUNT_SECONDS = 20.0


def drop_caches() -> None:
    """Flush, and let each run begin with the same free memory."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1")


@contextlib.contextmanager
def fresh_disk(directory: Path, *, size_gib: int, inodes: int | None = None, journal: bool = True) -> Iterator[Path]:
    """Mount a new file system; it and its image are gone at the end."""
    image, mount = directory / "disk.img", directory / "disk"
    mount.mkdir(exist_ok=True)
    subprocess.run(["fallocate", "-l", f"{size_gib}G", str(image)], check=True)
    try:
        # Initialised now: the kernel would do it behind the first runs' backs.
        options = ["-E", "lazy_itable_init=0,lazy_journal_init=0", "-O", "has_journal" if journal else "^has_journal"]
        wanted = str(inodes or size_gib * _INODES_PER_GIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", *options, "-N", wanted, str(image)], check=True)
        attach = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
        device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
        try:
            subprocess.run(["mount", device, str(mount)], check=True)
            try:
                yield mount
            finally:
                unmount_beneath(mount)
                _unmount(mount)
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


def written_bytes(disk: Path) -> int:
    """What reached the device of a file system since it was made, all that is dirty now among it."""
    subprocess.run(["sync", "--file-system", disk], check=True)
    device = disk.stat().st_dev
    fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    return int(fields[_SECTORS_WRITTEN]) * _SECTOR_BYTES


def _unmount(mount: Path) -> None:
    deadline = time.monotonic() + _UNMOUNT_SECONDS
    while True:
        done = subprocess.run(["umount", mount], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"umount: {mount}: {done.stderr.strip()}")
        time.sleep(0.1)  # what keeps it busy has no other way to say so
