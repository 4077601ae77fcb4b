"""Exec: busybox `true` in a running container from a warm engine to its exit, beside `runc exec` of the same one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pyctrd
from benches.conftest import repeat
from tests.images import Images

pytestmark = [pytest.mark.root, pytest.mark.benchmark(group="exec")]
ROUNDS = 40


@pytest.fixture
def container(state: Path, images: Images) -> Iterator[pyctrd.Container]:
    del state
    with pyctrd.Engine() as engine:
        engine.images.pull(images.busybox.reference)
        made = engine.containers.run(images.busybox.reference, ["sleep", "100000"], network="none")
        yield made
        made.delete(force=True)


def test_pyctrd(benchmark: BenchmarkFixture, container: pyctrd.Container) -> None:
    def work() -> None:
        assert container.exec_output(["true"]).exit_code == 0

    repeat(benchmark, work, rounds=ROUNDS, warmup_rounds=2)


def test_runc(benchmark: BenchmarkFixture, container: pyctrd.Container) -> None:
    root = Path(os.environ["PYCTRD_STATE"], "runtimes", "runc")
    argv = ["runc", "--root", str(root), "exec", container.id, "true"]

    def work() -> None:
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)

    repeat(benchmark, work, rounds=ROUNDS, warmup_rounds=2)
