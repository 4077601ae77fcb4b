"""D18: whoever is tired of waiting ends a call wherever it is; nothing of it stays, and no thread, file or lock."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import pyctrd
from pyctrd.flows.threads import Changed
from tests import syscalls
from tests.archives import Tar
from tests.children import Child, until
from tests.faults.tally import Tally
from tests.faults.works import Shop, Work, judge
from tests.images import Images
from tests.syscalls import CHANGES, Watched

WHY_UNWATCHED = syscalls.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)]

SAMPLE = 2
FILES = 800
WAIT = """
import sys, threading
import pyctrd
with pyctrd.Engine() as engine:
    container = engine.containers.get("sleeper")
    print("waiting", flush=True)
    try:
        container.wait()
    except KeyboardInterrupt:
        print("interrupted", threading.active_count(), container.status.state, flush=True)
"""
UNPACK = """
import os, sys
import pyctrd
print("waiting", flush=True)
try:
    pyctrd.unpack(sys.argv[1], sys.argv[2])
except KeyboardInterrupt:
    links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert not [link for link in links if sys.argv[2] in link], links
    print("interrupted", flush=True)
"""
DIFF = """
import sys
import pyctrd
print("waiting", flush=True)
try:
    pyctrd.diff(sys.argv[1], sys.argv[2])
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
PULL = """
import pyctrd, sys
with pyctrd.Engine() as engine:
    print("waiting", flush=True)
    engine.images.pull(sys.argv[1])
"""
FINISH = """
import signal, threading, time
from pyctrd.flows.threads import OwnThread

ended = []
def work():
    time.sleep(0.2)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.5)
    ended.append(True)
thread = OwnThread(work, name="worker")
try:
    thread.start()
    thread.finish()
except KeyboardInterrupt:
    print("interrupted", ended, flush=True)
OwnThread(work, name="not started").finish()
"""
TIRED = """
import signal
from pyctrd.flows.threads import Changed

def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
changed = Changed()
told = 0
for _ in range(3000):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        with changed:
            while True:
                changed.wait(0.000001)
    except KeyboardInterrupt:
        told += 1
print("told", told, flush=True)
"""


def try_all(work: Work, shop: Shop, points: Iterable[int], tally: Tally, more: Callable[[], bool]) -> None:
    """Interrupt it while it stands before each of these of its calls."""
    for point in points:
        if not more():
            break
        shop.restore()
        made = -1
        with Watched(work.program, *work.words(shop), calls=CHANGES) as program:
            for call in program:
                if made >= 0 or (call.name == "write" and call.path.startswith("pipe:")):
                    made += 1
                if made == point:
                    program.interrupt()
                call.allow()
            status, out = program.finish()
        said = out.splitlines()
        with tally.trying("interrupted", work.name, f"before call {point}: status {status}, said {said}"):
            # It may have been all but done, or in Python's own last steps.
            assert status in (0, 5, -signal.SIGINT)
            assert [line for line in said if line.startswith(("leaked", "untyped", "refused"))] == []
            judge(work, shop, said)
    tally.conclude()


def count_calls(work: Work, shop: Shop) -> int:
    """How many there are, from its beginning on."""
    made = 0
    with Watched(work.program, *work.words(shop), calls=CHANGES) as program:
        for call in program:
            if made > 0 or (call.name == "write" and call.path.startswith("pipe:")):
                made += 1
            call.allow()
        assert program.finish()[0] == 0
    return made


def test_d18_an_interrupt_at_some_steps_leaves_nothing_wrong(work: Work, shop: Shop, tally: Tally) -> None:
    calls = count_calls(work, shop)
    try_all(work, shop, random.Random(work.name).sample(range(1, calls), SAMPLE), tally, lambda: True)


@pytest.mark.soak
def test_d18_an_interrupt_at_any_step_leaves_nothing_wrong(
    work: Work, shop: Shop, tally: Tally, more: Callable[[], bool]
) -> None:
    points = list(range(1, count_calls(work, shop)))
    random.Random(work.name).shuffle(points)
    try_all(work, shop, points, tally, more)


def test_d18_a_flows_thread_has_ended_when_ctrl_c_is_told_that_came_while_it_was_waited_for() -> None:
    done = subprocess.run([sys.executable, "-c", FINISH], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "interrupted [True]\n"), done.stderr


def test_d18_ctrl_c_is_told_as_such_wherever_it_finds_who_waits_for_a_change() -> None:
    done = subprocess.run([sys.executable, "-c", TIRED], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "told 3000\n"), done.stderr


def test_d18_a_wait_without_an_end_is_begun_again_and_again() -> None:
    """Ctrl-C that comes between the interpreter's last look and the wait is heard when that is begun again."""
    changed = Changed()
    with changed:
        assert changed.wait() is False


def test_d18_waiting_for_a_container_is_ended_and_the_container_goes_on(engine: pyctrd.Engine, images: Images) -> None:
    container = engine.containers.run(engine.images.pull(images.busybox.reference), ["sleep", "600"], name="sleeper")
    with Child(WAIT) as child:
        assert child.hear() == "waiting"
        until(lambda: _sleeps(child.pid))
        os.kill(child.pid, signal.SIGINT)
        assert child.hear() == "interrupted 1 running"
        assert child.wait() == 0
    assert container.status.state == "running"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_d18_a_signal_that_ends_the_process_in_a_pull_leaves_what_the_next_removes(
    shop_of_pull: Shop, number: signal.Signals
) -> None:
    shop = shop_of_pull
    with Watched(PULL, shop.reference("second"), calls=["renameat2"]) as program:
        for call in program:
            if "/content/blobs/" in call.path:
                program._process.send_signal(number)
                break
            call.allow()
        program.finish()
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []
        assert engine.images.pull(shop.reference("second")).read_file("/late") == b"third"


def test_d18_unpacking_is_ended_in_the_middle(tmp_path: Path) -> None:
    archive, files = tmp_path / "layer.tar", Tar()
    for number in range(FILES):
        files.file(f"{number:05}", bytes(256 << 10))
    archive.write_bytes(files.build())
    with Child(UNPACK, archive, tmp_path / "dest") as child:
        assert child.hear() == "waiting"
        until((tmp_path / "dest/00003").exists)
        os.kill(child.pid, signal.SIGINT)
        assert child.hear() == "interrupted"
        assert child.wait() == 0
    assert len(list((tmp_path / "dest").iterdir())) < FILES
    archive.unlink()
    shutil.rmtree(tmp_path / "dest")


def test_d18_making_a_layer_is_ended_in_the_middle_and_leaves_no_file(tmp_path: Path) -> None:
    tree, made = tmp_path / "tree", tmp_path / "made"
    tree.mkdir()
    made.mkdir()
    for number in range(FILES // 4):
        (tree / str(number)).write_bytes(os.urandom(256 << 10))  # a second's work for gzip
    with Child(DIFF, tree, made / "layer") as child:
        assert child.hear() == "waiting"
        until(lambda: any(path.stat().st_size > 0 for path in made.iterdir()))
        os.kill(child.pid, signal.SIGINT)
        assert child.hear() == "interrupted"
        assert child.wait() == 0
    assert list(made.iterdir()) == []
    shutil.rmtree(tree)


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
