"""A container's life beside bare runtimes, containerd, Podman and Docker: one start, fifty at ten at a time, an exec.

    python -m benches.life [--rounds 20] [--many 50] [--at-once 10]

As root, on a machine that does nothing else: busybox's `true`, no network, all in turn in each round. Daemons run with
stores of their own and are warm. `pyctrd` is this process, as a program uses the library; `pyctrd (command)` is the
command line, its interpreter's start included. Bare runtimes get the spec that pyctrd writes, over a mounted image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

import pyctrd
from benches.peers.accounting import Group
from benches.peers.disk import fresh_disk
from benches.peers.tools import Containerd, Docker, Podman, missing_programs
from tests.conftest import enter_mount_namespace
from tests.images import Images
from tests.registries import Registry
from tests.runtimes import usable

RUNTIMES = ("runc", "crun")
DISK_GIB = 4


@dataclass
class Subject:
    """One that is measured.

    Attributes:
        name: In the table.
        run: Runs `true` in a new container by this name, and leaves nothing.
        execute: Runs `true` in a container that runs all the while; None where there is no such thing.
    """

    name: str
    run: Callable[[str], None]
    execute: Callable[[], None] | None = None
    times: dict[str, list[float]] = field(default_factory=dict)

    def take(self, work: str, call: Callable[[], object], times: int = 1) -> None:
        """Measure one call that does it so many times."""
        start = time.perf_counter()
        call()
        self.times.setdefault(work, []).append((time.perf_counter() - start) / times)


def command(words: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a program, whose words are shown where it fails."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace")[-500:]
        raise RuntimeError(f"{' '.join(words)}: status {done.returncode}: {said}")


@contextmanager
def ours(disk: Path, runtime: str, reference: str) -> Iterator[Iterator[Subject]]:
    """The library, the command and the runtime alone, on one store."""
    store = disk / f"pyctrd-{runtime}"
    with pyctrd.Engine(root=store / "root", state=store / "state", runtime=runtime) as engine, ExitStack() as stack:
        image = engine.images.pull(reference)
        long_lived = engine.containers.run(image, ["sleep", "3600"], network="none")
        stack.callback(long_lived.delete, force=True)
        yield _ours(engine, store, image, long_lived, runtime, stack)


def _ours(
    engine: pyctrd.Engine, store: Path, image: pyctrd.Image, running: pyctrd.Container, runtime: str, stack: ExitStack
) -> Iterator[Subject]:
    def run(name: str) -> None:
        container = engine.containers.run(image, ["true"], network="none", name=name)
        status = container.wait()
        container.delete()
        assert status.exit_code == 0

    def execute() -> None:
        assert running.exec_output(["true"]).exit_code == 0

    yield Subject(f"pyctrd, {runtime}", run, execute)
    argv = [str(Path(sys.executable).with_name("pyctrd")), "--root", f"{store}/root", "--state", f"{store}/state"]
    yield Subject(
        f"pyctrd (command), {runtime}",
        lambda name: command(
            [*argv, "run", "--rm", "--runtime", runtime, "--network", "none", "--name", name, image.name, "true"]
        ),
        lambda: command([*argv, "exec", running.name, "true"]),
    )
    bundle = store / "root/containers" / "default" / running.id
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["args"] = ["true"]
    mounted, numbers = store / "mounted", itertools.count()
    mounted.mkdir()
    stack.enter_context(image.mounted(mounted))
    spec["root"] = {"path": str(mounted), "readonly": True}

    def bare(name: str) -> None:
        directory = store / f"bare-{next(numbers)}"
        directory.mkdir()
        spec["linux"]["cgroupsPath"] = f"/pyctrd-bench-{name}"
        (directory / "config.json").write_text(json.dumps(spec))
        command([runtime, "--root", f"{store}/runtime", "run", "--bundle", str(directory), name])

    states = next(iter((store / "state").rglob(f"runtimes/*/{running.id}"))).parent
    yield Subject(
        f"bare {runtime}", bare, lambda: command([runtime, "--root", str(states), "exec", running.id, "true"])
    )


@contextmanager
def peer(kind: type[Containerd | Podman | Docker], disk: Path, reference: str) -> Iterator[Subject]:
    """A peer with a store of its own, and a container that runs."""
    group = Group(f"pyctrd-life-{kind.name}-{os.getpid()}")
    held = f"long-{os.getpid()}"  # containerd's runtime keeps it outside the store
    tool = kind(disk / kind.name, group)
    try:
        tool.start()
        command(tool.pull(reference))
        argv = tool.run_true(reference, held)
        assert argv is not None
        long_lived = [word for word in argv if word not in ("--rm", "/bin/true")]
        long_lived.insert(long_lived.index("run") + 1, "-d")
        command([*long_lived, "sleep", "3600"])
        program = argv[: argv.index("run")]
        numbers = itertools.count()

        def execute() -> None:
            if kind is Containerd:
                command([*program, "tasks", "exec", "--exec-id", f"exec-{next(numbers)}", held, "true"])
            else:
                command([*program, "exec", held, "true"])

        try:
            yield Subject(kind.name, lambda name: command(tool.run_true(reference, name) or []), execute)
        finally:
            with suppress(RuntimeError):
                command([*program, *(["tasks", "rm"] if kind is Containerd else ["rm"]), "-f", held])
    finally:
        tool.stop()
        group.close()


def measure(subjects: list[Subject], rounds: int, many: int, at_once: int) -> None:
    """All works, the subjects in turn."""
    numbers = itertools.count()
    for subject in subjects:
        subject.run("warm")  # what the first one loads
    for _ in range(rounds):
        for subject in subjects:
            subject.take("run", partial(subject.run, f"run-{next(numbers)}"))
            if subject.execute is not None:
                subject.take("exec", subject.execute)
    for _ in range(3):
        for subject in subjects:
            with ThreadPoolExecutor(at_once) as pool:
                names = [f"many-{next(numbers)}" for _ in range(many)]
                subject.take("many", partial(_run_all, pool, subject.run, names), many)


def _run_all(pool: ThreadPoolExecutor, run: Callable[[str], None], names: list[str]) -> None:
    list(pool.map(run, names))


def report(subjects: list[Subject], many: int, at_once: int) -> str:
    """Medians, as a table."""
    lines = [f"{'':28} {'run true, ms':>14} {'exec true, ms':>14} {f'{many} by {at_once}, a second':>22}"]
    for subject in subjects:
        run = statistics.median(subject.times["run"]) * 1e3
        execute = f"{statistics.median(subject.times['exec']) * 1e3:.1f}" if "exec" in subject.times else ""
        lines.append(
            f"{subject.name:28} {run:14.1f} {execute:>14} {1 / statistics.median(subject.times['many']):22.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is installed, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--many", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=10)
    options = parser.parse_args()
    subjects: list[Subject] = []
    notes = []
    if why_not := enter_mount_namespace():
        parser.error(why_not)
    with tempfile.TemporaryDirectory(prefix="pyctrd-life-", dir="/var/tmp") as directory, ExitStack() as stack:
        registry = stack.enter_context(Registry(Path(directory) / "registry"))
        reference = Images(registry).busybox.reference
        disk = stack.enter_context(fresh_disk(Path(directory), size_gib=DISK_GIB))
        runtimes = []
        for runtime in RUNTIMES:
            try:
                stack.enter_context(usable(runtime))  # all before the first container: it takes a hierarchy away
            except pytest.skip.Exception as error:
                notes.append(f"{runtime} is left out: {error}")
            else:
                runtimes.append(runtime)
        for runtime in runtimes:
            subjects += stack.enter_context(ours(disk, runtime, reference))
        for kind in (Containerd, Podman, Docker):
            if missing := missing_programs(kind.name):
                notes.append(f"{kind.name} is left out: no {', '.join(missing)}")
                continue
            subjects.append(stack.enter_context(peer(kind, disk, reference)))
        measure(subjects, options.rounds, options.many, options.at_once)
    print(report(subjects, options.many, options.at_once), *notes, sep="\n")


if __name__ == "__main__":
    main()
