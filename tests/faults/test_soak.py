"""D02: workers over one store, each killed at random moments, again and again; now and then all is looked at."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import NotFoundError
from tests.archives import Tar
from tests.faults.tally import Tally
from tests.faults.works import leftovers
from tests.images import BuiltImage, build_image
from tests.registry_faults import FaultyRegistry

pytestmark = pytest.mark.root

SHORT_ROUNDS = 24
WORKERS = 3
IMAGES = 6
CHECK_EVERY = 12
# A process forks for each round, so that no round waits for imports: it is this child that is killed. Each says what
# it begins and what it was told is done, in one write that no kill cuts in two. No container's id begins as its names.
WORKER = """
import os, random, sys
import pyctrd
from pyctrd.errors import AlreadyExistsError, ConflictError, NotFoundError
import pyctrd.flows.pull, pyctrd.flows.collect, pyctrd.flows.commit, pyctrd.flows.run, pyctrd.flows.recover

namespace, layouts, host = sys.argv[1:4]

def say(*words):
    os.write(1, (" ".join(words) + "\\n").encode())

def work(chance, engine):
    while True:
        number = str(chance.randrange(int(sys.argv[4])))
        reference = f"{host}/image{number}:latest"
        what = chance.choice(["pull", "pull", "load", "rmi", "rmi", "gc", "create", "commit", "rm"])
        try:
            say("begin", what, number)
            if what == "pull":
                engine.images.pull(reference)
            elif what == "load":
                engine.images.load(f"{layouts}/{number}", name=reference)
            elif what == "rmi":
                engine.images.remove(reference, force=True)
            elif what == "gc" and hasattr(engine, "gc"):
                engine.gc()
            elif what == "create":
                engine.containers.create(reference, ["true"], name=f"made-{number}")
            elif what == "commit":
                engine.containers.get(f"made-{number}").commit(f"example.com/{namespace}/{number}:1")
            elif what == "rm":
                engine.containers.get(f"made-{number}").delete(force=True)
            say("done", what, number)
        except (NotFoundError, AlreadyExistsError, ConflictError) as error:
            say("none", what, number)

while line := sys.stdin.readline():
    if (child := os.fork()) == 0:
        try:
            with pyctrd.Engine(namespace=namespace) as engine:
                work(random.Random(int(line)), engine)
        except BaseException as error:
            say("failed", type(error).__name__, str(error).replace("\\n", " "))
            os._exit(1)
    say("child", str(child))
    os.waitpid(child, 0)
    say("end")
"""


@dataclass
class Worker:
    """A process in a namespace of its own, what it has to have by what it was told, and what nobody can know."""

    namespace: str
    host: str
    process: subprocess.Popen[str]
    has: dict[str, bool] = field(default_factory=dict)
    child: int = 0
    _early: list[str] = field(default_factory=list)

    def begin(self, seed: int) -> None:
        """Let it work."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        self._early = self._hear(until="child")  # the child may have been quicker than its parent
        self.child = int(self._early.pop().split()[1])

    def kill(self) -> None:
        """End the child, and learn what it was told until then."""
        with suppress(ProcessLookupError):  # it has failed, and says so
            os.kill(self.child, signal.SIGKILL)
        begun: dict[str, str] = {}
        for line in [*self._early, *self._hear(until="end")[:-1]]:
            said, what, number = (*line.split(), "", "")[:3]
            assert said != "failed", f"{self.namespace}: {line}"
            if said == "begin":
                begun[number] = what
            elif said in ("done", "none"):
                begun.pop(number, None)
                if said == "done":
                    self._learn(what, number)
        for number, what in begun.items():  # it was killed in that: who knows
            for key in _touched(what, number):
                self.has.pop(key, None)

    def _learn(self, what: str, number: str) -> None:
        if what in ("pull", "load", "create"):
            self.has[f"image {number}" if what != "create" else f"container {number}"] = True
        elif what in ("rmi", "rm"):
            self.has[f"image {number}" if what == "rmi" else f"container {number}"] = False
        elif what == "commit":
            self.has[f"commit {number}"] = True

    def _hear(self, *, until: str) -> list[str]:
        assert self.process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1].split()[0] != until:
            line = self.process.stdout.readline()
            assert line, f"{self.namespace}: ended after {lines[-3:]}"
            lines.append(line.strip())
        return lines


def _touched(what: str, number: str) -> list[str]:
    kinds = {"pull": ["image"], "load": ["image"], "rmi": ["image"], "create": ["container"], "rm": ["container"]}
    return [f"{kind} {number}" for kind in kinds.get(what, ["commit"] if what == "commit" else [])]


@pytest.fixture
def images() -> list[BuiltImage]:
    """Each shares a layer with the others, and has one of its own; some leave something to the shared one."""
    shared = Tar().directory("d", mode=0o750).file("d/f", b"shared" * 1000).build()
    owns = [Tar().file(f"own-{number}", os.urandom(30_000)).file("number", b"%d" % number) for number in range(IMAGES)]
    for own in owns[::2]:
        own.hardlink("d/again", "d/f")
    return [build_image([shared, own.build()]) for own in owns]


@pytest.fixture(params=["", "composefs"], ids=["chosen", "composefs"])
def snapshotter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of all workers; "" for what an engine chooses."""
    name: str = request.param
    if name:
        monkeypatch.setenv("PYCTRD_SNAPSHOTTER", name)
    return name


@pytest.fixture
def workers(images: list[BuiltImage], tmp_path: Path, state: Path, snapshotter: str) -> Iterator[list[Worker]]:
    """One a namespace."""
    del state, snapshotter
    with FaultyRegistry() as registry:
        for number, image in enumerate(images):
            registry.add(image, f"image{number}")
            image.write_layout(tmp_path / "layouts" / str(number))
        started = []
        try:
            for number in range(WORKERS):
                words = [f"worker{number}", str(tmp_path / "layouts"), registry.host, str(IMAGES)]
                process = subprocess.Popen(
                    [sys.executable, "-P", "-W", "ignore", "-c", WORKER, *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                started.append(Worker(words[0], registry.host, process))
            yield started
        finally:
            for worker in started:
                worker.process.kill()
                worker.process.wait()
                for pipe in (worker.process.stdin, worker.process.stdout):
                    if pipe is not None:
                        pipe.close()


def assert_all_as_told(root: Path, workers: list[Worker]) -> None:
    """Nothing is wrong, and of each namespace there is what it was told; it is read, too."""
    with pyctrd.Engine() as engine:
        engine.gc()
        assert engine.check(digests=True) == []
        # A pull that was killed leaves its bytes to the next one.
        looked = engine.gc(dry_run=True, all_namespaces=True).items
        kept = {f"content/ingest/{item.name}" for item in looked if item.kind == "ingest" and item.kept}
        assert [left for left in leftovers(root) if left not in kept] == []
    for worker in workers:
        with pyctrd.Engine(namespace=worker.namespace) as engine:
            for key, there in worker.has.items():
                kind, number = key.split()
                assert _is_there(engine, worker, kind, number) == there, f"{worker.namespace}: {key}"


def _is_there(engine: pyctrd.Engine, worker: Worker, kind: str, number: str) -> bool:
    try:
        if kind == "container":
            return engine.containers.get(f"made-{number}").status.state == "created"
        name = (
            f"{worker.host}/image{number}:latest" if kind == "image" else f"example.com/{worker.namespace}/{number}:1"
        )
        return engine.images.get(name).read_file("/number") == number.encode()
    except NotFoundError as error:
        if error.kind not in ("image", "container"):
            raise  # a layer, or a blob
        return False


def play(root: Path, workers: list[Worker], rounds: int, seed: int, tally: Tally, more: Callable[[], bool]) -> None:
    """Kill them, each at a moment of its own, so many times in all."""
    chance = random.Random(seed)
    done = 0
    while done < rounds and more():
        before = done
        with tally.trying("killed at random", "batches", f"seed {seed}, after round {done}"):
            while done < min(before + CHECK_EVERY, rounds):
                for worker in workers:
                    worker.begin(chance.randrange(1 << 30))
                # Between nothing at all and a few works: each of these moments may be the wrong one.
                moments = sorted(
                    ((time.monotonic() + chance.random() ** 2 * 0.5, worker) for worker in workers),
                    key=lambda pair: pair[0],
                )
                for moment, worker in moments:
                    time.sleep(max(0.0, moment - time.monotonic()))
                    worker.kill()
                    done += 1
            assert_all_as_told(root, workers)
            tally.add("killed at random", "rounds", done - before)
        tally.conclude()  # what is wrong once is wrong ever after


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of all that is at random."""
    return int(request.config.getoption("--soak-seed") or time.time())


def test_d02_workers_that_are_killed_at_random_leave_nothing_wrong(
    root: Path, workers: list[Worker], seed: int, tally: Tally
) -> None:
    play(root, workers, SHORT_ROUNDS, seed, tally, lambda: True)


@pytest.mark.soak
def test_d02_thousands_of_kills_leave_nothing_wrong(
    root: Path,
    workers: list[Worker],
    seed: int,
    tally: Tally,
    more: Callable[[], bool],
    request: pytest.FixtureRequest,
) -> None:
    play(root, workers, request.config.getoption("--soak-rounds"), seed, tally, more)
