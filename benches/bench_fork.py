"""Fork of a container with 1 GiB written, to the exit of what runs in it, beside a plain create, start and exit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pyctrd
from benches.conftest import repeat
from tests.images import Images

pytestmark = [pytest.mark.root, pytest.mark.benchmark(group="fork")]
ROUNDS = 10
WRITE = ["sh", "-c", "[ -e /written ] || dd if=/dev/zero of=/written bs=1M count=1024 2>/dev/null"]


@pytest.fixture
def engine(state: Path, images: Images) -> Iterator[pyctrd.Engine]:
    del state
    with pyctrd.Engine() as opened:
        opened.images.pull(images.busybox.reference)
        yield opened
        for container in opened.containers.list():
            container.delete(force=True)


@pytest.fixture
def written(engine: pyctrd.Engine, images: Images) -> pyctrd.Container:
    container = engine.containers.run(images.busybox.reference, WRITE)
    assert container.wait().exit_code == 0
    return container


def test_create_and_start(benchmark: BenchmarkFixture, engine: pyctrd.Engine, images: Images) -> None:
    def work() -> None:
        container = engine.containers.run(images.busybox.reference, ["true"])
        assert container.wait().exit_code == 0
        made.append(container)

    made: list[pyctrd.Container] = []
    repeat(benchmark, work, rounds=ROUNDS, warmup_rounds=2, teardown=lambda: made.pop().delete())


def test_fork_and_start(benchmark: BenchmarkFixture, written: pyctrd.Container) -> None:
    def work() -> None:
        container = written.fork()
        container.start()
        assert container.wait().exit_code == 0
        made.append(container)

    made: list[pyctrd.Container] = []
    repeat(benchmark, work, rounds=ROUNDS, teardown=lambda: made.pop().delete())


def test_rollback(benchmark: BenchmarkFixture, written: pyctrd.Container) -> None:
    os.sync()
    name = written.snapshot()

    def work() -> None:
        written.rollback(name)

    repeat(benchmark, work, rounds=ROUNDS)


def _write_again(engine: pyctrd.Engine, images: Images) -> pyctrd.Container:
    container = engine.containers.run(images.busybox.reference, WRITE)
    assert container.wait().exit_code == 0
    return container


@pytest.mark.parametrize("work", ["create", "fork"])
def test_right_after_the_writing(work: str, benchmark: BenchmarkFixture, engine: pyctrd.Engine, images: Images) -> None:
    """With a gigabyte that is still to be written to the disk, whoever records something waits for the journal."""
    made: list[pyctrd.Container] = []

    def begin() -> None:
        made.append(_write_again(engine, images))

    def run() -> None:
        source = made[-1]
        container = source.fork() if work == "fork" else engine.containers.create(images.busybox.reference, ["true"])
        made.append(container)
        container.start()
        assert container.wait().exit_code == 0

    def end() -> None:
        while made:
            made.pop().delete()

    repeat(benchmark, run, setup=begin, teardown=end, rounds=3)
