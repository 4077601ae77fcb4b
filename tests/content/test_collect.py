"""Collection: what goes, what stays and why, beside processes that are at work, and killed at each of its steps."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

import pyctrd
from pyctrd.errors import NotFoundError
from pyctrd.metadata.database import Database
from tests import syscalls
from tests.archives import Tar
from tests.children import Child
from tests.content.stores import blob_path, files_below, sha256
from tests.images import BuiltImage, build_image, build_index
from tests.registry_faults import Answer, FaultyRegistry
from tests.syscalls import Watched

WHY_UNWATCHED = syscalls.why_not()
SHARED = Tar().file("shared", b"of both").build()
PLATFORMS = ("linux/s390x", "linux/riscv64")

PULL = """
import sys
import pyctrd
with pyctrd.Engine() as engine:
    print(engine.images.pull(sys.argv[1]).digest, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def root() -> Path:
    """The root that an engine takes from the environment."""
    return Path(os.environ["PYCTRD_ROOT"])


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture
def engine() -> Iterator[pyctrd.Engine]:
    with pyctrd.Engine() as opened:
        yield opened


class Stall:
    """Holds the last layer of an image back until the test lets it go on."""

    def __init__(self, faulty: FaultyRegistry, image: BuiltImage) -> None:
        self._event = threading.Event()
        self._faulty = faulty
        faulty.lie(f"/blobs/{image.layers[-1].digest}", Answer(body=None, stall=self._event))

    def wait(self) -> None:
        """Until somebody asks for it."""
        assert self._faulty.stalled.wait(60)

    def go_on(self) -> None:
        """Send it."""
        self._event.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._event.set()


def image_of(name: str) -> BuiltImage:
    """An image of the shared layer and one of its own."""
    return build_image([SHARED, Tar().file(name, name.encode()).build()])


def is_empty(root: Path) -> bool:
    """Whether no content is on disk."""
    folders = ("content/blobs", "layers", "content/ingest", "trash", "snapshots")
    return not any(files_below(root / folder) for folder in folders)


def test_what_an_image_needs_stays_and_the_rest_goes(engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry) -> None:
    kept = engine.images.pull(faulty.add(image_of("kept"), "kept"))
    gone = engine.images.pull(faulty.add(image_of("gone"), "gone"))
    of_gone = {gone.digest, str(gone.manifest.config.digest), str(gone.manifest.layers[1].digest)}
    engine.images.remove(gone.name, collect=False)
    assert blob_path(root, gone.digest).exists()
    done = engine.gc()
    assert {item.name for item in done.items if item.kind == "blob"} == of_gone
    assert not any(item.kept for item in done.items)
    assert done.freed_bytes == sum(item.bytes for item in done.items) > 0
    assert not any(blob_path(root, digest).exists() for digest in of_gone)
    assert kept.read_file("/shared") == b"of both"
    assert engine.check(digests=True) == []
    assert engine.gc() == pyctrd.Collection((), 0, "")
    engine.images.remove(kept.name)
    assert is_empty(root)


def test_a_dry_run_says_of_each_thing_why_it_stays_or_goes_and_removes_nothing(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry
) -> None:
    kept = engine.images.pull(faulty.add(image_of("kept"), "kept"))
    gone = engine.images.pull(faulty.add(image_of("gone"), "gone"))
    engine.images.remove(gone.name, collect=False)
    before = files_below(root)
    told = engine.gc(dry_run=True)
    reasons = {item.name: (item.kept, item.reason) for item in told.items}
    assert reasons[kept.digest] == (True, f"image {kept.name}")
    assert reasons[str(kept.config.rootfs.diff_ids[0])] == (True, f"image {kept.name}")
    assert reasons[gone.digest] == (False, "nothing needs it")
    assert {item.kind for item in told.items} == {"blob", "layer"}
    assert len(told.items) == len(engine.content.list()) + 3
    assert [path for path in before if path not in files_below(root)] == []
    done = engine.gc()
    assert sorted(done.items) == sorted(item for item in told.items if not item.kept)
    assert done.freed_bytes == told.freed_bytes


def test_the_index_that_a_name_leads_through_stays(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    built = build_image([SHARED])
    index = build_index({"linux/amd64": built})
    faulty.add(built, "index", tag="child")
    image = engine.images.pull(faulty.add(index, "index"), platform="linux/amd64")
    assert image.digest != image.manifest_digest
    assert engine.gc().items == ()
    assert {image.digest, image.manifest_digest} <= {record.digest for record in engine.content.list()}


def test_a_platform_that_came_before_stays_as_long_as_the_name_means_its_index(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry
) -> None:
    built = {name: build_image([SHARED, Tar().file(name[6:]).build()], platform=name) for name in PLATFORMS}
    for child in built.values():
        faulty.add(child, "index", tag="child")
    reference = faulty.add(build_index(built), "index")
    for name in PLATFORMS:
        engine.images.pull(reference, platform=name)
    blobs = {blob.digest for child in built.values() for blob in (child.manifest, *child.blobs)}
    assert engine.gc().items == ()
    assert blobs < {record.digest for record in engine.content.list()}
    reasons = {item.reason for item in engine.gc(dry_run=True).items}
    assert reasons == {f"image {reference}"}
    assert engine.df().images[0].bytes == engine.content.usage().charged_bytes
    faulty.add(built[PLATFORMS[0]], "index")
    assert engine.images.pull(reference, platform=PLATFORMS[0]).digest == built[PLATFORMS[0]].digest
    engine.gc()
    assert {record.digest for record in engine.content.list()} == {
        blob.digest for blob in (built[PLATFORMS[0]].manifest, *built[PLATFORMS[0]].blobs)
    }
    engine.images.remove(reference)
    assert is_empty(root)


def test_a_namespace_is_told_what_it_would_see_if_it_were_alone(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry
) -> None:
    reference = faulty.add(image_of("one"), "one")
    image = engine.images.pull(reference)
    blobs = {record.digest: record.size for record in engine.content.list()}
    engine.images.remove(reference, collect=False)
    alone = engine.gc(dry_run=True)
    with pyctrd.Engine(namespace="other") as other:
        other.images.pull(reference)
        assert engine.gc(dry_run=True) == alone
        done = engine.gc()
        assert sorted(done.items) == sorted(alone.items)
        assert done.freed_bytes == alone.freed_bytes > sum(blobs.values())
        assert engine.content.list() == []
        assert other.images.get(reference).read_file("/one") == b"one"
        assert blob_path(root, image.digest).exists()
        # The store's owner sees what the disk gets back.
        other.images.remove(reference, collect=False)
        told = other.gc(dry_run=True, all_namespaces=True)
        done = other.gc(all_namespaces=True)
        assert {item.namespace for item in done.items} == {"other", ""}
        assert told.freed_bytes == done.freed_bytes
        assert done.freed_bytes == sum(item.bytes for item in done.items)
    assert is_empty(root)


def test_a_blob_of_two_namespaces_is_counted_once_for_the_disk(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference = faulty.add(image_of("one"), "one")
    with pyctrd.Engine(namespace="other") as other:
        for tenant in (engine, other):
            tenant.images.pull(reference)
            tenant.images.remove(reference, collect=False)
        told = engine.gc(dry_run=True, all_namespaces=True)
        done = engine.gc(all_namespaces=True)
    assert told.freed_bytes == done.freed_bytes
    names = {(item.kind, item.name): item.bytes for item in done.items}
    assert len(names) < len(done.items)
    assert done.freed_bytes == sum(names.values())


def test_what_is_on_disk_and_recorded_nowhere_goes_and_strangers_files_stay(engine: pyctrd.Engine, root: Path) -> None:
    engine.images.list()
    left = b"left by a power cut"
    digest = sha256(left)
    blob_path(root, digest).parent.mkdir(parents=True, exist_ok=True)
    blob_path(root, digest).write_bytes(left)
    stranger = blob_path(root, digest).with_name("notes.txt")
    stranger.write_text("mine")
    told = engine.gc(dry_run=True, all_namespaces=True)
    assert [(item.name, item.kept) for item in told.items] == [(digest, False)]
    assert engine.gc(dry_run=True).items == ()  # it is nobody's
    done = engine.gc(all_namespaces=True)
    assert [item.name for item in done.items] == [digest]
    assert done.freed_bytes == len(left)
    assert not blob_path(root, digest).exists()
    assert stranger.read_text() == "mine"


def test_nothing_of_a_namespace_goes_while_nobody_knows_what_an_image_of_it_needs(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry
) -> None:
    broken = engine.images.pull(faulty.add(image_of("broken"), "broken"))
    garbage = engine.images.pull(faulty.add(image_of("garbage"), "garbage"))
    blob_path(root, broken.manifest_digest).unlink()
    engine.images.remove(garbage.name)
    done = engine.gc()
    assert "image damaged" in done.skipped
    assert done.items == ()
    assert blob_path(root, garbage.digest).exists()
    with pyctrd.Engine(namespace="other") as other:
        reference = faulty.add(build_image([Tar().file("theirs").build()]), "theirs")
        digest = other.images.pull(reference).digest
        other.images.remove(reference)
        assert not blob_path(root, digest).exists()
        assert other.gc().skipped == ""  # what another namespace has does not show
    engine.images.remove(broken.name)
    assert engine.gc().skipped == ""
    assert is_empty(root)


def test_a_collection_that_meets_a_long_reader_says_so(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry
) -> None:
    image = engine.images.pull(faulty.add(image_of("one"), "one"))
    engine.images.remove(image.name, collect=False)
    code = """
import sys
from pyctrd import _core
with _core.FileLock(sys.argv[1], shared=True):
    print("held", flush=True)
    sys.stdin.readline()
"""
    (root / "locks/store").mkdir(exist_ok=True)
    with Child(code, root / "locks/store/collection") as reader:
        assert reader.hear() == "held"
        done = engine.gc()
        assert (done.items, done.freed_bytes) == ((), 0)
        assert "in use" in done.skipped
        assert blob_path(root, image.digest).exists()
    assert engine.gc().skipped == ""
    assert is_empty(root)


# beside pulls


def test_what_a_pull_has_found_stays_until_it_has_its_name(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry
) -> None:
    first = image_of("first")
    second = image_of("second")
    reference = faulty.add(first, "first")
    engine.images.pull(reference)
    shared = str(engine.images.get(reference).manifest.layers[0].digest)
    slow = faulty.add(second, "slow")
    with Stall(faulty, second) as stall, Child(PULL, slow) as child:
        stall.wait()
        # It found the shared layer here, and now the only image that has it goes.
        engine.images.remove(reference)
        told = {item.name: (item.kept, item.reason) for item in engine.gc(dry_run=True).items}
        assert told[shared] == (True, "pull under way")
        assert first.digest not in told
        assert not blob_path(root, first.digest).exists()
        assert engine.gc().items == ()
        assert engine.leases.list() == []  # a pull's own is nobody else's business
        stall.go_on()
        assert child.hear() == second.digest
        child.say()
        assert child.wait() == 0
    assert engine.images.get(slow).read_file("/shared") == b"of both"
    assert engine.check(digests=True) == []
    with closing(Database(root / "pyctrd.db")) as database:
        assert database.leases.list() == []
    assert files_below(root / "locks/lease") == []


def test_what_a_killed_pull_kept_goes_with_the_next_collection(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry
) -> None:
    first, second = image_of("first"), image_of("second")
    reference = faulty.add(first, "first")
    engine.images.pull(reference)
    slow = faulty.add(second, "slow")
    with Stall(faulty, second) as stall, Child(PULL, slow) as child:
        stall.wait()
        engine.images.remove(reference)
        assert not is_empty(root)
        child.kill()
    engine.gc()
    assert is_empty(root)
    assert files_below(root / "locks/lease") == []


@pytest.mark.slow
def test_pulls_of_eight_processes_beside_collections_find_all_they_need(root: Path, faulty: FaultyRegistry) -> None:
    references = [faulty.add(image_of(f"app-{number}"), f"app-{number}") for number in range(8)]
    pull = """
import sys
import pyctrd
with pyctrd.Engine() as engine:
    for _ in range(6):
        image = engine.images.pull(sys.argv[1])
        assert image.read_file("/shared") == b"of both"
        engine.images.remove(sys.argv[1], collect=False)
        image = engine.images.pull(sys.argv[1])
        assert image.read_file("/shared") == b"of both"
print("done", flush=True)
"""
    collect = """
import select, sys
import pyctrd
count = 0
with pyctrd.Engine() as engine:
    while not select.select([sys.stdin], [], [], 0)[0]:
        engine.gc()
        count += 1
print(count, flush=True)
"""
    with ExitStack() as running:
        collectors = [running.enter_context(Child(collect)) for _ in range(2)]
        pulls = [running.enter_context(Child(pull, reference)) for reference in references]
        assert [child.hear() for child in pulls] == ["done"] * 8
        for child in collectors:
            child.say()
            assert int(child.hear()) > 1
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []
        for reference in references:
            assert engine.images.get(reference).read_file("/shared") == b"of both"
            engine.images.remove(reference)
    assert is_empty(root)


# killed

STEPS = ["unlink", "unlinkat", "rename", "renameat", "renameat2", "rmdir", "fsync", "fdatasync", "write", "pwrite64"]
COLLECT = """
import os, sys, pyctrd
with pyctrd.Engine() as engine:
    engine.images.list()
    os.write(1, b"begin")
    engine.gc()
"""
MANY = 10_000


def collect_until(step: int) -> int:
    """Collect, and be killed before the step of this number; how many steps were let in."""
    done = -1
    with Watched(COLLECT, calls=STEPS) as program:
        for call in program:
            if done == step:
                break
            if done >= 0 or (call.name == "write" and call.path.startswith("pipe:")):
                done += 1
            call.allow()
    return done


@pytest.mark.slow
@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
def test_a_collection_killed_before_each_of_its_steps_leaves_a_clean_store(root: Path, faulty: FaultyRegistry) -> None:
    kept, gone = faulty.add(image_of("kept"), "kept"), faulty.add(image_of("gone"), "gone")

    def set_out() -> None:
        with pyctrd.Engine() as engine:
            engine.images.pull(kept)
            engine.images.pull(gone)
            engine.images.remove(gone, collect=False)

    set_out()
    steps = collect_until(MANY)
    assert 10 < steps < MANY
    for step in range(steps):
        set_out()
        collect_until(step)
        with pyctrd.Engine() as engine:
            assert engine.check(digests=True) == [], step
            assert engine.images.get(kept).read_file("/shared") == b"of both"
            with pytest.raises(NotFoundError):
                engine.images.get(gone)
    with pyctrd.Engine() as engine:
        engine.images.remove(kept)
    assert is_empty(root)
