"""D04: a disk that is really full: told as such, nothing is half made, and reading and removing go on."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import pyctrd
from pyctrd.flows import removal
from tests.archives import Tar
from tests.children import Child
from tests.cli.commands import is_one_error, run
from tests.faults import disks
from tests.faults.disks import MIB, Disk
from tests.faults.tally import Tally
from tests.faults.works import KEPT, leftovers
from tests.images import build_image
from tests.registry_faults import FaultyRegistry

WHY_NOT = disks.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_NOT != "", reason=WHY_NOT)]

MANY_FILES = Tar()
for _number in range(600):
    MANY_FILES.file(f"many/{_number}", b"x" * 100)
LARGE = build_image([Tar().file("large", os.urandom(2 * MIB)).build(), MANY_FILES.build()])
# Room that is left, from none to nearly enough: every step of bringing the image in finds the disk full once.
SHORT = [0, 64 << 10, 512 << 10, 2 * MIB, 4 * MIB]


class Memory(Disk):
    """A disk in memory, which has no promises of room to break."""

    def __init__(self, image: Path, target: Path, *, size_bytes: int = 64 * MIB, inodes: int = 0) -> None:
        self.image = image
        self.target = target
        self._beside = None
        self._options = f"size={size_bytes}" + (f",nr_inodes={inodes}" if inodes else "")
        target.mkdir()

    def mount(self, options: str = "") -> None:
        """Mount it, empty."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", self._options, "tmpfs", str(self.target)], check=True)


@pytest.fixture(params=[Disk, Memory], ids=["ext4", "tmpfs"])
def make_disk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path
) -> Iterator[Callable[..., Disk]]:
    """Makes a disk for the root."""
    del state
    monkeypatch.setenv("PYCTRD_ROOT", str(tmp_path / "disk/root"))
    with ExitStack() as used, disks.in_memory(tmp_path) as memory:

        def make(*, inodes: int = 0) -> Disk:
            kind: type[Disk] = request.param
            return used.enter_context(kind(memory / "image", tmp_path / "disk", inodes=inodes))

        yield make
        used.close()


@pytest.fixture
def layouts(tmp_path: Path) -> Path:
    """Images to be loaded, on another disk."""
    KEPT.write_layout(tmp_path / "kept")
    LARGE.write_layout(tmp_path / "large")
    return tmp_path


def assert_is_of_use(root: Path) -> None:
    """A new engine opens, reads, checks, lists: on a full disk as on any."""
    with pyctrd.Engine() as engine:
        assert engine.images.get("example.com/kept:1").read_file("/kept") == b"stays"
        assert engine.check(digests=True) == []
        assert engine.containers.list() == []
        assert len(list(engine.events())) > 0
    assert leftovers(root) == []


@pytest.mark.parametrize("way", ["load", "pull"])
def test_d04_what_does_not_fit_is_told_and_leaves_the_store_as_it_was(
    make_disk: Callable[..., Disk], layouts: Path, way: str, tally: Tally
) -> None:
    disk, root = make_disk(), Path(os.environ["PYCTRD_ROOT"])
    refused = 0
    with FaultyRegistry() as registry:
        reference = registry.add(LARGE, "large")
        with pyctrd.Engine() as engine:
            engine.images.load(layouts / "kept", name="example.com/kept:1")
        for left in SHORT:
            with tally.trying("full disk", way, f"{left} bytes left"):
                ballast = disk.fill(left)
                before = disk.free_bytes()
                with pyctrd.Engine() as engine:
                    try:
                        if way == "load":
                            engine.images.load(layouts / "large", name=reference)
                        else:
                            engine.images.pull(reference)
                    except OSError as error:
                        assert error.errno == errno.ENOSPC  # noqa: PT017 - larger disks take it
                        assert error.filename is not None  # noqa: PT017
                        refused += 1
                        assert engine.images.find(reference) is None
                assert leftovers(root) == []
                # But for what is given back for the database, and directories that became larger.
                assert disk.free_bytes() >= before - (64 << 10) or engine_has(reference)
                assert_is_of_use(root)
                ballast.unlink()
                assert_is_of_use(root)
            with pyctrd.Engine() as engine:
                if engine.images.find(reference) is not None:
                    engine.images.remove(reference)
        tally.conclude()
        assert refused >= 3
        with pyctrd.Engine() as engine:
            assert len(engine.images.pull(reference).read_file("/large")) == 2 * MIB
            assert engine.check(digests=True) == []


def engine_has(name: str) -> bool:
    """Whether an image is there."""
    with pyctrd.Engine() as engine:
        return engine.images.find(name) is not None


def test_d04_a_commit_that_does_not_fit_leaves_the_container_and_no_image(
    make_disk: Callable[..., Disk], layouts: Path
) -> None:
    disk, root = make_disk(), Path(os.environ["PYCTRD_ROOT"])
    with pyctrd.Engine() as engine:
        engine.images.load(layouts / "kept", name="example.com/kept:1")
        made = engine.containers.create("example.com/kept:1", ["true"], name="made")
        rootfs = root / "containers/default" / made.id / "rootfs"
        (rootfs / "changed").write_bytes(os.urandom(MIB))
        for left in (0, 512 << 10, MIB + (256 << 10)):
            ballast = disk.fill(left)
            with pytest.raises(OSError, match=r"space|full") as told:
                made.commit("example.com/committed:1")
            assert told.value.errno == errno.ENOSPC
            assert engine.images.find("example.com/committed:1") is None
            assert leftovers(root) == []
            assert made.status.state == "created"
            ballast.unlink()
        assert len(made.commit("example.com/committed:1").read_file("/changed")) == MIB
        made.delete()
        assert engine.check(digests=True) == []


def test_d04_what_is_in_the_way_can_be_removed_from_a_full_disk(make_disk: Callable[..., Disk], layouts: Path) -> None:
    disk, root = make_disk(), Path(os.environ["PYCTRD_ROOT"])
    with pyctrd.Engine() as engine:
        engine.images.load(layouts / "kept", name="example.com/kept:1")
        engine.images.load(layouts / "large", name="example.com/large:1")
    disk.fill()
    done = run("images", "-q")
    assert (done.status, len(done.lines if done.out.startswith("{") else done.out.splitlines())) == (0, 2), done.err
    assert run("rmi", "example.com/large:1").status == 0
    assert disk.free_bytes() > 4 * MIB
    assert_is_of_use(root)


def test_d04_a_pull_that_finds_the_disk_full_first_removes_what_waits_for_it(
    make_disk: Callable[..., Disk], layouts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, root = make_disk(), Path(os.environ["PYCTRD_ROOT"])
    other = build_image([Tar().file("other", os.urandom(2 * MIB)).build()])
    other.write_layout(layouts / "other")
    with pyctrd.Engine() as engine:
        for name in ("kept", "large"):
            engine.images.load(layouts / name, name=f"example.com/{name}:1")
        with engine._rooms.arrival_lock(shared=True):  # as if another process were pulling
            with monkeypatch.context() as patched:
                patched.setattr(removal, "FIRST_SECONDS", 0.0)
                engine.images.remove("example.com/large:1")
            ballast = disk.fill(3 * MIB)  # it takes four: the blob, and what it is unpacked to
            with FaultyRegistry() as registry:
                image = engine.images.pull(registry.add(other, "other"))
            assert len(image.read_file("/other")) == 2 * MIB
        ballast.unlink()
    assert_is_of_use(root)


def test_d04_an_engine_that_is_open_when_the_disk_gets_full_reads_on(
    make_disk: Callable[..., Disk], layouts: Path
) -> None:
    disk = make_disk()
    with pyctrd.Engine() as engine:
        engine.images.load(layouts / "kept", name="example.com/kept:1")
        ballast = disk.fill()
        assert engine.images.get("example.com/kept:1").read_file("/kept") == b"stays"
        assert engine.check(digests=True) == []
        ballast.unlink()
        engine.images.load(layouts / "large", name="example.com/large:1")
        assert engine.check(digests=True) == []


def test_d04_d17_a_root_on_a_full_disk_says_so_when_it_is_opened(make_disk: Callable[..., Disk]) -> None:
    disk, root = make_disk(), Path(os.environ["PYCTRD_ROOT"])
    root.mkdir(mode=0o700)
    disk.fill()
    done = run("images")
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert "No space left on device" in done.err or "no room" in done.err


def test_d04_no_files_left_is_told_as_no_room(
    make_disk: Callable[..., Disk], layouts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", "overlayfs")  # of objects there are few
    disk, root = make_disk(inodes=512), Path(os.environ["PYCTRD_ROOT"])
    with pyctrd.Engine() as engine:
        engine.images.load(layouts / "kept", name="example.com/kept:1")
        with pytest.raises(OSError, match="space") as told:
            engine.images.load(layouts / "large", name="example.com/large:1")
        assert told.value.errno == errno.ENOSPC
        assert told.value.filename is not None
    assert leftovers(root) == []
    assert_is_of_use(root)
    while os.statvfs(disk.target).f_favail > 0:
        (disk.target / f"ballast-{os.statvfs(disk.target).f_favail}").touch()
    assert_is_of_use(root)


HOLD = """
import pyctrd
with pyctrd.Engine() as engine:
    engine.images.list()
    print("open", flush=True)
    input()
"""


def test_d04_the_reserve_is_given_back_bit_by_bit_and_kept_again(make_disk: Callable[..., Disk], layouts: Path) -> None:
    disk, root = make_disk(), Path(os.environ["PYCTRD_ROOT"])
    with pyctrd.Engine() as engine:
        engine.images.load(layouts / "kept", name="example.com/kept:1")
    kept = sorted((root / "reserve").iterdir())
    assert [path.stat().st_mode & 0o777 for path in (root / "reserve", *kept)] == [0o700] + [0o600] * len(kept)
    ballast = disk.fill()
    with Child(HOLD) as child:
        assert child.hear() == "open"
        left = sorted((root / "reserve").iterdir())
        assert 0 < len(left) < len(kept)
    ballast.unlink()
    assert_is_of_use(root)
    assert sorted((root / "reserve").iterdir()) == kept
