"""Collection of contents that layers share: told before, freed after, counted by ``df``; for the keeper alone."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from tests import syscalls
from tests.archives import Tar
from tests.content.stores import files_below, sha256
from tests.images import build_image
from tests.registry_faults import FaultyRegistry
from tests.syscalls import Watched

pytestmark = pytest.mark.root

BLOCK_BYTES = 4096
SHARED, OWN, OTHER = (random.Random(seed).randbytes(700_001) for seed in range(3))


@pytest.fixture
def root() -> Path:
    """The root that an engine takes from the environment."""
    return Path(os.environ["PYCTRD_ROOT"])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[pyctrd.Engine]:
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", "composefs")
    with pyctrd.Engine() as opened:
        yield opened


@pytest.fixture
def kept(engine: pyctrd.Engine, faulty: FaultyRegistry) -> pyctrd.Image:
    """An image that stays."""
    return engine.images.pull(faulty.add(build_image([Tar().file("shared", SHARED).file("own", OWN).build()]), "kept"))


@pytest.fixture
def gone(engine: pyctrd.Engine, faulty: FaultyRegistry, kept: pyctrd.Image) -> str:
    """One that has lost its name, with a file of the other's and one of its own."""
    built = build_image([Tar().file("again", SHARED).file("other", OTHER).build()])
    image = engine.images.pull(faulty.add(built, "gone"))
    assert kept.name != image.name
    engine.images.remove(image.name, collect=False)
    return image.name


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


def objects_of(root: Path) -> list[Path]:
    return list((root / "objects").glob("*/*"))


def disk_bytes(root: Path) -> dict[str, int]:
    """What each file and directory takes of blobs, layers and objects."""
    found = [path for name in ("content/blobs", "layers", "objects") for path in (root / name).rglob("*")]
    return {str(path): path.lstat().st_blocks * 512 for path in found}


def of_objects(collection: pyctrd.Collection) -> dict[bool, tuple[str, int]]:
    """How many are told of and their bytes, by whether they stay."""
    return {item.kept: (item.name, item.bytes) for item in collection.items if item.kind == "objects"}


def counted(engine: pyctrd.Engine) -> tuple[int, int]:
    """The objects as ``df`` tells of them."""
    store = engine.df(all_namespaces=True).store
    assert store is not None
    return store.objects, store.object_bytes


@pytest.mark.usefixtures("gone")
def test_a_dry_run_tells_what_is_freed_then_to_the_byte(engine: pyctrd.Engine, kept: pyctrd.Image, root: Path) -> None:
    before = disk_bytes(root)
    told = engine.gc(dry_run=True, all_namespaces=True)
    assert disk_bytes(root) == before
    count, size = counted(engine)
    assert (count, size) == (3, sum(path.stat().st_blocks * 512 for path in objects_of(root)))
    staying, going = of_objects(told)[True], of_objects(told)[False]
    assert (staying[0], going[0]) == ("2", "1")
    assert staying[1] + going[1] == size
    done = engine.gc(all_namespaces=True)
    assert sorted(done.items) == sorted(item for item in told.items if not item.kept)
    assert done.freed_bytes == told.freed_bytes == sum(item.bytes for item in done.items)
    after = disk_bytes(root)
    lost = sum(before.values()) - sum(after.values())
    assert abs(lost - done.freed_bytes) <= BLOCK_BYTES * len(before.keys() - after.keys())
    assert lost > len(OTHER)
    assert counted(engine) == (2, staying[1])
    assert (kept.read_file("/shared"), kept.read_file("/own")) == (SHARED, OWN)
    assert engine.check(digests=True) == []
    assert engine.gc(all_namespaces=True) == pyctrd.Collection((), 0, "")


def test_with_the_last_image_all_of_them_go(engine: pyctrd.Engine, kept: pyctrd.Image, root: Path) -> None:
    engine.images.remove(kept.name)
    assert [files_below(root / name) for name in ("objects", "layers", "snapshots", "content/blobs")] == [[]] * 4
    assert counted(engine) == (0, 0)
    assert engine.gc(dry_run=True, all_namespaces=True) == pyctrd.Collection((), 0, "")


@pytest.mark.usefixtures("gone")
def test_while_a_layer_is_written_none_goes_and_the_next_collection_says_so_no_more(
    engine: pyctrd.Engine, kept: pyctrd.Image, root: Path
) -> None:
    tar = Tar().file("late", OTHER).build()
    digest = sha256(tar)
    ingest = _core.Ingest(root, "under-way", digest=digest, diff_id=digest, unpack=True, form="objects")
    try:
        ingest.write(tar)
        done = engine.gc(all_namespaces=True)
    finally:
        ingest.abort()
    assert of_objects(done) == {}
    assert "layer is being written" in done.skipped
    assert {item.kind for item in done.items} == {"blob", "layer"}
    assert counted(engine)[0] == 3
    [told] = engine.gc(dry_run=True, all_namespaces=True).items[-1:]
    done = engine.gc(all_namespaces=True)
    assert (done.items, done.skipped) == ((told,), "")
    assert counted(engine)[0] == 2
    assert kept.read_file("/shared") == SHARED


@pytest.mark.usefixtures("gone")
def test_where_a_layer_cannot_say_what_it_names_none_goes(
    engine: pyctrd.Engine, kept: pyctrd.Image, root: Path
) -> None:
    index = root / "layers" / str(kept.config.rootfs.diff_ids[0]).replace(":", "/") / "index"
    index.chmod(0o600)
    index.write_bytes(index.read_bytes()[:-1])
    assert of_objects(engine.gc(dry_run=True, all_namespaces=True)) == {}
    done = engine.gc(all_namespaces=True)
    assert of_objects(done) == {}
    assert "objects not swept" in done.skipped
    assert len(objects_of(root)) == 3
    assert engine.check(repair=True)[0].repaired
    done = engine.gc(all_namespaces=True)
    assert (of_objects(done)[False][0], done.skipped) == ("1", "")
    assert kept.read_file("/own") == OWN


@pytest.mark.usefixtures("gone")
def test_a_tenant_is_told_nothing_of_them(engine: pyctrd.Engine, kept: pyctrd.Image, root: Path) -> None:
    with pyctrd.Engine(namespace="other") as other:
        for tenant in (engine, other):
            told = tenant.gc(dry_run=True)
            assert {item.kind for item in told.items} <= {"blob", "layer"}
            assert tenant.df().store is None
    tar = Tar().file("late", OTHER).build()
    ingest = _core.Ingest(root, "under-way", digest=sha256(tar), diff_id=sha256(tar), unpack=True, form="objects")
    try:
        ingest.write(tar)
        done = engine.gc()
    finally:
        ingest.abort()
    # That somebody writes a layer is the keeper's to know alone.
    assert done.skipped == ""
    assert {item.kind for item in done.items} == {"blob", "layer"}
    assert done.freed_bytes == sum(item.bytes for item in done.items)
    assert engine.images.get(kept.name).read_file("/own") == OWN


GC = """
import pyctrd
with pyctrd.Engine() as engine:
    engine.gc(all_namespaces=True)
"""


@pytest.mark.skipif(bool(syscalls.why_not()), reason=syscalls.why_not())
def test_nothing_is_swept_while_layers_cannot_be_looked_at(
    engine: pyctrd.Engine, kept: pyctrd.Image, root: Path
) -> None:
    engine.close()
    objects = files_below(root / "objects")
    assert len(objects) == 2
    refused = 0
    while True:
        passed = 0
        with Watched(GC, calls=["openat", "openat2"]) as program:
            for call in program:
                if Path(call.path) != root / "layers/sha256" or passed != refused:
                    passed += Path(call.path) == root / "layers/sha256"
                    call.allow()
                    continue
                passed += 1
                call.fail(errno.ENFILE)
            program.finish()
        assert files_below(root / "objects") == objects, refused
        if passed <= refused:
            break
        refused += 1
    assert refused > 1
    with pyctrd.Engine() as after:
        assert after.check(digests=True) == []
        assert after.images.get(kept.name).read_file("/own") == OWN
