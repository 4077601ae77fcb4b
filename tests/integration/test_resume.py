"""Resume: a pull cut at any byte goes on from there, in another process, and the whole is verified."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.errors import DigestMismatchError, SizeMismatchError, UnavailableError
from pyctrd.metadata.database import Database
from tests import syscalls
from tests.archives import Tar
from tests.children import Child, until
from tests.content.stores import files_below
from tests.images import Blob, BuiltImage, Images, build_image
from tests.integration.conftest import Cli, command
from tests.registries import Registry
from tests.registry_faults import Answer, FaultyRegistry
from tests.relays import Relay
from tests.syscalls import Watched

pytestmark = pytest.mark.root

BLOCK = _core.BLOCK_BYTES
SIZE = 3 * BLOCK + 1000
HOUR_NS = 3600 * 10**9
# Longer than a pull waits for: it ends there.
GONE = Answer(503, headers={"Retry-After": "3600"})
# 1 tries every step, in minutes.
STRIDE = int(os.environ.get("PYCTRD_TEST_STRIDE", "4"))
STEPS = (
    *("write", "linkat", "renameat2", "rename", "renameat", "unlinkat", "unlink", "rmdir", "fchmod", "mkdirat"),
    *("fsync", "fdatasync", "syncfs"),
)
PULL = "import sys, pyctrd\nwith pyctrd.Engine() as engine:\n print(engine.images.pull(sys.argv[1]).digest)"
KILLS = int(os.environ.get("PYCTRD_TEST_KILLS", "200")) // 10


def noise(seed: int, size: int = SIZE) -> bytes:
    """Bytes that no compression makes fewer."""
    return random.Random(seed).randbytes(size)


def image_of(*layers: bytes) -> BuiltImage:
    """An image with a file in each layer, uncompressed: what is sent has these bytes in it."""
    return build_image([Tar().file(f"f{at}", content).build() for at, content in enumerate(layers)], compression="none")


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture
def root(state: Path) -> Path:
    """Where the engines of a test are; it is made by the first."""
    del state
    with pyctrd.Engine() as engine:
        engine.images.list()
    return Path(os.environ["PYCTRD_ROOT"])


@pytest.fixture
def database(root: Path) -> Iterator[Database]:
    opened = Database(root / "pyctrd.db")
    yield opened
    opened.close()


def kept(root: Path) -> list[Path]:
    """What is in staging, which must be blobs' bytes and locks only."""
    names = files_below(root / "content/ingest")
    assert {Path(name).name for name in names} <= {"data", "lock"}, names
    return [root / "content/ingest" / name for name in names if name.endswith("/data")]


def ranges(faulty: FaultyRegistry, blob: Blob) -> list[str | None]:
    """From where on a blob was asked for, each time."""
    return [seen.headers.get("range") for seen in faulty.requests(f"/blobs/{blob.digest}") if seen.method == "GET"]


def cut(faulty: FaultyRegistry, built: BuiltImage, count: int, *, name: str = "app") -> str:
    """A pull whose connection breaks for good after some bytes of the first layer."""
    reference = faulty.add(built, name)
    faulty.lie(f"/v2/{name}/blobs/{built.layers[0].digest}", Answer(body=None, cut=count), GONE)
    with pyctrd.Engine() as engine, pytest.raises(UnavailableError):
        engine.images.pull(reference)
    faulty.seen.clear()
    return reference


def assert_done(cli: Cli, root: Path, reference: str, built: BuiltImage) -> None:
    """Another process brings the rest; then nothing is left of what was kept."""
    done = cli("pull", reference)
    assert (done.status, done.out) == (0, f"{built.digest}\n")
    assert (root / "content/ingest").is_dir()
    assert kept(root) == []
    assert files_below(root / "content/ingest") == []
    assert cli("check", "--digests").out == "clean\n"
    with pyctrd.Engine() as engine:
        assert engine.content.usage().reserved_bytes == 0
        for at, layer in enumerate(built.layers):
            assert engine.images.get(reference).read_file(f"/f{at}") in layer.content


LAYER_SIZE = len(image_of(noise(0)).layers[0].content)


# cut at any byte


@pytest.mark.parametrize("count", [1, 3, 511, 512, 513, BLOCK - 1, BLOCK, BLOCK + 1, LAYER_SIZE - 1])
def test_a_connection_that_breaks_at_any_byte_is_gone_on_from_there(
    cli: Cli, root: Path, faulty: FaultyRegistry, count: int
) -> None:
    built = image_of(noise(0))
    reference = cut(faulty, built, count)
    (left,) = kept(root)
    assert left.read_bytes() == built.layers[0].content[:count]
    assert_done(cli, root, reference, built)
    assert ranges(faulty, built.layers[0]) == [f"bytes={count}-"]


def test_where_nothing_came_nothing_is_kept(cli: Cli, root: Path, faulty: FaultyRegistry, database: Database) -> None:
    built = image_of(noise(0))
    reference = cut(faulty, built, 0)
    assert files_below(root / "content/ingest") == []
    assert database.ingests.list() == []
    assert_done(cli, root, reference, built)
    assert ranges(faulty, built.layers[0]) == [None]


@pytest.mark.parametrize("count", [0, 1, BLOCK, LAYER_SIZE - 1, LAYER_SIZE, LAYER_SIZE + 1])
def test_a_process_that_is_killed_leaves_any_number_of_bytes(
    cli: Cli, root: Path, faulty: FaultyRegistry, database: Database, count: int
) -> None:
    built = image_of(noise(1))
    content = built.layers[0].content
    assert len(content) == LAYER_SIZE
    reference = kill_in_the_middle(faulty, root, built)
    (left,) = (path for path in kept_of_dead(root) if path.stat().st_size >= 2 * BLOCK)
    left.chmod(0o644)
    left.write_bytes((content + b"!")[:count])
    left.chmod(0o444)
    assert [reserved.resumable for reserved in database.ingests.list()].count(True) == 1
    faulty.seen.clear()
    assert_done(cli, root, reference, built)
    expected = {0: [None], LAYER_SIZE: [], LAYER_SIZE + 1: [None]}
    assert ranges(faulty, built.layers[0]) == expected.get(count, [f"bytes={count}-"])


def kill_in_the_middle(faulty: FaultyRegistry, root: Path, built: BuiltImage) -> str:
    """SIGKILL to a process that has two blocks of the first layer."""
    reference = faulty.add(built, "app")
    faulty.lie(
        f"/blobs/{built.layers[0].digest}", Answer(body=None, stall=threading.Event(), stall_after=2 * BLOCK + 1)
    )
    with Child(PULL, reference):
        until(lambda: any(path.stat().st_size >= 2 * BLOCK for path in kept_of_dead(root)))
    return reference


def kept_of_dead(root: Path) -> list[Path]:
    """As ``kept``, where trees may be under way."""
    return sorted((root / "content/ingest").glob("*/data"))


def test_of_a_killed_process_only_the_bytes_stay(root: Path, faulty: FaultyRegistry) -> None:
    built = image_of(noise(2))
    kill_in_the_middle(faulty, root, built)
    assert len(list((root / "content/ingest").glob("*/layer"))) == 1
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []
    (left,) = kept(root)
    assert list((root / "content/ingest").glob("*/layer")) == []
    assert left.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("unpack", [True, False])
def test_a_compressed_layer_is_gone_on_from(root: Path, faulty: FaultyRegistry, *, unpack: bool) -> None:
    del root
    built = build_image([Tar().file("f0", noise(3)).build()])
    reference = cut(faulty, built, 2 * BLOCK + 7)
    with pyctrd.Engine() as engine:
        engine.images.pull(reference, unpack=unpack)
        assert ranges(faulty, built.layers[0]) == [f"bytes={2 * BLOCK + 7}-"]
        assert engine.images.pull(reference).read_file("/f0") == noise(3)
        assert engine.check(digests=True) == []


def test_a_layer_that_came_whole_is_not_fetched_again_where_another_did_not(
    cli: Cli, root: Path, faulty: FaultyRegistry
) -> None:
    built = image_of(noise(4), noise(5, 1000))
    reference = faulty.add(built, "app")
    released = threading.Event()
    faulty.lie(f"/blobs/{built.layers[1].digest}", Answer(503, stall=released), GONE)

    def release(seen: pyctrd.PullProgress) -> None:
        if seen.layers[0].state == "done":
            released.set()

    with pyctrd.Engine() as engine, pytest.raises(UnavailableError):
        engine.images.pull(reference, progress=release)
    assert [path.stat().st_size for path in kept(root)] == [LAYER_SIZE]
    faulty.seen.clear()
    assert_done(cli, root, reference, built)
    assert ranges(faulty, built.layers[0]) == []
    assert ranges(faulty, built.layers[1]) == [None]


def test_a_pull_that_breaks_again_and_again_comes_to_its_end(cli: Cli, root: Path, faulty: FaultyRegistry) -> None:
    built = image_of(noise(6))
    asked = []
    for count in (1000, BLOCK, 5):
        reference = faulty.add(built, "app")
        faulty.lie(f"/blobs/{built.layers[0].digest}", Answer(body=None, cut=count), GONE)
        assert cli("pull", reference).status == 1
        asked.append(count)
    faulty.seen.clear()
    assert_done(cli, root, reference, built)
    assert ranges(faulty, built.layers[0]) == [f"bytes={sum(asked)}-"]


def test_what_is_kept_waits_for_its_own_pull(
    cli: Cli, root: Path, faulty: FaultyRegistry, tmp_path: Path, database: Database
) -> None:
    built = image_of(noise(28))
    reference = cut(faulty, built, BLOCK)
    other = faulty.add(image_of(noise(29, 100)), "other")
    with pyctrd.Engine() as engine:
        with pytest.raises(pyctrd.PyctrdError):
            engine.images.pull("127.0.0.1:1/refused")
        faulty.lie("/manifests/latest", Answer(404))
        with pytest.raises(pyctrd.PyctrdError):
            engine.images.pull(reference)
        engine.images.pull(other)
        engine.images.remove(other)
        assert [path.stat().st_size for path in kept(root)] == [BLOCK]
        # The same image out of files: what was kept is of no use any more.
        built.write_layout(tmp_path / "layout")
        engine.images.load(tmp_path / "layout", name=reference)
    assert database.ingests.list() == []
    assert_done(cli, root, reference, built)
    assert ranges(faulty, built.layers[0]) == []


def test_ctrl_c_keeps_what_came(cli: Cli, root: Path, faulty: FaultyRegistry) -> None:
    built = image_of(noise(7))
    reference = faulty.add(built, "app")
    stall = threading.Event()
    faulty.lie(f"/blobs/{built.layers[0].digest}", Answer(body=None, stall=stall, stall_after=BLOCK + 9))
    process = subprocess.Popen(
        command("pull", "-q", reference), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    until(lambda: any(path.stat().st_size >= BLOCK for path in kept_of_dead(root)))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert kept(root)[0].stat().st_size >= BLOCK
    faulty.seen.clear()
    assert_done(cli, root, reference, built)
    (asked,) = ranges(faulty, built.layers[0])
    assert asked in (f"bytes={BLOCK}-", f"bytes={BLOCK + 9}-")


@pytest.mark.skipif(bool(syscalls.why_not()), reason=syscalls.why_not())
@pytest.mark.parametrize("killed", [0, 1, 2])
def test_what_was_named_and_not_recorded_is_not_fetched_again(
    cli: Cli, root: Path, faulty: FaultyRegistry, killed: int
) -> None:
    built = image_of(noise(8, 1000), noise(9, 1000))
    reference = faulty.add(built, "app")
    with Watched(PULL, reference, calls=["linkat", "fsync"]) as program:
        linked = 0
        for call in program:
            if linked > killed or (linked == 2 and call.name == "fsync"):
                program.kill()
                break
            linked += call.name == "linkat"
            call.allow()
    assert len(list((root / "content/blobs/sha256").iterdir())) >= killed
    faulty.seen.clear()
    assert_done(cli, root, reference, built)
    assert [ranges(faulty, layer) for layer in built.layers] == [[], []]


@pytest.mark.slow
@pytest.mark.skipif(bool(syscalls.why_not()), reason=syscalls.why_not())
def test_going_on_that_is_killed_before_any_step_loses_no_byte(root: Path, faulty: FaultyRegistry) -> None:
    built = image_of(noise(30, 4000), noise(31, 10))
    layer = built.layers[0]
    steps = 0
    while True:
        reference = cut(faulty, built, 1000)
        with Watched(PULL, reference, calls=STEPS) as program:
            for passed, call in enumerate(program):
                if passed == steps:
                    program.kill()
                    break
                call.allow()
            else:
                assert program.finish()[0] == 0
                break
        with pyctrd.Engine() as engine:
            assert engine.check(digests=True) == []
            faulty.seen.clear()
            assert engine.images.pull(reference).read_file("/f0") == noise(30, 4000)
            first = [int(wanted[6:-1]) if wanted else 0 for wanted in ranges(faulty, layer)]
            assert min(first, default=len(layer.content)) >= 1000, steps
            engine.images.remove(reference)
            engine.gc(all_namespaces=True)
        assert files_below(root / "content") == []
        steps += STRIDE
    assert steps > 30


def is_cut(relay: Relay, process: subprocess.Popen[bytes]) -> bool:
    """Whether a pull has got all that it gets, or has ended."""
    return relay.is_spent() or process.poll() is not None


@pytest.mark.slow
def test_killed_at_random_again_and_again_the_real_registry_is_asked_for_the_rest_only(
    images: Images, registry: Registry, root: Path, database: Database
) -> None:
    built = image_of(noise(10, 12 << 20), noise(11, 5 << 20))
    pushed = images.push(built).reference
    total = sum(len(layer.content) for layer in built.layers)
    chosen = random.Random(5)
    went_on = 0
    with Relay(registry.host) as relay:
        reference = pushed.replace(registry.host, relay.host)
        for _ in range(KILLS):
            sizes = {
                reserved.digest: (root / "content/ingest" / reserved.id / "data").stat().st_size
                for reserved in database.ingests.list()
            }
            relay.let_through(chosen.randrange(total))
            process = subprocess.Popen(command("pull", "-q", reference), stdout=subprocess.DEVNULL)
            until(partial(is_cut, relay, process))
            process.kill()
            process.wait()
            relay.let_through(float("inf"))
            for _method, path, wanted in relay.asked():
                count = sizes.get(path.rpartition("/")[2], 0)
                if "/blobs/" in path and path.rpartition("/")[2] != built.blobs[0].digest:
                    assert wanted == (f"bytes={count}-" if count else None), path
                    went_on += count > 0
            with pyctrd.Engine() as engine:
                assert engine.check(digests=True) == []
                if engine.images.find(reference) is not None:
                    engine.images.remove(reference)
                    assert kept(root) == []
            kept(root)
    assert went_on > 0


# what is there is verified


@pytest.mark.parametrize("damage", ["flipped", "zeroes", "other"])
def test_bytes_that_changed_on_disk_are_found_and_all_is_fetched(
    cli: Cli, root: Path, faulty: FaultyRegistry, damage: str
) -> None:
    built = image_of(noise(12))
    reference = cut(faulty, built, BLOCK + 100)
    (left,) = kept(root)
    content = bytearray(left.read_bytes())
    if damage == "flipped":
        content[700] ^= 1
    elif damage == "zeroes":  # as a power cut leaves pages that were never written out
        content[4096:] = bytes(len(content) - 4096)
    else:
        content[:] = random.Random(99).randbytes(len(content))
    left.chmod(0o644)
    left.write_bytes(content)
    assert_done(cli, root, reference, built)
    assert ranges(faulty, built.layers[0]) == [f"bytes={BLOCK + 100}-", None]


def test_where_the_registry_lies_as_well_it_is_told_and_nothing_is_kept(
    cli: Cli, root: Path, faulty: FaultyRegistry, database: Database
) -> None:
    built = image_of(noise(13))
    reference = cut(faulty, built, BLOCK)
    content = built.layers[0].content
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    place = f"/blobs/{built.layers[0].digest}"
    faulty.lie(place, Answer(206, wrong[BLOCK:], {"Content-Range": f"bytes {BLOCK}-{len(content) - 1}/{len(content)}"}))
    faulty.lie(place, Answer(200, wrong))
    with pyctrd.Engine() as engine, pytest.raises(DigestMismatchError):
        engine.images.pull(reference)
    assert ranges(faulty, built.layers[0]) == [f"bytes={BLOCK}-", None]
    assert files_below(root / "content/ingest") == []
    assert database.ingests.list() == []
    faulty.seen.clear()
    assert_done(cli, root, reference, built)
    assert ranges(faulty, built.layers[0]) == [None]


@pytest.mark.parametrize("thing", ["link", "fifo", "directory", "second name"])
def test_what_is_no_file_of_ours_is_not_gone_on_from(
    cli: Cli, root: Path, faulty: FaultyRegistry, tmp_path: Path, thing: str
) -> None:
    built = image_of(noise(14))
    reference = cut(faulty, built, BLOCK)
    (left,) = kept(root)
    victim = tmp_path / "victim"
    victim.write_bytes(left.read_bytes())
    left.unlink()
    if thing == "link":
        left.symlink_to(victim)
    elif thing == "fifo":
        os.mkfifo(left)
    elif thing == "directory":
        left.mkdir()
    else:
        left.hardlink_to(victim)
    before = victim.read_bytes()
    done = cli("pull", reference)
    assert (done.status, done.out) == (0, f"{built.digest}\n")
    assert ranges(faulty, built.layers[0]) == [None]
    assert victim.read_bytes() == before
    assert files_below(root / "content/ingest") == []


# what a server may do with a range


@pytest.mark.parametrize(
    "answer",
    [
        Answer(416),
        Answer(206, b"x" * 10, {"Content-Range": "bytes 0-9/10"}),
        Answer(206, b"x" * 10, {"Content-Range": f"bytes {BLOCK + 1}-{BLOCK + 10}/{LAYER_SIZE}"}),
        Answer(206, b"x" * 10),
    ],
)
def test_a_server_without_that_range_is_asked_for_all(
    cli: Cli, root: Path, faulty: FaultyRegistry, answer: Answer
) -> None:
    built = image_of(noise(15))
    reference = cut(faulty, built, BLOCK)
    faulty.lie(f"/blobs/{built.layers[0].digest}", answer)
    assert_done(cli, root, reference, built)
    assert ranges(faulty, built.layers[0]) == [f"bytes={BLOCK}-", None]


def test_a_server_that_ignores_ranges_sends_all_and_the_rest_is_taken(
    cli: Cli, root: Path, faulty: FaultyRegistry
) -> None:
    built = image_of(noise(16))
    reference = cut(faulty, built, BLOCK + 1)
    faulty.lie(f"/blobs/{built.layers[0].digest}", Answer(200, built.layers[0].content))
    assert_done(cli, root, reference, built)
    assert ranges(faulty, built.layers[0]) == [f"bytes={BLOCK + 1}-"]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_blob_that_changed_its_size_is_a_mismatch_and_nothing_is_kept(
    root: Path, faulty: FaultyRegistry, change: int
) -> None:
    built = image_of(noise(17))
    reference = cut(faulty, built, BLOCK)
    content = (built.layers[0].content + b"!")[: LAYER_SIZE + change]
    said = {"Content-Range": f"bytes {BLOCK}-{len(content) - 1}/{len(content)}"}
    faulty.lie(f"/blobs/{built.layers[0].digest}", Answer(206, content[BLOCK:], said), Answer(200, content))
    with pyctrd.Engine() as engine, pytest.raises(SizeMismatchError):
        engine.images.pull(reference)
    assert ranges(faulty, built.layers[0]) == [f"bytes={BLOCK}-", None]
    assert files_below(root / "content/ingest") == []


# who goes on


def test_of_two_that_want_to_go_on_one_does(root: Path, faulty: FaultyRegistry) -> None:
    built = image_of(noise(18))
    reference = cut(faulty, built, BLOCK)
    go_on = threading.Event()
    faulty.lie(f"/blobs/{built.layers[0].digest}", Answer(body=None, stall=go_on))
    with Child(PULL, reference) as first, Child(PULL, reference) as second:
        assert faulty.stalled.wait(60)
        assert not first.has_spoken()
        assert not second.has_spoken()
        go_on.set()
        assert [first.hear(), second.hear()] == [built.digest] * 2
    assert ranges(faulty, built.layers[0]) == [f"bytes={BLOCK}-"]
    assert files_below(root / "content/ingest") == []


def test_one_that_waited_goes_on_from_what_a_killed_one_left(root: Path, faulty: FaultyRegistry) -> None:
    built = image_of(noise(19))
    reference = faulty.add(built, "app")
    stall = threading.Event()
    faulty.lie(f"/blobs/{built.layers[0].digest}", Answer(body=None, stall=stall, stall_after=2 * BLOCK))
    with Child(PULL, reference) as first:
        until(lambda: any(path.stat().st_size >= 2 * BLOCK for path in kept_of_dead(root)))
        with Child(PULL, reference) as second:
            until(lambda: len(faulty.requests("/manifests/")) == 2)
            first.kill()
            assert second.hear() == built.digest
    assert ranges(faulty, built.layers[0]) == [None, f"bytes={2 * BLOCK}-"]
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []
    assert files_below(root / "content/ingest") == []


def test_progress_has_what_is_there_from_the_start(root: Path, faulty: FaultyRegistry) -> None:
    del root
    built = image_of(noise(20))
    reference = cut(faulty, built, BLOCK)
    seen: list[pyctrd.LayerProgress] = []
    with pyctrd.Engine() as engine:
        engine.images.pull(reference, progress=lambda now: seen.append(now.layers[0]))
    shown = [layer.received_bytes for layer in seen if layer.state != "waiting"]
    assert min(shown) >= BLOCK or shown[0] == 0 < BLOCK <= shown[1]
    assert shown == sorted(shown)
    assert shown[-1] == LAYER_SIZE


# for how long


def set_back(database: Database, nanoseconds: int) -> None:
    """Make what is reserved older."""
    with database.write() as tx:
        tx.ingests._run("UPDATE ingests SET started_ns = started_ns - ?", (nanoseconds,))


@pytest.mark.parametrize(("hours", "stays"), [(0, True), (23, True), (25, False), (-23, True), (-25, False)])
def test_it_is_kept_for_a_day_whatever_the_clock_says(
    root: Path, faulty: FaultyRegistry, database: Database, hours: int, *, stays: bool
) -> None:
    cut(faulty, image_of(noise(21)), BLOCK)
    set_back(database, hours * HOUR_NS)
    with pyctrd.Engine() as engine:
        assert engine.check() == []
    assert len(kept(root)) == len(database.ingests.list()) == stays


def test_an_engine_that_stays_open_lets_go_of_it_when_it_collects(
    cli: Cli, root: Path, faulty: FaultyRegistry, database: Database
) -> None:
    with pyctrd.Engine() as engine:
        cut(faulty, image_of(noise(22)), BLOCK)
        engine.gc()
        assert len(kept(root)) == 1
        (item,) = [item for item in engine.gc(dry_run=True).items if item.kind == "ingest"]
        assert (item.bytes, item.kept) == (BLOCK, True)
        set_back(database, 25 * HOUR_NS)
        (item,) = [item for item in engine.gc(dry_run=True).items if item.kind == "ingest"]
        assert (item.bytes, item.kept) == (BLOCK, False)
        (finding,) = engine.check()
        assert (finding.kind, finding.cause) == ("ingest", "left")
        engine.gc()
        assert engine.check() == []
    assert files_below(root / "content/ingest") == []
    assert cli("check").out == "clean\n"


def test_repair_ends_what_is_too_old_and_leaves_what_is_not(
    root: Path, faulty: FaultyRegistry, database: Database
) -> None:
    with pyctrd.Engine() as engine:
        cut(faulty, image_of(noise(24)), BLOCK)
        assert engine.check(repair=True) == []
        assert len(kept(root)) == 1
        set_back(database, 25 * HOUR_NS)
        (finding,) = engine.check(repair=True)
        assert finding.repaired
        assert engine.check() == []
    assert files_below(root / "content/ingest") == []


def test_a_pull_that_lasts_longer_is_not_taken_for_left(root: Path, faulty: FaultyRegistry, database: Database) -> None:
    built = image_of(noise(25))
    reference = faulty.add(built, "app")
    go_on = threading.Event()
    faulty.lie(f"/blobs/{built.layers[0].digest}", Answer(body=None, stall=go_on))
    with Child(PULL, reference) as child:
        assert faulty.stalled.wait(60)
        set_back(database, 1000 * HOUR_NS)
        with pyctrd.Engine() as engine:
            assert engine.check() == []
        go_on.set()
        assert child.hear() == built.digest
    assert files_below(root / "content/ingest") == []


# what is not kept


def test_what_comes_from_files_here_is_not_kept(root: Path, tmp_path: Path, database: Database) -> None:
    built = image_of(noise(26))
    built.write_layout(tmp_path / "layout")

    def stop(_: pyctrd.PullProgress) -> None:
        raise KeyboardInterrupt

    with pyctrd.Engine() as engine, pytest.raises(KeyboardInterrupt):
        engine.images.load(tmp_path / "layout", name="example.com/loaded:1", progress=stop)
    assert files_below(root / "content/ingest") == []
    assert database.ingests.list() == []


def test_a_blob_that_is_here_already_is_not_kept_twice(root: Path, faulty: FaultyRegistry, database: Database) -> None:
    built = image_of(noise(27, 20 << 20))
    reference = faulty.add(built, "app")

    def stop(_: pyctrd.PullProgress) -> None:
        raise KeyboardInterrupt

    with pyctrd.Engine() as engine:
        engine.images.pull(reference, unpack=False)
        with pytest.raises(KeyboardInterrupt):
            engine.images.pull(reference, progress=stop)
    assert files_below(root / "content/ingest") == []
    assert database.ingests.list() == []


@pytest.mark.parametrize("content", [b"no tar at all" * 1000])
def test_content_that_is_refused_is_not_kept(root: Path, faulty: FaultyRegistry, content: bytes) -> None:
    built = build_image([content], compression="none")
    reference = cut(faulty, built, 2000)
    with pyctrd.Engine() as engine, pytest.raises(pyctrd.PyctrdError):
        engine.images.pull(reference)
    assert ranges(faulty, built.layers[0]) == ["bytes=2000-"]
    assert files_below(root / "content/ingest") == []
