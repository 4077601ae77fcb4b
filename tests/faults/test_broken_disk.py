"""D05: a disk that cannot write what it took: whoever flushes is told, and what was lost is trusted by nobody."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from tests import syscalls
from tests.archives import Tar
from tests.content.stores import blob_path, sha256
from tests.faults import disks
from tests.faults.disks import MIB, Disk
from tests.images import build_image
from tests.registry_faults import FaultyRegistry
from tests.syscalls import Watched

WHY_NOT = syscalls.why_not() or disks.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_NOT != "", reason=WHY_NOT)]

PULL = """
import sys
import pyctrd
try:
    with pyctrd.Engine() as engine:
        engine.images.pull(sys.argv[1])
except OSError as error:
    sys.exit(f"errno {error.errno} {error.filename}")
"""
CONTENT = os.urandom(4 * MIB)


class ThinDisk(Disk):
    """A disk that has promised more room than there is behind it, as a thin volume or a SAN does."""

    def __init__(self, behind: Path, target: Path) -> None:
        behind.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", str(behind)], check=True)
        self._behind = behind
        super().__init__(behind / "image", target, size_bytes=48 * MIB)
        with self.image.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, 48 * MIB)

    def mount(self, options: str = disks.OPTIONS) -> None:
        """Give back what no file is in: there is room behind the journal and what is written already, and no more."""
        super().mount(options)
        subprocess.run(["fstrim", str(self.target)], check=True)

    def run_dry(self) -> None:
        """From now on nothing can be written where nothing was before."""
        with (self._behind / "ballast").open("wb") as file:
            size = os.statvfs(self._behind).f_bavail * os.statvfs(self._behind).f_frsize
            os.posix_fallocate(file.fileno(), 0, size)

    def fill_up(self) -> None:
        """From now on everything can be."""
        (self._behind / "ballast").unlink()

    def __exit__(self, *error: object) -> None:
        self.unmount()
        subprocess.run(["umount", str(self._behind)], check=True)


@pytest.fixture
def thin(tmp_path: Path) -> Iterator[ThinDisk]:
    with ThinDisk(tmp_path / "behind", tmp_path / "disk") as disk:
        yield disk


def sync(directory: Path) -> int:
    """What ``syncfs`` says of the file system there, 0 if all is well."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return 0 if libc.syncfs(descriptor) == 0 else ctypes.get_errno()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("durability", ["batch", "full"])
def test_d05_what_the_disk_could_not_write_gets_no_name_whoever_was_told_first(thin: ThinDisk, durability: str) -> None:
    root = thin.target / "root"
    root.mkdir()
    tar = Tar().file("file", CONTENT).build()
    digest = sha256(tar)
    lost = _core.Ingest(root, "lost", digest=digest, size=len(tar), diff_id=digest, unpack=True)
    sync(thin.target)
    lost.write(tar)
    lost.finish()
    thin.run_dry()
    assert sync(thin.target) in (errno.EIO, errno.ENOSPC)  # another process: it is told, and the kernel's list is empty
    assert sync(thin.target) == 0
    thin.fill_up()
    with pytest.raises(OSError, match=r"syncfs|fdatasync") as told:
        _core.publish(root, [lost], durability=durability)
    assert told.value.errno in (errno.EIO, errno.ENOSPC)
    assert told.value.filename is not None
    assert not blob_path(root, digest).exists()
    lost.abort()
    # The same bytes again, to a disk that takes them.
    again = _core.Ingest(root, "again", digest=digest, size=len(tar), diff_id=digest, unpack=True)
    again.write(tar)
    again.finish()
    _core.publish(root, [again], durability=durability)
    thin.unmount()
    thin.mount()  # nothing of it is in memory any more
    assert sha256(blob_path(root, digest).read_bytes()) == digest
    assert (root / "layers/sha256" / digest[7:] / "tree/file").read_bytes() == CONTENT


@pytest.mark.parametrize("flush", ["fdatasync", "syncfs", "fsync"])
def test_d05_what_could_not_be_flushed_is_fetched_again_and_not_flushed_again(
    root: Path, state: Path, flush: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    del state
    monkeypatch.setenv("PYCTRD_DURABILITY", "full" if flush == "fdatasync" else "batch")
    image = build_image([Tar().file("file", b"content").build()])
    with FaultyRegistry() as registry:
        reference = registry.add(image, "image")
        with pyctrd.Engine() as engine:
            engine.images.list()
        with Watched(PULL, reference, calls=[flush]) as program:
            failed = False
            for call in program:
                if not failed and (flush == "syncfs" or f"{call.path}/".startswith(f"{root}/content/")):
                    failed = True
                    call.fail(errno.EIO)
                else:
                    call.allow()
            status, said = program.finish()
        assert failed
        assert status == 1
        assert said.startswith(f"errno {errno.EIO} "), said
        fetched = len(registry.requests("/blobs/"))
        with pyctrd.Engine() as engine:
            assert engine.images.find(reference) is None
            assert list((root / "content/blobs/sha256").iterdir()) == []
            assert list((root / "layers/sha256").iterdir()) == []
            assert engine.images.pull(reference).read_file("/file") == b"content"
            assert engine.check(digests=True) == []
        assert len(registry.requests("/blobs/")) == fetched * 2
