"""Pull: a registry on loopback to an unpacked image, beside skopeo with umoci. `benches.peers` compares more."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pyctrd
from benches.conftest import Measure
from tests.images import Pushed

Fresh = Callable[[], Path]
pytestmark = [pytest.mark.root, pytest.mark.benchmark(group="pull")]
_NS = 1e9


@pytest.mark.parametrize("form", ["gzip", "zstd", "none"])
def test_pyctrd(
    measure: Measure, fresh: Fresh, benchmark: BenchmarkFixture, pushed: dict[str, Pushed], state: Path, form: str
) -> None:
    del state
    image = pushed[form]

    def work(root: Path) -> None:
        with pyctrd.Engine(root=root) as engine:
            engine.images.pull(image.reference)
            for stage, times in engine.stages().items():
                shown = "/".join(f"{times[f'{what}_ns'] / _NS:.2f}" for what in ("busy", "starved", "blocked"))
                benchmark.extra_info[stage] = shown

    measure(work, size=len(image.built.layers[0].content), fresh=fresh)


def test_skopeo_and_umoci(measure: Measure, fresh: Fresh, pushed: dict[str, Pushed]) -> None:
    image = pushed["gzip"]

    def work(dest: Path) -> None:
        dest.mkdir()
        copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{image.reference}", f"oci:{dest}/oci:x"]
        subprocess.run(copy, check=True)
        subprocess.run(
            ["umoci", "unpack", "--image", f"{dest}/oci:x", f"{dest}/bundle"], check=True, capture_output=True
        )

    measure(work, size=len(image.built.layers[0].content), fresh=fresh)
