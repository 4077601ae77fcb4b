"""Start: busybox `true` from a warm engine to its exit, beside bare runc on the same root file system."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pyctrd
from benches.conftest import repeat
from tests.images import Images

pytestmark = [pytest.mark.root, pytest.mark.benchmark(group="start")]
ROUNDS = 20


@pytest.fixture
def engine(state: Path, images: Images) -> Iterator[pyctrd.Engine]:
    del state
    with pyctrd.Engine() as opened:
        opened.images.pull(images.busybox.reference)
        yield opened


def test_pyctrd(benchmark: BenchmarkFixture, engine: pyctrd.Engine, images: Images) -> None:
    def work() -> None:
        container = engine.containers.run(images.busybox.reference, ["true"], network="none")
        assert container.wait().exit_code == 0
        started.append(container)

    started: list[pyctrd.Container] = []
    repeat(benchmark, work, rounds=ROUNDS, warmup_rounds=2, teardown=lambda: started.pop().delete())


def test_runc(benchmark: BenchmarkFixture, engine: pyctrd.Engine, images: Images, tmp_path: Path) -> None:
    # The spec that pyctrd writes, so that both have the same namespaces, seccomp profile and mounts to make.
    image = engine.images.get(images.busybox.reference)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    container = engine.containers.run(image, ["true"], network="none", name="model")
    container.wait()
    (spec,) = (tmp_path / "root/containers/default" / container.id).rglob("config.json")
    document = json.loads(spec.read_text())
    document["root"]["path"] = str(tmp_path / "mounted")
    document["linux"]["cgroupsPath"] = f"/pyctrd-bench-{tmp_path.name}"
    (bundle / "config.json").write_text(json.dumps(document))
    container.delete()
    numbers = itertools.count()

    def work() -> None:
        argv = ["runc", "--root", f"{tmp_path}/runc", "run", "--bundle", str(bundle), f"bench-{next(numbers)}"]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)

    (tmp_path / "mounted").mkdir()
    with image.mounted(tmp_path / "mounted"):
        repeat(benchmark, work, rounds=ROUNDS, warmup_rounds=2)
