"""T07, T08: what a tenant may have, what it is charged for, and that others notice neither."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import QuotaError
from tests.archives import Tar
from tests.cli.commands import command, environment, is_one_error, run
from tests.images import BuiltImage, Images, build_image
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 60.0


def noise(seed: int, size: int = 100_000) -> BuiltImage:
    """An image of one layer that no compression makes smaller."""
    return build_image([Tar().file(f"noise-{seed}", random.Random(seed).randbytes(size)).build()])


def size_of(built: BuiltImage) -> int:
    """What a namespace is charged for that has it."""
    return sum(len(blob.content) for blob in (built.manifest, *built.blobs))


def stalled_pull(faulty: FaultyRegistry, engine: pyctrd.Engine, built: BuiltImage, name: str) -> Callable[[], object]:
    """A pull that stands still half-way through its layer; what is returned lets it go on, and gives its result."""
    go = threading.Event()
    faulty.lie(f"/v2/{name}/blobs/{built.layers[0].digest}", Answer(body=None, stall=go))
    pool = ThreadPoolExecutor(1)
    pulling = pool.submit(engine.images.pull, faulty.add(built, name))
    assert faulty.stalled.wait(DEADLINE_SECONDS)

    def finish() -> object:
        go.set()
        with pool:
            return pulling.result(DEADLINE_SECONDS)

    return finish


def test_t07_a_full_tenant_gets_one_clear_error_and_others_go_on(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images
) -> None:
    first, second = noise(1), noise(2)
    limit = size_of(first) + size_of(second) - 1
    a.namespaces.set("b", quota=limit)
    image = b.images.pull(images.push(first).reference)
    reference = images.push(second).reference
    with pytest.raises(QuotaError) as caught:
        b.images.pull(reference)
    error = caught.value
    assert (error.namespace, error.limit_bytes) == ("b", limit)
    assert (error.use_bytes, error.need_bytes) == (size_of(first), size_of(second))
    assert [str(part) in str(error) for part in (limit, error.use_bytes, error.need_bytes)] == [True] * 3
    assert [known.name for known in b.images.list()] == [image.name]
    assert b.content.usage() == (size_of(first), 0, limit)
    a.images.pull(reference)
    assert a.check(digests=True) == []


def test_a_quota_that_just_holds_an_image_holds_it(a: pyctrd.Engine, b: pyctrd.Engine, images: Images) -> None:
    built = noise(3)
    a.namespaces.set("b", quota=size_of(built))
    image = b.images.pull(images.push(built).reference)
    assert b.images.pull(image.name).digest == image.digest  # nothing new is needed
    with pytest.raises(QuotaError):
        b.images.pull(images.busybox.reference)


def test_what_does_not_fit_is_not_asked_for(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    built = noise(4)
    a.namespaces.set("b", quota=size_of(built) - 1)
    reference = faulty.add(built, "large")
    with pytest.raises(QuotaError):
        b.images.pull(reference)
    assert faulty.requests(built.layers[0].digest) == []
    assert b.content.list() == []
    assert [path for path in Path(os.environ["PYCTRD_ROOT"], "content").rglob("*") if path.is_file()] == []


def test_what_is_on_its_way_in_counts(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    slow, quick = noise(6), noise(7)
    a.namespaces.set("b", quota=size_of(slow) + size_of(quick) - 1)
    finish = stalled_pull(faulty, b, slow, "slow")
    assert b.content.usage().reserved_bytes == size_of(slow)
    with pyctrd.Engine(namespace="b") as beside, pytest.raises(QuotaError) as caught:
        beside.images.pull(faulty.add(quick, "quick"))
    assert caught.value.use_bytes == size_of(slow)
    finish()
    assert b.content.usage()[:2] == (size_of(slow), 0)
    assert a.check(digests=True) == []


def test_two_pulls_of_one_image_need_its_room_once(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    built = noise(8)
    a.namespaces.set("b", quota=size_of(built))
    finish = stalled_pull(faulty, b, built, "same")
    waits = threading.Event()

    def wait(told: pyctrd.PullProgress) -> None:
        if told.layers:
            waits.set()

    with pyctrd.Engine(namespace="b") as beside, ThreadPoolExecutor(1) as pool:
        second = pool.submit(beside.images.pull, faulty.add(built, "same"), progress=wait)
        assert waits.wait(DEADLINE_SECONDS)
        finish()
        assert second.result(DEADLINE_SECONDS).digest == built.digest
    assert b.content.usage().charged_bytes == size_of(built)


def test_a_quota_that_is_lowered_under_way_is_held_at_the_end(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = noise(9)
    a.namespaces.set("b", quota=size_of(built))
    finish = stalled_pull(faulty, b, built, "lowered")
    a.namespaces.set("b", quota=size_of(built) - 1)
    with pytest.raises(QuotaError):
        finish()
    assert b.content.list() == []
    assert b.images.list() == []
    assert b.content.usage().reserved_bytes == 0
    assert a.check(digests=True) == []
    a.namespaces.set("b", quota="unlimited")
    b.images.pull(faulty.add(built, "lowered"))


def test_a_quota_below_use_takes_nothing_away_and_lets_nothing_in(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images
) -> None:
    built = noise(10)
    image = b.images.pull(images.push(built).reference)
    a.namespaces.set("b", quota=1)
    assert image.read_file("/noise-10") == random.Random(10).randbytes(100_000)
    b.images.pull(image.name)
    with pytest.raises(QuotaError):
        b.images.pull(images.busybox.reference)
    b.images.remove(image.name)
    assert b.content.usage() == (0, 0, 1)


def test_what_a_killed_process_reserved_is_no_use(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    cut, whole = noise(11, size=50_000), noise(12)
    a.namespaces.set("b", quota=size_of(whole))
    assert b.content.usage().reserved_bytes == 0  # it is open already: no recovery of its own comes later
    faulty.lie(f"/v2/cut/blobs/{cut.layers[0].digest}", Answer(body=None, stall=threading.Event()))
    process = subprocess.Popen(
        command("-n", "b", "pull", "-q", faulty.add(cut, "cut")), env=environment(), stdout=subprocess.DEVNULL
    )
    try:
        assert faulty.stalled.wait(DEADLINE_SECONDS)
    finally:
        process.kill()
        process.wait(DEADLINE_SECONDS)
    assert b.content.usage().reserved_bytes == size_of(cut)
    b.images.pull(faulty.add(whole, "whole"))
    assert a.check(digests=True) == []


def test_what_is_loaded_or_committed_is_held_to_the_quota(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images, tmp_path: Path
) -> None:
    container = b.containers.create(b.images.pull(images.busybox.reference), ["true"])
    charged = b.content.usage().charged_bytes
    a.namespaces.set("b", quota=charged)
    noise(13).write_layout(tmp_path / "layout")
    for bring_in in (
        lambda: b.images.load(tmp_path / "layout", name="example.com/loaded:1"),
        lambda: container.commit("example.com/made:1"),
    ):
        with pytest.raises(QuotaError):
            bring_in()
        assert b.content.usage() == (charged, 0, charged)
        assert a.check(digests=True) == []
    a.namespaces.set("b", quota="unlimited")
    assert b.images.load(tmp_path / "layout", name="example.com/loaded:1")
    assert container.commit("example.com/made:1")


def test_t08_each_is_charged_as_if_alone_and_sums_are_right_after_removal(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images
) -> None:
    base = Tar().file("base", random.Random(14).randbytes(50_000)).build()
    mine, theirs = (build_image([base, Tar().file(name, b"x" * 99).build()]) for name in ("mine", "theirs"))
    common = len(mine.layers[0].content)
    assert mine.layers[0] == theirs.layers[0]
    names = [images.push(built).reference for built in (mine, theirs)]
    a.images.pull(names[0])
    assert a.namespaces.usage("a") == (size_of(mine), size_of(mine))
    b.images.pull(names[1])
    assert a.content.usage().charged_bytes == size_of(mine)  # what b has changes nothing for a
    assert a.namespaces.usage("a") == (size_of(mine), size_of(mine) - common)
    assert a.namespaces.usage("b") == (size_of(theirs), size_of(theirs) - common)
    a.images.remove(names[0])
    assert a.namespaces.usage("a") == (0, 0)
    assert a.namespaces.usage("b") == (size_of(theirs), size_of(theirs))
    disk = Path(os.environ["PYCTRD_ROOT"], "content", "blobs")
    assert sum(path.stat().st_size for path in disk.rglob("*") if path.is_file()) == size_of(theirs)
    b.images.remove(names[1])
    assert a.namespaces.usage("b") == (0, 0)


def test_the_command_line_says_it_in_one_line(images: Images) -> None:
    built = noise(15)
    assert run("namespace", "set", "default", "--quota", "1k").status == 0
    done = run("pull", "-q", images.push(built).reference)
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert f"quota exceeded: default: {size_of(built)} bytes more than the 0 in use: expected at most 1024" in done.err
    (listed,) = run("namespace", "ls", "--json").lines
    assert (listed["charged_bytes"], listed["exclusive_bytes"], listed["quota_bytes"]) == (0, 0, 1024)
