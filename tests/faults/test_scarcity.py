"""D06, D07: a process that may open no more files, or have no more memory, is told so and leaves the store whole."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.faults.tally import Tally
from tests.faults.works import PRELUDE, SECOND, Shop, judge_whole

pytestmark = pytest.mark.root

PATIENCE_SECONDS = 10.0
PYTHON_HANGS = 99
# Rust ends a process in which it finds no memory for a few bytes, with one line that says so: a clean end, no error.
RUST_ENDS = -signal.SIGABRT
LEVELS = [0, 1 << 16, 1 << 20, 4 << 20, 9 << 20, 12 << 20, 20 << 20, 40 << 20, 80 << 20, 1 << 30]
# Everything is loaded before the limit is set: what Python cannot import it tells by errors of its own.
PULL = """
import gc, os, resource
import pyctrd.flows.pull, pyctrd.flows.collect, pyctrd.registry.client, pyctrd.snapshots.overlayfs, encodings.idna

def work(engine, words, say):
    reference, first, what, more = words
    if first:
        engine.images.pull(first)  # threads are there, and all that is loaded late
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


def run(shop: Shop, what: str, more: int, *, warm: bool = True) -> tuple[int, list[str]]:
    """Pull under a limit that is so much above what is used: exit status, and what was said."""
    words = [shop.reference("second"), shop.reference("first") if warm else "", what, str(more)]
    child = subprocess.Popen([sys.executable, "-P", "-c", PULL + PRELUDE, *words], stdout=subprocess.PIPE, text=True)
    try:
        out, _ = child.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        # CPython waits for ever for a thread of its own that had no memory to say that it has begun.
        child.kill()
        return PYTHON_HANGS, child.communicate()[0].splitlines()
    return child.returncode, out.splitlines()


def assert_told(status: int, said: list[str]) -> bool:
    """Whether it was refused, by an error of a class that callers know."""
    assert status in (0, 3, PYTHON_HANGS, RUST_ENDS), said
    assert [line for line in said if line.startswith(("leaked", "untyped"))] == []
    return status != 0


def test_d06_a_process_that_may_open_no_more_files_is_told(shop_of_pull: Shop, tally: Tally) -> None:
    refused = []
    for more in (0, 15, 40):
        shop_of_pull.restore()
        status, said = run(shop_of_pull, "files", more)
        with tally.trying("few files", "pull", f"{more} more files: status {status}, said {said}"):
            refused.append(assert_told(status, said))
            judge_whole(shop_of_pull, "second", SECOND, told="second" in said)
    tally.conclude()
    assert set(refused) == {True, False}


@pytest.mark.parametrize(
    ("warm", "levels"),
    [
        (True, [9 << 20, 1 << 30]),
        pytest.param(True, LEVELS, marks=pytest.mark.soak),
        pytest.param(False, LEVELS, marks=pytest.mark.soak),
    ],
)
def test_d07_a_process_that_may_have_no_more_memory_is_told(
    shop_of_pull: Shop,
    tally: Tally,
    warm: bool,  # noqa: FBT001 - a parameter of the test
    levels: list[int],
) -> None:
    refused = []
    for more in levels:
        shop_of_pull.restore()
        status, said = run(shop_of_pull, "memory", more, warm=warm)
        with tally.trying("little memory", "pull", f"{more} more bytes: status {status}, said {said}"):
            refused.append(assert_told(status, said))
            judge_whole(shop_of_pull, "second", SECOND, told="second" in said)
    tally.conclude()
    assert False in refused
