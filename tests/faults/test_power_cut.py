"""D03, D21: the power goes at a flush, or just when something was told as done; the disk's journal is replayed then.

The store is on a disk of the test's own. A copy of its image has what reached the disk and nothing of what was only in
memory, as the disk would after a cut; the journal is committed by flushes alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import pyctrd
from tests import syscalls
from tests.faults import disks
from tests.faults.disks import Disk
from tests.faults.tally import Tally
from tests.faults.works import WORKS, Shop, Work, judge, open_shop, set_up
from tests.registry_faults import FaultyRegistry
from tests.syscalls import Watched

WHY_NOT = syscalls.why_not() or disks.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_NOT != "", reason=WHY_NOT)]

FLUSHES = ("fsync", "fdatasync", "syncfs")
SAMPLE = 3
# Those that tell somebody that something is there, or gone. To look whether overlayfs works an engine unmounts one, by
# which the kernel flushes all of the disk beneath: whatever was not flushed before is flushed then. So not that alone.
SHORT = [
    ("pull", "native"),
    ("pull", "erofs"),
    ("load", "composefs"),
    ("commit", "overlayfs"),
    ("rmi", "native"),
    ("create", "overlayfs"),
]


@dataclass(frozen=True)
class Cut:
    """A disk as a power cut left it.

    Attributes:
        image: The disk.
        said: What had been told as done by then.
        where: For people.
    """

    image: Path
    said: list[str]
    where: str


@dataclass(frozen=True)
class Laboratory:
    """A shop on a disk, and where copies of the disk go."""

    shop: Shop
    disk: Disk
    copies: Path

    def begin(self, work: Work) -> None:
        """Make the store that the work begins with, all of it on the disk."""
        set_up(work, self.shop, keep=False)
        self.disk.unmount()
        self.disk.copy(self.copies / "base")
        self.disk.mount()

    def cuts(self, work: Work) -> list[Cut]:
        """Run a work to its end; a copy before each of its flushes and at each thing that it tells."""
        self.disk.take(self.copies / "base")
        cuts: list[Cut] = []
        said: list[str] = []

        def cut(where: str) -> None:
            cuts.append(Cut(self.disk.copy(self.copies / f"cut-{len(cuts)}"), list(said), where))

        with Watched(work.program, *work.words(self.shop), calls=("write", *FLUSHES)) as program:
            for call in program:
                path = call.path
                if call.name in FLUSHES:
                    cut(f"before {call.name} of {path}")
                elif path.startswith("pipe:"):
                    said.append(call.text.rstrip("\n"))
                    cut(f"when it said {said[-1]}")
                call.allow()
            status, out = program.finish()
        assert status == 0, out
        cut("after its end")
        return cuts

    def open(self, cut: Cut) -> None:
        """Bring the disk up again as it was left."""
        self.disk.take(cut.image)


@pytest.fixture
def laboratory(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laboratory]:
    """A disk, mounted, with an empty shop on it."""
    root = tmp_path / "disk/root"
    monkeypatch.setenv("PYCTRD_ROOT", str(root))
    with (
        disks.in_memory(tmp_path) as memory,
        Disk(memory / "image", tmp_path / "disk", beside=state) as disk,  # images are mounted there
        FaultyRegistry() as registry,
    ):
        yield Laboratory(open_shop(root, tmp_path, registry), disk, memory)


def assert_all_hold(
    laboratory: Laboratory, work: Work, cuts: Sequence[Cut], tally: Tally, more: Callable[[], bool]
) -> None:
    """Nothing that was told is lost, and nothing that is there is wrong."""
    for cut in cuts:
        if not more():
            break
        laboratory.open(cut)
        with tally.trying("power cut", work.name, f"power cut {cut.where}"):
            judge(work, laboratory.shop, cut.said)
    tally.conclude()


@pytest.mark.parametrize(("name", "snapshotter"), SHORT)
def test_d03_what_was_told_survives_a_power_cut(
    laboratory: Laboratory, name: str, snapshotter: str, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", snapshotter)
    work = next(work for work in WORKS if work.name == name)
    laboratory.begin(work)
    cuts = laboratory.cuts(work)
    assert len(cuts) > 5
    told = [cut for cut in cuts if cut.where.startswith("when") and cut.said != ["begin"]]
    others = random.Random(work.name).sample([cut for cut in cuts if cut not in told], SAMPLE)
    assert_all_hold(laboratory, work, [*told, *others], tally, lambda: True)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("durability", "snapshotter"),
    [("batch", "native"), ("batch", "overlayfs"), ("batch", "composefs"), ("batch", "erofs"), ("full", "native")],
)
@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name.replace(" ", "-"))
def test_d03_d21_a_power_cut_at_any_flush_takes_nothing_that_was_told(
    laboratory: Laboratory,
    work: Work,
    durability: str,
    snapshotter: str,
    tally: Tally,
    more: Callable[[], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYCTRD_DURABILITY", durability)
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", snapshotter)
    laboratory.begin(work)
    assert_all_hold(laboratory, work, laboratory.cuts(work), tally, more)


def test_d03_without_flushes_a_power_cut_takes_what_was_told_and_check_names_it(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other tests of this file can fail."""
    pull = next(work for work in WORKS if work.name == "pull")
    # An image without a fix-up layer, which would be flushed, and all else with it.
    plain = replace(pull, words=lambda shop: [shop.reference("left")])
    laboratory.begin(plain)
    monkeypatch.setenv("PYCTRD_DURABILITY", "none")
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", "native")
    laboratory.open(next(cut for cut in laboratory.cuts(plain) if cut.said == ["begin", "first"]))
    with pyctrd.Engine() as engine:
        assert engine.images.find(laboratory.shop.reference("left")) is not None
        assert {finding.kind for finding in engine.check(digests=True)} >= {"blob", "layer"}
