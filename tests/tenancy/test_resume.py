"""What was kept of a broken-off pull is its own namespace's, and in nobody's way."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

import pyctrd
from pyctrd.errors import ConflictError, QuotaError, UnavailableError
from tests.archives import Tar
from tests.content.stores import files_below
from tests.images import Blob, BuiltImage, build_image
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 60.0
CUT = 70_001
GONE = Answer(503, headers={"Retry-After": "3600"})


def noise(seed: int, size: int = 100_000) -> BuiltImage:
    """An image of one layer that no compression makes smaller."""
    return build_image([Tar().file(f"noise-{seed}", random.Random(seed).randbytes(size)).build()], compression="none")


def size_of(built: BuiltImage) -> int:
    """What a namespace is charged for that has it."""
    return sum(len(blob.content) for blob in (built.manifest, *built.blobs))


def cut(engine: pyctrd.Engine, faulty: FaultyRegistry, built: BuiltImage, name: str) -> str:
    """A pull that ends after some bytes of the layer."""
    reference = faulty.add(built, name)
    faulty.lie(f"/v2/{name}/blobs/{built.layers[0].digest}", Answer(body=None, cut=CUT), GONE)
    with pytest.raises(UnavailableError):
        engine.images.pull(reference)
    faulty.seen.clear()
    return reference


def ranges(faulty: FaultyRegistry, blob: Blob) -> list[str | None]:
    """From where on a blob was asked for, each time."""
    return [seen.headers.get("range") for seen in faulty.requests(f"/blobs/{blob.digest}") if seen.method == "GET"]


def staged() -> list[str]:
    """The blobs' bytes in staging."""
    names = files_below(Path(os.environ["PYCTRD_ROOT"], "content/ingest"))
    return [name for name in names if name.endswith("/data")]


# who may go on


@pytest.mark.parametrize("policy", ["isolated", "shared"])
def test_another_namespace_neither_goes_on_from_it_nor_takes_it(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, policy: Literal["isolated", "shared"]
) -> None:
    built = noise(1)
    for name in ("a", "b"):
        a.namespaces.set(name, policy=policy)
    mine = cut(a, faulty, built, "mine")
    (kept,) = staged()
    theirs = faulty.add(built, "theirs")
    faulty.lie(f"/v2/theirs/blobs/{built.layers[0].digest}", Answer(body=None, cut=100), GONE)
    with pytest.raises(UnavailableError):
        b.images.pull(theirs)
    assert ranges(faulty, built.layers[0])[0] is None
    assert kept in staged()
    assert len(staged()) == 2
    faulty.seen.clear()
    a.images.pull(mine)
    assert ranges(faulty, built.layers[0]) == [f"bytes={CUT}-"]
    assert kept not in staged()
    assert len(staged()) == 1
    b.images.remove(b.images.pull(theirs).name)
    assert a.check(digests=True) == []
    assert staged() == []


def test_what_another_has_whole_does_not_hinder_it(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    built = noise(2)
    mine = cut(a, faulty, built, "mine")
    b.images.pull(faulty.add(built, "theirs"))
    assert ranges(faulty, built.layers[0]) == [None]
    assert len(staged()) == 1
    assert a.content.list() == []
    faulty.seen.clear()
    a.images.pull(mine)
    assert ranges(faulty, built.layers[0]) == [f"bytes={CUT}-"]
    assert staged() == []
    assert b.check(digests=True) == []


def test_where_the_store_gives_the_blob_nothing_stays_kept(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = noise(3)
    reference = cut(a, faulty, built, "same")
    b.images.pull(reference)  # from the same repository: a proof for both
    faulty.seen.clear()
    a.images.pull(reference)
    assert ranges(faulty, built.layers[0]) == []
    assert files_below(Path(os.environ["PYCTRD_ROOT"], "content/ingest")) == []
    assert a.content.usage().reserved_bytes == 0
    assert a.check(digests=True) == []


# in nobody's way


@pytest.mark.parametrize("force", [True, False])
def test_a_namespace_goes_with_what_was_kept_for_it(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, *, force: bool
) -> None:
    cut(b, faulty, noise(4), "app")
    assert len(staged()) == 1
    a.namespaces.remove("b", force=force)
    assert files_below(Path(os.environ["PYCTRD_ROOT"], "content/ingest")) == []
    assert a.check(digests=True) == []
    with pyctrd.Engine(namespace="b") as anew:
        assert anew.content.usage().reserved_bytes == 0


def test_a_removal_that_is_refused_loses_nothing(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    whole, built = noise(5), noise(6)
    b.images.pull(faulty.add(whole, "whole"))
    reference = cut(b, faulty, built, "cut")
    with pytest.raises(ConflictError, match="not empty"):
        a.namespaces.remove("b")
    b.images.pull(reference)
    assert ranges(faulty, built.layers[0]) == [f"bytes={CUT}-"]


def test_a_namespace_goes_while_another_brings_the_same_blob(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = noise(7)
    cut(b, faulty, built, "theirs")
    go = threading.Event()
    faulty.lie(f"/v2/mine/blobs/{built.layers[0].digest}", Answer(body=None, stall=go))
    with ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(a.images.pull, faulty.add(built, "mine"))
        try:
            assert faulty.stalled.wait(DEADLINE_SECONDS)
            a.namespaces.remove("b", force=True)
            with pytest.raises(ConflictError, match="on its way"):
                b.namespaces.remove("a", force=True)
        finally:
            go.set()
        assert pulling.result(DEADLINE_SECONDS).digest == built.digest
    assert a.check(digests=True) == []
    assert files_below(Path(os.environ["PYCTRD_ROOT"], "content/ingest")) == []


# its room


def test_it_counts_as_reserved_until_the_room_is_needed(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    first, second, small = noise(8), noise(9), noise(10, size=10)
    cut(b, faulty, first, "first")
    layer = len(first.layers[0].content)
    assert b.content.usage() == (0, layer, None)
    assert a.content.usage() == (0, 0, None)
    a.namespaces.set("b", quota=layer + size_of(small))
    b.images.pull(faulty.add(small, "small"))
    assert len(staged()) == 1  # it fits beside it
    a.namespaces.set("b", quota=size_of(small) + size_of(second))
    b.images.pull(faulty.add(second, "second"))
    assert staged() == []
    assert b.content.usage().reserved_bytes == 0
    assert a.check(digests=True) == []


def test_no_more_goes_than_is_needed_and_the_oldest_first(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    first, second, third = noise(11), noise(12), noise(13)
    cut(b, faulty, first, "first")
    reference = cut(b, faulty, second, "second")
    a.namespaces.set("b", quota=len(second.layers[0].content) + size_of(third))
    b.images.pull(faulty.add(third, "third"))
    assert len(staged()) == 1
    a.namespaces.set("b", quota="unlimited")
    b.images.pull(reference)
    assert ranges(faulty, second.layers[0]) == [f"bytes={CUT}-"]


def test_its_own_room_is_there_for_who_goes_on(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    built = noise(14)
    reference = cut(b, faulty, built, "app")
    a.namespaces.set("b", quota=size_of(built))
    b.images.pull(reference)
    assert ranges(faulty, built.layers[0]) == [f"bytes={CUT}-"]
    assert b.content.usage() == (size_of(built), 0, size_of(built))


def test_a_quota_that_was_lowered_below_it_ends_it(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    cut(b, faulty, noise(15), "app")
    a.namespaces.set("b", quota=100)
    with pyctrd.Engine(namespace="b") as opened:
        assert opened.content.usage() == (0, 0, 100)
    assert staged() == []


def test_room_is_made_while_another_brings_the_same_blob(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built, next_one = noise(16), noise(17)
    cut(b, faulty, built, "theirs")
    a.namespaces.set("b", quota=size_of(next_one))
    go = threading.Event()
    faulty.lie(f"/v2/mine/blobs/{built.layers[0].digest}", Answer(body=None, stall=go))
    with ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(a.images.pull, faulty.add(built, "mine"))
        try:
            assert faulty.stalled.wait(DEADLINE_SECONDS)
            b.images.pull(faulty.add(next_one, "next"))
        finally:
            go.set()
        assert pulling.result(DEADLINE_SECONDS).digest == built.digest
    assert a.check(digests=True) == []


def test_claims_of_several_layers_keep_one_blob_once(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = noise(18)
    other = built.with_diff_ids([Blob("", b"another").digest])
    cut(b, faulty, built, "first")
    faulty.lie(f"/v2/second/blobs/{built.layers[0].digest}", Answer(body=None, cut=10), GONE)
    with pytest.raises(UnavailableError):
        b.images.pull(faulty.add(other, "second"))
    assert ranges(faulty, built.layers[0])[0] == f"bytes={CUT}-"
    assert len(staged()) == 1
    faulty.seen.clear()
    b.images.pull(faulty.add(built, "first"))
    assert ranges(faulty, built.layers[0]) == [f"bytes={CUT + 10}-"]
    assert a.check(digests=True) == []


def test_a_pull_that_can_never_fit_says_so(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    large = noise(19)
    cut(b, faulty, noise(20), "cut")
    a.namespaces.set("b", quota=1000)
    with pytest.raises(QuotaError) as caught:
        b.images.pull(faulty.add(large, "large"))
    assert caught.value.use_bytes == 0
