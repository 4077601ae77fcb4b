"""D04 to D06: whichever system call the kernel refuses, whoever asked is told, and the store is as good as before."""

from __future__ import annotations

import errno
import random
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import pytest

from tests import syscalls
from tests.faults.tally import Tally
from tests.faults.works import Shop, Work, judge, leftovers
from tests.syscalls import CHANGES, Call, Watched

WHY_UNWATCHED = syscalls.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)]

# Of each work in ``make test``; ``make soak`` tries all.
SAMPLE = 5
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


def run_refused(work: Work, shop: Shop, point: int, number: int) -> tuple[str, str, int, list[str]]:
    """Run it, with its call of this number refused: the call, what it was done to, exit status, what was said."""
    made, name, path = 0, "", ""
    with Watched(work.program, *work.words(shop), calls=tuple(REFUSALS)) as program:
        for call, counts in of_the_work(program, shop):
            if counts and made == point:
                name, path = call.name, call.path
                call.fail(number)
            else:
                call.allow()
            made += counts
        status, said = program.finish()
    return name, path, status, said.splitlines()


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
        name, path, status, said = run_refused(work, shop, point, number)
        if not name:
            continue  # threads took another way this time, with fewer calls
        how = errno.errorcode[number]
        tally.tried(how, work.name)
        try:
            assert_told(name, path, status, said)
            if name not in CLEANING:
                assert leftovers(shop.root) == []
                assert reserved(shop) == []
            judge(work, shop, said)
        except BaseException as error:
            error.add_note(f"{work.name}: {name} of {path} was refused with {how}: status {status}, said {said}")
            raise
        tally.clean(how, work.name)


def assert_told(name: str, path: str, status: int, said: list[str]) -> None:
    """One typed error, an OSError with the name of what it was about; and nothing held open."""
    assert status in (0, 3)
    assert [line for line in said if line.startswith(("leaked", "untyped"))] == []
    refused = [line for line in said if line.startswith("refused")]
    assert len(refused) == (status == 3)
    assert not any(line.startswith(("refused OSError None", "refused PermissionError None")) for line in refused)
    if name in FLUSHES and not path.endswith(("pyctrd.db", "pyctrd.db-shm")):
        # At its end SQLite may leave things in its log, and repair tells what it could not mend.
        assert status == 3 or said[-1].startswith("left "), "what was not flushed was said to be done"


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
