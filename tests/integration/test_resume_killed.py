"""Resume after a process was killed or interrupted, at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest

import pyctrd
from pyctrd.metadata.database import Database
from tests import syscalls
from tests.children import until
from tests.content.stores import files_below
from tests.images import Images
from tests.integration.conftest import Cli, command
from tests.integration.cuts import (
    BLOCK,
    LAYER_SIZE,
    PULL,
    assert_done,
    cut,
    image_of,
    kept,
    kept_of_dead,
    kill_in_the_middle,
    noise,
    ranges,
)
from tests.registries import Registry
from tests.registry_faults import Answer, FaultyRegistry
from tests.relays import Relay
from tests.syscalls import Watched

pytestmark = pytest.mark.root

STEPS = (
    *("write", "linkat", "renameat2", "rename", "renameat", "unlinkat", "unlink", "rmdir", "fchmod", "mkdirat"),
    *("fsync", "fdatasync", "syncfs"),
)
KILLS = int(os.environ.get("PYCTRD_TEST_KILLS", "200")) // 10


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


def test_of_a_killed_process_only_the_bytes_stay(root: Path, faulty: FaultyRegistry) -> None:
    built = image_of(noise(2))
    kill_in_the_middle(faulty, root, built)
    assert len(list((root / "content/ingest").glob("*/layer"))) == 1
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []
    (left,) = kept(root)
    assert list((root / "content/ingest").glob("*/layer")) == []
    assert left.stat().st_mode & 0o777 == 0o444


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
@pytest.mark.parametrize("stride", [12, pytest.param(1, marks=pytest.mark.soak)])
def test_going_on_that_is_killed_before_any_step_loses_no_byte(root: Path, faulty: FaultyRegistry, stride: int) -> None:
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
        steps += stride
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
