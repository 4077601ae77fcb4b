"""Each state that a killed process can leave, made by hand; and collection beside processes that are at work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.metadata.database import Database
from tests.archives import Tar
from tests.children import Child
from tests.content.stores import blob_path, files_below, put, sha256
from tests.images import BuiltImage, build_image
from tests.registry_faults import Answer, FaultyRegistry

BYTES = b"a blob's bytes"
BLOB = sha256(BYTES)
TAR = Tar().file("f", b"content").build()
LAYER = sha256(TAR)

PULL = """
import sys
import pyctrd
with pyctrd.Engine() as engine:
    print(engine.images.pull(sys.argv[1]).digest, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def root() -> Path:
    """The root that an engine takes from the environment, with its database."""
    with pyctrd.Engine() as engine:
        engine.images.list()
    return Path(os.environ["PYCTRD_ROOT"])


@pytest.fixture
def database(root: Path) -> Iterator[Database]:
    opened = Database(root / "pyctrd.db")
    yield opened
    opened.close()


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


def opened_again() -> list[object]:
    """What check finds after an engine has opened the root."""
    with pyctrd.Engine() as engine:
        return list(engine.check(digests=True))


def test_no_thread_sees_a_store_that_another_one_is_still_opening(database: Database) -> None:
    found: list[object] = []

    with pyctrd.Engine(namespace="new") as engine:

        def look() -> None:
            try:
                found.append(engine.namespaces.get("new").name)
            except pyctrd.PyctrdError as error:
                found.append(error)

        threads = [threading.Thread(target=look) for _ in range(3)]
        with database.write():  # its namespace cannot be made meanwhile
            for thread in threads:
                thread.start()
                thread.join(timeout=0.2)
            assert found == []
        for thread in threads:
            thread.join()
    assert found == ["new"] * 3


def reserve(database: Database, ingest_id: str = "left", *, diff_id: str | None = None) -> None:
    with database.write() as tx:
        tx.ingests.add(ingest_id, namespace="default", digest=BLOB, diff_id=diff_id, size=len(BYTES))


def place_blob(root: Path) -> Path:
    path = blob_path(root, BLOB)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BYTES)
    return path


def place_layer(root: Path) -> Path:
    ingest = _core.Ingest(root, "layer", digest=LAYER, size=len(TAR), diff_id=LAYER, unpack=True, keep_blob=False)
    put(ingest, TAR)
    _core.publish(root, [ingest], durability="none")
    return root / "layers" / "sha256" / LAYER[7:]


# what a killed process left


def test_a_folder_of_bytes_that_nobody_writes_any_more_is_removed(root: Path) -> None:
    for name in ("with-lock", "without-lock", "empty"):
        (root / "content/ingest" / name / "layer/tree").mkdir(parents=True)
    (root / "content/ingest/with-lock/lock").write_text("")
    (root / "content/ingest/with-lock/data").write_bytes(b"half")
    (root / "content/ingest/without-lock/data").write_bytes(b"half")
    assert opened_again() == []
    assert list((root / "content/ingest").iterdir()) == []
    assert list((root / "trash").iterdir()) == []


def test_a_blob_that_was_named_and_not_recorded_is_removed(root: Path, database: Database) -> None:
    reserve(database)
    path = place_blob(root)
    assert opened_again() == []
    assert not path.exists()
    assert database.ingests.list() == []


def test_a_layer_that_was_named_and_not_recorded_is_removed(root: Path, database: Database) -> None:
    reserve(database, diff_id=LAYER)
    path = place_layer(root)
    assert opened_again() == []
    assert not path.exists()
    assert database.ingests.list() == []


def test_a_blob_that_was_recorded_stays_when_its_reservation_ends(root: Path, database: Database) -> None:
    reserve(database)
    path = place_blob(root)
    with database.write() as tx:
        tx.content.add("default", BLOB, size=len(BYTES), media_type="x", source="y")
    assert opened_again() == []
    assert path.exists()
    assert database.ingests.list() == []


def test_a_reservation_of_a_live_process_stays(root: Path, database: Database) -> None:
    reserve(database)
    path = place_blob(root)
    locks = root / "locks/transfer"
    locks.mkdir(parents=True)
    hold = "import sys\nfrom pyctrd._core import FileLock\nwith FileLock(sys.argv[1]):\n print(flush=True)\n input()"
    with Child(hold, locks / f"default.{BLOB.replace(':', '-')}") as other:
        other.hear()
        assert opened_again() == []
        assert path.exists()
        assert [found.id for found in database.ingests.list()] == ["left"]
    assert opened_again() == []
    assert not path.exists()


def test_what_was_on_its_way_out_goes(root: Path) -> None:
    (root / "trash/abc/tree/deep").mkdir(parents=True)
    (root / "trash/abc/tree/deep/file").write_bytes(b"x")
    (root / "trash/file").write_bytes(b"x")
    assert opened_again() == []
    assert list((root / "trash").iterdir()) == []


@pytest.mark.root
def test_a_trial_that_is_mounted_still_is_taken_apart(root: Path) -> None:
    trial = root / "snapshots/trial-0123456789abcdef"
    for name in ("lower", "upper", "work", "merged"):
        (trial / name).mkdir(parents=True)
    _core.mount_overlay([trial / "lower"], trial / "merged", upper=trial / "upper", work=trial / "work")
    assert opened_again() == []
    assert list((root / "snapshots").iterdir()) == []
    assert str(trial) not in Path("/proc/self/mounts").read_text()


def test_a_half_made_layer_does_not_hinder_the_next_pull(root: Path, faulty: FaultyRegistry) -> None:
    (root / "layers/sha256" / LAYER[7:] / "tree").mkdir(parents=True)
    reference = faulty.add(build_image([TAR]), "app")
    with pyctrd.Engine() as engine:
        assert engine.images.pull(reference).read_file("/f") == b"content"
        assert engine.check(digests=True) == []


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_check_names_what_recovery_cannot_know_of(
    root: Path, faulty: FaultyRegistry, damage: Callable[[Path], object]
) -> None:
    image = build_image([TAR])
    reference = faulty.add(image, "app")
    with pyctrd.Engine() as engine:
        engine.images.pull(reference)
        damaged = blob_path(root, image.layers[0].digest)
        damaged.chmod(0o644)
        damage(damaged)
        stray = root / "content/blobs/sha256/notes.txt"
        stray.write_text("mine")
        found = {(finding.kind, finding.name) for finding in engine.check(digests=True)}
        assert found == {("blob", image.layers[0].digest), ("file", str(stray))}
        engine.images.remove(reference)
        assert [finding.name for finding in engine.check()] == [str(stray)]
        assert stray.read_text() == "mine"
        assert engine.images.pull(reference).read_file("/f") == b"content"


# beside processes at work


def stalled_pull(faulty: FaultyRegistry, image: BuiltImage, reference: str) -> tuple[Child, threading.Event]:
    """A process in the middle of a layer, and what lets it go on."""
    go_on = threading.Event()
    faulty.lie(f"/blobs/{image.layers[0].digest}", Answer(body=None, stall=go_on))
    child = Child(PULL, reference)
    assert faulty.stalled.wait(60)
    return child, go_on


def test_opening_checking_and_removing_leave_a_pull_in_another_process_alone(
    root: Path, faulty: FaultyRegistry
) -> None:
    under_way, other = build_image([Tar().file("big", os.urandom(1 << 20)).build()]), build_image([TAR])
    with pyctrd.Engine() as engine:
        engine.images.pull(faulty.add(other, "other"))
    child, go_on = stalled_pull(faulty, under_way, faulty.add(under_way, "slow"))
    with child:
        with pyctrd.Engine() as engine:
            assert _core.sweep_ingests(root) == []
            assert engine.check() == []
            engine.images.remove(f"{faulty.host}/other:latest")
            assert len(list((root / "content/ingest").iterdir())) >= 1
            assert files_below(root / "content/blobs") == []  # collected beside the pull
            assert files_below(root / "layers") == []
        go_on.set()
        assert child.hear() == under_way.digest
        child.say()
        assert child.wait() == 0
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []
        engine.images.remove(f"{faulty.host}/slow:latest")
    assert files_below(root / "content/blobs") == []
    assert files_below(root / "layers") == []


def test_a_process_takes_over_from_one_that_was_killed_in_the_middle(root: Path, faulty: FaultyRegistry) -> None:
    image = build_image([Tar().file("big", os.urandom(1 << 20)).build()])
    reference = faulty.add(image, "app")
    child, _ = stalled_pull(faulty, image, reference)
    with child, Child(PULL, reference) as second:
        child.kill()
        assert second.hear() == image.digest
    assert opened_again() == []
    assert list((root / "content/ingest").iterdir()) == []


@pytest.mark.slow
def test_collecting_again_and_again_takes_nothing_from_pulls(root: Path, faulty: FaultyRegistry) -> None:
    images = [
        build_image([Tar().file(f"own-{number}", os.urandom(20_000)).build(), Tar().file("shared").build()])
        for number in range(4)
    ]
    references = [faulty.add(image, f"app-{number}") for number, image in enumerate(images)]
    code = """
import sys
import pyctrd
with pyctrd.Engine() as engine:
    for _ in range(15):
        for reference in sys.argv[1:]:
            image = engine.images.pull(reference)
            assert image.read_file("/shared") == b""
            engine.images.remove(reference, force=True)
print("done", flush=True)
"""
    # Each has a name of its own, and all share a layer: what one removes another has just begun to use.
    with Child(code, references[0]) as a, Child(code, references[1]) as b, Child(code, *references[2:]) as c:
        assert [child.hear() for child in (a, b, c)] == ["done"] * 3
    assert opened_again() == []
    with pyctrd.Engine() as engine:
        engine.images.pull(references[0])
        engine.images.remove(references[0])
    assert files_below(root / "content/blobs") == []
    assert files_below(root / "layers") == []


def test_two_that_recover_at_once_do_not_trip_over_each_other(root: Path) -> None:
    for number in range(200):
        (root / "content/ingest" / f"left-{number}").mkdir()
        (root / "content/ingest" / f"left-{number}" / "lock").touch()
        (root / "trash" / f"old-{number}" / "tree").mkdir(parents=True)
    code = "import sys\nfrom pyctrd import _core\nprint(flush=True)\ninput()\n_core.sweep_ingests(sys.argv[1])\n"
    with Child(code, root) as a, Child(code, root) as b, Child(code, root) as c:
        for child in (a, b, c):
            child.hear()
        for child in (a, b, c):
            child.say()
        assert [child.wait() for child in (a, b, c)] == [0, 0, 0]
    assert list((root / "content/ingest").iterdir()) == []
    assert list((root / "trash").iterdir()) == []
