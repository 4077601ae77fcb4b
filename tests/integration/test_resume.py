"""Resume: a pull cut at any byte goes on from there, in another process, and the whole is verified."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import DigestMismatchError, SizeMismatchError, UnavailableError
from pyctrd.metadata.database import Database
from tests.archives import Tar
from tests.children import Child, until
from tests.content.stores import files_below
from tests.images import build_image
from tests.integration.conftest import Cli
from tests.integration.cuts import (
    BLOCK,
    GONE,
    LAYER_SIZE,
    PULL,
    assert_done,
    cut,
    image_of,
    kept,
    kept_of_dead,
    noise,
    ranges,
)
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root


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
    # Of no body nothing would stall: the next request would go the same way, and wait.
    faulty.lie(f"/blobs/{built.layers[1].digest}", Answer(503, body=b"later", stall=released), GONE)

    def release(seen: pyctrd.PullProgress) -> None:
        if seen.layers and seen.layers[0].state == "done":
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
        engine.images.pull(reference, progress=lambda now: seen.extend(now.layers))
    shown = [layer.received_bytes for layer in seen if layer.state != "waiting"]
    assert min(count for count in shown if count) >= BLOCK
    assert {layer.resumed_bytes for layer in seen if layer.received_bytes} == {BLOCK}
    assert shown == sorted(shown)
    assert shown[-1] == LAYER_SIZE
