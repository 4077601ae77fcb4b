"""The store as a whole: many small blobs in and out, all of it checked, many processes at once.

``PYCTRD_BENCH_BLOBS`` says how many small blobs; 100,000 take minutes, and a file system with as many inodes.
``PYCTRD_BENCH_OBJECTS`` says how many contents of files; a million take 5 GB and ten minutes.
``PYCTRD_BENCH_IMAGE_MB`` says how large the images are that many processes pull.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pyctrd
from benches.conftest import MachineLayers, Measure, repeat
from pyctrd.flows.fetch import Fetch
from pyctrd.flows.pull import BytesBody, is_present, record_content
from pyctrd.flows.wants import Want
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from tests.archives import Tar
from tests.images import Images, Pushed, build_image

Fresh = Callable[[], Path]
BLOBS = int(os.environ.get("PYCTRD_BENCH_BLOBS", "2000"))
BLOB_BYTES = 1000
OBJECTS = int(os.environ.get("PYCTRD_BENCH_OBJECTS", "20000"))
# In a layer, and layers in an image.
OBJECTS_EACH = 10_000
LAYERS_EACH = 10
# Just too many to be inline in their layer.
OBJECT_BYTES = 1100
# Of each image's own layer before it is compressed, to a third or so; they share one of 96 MiB.
IMAGE_BYTES = int(os.environ.get("PYCTRD_BENCH_IMAGE_MB", "64")) << 20
IMAGES = 20
PROCESSES = 8

_PULL = """
import sys, pyctrd
with pyctrd.Engine(concurrency=8) as engine:
    for result in engine.images.pull_many(sys.argv[2:], concurrency=int(sys.argv[1])):
        if result.error:
            raise result.error
"""


def small_blobs() -> list[bytes]:
    noise = random.Random(1)
    return [noise.randbytes(BLOB_BYTES) for _ in range(BLOBS)]


def fill(engine: pyctrd.Engine, blobs: list[bytes]) -> None:
    """Bring blobs in as a pull does: locked, reserved, verified, flushed, recorded."""
    rooms = engine._rooms  # noqa: SLF001 - no public call brings in a blob alone
    wants = []
    for content in blobs:
        digest = Digest.parse(f"sha256:{hashlib.sha256(content).hexdigest()}")
        wants.append(Want(Descriptor("application/octet-stream", digest, len(content)), partial(BytesBody, content)))
    Fetch(rooms, is_present=partial(is_present, rooms), record=partial(record_content, rooms, "")).run(wants)


@pytest.mark.benchmark(group="small blobs")
def test_small_blobs_in(measure: Measure, fresh: Fresh) -> None:
    blobs = small_blobs()

    def work(root: Path) -> None:
        with pyctrd.Engine(root=root) as engine:
            fill(engine, blobs)

    measure(work, size=BLOBS * BLOB_BYTES, fresh=fresh, rounds=3)


@pytest.mark.benchmark(group="small blobs")
def test_small_blobs_in_python(measure: Measure, fresh: Fresh) -> None:
    """The least that is as durable: hash, write, fdatasync, rename, and one fsync of the folder."""
    blobs = small_blobs()

    def work(root: Path) -> None:
        root.mkdir()
        for content in blobs:
            name = hashlib.sha256(content).hexdigest()
            with (root / "staged").open("wb") as file:
                file.write(content)
                file.flush()
                os.fdatasync(file.fileno())
            (root / "staged").rename(root / name)
        folder = os.open(root, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    measure(work, size=BLOBS * BLOB_BYTES, fresh=fresh, rounds=3)


@pytest.mark.benchmark(group="small blobs")
def test_small_blobs_out(benchmark: BenchmarkFixture, fresh: Fresh) -> None:
    blobs = small_blobs()
    opened: list[pyctrd.Engine] = []

    def filled() -> tuple[tuple[pyctrd.Engine], dict[str, object]]:
        opened.append(pyctrd.Engine(root=fresh(), durability="none"))
        fill(opened[-1], blobs)
        return (opened[-1],), {}

    def work(engine: pyctrd.Engine) -> None:
        assert len(engine.gc().items) == BLOBS

    repeat(benchmark, work, setup=filled, rounds=3)
    for engine in opened:
        engine.close()


def fill_objects(engine: pyctrd.Engine, scratch: Path) -> None:
    """Load images whose files are all different."""
    noise = random.Random(3)
    left = OBJECTS
    while left > 0:
        tars = []
        for _ in range(LAYERS_EACH):
            tar = Tar()
            for number in range(min(left, OBJECTS_EACH)):
                tar.file(f"{number}", noise.randbytes(OBJECT_BYTES))
            tars.append(tar.build())
            left -= min(left, OBJECTS_EACH)
        layout = scratch / f"layout-{left}"
        build_image(tars, compression="none").write_layout(layout)
        engine.images.load(layout, name=f"bench.example/objects-{left}:1")
        shutil.rmtree(layout)


@pytest.fixture
def stored(fresh: Fresh, tmp_path: Path, state: Path) -> Iterator[pyctrd.Engine]:
    """A store of objects."""
    del state
    with pyctrd.Engine(root=fresh(), snapshotter="composefs", durability="none") as engine:
        fill_objects(engine, tmp_path)
        os.sync()
        yield engine


@pytest.mark.root
@pytest.mark.benchmark(group="objects")
def test_objects_looked_at(benchmark: BenchmarkFixture, stored: pyctrd.Engine) -> None:
    """A collection that has nothing to free: what it costs to know that."""
    work = partial(stored.gc, all_namespaces=True)
    repeat(benchmark, work, rounds=3)
    space = stored.df(all_namespaces=True).store
    assert space is not None
    assert space.objects == OBJECTS


@pytest.mark.root
@pytest.mark.benchmark(group="objects")
def test_objects_out(benchmark: BenchmarkFixture, stored: pyctrd.Engine) -> None:
    """One that frees all of them."""
    for image in stored.images.list():
        stored.images.remove(image.name, collect=False)
    repeat(benchmark, partial(stored.gc, all_namespaces=True), rounds=1)
    space = stored.df(all_namespaces=True).store
    assert space is not None
    assert space.objects == 0


@pytest.mark.root
@pytest.mark.benchmark(group="objects")
@pytest.mark.usefixtures("stored")
def test_objects_out_by_rm(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """The least there is: the directory removed by coreutils."""
    (objects,) = tmp_path.glob("fresh-*/objects")
    repeat(benchmark, lambda: subprocess.run(["rm", "-rf", objects], check=True), rounds=1)


@pytest.fixture
def pulled(pushed: dict[str, Pushed], fresh: Fresh) -> pyctrd.Engine:
    """A store with a real layer in three forms."""
    engine = pyctrd.Engine(root=fresh())
    for image in pushed.values():
        engine.images.pull(image.reference, unpack=False)
    return engine


@pytest.mark.root
@pytest.mark.benchmark(group="every blob hashed")
def test_check(benchmark: BenchmarkFixture, pulled: pyctrd.Engine) -> None:
    repeat(benchmark, lambda: pulled.check(digests=True), rounds=5, warmup_rounds=1)
    size = sum(blob.size for blob in pulled.content.list())
    if benchmark.stats is not None:
        benchmark.extra_info["GB_per_s"] = round(size / benchmark.stats.stats.median / 1e9, 2)
    pulled.close()


@pytest.mark.root
@pytest.mark.benchmark(group="every blob hashed")
def test_sha256sum(benchmark: BenchmarkFixture, pulled: pyctrd.Engine, tmp_path: Path) -> None:
    """coreutils, a process for each processor."""
    names = b"\0".join(os.fsencode(path) for path in tmp_path.glob("fresh-*/content/blobs/sha256/*"))
    command = ["xargs", "-0", "-n1", f"-P{os.cpu_count()}", "sha256sum"]
    repeat(benchmark, lambda: subprocess.run(command, input=names, check=True, capture_output=True), rounds=5)
    pulled.close()


@pytest.fixture(scope="session")
def twenty(images: Images, layer_tar: bytes, machine_layers: MachineLayers) -> list[str]:
    """Images that share a base, as a team's do, each with a layer of its own."""
    own = [machine_layers.take(IMAGE_BYTES) for _ in range(IMAGES)]
    assert len(own[-1]) >= IMAGE_BYTES // 2, "PYCTRD_BENCH_IMAGE_MB: this machine has too few files for as much"
    with ThreadPoolExecutor() as pool:  # zlib lets other threads go on
        return [images.push(image).reference for image in pool.map(lambda tar: build_image([layer_tar, tar]), own)]


@pytest.mark.root
@pytest.mark.parametrize("processes", [1, PROCESSES])
@pytest.mark.benchmark(group="20 images")
def test_pull_at_once(
    benchmark: BenchmarkFixture, twenty: list[str], fresh: Fresh, state: Path, processes: int
) -> None:
    """Each process pulls all of them, beginning with another one; beside it one process with as many threads."""
    del state

    def work(root: Path) -> None:
        environment = {**os.environ, "PYCTRD_ROOT": str(root)}
        running = []
        for number in range(processes):
            turned = twenty[number * 2 :] + twenty[: number * 2]
            command = [sys.executable, "-c", _PULL, str(PROCESSES // processes), *turned]
            running.append(subprocess.Popen(command, env=environment))
        assert [process.wait() for process in running] == [0] * processes
        with pyctrd.Engine(root=root) as engine:
            assert len(engine.images.list()) == IMAGES
            assert engine.df(all_namespaces=True).store is not None

    repeat(benchmark, work, setup=lambda: ((fresh(),), {}), rounds=3)
