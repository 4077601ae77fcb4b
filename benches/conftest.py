"""Real data for the suites: a layer of this machine's own files, a registry that serves it, and fresh directories."""

from __future__ import annotations

import io
import itertools
import os
import resource
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import tests.conftest
from tests.conftest import (
    _own_surroundings,
    images,
    pytest_collection_modifyitems,
    registry,
    state,
)
from tests.images import BuiltImage, Images, Pushed, build_image

__all__ = ["_own_surroundings", "images", "pytest_collection_modifyitems", "registry", "state"]

# Debian's own files: programs, libraries, Python, documents; many small ones and some large.
SOURCES = ("/usr/bin", "/usr/lib", "/usr/share")
LAYER_BYTES = 96 << 20
_ROWS = pytest.StashKey[list[tuple[str, dict[str, Any]]]]()


class MachineLayers:
    """Uncompressed layers of this machine's own files, none of them in two; the same for the same machine."""

    def __init__(self) -> None:
        self._left = [iter(sorted(_walk(Path(source)))) for source in SOURCES]

    def take(self, size: int) -> bytes:
        """The next one, of about so many bytes: of each source as much, while it has that."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for number, paths in enumerate(self._left, 1):
                for path in paths:
                    tar.add(path, recursive=False)
                    if out.tell() >= size * number // len(SOURCES):
                        break
        return out.getvalue()


@pytest.fixture(scope="session")
def machine_layers() -> MachineLayers:
    """Where ``layer_tar`` comes from, and what is like it."""
    return MachineLayers()


@pytest.fixture(scope="session")
def layer_tar(machine_layers: MachineLayers) -> bytes:
    """An uncompressed layer of about 96 MiB: the first."""
    return machine_layers.take(LAYER_BYTES)


@pytest.fixture(scope="session")
def built(layer_tar: bytes) -> dict[str, BuiltImage]:
    """Images of that layer, by compression."""
    return {form: build_image([layer_tar], compression=form) for form in ("gzip", "zstd", "none")}


@pytest.fixture(scope="session")
def pushed(images: Images, built: dict[str, BuiltImage]) -> dict[str, Pushed]:
    """The same in the registry."""
    return {form: images.push(image) for form, image in built.items()}


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """Names of directories that are not there yet: a deleted tree would slow the next one down."""
    numbers = itertools.count()
    return lambda: tmp_path / f"fresh-{next(numbers)}"


def pytest_configure(config: pytest.Config) -> None:
    """As the tests: in a mount namespace of its own."""
    config.stash[_ROWS] = []
    tests.conftest.pytest_configure(config)


Measure = Callable[..., Any]


@pytest.fixture
def measure(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Measure:
    """Benchmark a function of one fresh directory; the row tells MiB/s, and CPU seconds for each GB."""

    def run(work: Callable[[Path], object], *, size: int, fresh: Callable[[], Path], rounds: int = 5) -> None:
        before = _cpu_seconds()
        repeat(benchmark, work, setup=lambda: ((fresh(),), {}), rounds=rounds, warmup_rounds=1)
        cpu = (_cpu_seconds() - before) / (rounds + 1)
        if benchmark.stats is not None:  # None with --benchmark-disable
            benchmark.extra_info["MiB_per_s"] = round(size / benchmark.stats.stats.median / (1 << 20), 1)
        benchmark.extra_info["cpu_s_per_GB"] = round(cpu / size * 1e9, 3)
        request.config.stash[_ROWS].append((request.node.nodeid, benchmark.extra_info))

    return run


def repeat(benchmark: BenchmarkFixture, work: Callable[..., object], **options: Any) -> None:
    """``benchmark.pedantic``, which has no types."""
    benchmark.pedantic(work, **options)  # type: ignore[no-untyped-call] # pytest-benchmark's has none


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Under pytest-benchmark's tables: throughput, CPU, and busy/starved/blocked seconds of each stage."""
    for name, facts in terminalreporter.config.stash.get(_ROWS, []):
        terminalreporter.write_line(f"{name}: {', '.join(f'{key} {value}' for key, value in facts.items())}")


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _walk(directory: Path) -> Iterator[Path]:
    for parent, directories, files in os.walk(directory):
        directories.sort()
        yield Path(parent)
        for name in files:
            yield Path(parent, name)
