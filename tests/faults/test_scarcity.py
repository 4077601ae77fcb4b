"""D06, D07: a process that may open no more files, or have no more memory, is told so and leaves the store whole."""

from __future__ import annotations

import pytest

from tests.children import Child
from tests.faults.tally import Tally
from tests.faults.works import PRELUDE, SECOND, Shop, judge_whole

pytestmark = pytest.mark.root

# Everything is loaded before the limit is set: what Python cannot import it tells by errors of its own.
PULL = """
import gc, os, resource
import pyctrd.flows.pull, pyctrd.flows.collect, pyctrd.registry.client, pyctrd.snapshots.overlayfs, encodings.idna

def work(engine, words, say):
    reference, first, what, more = words
    engine.images.pull(first)
    say("begin")
    if what == "files":
        limit = len(os.listdir("/proc/self/fd")) + int(more)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    else:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(more), resource.RLIM_INFINITY))
    try:
        engine.images.pull(reference)
    finally:
        for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS):
            resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)
    say("second")
"""


def run(shop: Shop, what: str, more: int) -> tuple[int, list[str]]:
    """Pull under a limit that is so much above what is used: exit status, and what was said."""
    words = [shop.reference("second"), shop.reference("first"), what, str(more)]
    with Child(PULL + PRELUDE, *words) as child:
        said = []
        while line := child.hear():
            said.append(line)
        return child.wait(), said


def assert_told(status: int, said: list[str]) -> bool:
    """Whether it was refused, by an error of a class that callers know."""
    assert status in (0, 3), said
    assert [line for line in said if line.startswith(("leaked", "untyped"))] == []
    return status == 3


def test_d06_a_process_that_may_open_no_more_files_is_told(shop_of_pull: Shop, tally: Tally) -> None:
    refused = []
    for more in range(0, 45, 3):
        shop_of_pull.restore()
        status, said = run(shop_of_pull, "files", more)
        with tally.trying("few files", "pull", f"{more} more files: status {status}, said {said}"):
            refused.append(assert_told(status, said))
            judge_whole(shop_of_pull, "second", SECOND, "second" in said)
    tally.conclude()
    assert {True, False} == set(refused)


def test_d07_a_process_that_may_have_no_more_memory_is_told(shop_of_pull: Shop, tally: Tally) -> None:
    refused = []
    for more in (0, 1 << 16, 1 << 18, 1 << 20, 4 << 20, 9 << 20, 20 << 20, 40 << 20, 80 << 20, 1 << 30):
        shop_of_pull.restore()
        status, said = run(shop_of_pull, "memory", more)
        with tally.trying("little memory", "pull", f"{more} more bytes: status {status}, said {said}"):
            refused.append(assert_told(status, said))
            judge_whole(shop_of_pull, "second", SECOND, "second" in said)
    tally.conclude()
    assert {True, False} == set(refused)
