"""D04 to D06: whichever system call the kernel refuses, whoever asked is told, and the store is as good as before."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyctrd
from tests import syscalls
from tests.faults.tally import Tally
from tests.faults.works import Shop, Work, judge, leftovers
from tests.images import Images
from tests.syscalls import CHANGES, Call, Watched

WHY_UNWATCHED = syscalls.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)]

# Of each work in ``make test``; ``make soak`` tries all.
SAMPLE = 3
FLUSHES = ("fsync", "fdatasync", "syncfs")
_WRITES = ("write", "pwrite64", "copy_file_range")
_NAMES = ("mkdir", "mkdirat", "rename", "renameat", "renameat2", "linkat", "link")
_MORE = ("symlink", "symlinkat", "mknodat", "setxattr", "lsetxattr", "fsetxattr")
# What a full disk, a quota, a broken disk, too many open files and too little memory say, and to whom.
REFUSALS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(CHANGES, (errno.EIO, errno.ENOMEM)),
    **dict.fromkeys((*_WRITES, *_NAMES), (errno.ENOSPC, errno.EDQUOT, errno.EIO)),
    **dict.fromkeys(_MORE, (errno.ENOSPC, errno.EDQUOT)),
    **dict.fromkeys(FLUSHES, (errno.EIO, errno.ENOSPC, errno.EDQUOT)),
    **dict.fromkeys(("openat", "openat2"), (errno.EMFILE, errno.ENFILE, errno.ENOMEM)),
}
# By these a failure is cleaned up after: one of them that fails too leaves something for the next engine.
CLEANING = ("unlink", "unlinkat", "rmdir", "rename", "renameat2", "mkdir", "umount2", "openat", "openat2", "pwrite64")


@dataclass(frozen=True)
class Refused:
    """What became of a work when one of its calls was refused.

    Attributes:
        name: The call, "" where there was none of that number.
        path: What it was done to.
        told: How much had been told as done before it.
        status: How the process ended.
        said: What it said in all.
    """

    name: str
    path: str
    told: int
    status: int
    said: list[str]

    @property
    def is_needed(self) -> bool:
        """Whether what it was to flush was told as done later."""
        if self.name not in FLUSHES or self.path.endswith(("pyctrd.db", "pyctrd.db-shm")):
            return False
        # When it is closed, and what was told is in its log, SQLite moves it to the database, or else leaves it.
        closing = self.path.endswith("pyctrd.db-wal") and self.told == len(self.said)
        # Nor does it tell of its log's name, which the flush of the log itself makes durable as well.
        return not closing and Path(self.path).name != "root"


def run_refused(work: Work, shop: Shop, point: int, number: int) -> Refused:
    """Run it, with its call of this number refused."""
    made, told, name, path, told_before = 0, 0, "", "", 0
    with Watched(work.program, *work.words(shop), calls=tuple(REFUSALS)) as program:
        for call, counts in of_the_work(program, shop):
            told += call.name == "write" and call.path.startswith("pipe:")
            if counts and made == point:
                name, path, told_before = call.name, call.path, told
                call.fail(number)
            else:
                call.allow()
            made += counts
        status, said = program.finish()
    return Refused(name, path, told_before, status, said.splitlines())


def of_the_work(program: Watched, shop: Shop) -> Iterator[tuple[Call, bool]]:
    """Each call, and whether the work makes it: from its beginning on, in the store; modules are Python's to load."""
    begun = False
    for call in program:
        path = call.path
        counts = begun and path.startswith(str(shop.root))
        begun = begun or (call.name == "write" and path.startswith("pipe:"))
        yield call, counts


def count_calls(work: Work, shop: Shop) -> list[str]:
    """The names of the calls that can be refused, in their order."""
    names: list[str] = []
    with Watched(work.program, *work.words(shop), calls=tuple(REFUSALS)) as program:
        for call, counts in of_the_work(program, shop):
            names += [call.name] * counts
            call.allow()
        status, said = program.finish()
    assert status == 0, said
    return names


def try_all(work: Work, shop: Shop, faults: Iterable[tuple[int, int]], tally: Tally, more: Callable[[], bool]) -> None:
    """Refuse each of these, and judge."""
    for point, number in faults:
        if not more():
            break
        shop.restore()
        refused = run_refused(work, shop, point, number)
        if not refused.name:
            continue  # threads took another way this time, with fewer calls
        how = errno.errorcode[number]
        with tally.trying(how, work.name, f"{how} from {refused}"):
            assert_told(refused)
            if refused.name not in CLEANING and work.name != "recover":  # which finds what is there
                assert leftovers(shop.root) == []
                assert reserved(shop) == []
            judge(work, shop, refused.said)
    tally.conclude()


def assert_told(refused: Refused) -> None:
    """One typed error, an OSError with the name of what it was about; and nothing held open."""
    assert refused.status in (0, 3)
    assert [line for line in refused.said if line.startswith(("leaked", "untyped"))] == []
    told = [line for line in refused.said if line.startswith("refused")]
    assert len(told) == (refused.status == 3)
    assert not any(line.startswith(("refused OSError None", "refused PermissionError None")) for line in told)
    if refused.is_needed:
        # Repair tells what it could not mend, and goes on.
        assert refused.status == 3 or refused.said[-1].startswith("left "), "what was not flushed was told as done"


def reserved(shop: Shop) -> list[str]:
    """The reservations that are in the database while nobody has it open."""
    with closing(sqlite3.connect(shop.root / "pyctrd.db")) as connection:
        return [str(row[0]) for row in connection.execute("SELECT id FROM ingests")]


def test_d04_d05_d06_some_refused_calls_are_told_and_leave_nothing_wrong(work: Work, shop: Shop, tally: Tally) -> None:
    names = count_calls(work, shop)
    chance = random.Random(work.name)
    points = chance.sample(range(len(names)), min(SAMPLE, len(names)))
    # A flush is among them always.
    points += [point for point, name in enumerate(names) if name in FLUSHES][-1:]
    faults = [(point, chance.choice(REFUSALS[names[point]])) for point in points]
    try_all(work, shop, faults, tally, lambda: True)


@pytest.mark.soak
def test_d04_d05_d06_any_refused_call_is_told_and_leaves_nothing_wrong(
    work: Work, shop: Shop, tally: Tally, more: Callable[[], bool]
) -> None:
    names = count_calls(work, shop)
    faults = [(point, number) for point, name in enumerate(names) for number in REFUSALS[name]]
    random.Random(work.name).shuffle(faults)
    try_all(work, shop, faults, tally, more)


def test_the_mark_of_a_frozen_container_is_named_where_it_cannot_be_cleared(
    engine: pyctrd.Engine, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = engine.containers.create(engine.images.pull(images.busybox.reference), ["true"], name="made")

    def refuse(_fd: int, _length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "ftruncate", refuse)
        with pytest.raises(OSError, match="freezer"):
            container.commit("example.com/made:1")
    assert engine.check() == []
