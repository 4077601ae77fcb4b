"""A pull that is killed, or refused by the disk, exactly before any one of its steps."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from tests import syscalls
from tests.archives import Tar
from tests.images import build_image
from tests.registry_faults import FaultyRegistry
from tests.syscalls import Watched

WHY_UNWATCHED = syscalls.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(WHY_UNWATCHED), reason=WHY_UNWATCHED)]

PULL = """
import sys
import pyctrd
try:
    with pyctrd.Engine() as engine:
        engine.images.pull(sys.argv[1])
except (pyctrd.PyctrdError, OSError) as error:
    print("refused:", error)
    sys.exit(3)
"""
# Each of them makes the disk differ from what it was. SQLite's writes are seen through its flushes.
STEPS = (
    *("write", "renameat2", "rename", "renameat", "unlinkat", "unlink", "rmdir", "symlinkat", "ftruncate"),
    *("fsync", "fdatasync", "syncfs", "move_mount", "umount2"),
)
# What the disk may refuse, how, and which of many calls: those of the database and of folders that are there are alike.
REFUSED = [
    *((name, errno.ENOSPC, 1) for name in ("write", "mkdir", "renameat2", "rename", "symlinkat", "fsync", "syncfs")),
    *((name, errno.ENOSPC, 5) for name in ("mkdirat", "pwrite64")),
    *((name, errno.EIO, 1) for name in ("fsync", "fdatasync", "syncfs")),
    *((name, errno.EIO, 5) for name in ("write", "pwrite64")),
]


@pytest.fixture
def reference() -> Iterator[str]:
    """A small image whose layers leave something to one another, from a registry in this process."""
    first = Tar().directory("d", mode=0o750).file("d/f", b"first").symlink("l", "d/f").build()
    second = Tar().file("d/g", b"second").hardlink("d/h", "d/f").build()
    with FaultyRegistry() as registry:
        yield registry.add(build_image([first, second]), "app")


@pytest.fixture
def root() -> Path:
    return Path(os.environ["PYCTRD_ROOT"])


def leftovers(root: Path) -> list[str]:
    """What only a work under way may have there."""
    found = [path for name in ("content/ingest", "trash") for path in sorted((root / name).glob("*"))]
    found += [path for path in sorted((root / "snapshots").glob("*")) if not path.name.startswith("fixup-")]
    return [str(path.relative_to(root)) for path in found]


def assert_whole(root: Path, reference: str) -> None:
    """The next engine finds nothing wrong, and the pull is done, or is done now; then nothing of it stays."""
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []
        assert leftovers(root) == []
        if (image := engine.images.find(reference)) is not None:
            assert image.read_file("/d/g") == b"second"
        image = engine.images.pull(reference)
        assert image.read_file("/d/h") == b"first"
        assert engine.check(digests=True) == []
        engine.images.remove(reference)
        assert leftovers(root) == []
        for name in ("content/blobs/sha256", "layers/sha256", "snapshots"):
            assert list((root / name).iterdir()) == [], name


@pytest.mark.slow
def test_a_pull_killed_before_any_step_leaves_a_clean_store(reference: str, root: Path) -> None:
    point = 0
    while True:
        with Watched(PULL, reference, calls=STEPS) as program:
            for passed, call in enumerate(program):
                if passed == point:
                    program.kill()
                    break
                call.allow()
            else:
                assert program.finish() == (0, "")
                break
        assert_whole(root, reference)
        point += 1
    assert point > 40
    assert_whole(root, reference)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "refusal", "step"), REFUSED)
def test_a_pull_refused_by_the_disk_at_any_step_says_so_and_leaves_a_clean_store(
    reference: str, root: Path, name: str, refusal: int, step: int
) -> None:
    point = refused = 0
    while (ended := pull_refused(reference, name, point, refusal)) is not None:
        status, said = ended
        assert status in (0, 3), said
        assert status == 0 or said.startswith("refused: "), said
        refused += status == 3
        if root.exists() and name != "rename":  # by which clean-up begins
            assert leftovers(root) == [], said
        assert_whole(root, reference)
        point += step
    assert refused > 0


def pull_refused(reference: str, name: str, point: int, refusal: int) -> tuple[int, str] | None:
    """A pull whose ``point``-th call of a name fails: its exit status and words; None where it has not so many."""
    passed = 0
    with Watched(PULL, reference, calls=[name]) as program:
        for call in program:
            if call.path.startswith(("socket:", "pipe:")):
                call.allow()
            elif passed == point:
                call.fail(refusal)
                return program.finish()
            else:
                call.allow()
                passed += 1
        return None
