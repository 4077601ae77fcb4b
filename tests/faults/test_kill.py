"""D01: a work that is killed before any one of its system calls leaves a store in which nothing is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from tests import syscalls
from tests.faults.tally import Tally
from tests.faults.works import Shop, Work, judge
from tests.syscalls import CHANGES, Watched

WHY_UNWATCHED = syscalls.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)]

# Of each work in ``make test``; ``make soak`` tries all.
SAMPLE = 3


def run_until(work: Work, shop: Shop, point: int | None) -> tuple[int, list[str]]:
    """Run it and kill it before its call of this number, counted from its beginning: how many it made, what it said."""
    made = -1
    with Watched(work.program, *work.words(shop), calls=CHANGES) as program:
        for call in program:
            if made >= 0 or (call.name == "write" and call.path.startswith("pipe:")):
                made += 1
            if made == point:
                program.kill()
                return made, program.said().splitlines()
            call.allow()
        status, said = program.finish()
    assert status == 0, said
    return made, said.splitlines()


def try_all(work: Work, shop: Shop, points: Iterable[int], tally: Tally, more: Callable[[], bool]) -> None:
    """Kill it before each of these."""
    for point in points:
        if not more():
            break
        shop.restore()
        _, said = run_until(work, shop, point)
        with tally.trying("killed", work.name, f"killed before call {point}, after {said}"):
            judge(work, shop, said)
    tally.conclude()


def test_d01_what_is_killed_before_some_of_its_calls_leaves_nothing_wrong(work: Work, shop: Shop, tally: Tally) -> None:
    calls, said = run_until(work, shop, None)
    assert calls > 10
    judge(work, shop, said)
    points = random.Random(work.name).sample(range(1, calls + 1), min(SAMPLE, calls))
    try_all(work, shop, points, tally, lambda: True)


@pytest.mark.soak
def test_d01_what_is_killed_before_any_of_its_calls_leaves_nothing_wrong(
    work: Work, shop: Shop, tally: Tally, more: Callable[[], bool]
) -> None:
    calls, _ = run_until(work, shop, None)
    points = list(range(1, calls + 1))
    random.Random(work.name).shuffle(points)  # where the time is too short for all, it is not always the same that lack
    try_all(work, shop, points, tally, more)
