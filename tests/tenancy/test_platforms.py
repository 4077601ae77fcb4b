"""T03, T04: platforms that one tenant brought in are another's only as far as it brought them in too."""

from __future__ import annotations

import pytest

import pyctrd
from pyctrd.errors import PyctrdError
from tests.platforms import DEEP, HOST, HOSTS, NESTED, OTHER, OTHERS, WHOLE, blobs_of, serve
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root


def names_of(engine: pyctrd.Engine) -> set[str]:
    """All that a tenant is told of by name."""
    return {item.name for item in engine.gc(dry_run=True).items} | {record.digest for record in engine.content.list()}


def test_what_a_has_of_an_index_shows_nothing_to_b(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference = serve(faulty, WHOLE, "multi")
    image = b.images.pull(reference)
    alone = b.gc(dry_run=True), b.df(), image.platforms
    a.images.pull(reference, all_platforms=True)
    a.gc()
    assert (b.gc(dry_run=True), b.df(), image.platforms) == alone
    assert image.platforms == (HOST,)
    # What it has by another name is its own business, and goes with that name.
    other = b.images.pull(f"{reference.rpartition(':')[0]}@{DEEP.digest}", platform=NESTED)
    assert b.gc().items == ()
    b.images.remove(other.name)
    assert names_of(b).isdisjoint(blobs_of(DEEP))
    assert a.images.get(reference).platforms == (HOST, OTHER, NESTED)
    assert a.check(digests=True) == []


def test_every_blob_of_every_platform_must_be_shown_by_the_registry(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    reference = serve(faulty, WHOLE, "multi")
    a.images.pull(reference, all_platforms=True)
    secret = OTHERS.layers[1].digest
    faulty.lie(f"/v2/multi/blobs/{secret}", *[Answer(404)] * 9)
    with pytest.raises(PyctrdError):
        b.images.pull(reference, all_platforms=True)
    assert b.images.list() == []
    b.gc()
    assert b.content.list() == []
    assert b.images.pull(reference, platform=[HOST, NESTED]).platforms == (HOST, NESTED)
    assert secret not in names_of(b)


def test_a_proof_for_each_blob_brings_no_bytes(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference = serve(faulty, WHOLE, "multi")
    a.images.pull(reference, all_platforms=True)
    faulty.seen.clear()
    assert b.images.pull(reference, all_platforms=True).platforms == (HOST, OTHER, NESTED)
    layers = {blob.digest for image in (HOSTS, OTHERS, DEEP) for blob in image.layers}
    asked = {(seen.method, seen.path.rpartition("/")[2]) for seen in faulty.requests("/blobs/")}
    assert {digest for method, digest in asked if method == "HEAD"} >= layers
    assert {digest for method, digest in asked if method == "GET"}.isdisjoint(layers)


def test_what_a_lets_go_of_stays_for_b(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference = serve(faulty, WHOLE, "multi")
    for tenant in (a, b):
        tenant.images.pull(reference, all_platforms=True)
    a.images.remove(reference)
    assert a.content.list() == []
    assert b.images.get(reference).platforms == (HOST, OTHER, NESTED)
    assert b.check(digests=True) == []
    assert b.images.pull(reference, platform=OTHER).read_file("/platform") == OTHER.encode()
