"""A pull or a load that is killed, or refused by the disk, exactly before any one of its steps."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyctrd
from tests import syscalls
from tests.archives import Tar, compress_zstd
from tests.images import build_image
from tests.registry_faults import FaultyRegistry
from tests.syscalls import Watched

WHY_UNWATCHED = syscalls.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(WHY_UNWATCHED), reason=WHY_UNWATCHED)]

PROGRAM = """
import sys
import pyctrd
try:
    with pyctrd.Engine() as engine:
        getattr(engine.images, sys.argv[1])(sys.argv[2])
except (pyctrd.PyctrdError, OSError) as error:
    print("refused:", error)
    sys.exit(3)
"""
# Each of them makes the disk differ from what it was. SQLite's writes are seen through its flushes.
STEPS = (
    *("write", "linkat", "renameat2", "rename", "renameat", "unlinkat", "unlink", "rmdir", "symlinkat", "ftruncate"),
    *("fsync", "fdatasync", "syncfs", "move_mount", "umount2"),
)
# What the disk may refuse, how, and which of many calls: those of the database and of folders that are there are alike.
REFUSED = [
    *((name, errno.ENOSPC, 1) for name in ("write", "mkdir", "renameat2", "rename", "symlinkat", "fsync", "syncfs")),
    *((name, errno.ENOSPC, 5) for name in ("mkdirat", "pwrite64")),
    *((name, errno.EIO, 1) for name in ("fsync", "fdatasync", "syncfs")),
    *((name, errno.EIO, 5) for name in ("write", "pwrite64")),
]


# Each of them in ``make soak``, every so many in ``make test``.
STRIDES = pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.soak)])

# An image whose layers leave something to one another.
SMALL = build_image(
    [
        Tar().directory("d", mode=0o750).file("d/f", b"first").file("d/b", b"b" * 9000).symlink("l", "d/f").build(),
        Tar().file("d/g", b"second").hardlink("d/h", "d/f").build(),
    ]
)


@dataclass(frozen=True)
class Source:
    """Where the image comes from: how, out of what, and as what."""

    way: str
    place: str
    name: str

    def bring(self, engine: pyctrd.Engine) -> pyctrd.Image:
        """Bring it in."""
        return engine.images.pull(self.place) if self.way == "pull" else engine.images.load(self.place)[0]

    @property
    def words(self) -> tuple[str, str]:
        """For the program."""
        return self.way, self.place


@pytest.fixture(params=["pull", "load", "pull as directories"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """A registry in this process; or an archive whose members must be copied before they are of use."""
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", "overlayfs" if request.param == "pull as directories" else "composefs")
    if request.param == "load":
        archive = tmp_path / "archive"
        files = Tar()
        for number, tar in enumerate(SMALL.tars):
            files.file(f"{number}/layer.tar", tar)
        layers = [f"{number}/layer.tar" for number in range(len(SMALL.tars))]
        listed = [{"Config": "config", "RepoTags": ["local/app:1"], "Layers": layers}]
        files.file("config", SMALL.blobs[0].content).file("manifest.json", json.dumps(listed).encode())
        archive.write_bytes(compress_zstd(files.build()))
        yield Source("load", str(archive), "local/app:1")
        return
    with FaultyRegistry() as registry:
        reference = registry.add(SMALL, "app")
        yield Source("pull", reference, reference)


@pytest.fixture
def root() -> Path:
    return Path(os.environ["PYCTRD_ROOT"])


def leftovers(root: Path) -> list[str]:
    """What only a work under way may have there. That blobs' bytes are kept, their namespace knows."""
    found = [path for path in sorted((root / "content/ingest").glob("*/*")) if path.name not in ("data", "lock")]
    found += sorted((root / "trash").glob("*"))
    found += [path for path in sorted((root / "snapshots").glob("*")) if not path.name.startswith(("fixup-", "stack-"))]
    return [str(path.relative_to(root)) for path in found]


def assert_whole(root: Path, source: Source) -> None:
    """The next engine finds nothing wrong, and the image is there, or comes now; then nothing of it stays."""
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []
        assert leftovers(root) == []
        if (image := engine.images.find(source.name)) is not None:
            assert image.read_file("/d/g") == b"second"
        image = source.bring(engine)
        assert image.read_file("/d/h") == b"first"
        assert engine.check(digests=True) == []
        engine.images.remove(source.name)
        assert leftovers(root) == []
        for name in ("content/blobs/sha256", "content/ingest", "layers/sha256", "snapshots"):
            assert list((root / name).iterdir()) == [], name
        assert list((root / "objects").glob("*/*")) == []


@pytest.mark.slow
@STRIDES
def test_what_is_killed_before_any_step_leaves_a_clean_store(source: Source, root: Path, stride: int) -> None:
    point = tried = 0
    while True:
        with Watched(PROGRAM, *source.words, calls=STEPS) as program:
            for passed, call in enumerate(program):
                if passed == point:
                    program.kill()
                    break
                call.allow()
            else:
                assert program.finish() == (0, "")
                break
        assert_whole(root, source)
        point += stride
        tried += 1
    assert tried > 40 // stride
    assert_whole(root, source)


@pytest.mark.slow
@STRIDES
@pytest.mark.parametrize(("name", "refusal", "step"), REFUSED)
def test_what_is_refused_by_the_disk_at_any_step_says_so_and_leaves_a_clean_store(
    source: Source, root: Path, name: str, refusal: int, step: int, stride: int
) -> None:
    if name == "symlinkat" and os.environ["PYCTRD_SNAPSHOTTER"] == "composefs":
        pytest.skip("no link is made of one")
    point = refused = 0
    while (ended := run_refused(source, name, point, refusal)) is not None:
        status, said = ended
        assert status in (0, 3), said
        assert status == 0 or said.startswith("refused: "), said
        refused += status == 3
        if root.exists() and name != "rename":  # by which clean-up begins
            assert leftovers(root) == [], said
        assert_whole(root, source)
        point += step if step > 1 else stride
    assert refused > 0


def run_refused(source: Source, name: str, point: int, refusal: int) -> tuple[int, str] | None:
    """A run whose ``point``-th call of a name fails: its exit status and words; None where it has not so many."""
    passed = 0
    with Watched(PROGRAM, *source.words, calls=[name]) as program:
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
