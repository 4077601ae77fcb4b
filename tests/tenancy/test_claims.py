"""T03, T05: what a config says of a blob gives a tenant no layer but its own, and proves nothing to anybody."""

from __future__ import annotations

import random

import pytest

import pyctrd
from pyctrd.errors import DiffIDMismatchError, NotFoundError, PyctrdError
from tests.archives import Tar
from tests.images import Blob, BuiltImage, build_image
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root


def private(seed: int) -> BuiltImage:
    """An image of one layer that nobody could guess."""
    return build_image([Tar().file("secret", random.Random(seed).randbytes(50_000)).build()])


def diff_id(built: BuiltImage) -> str:
    """Of its layer."""
    return Blob("", built.tars[0]).digest


def received(engine: pyctrd.Engine) -> int:
    """Bytes that came into an engine, over all of its pulls."""
    return engine.stages().get("receive", {}).get("bytes", 0)


def names_of(engine: pyctrd.Engine) -> set[str]:
    """All that a tenant is told of by name."""
    items = {item.name for item in engine.gc(dry_run=True).items}
    return items | {record.digest for record in engine.content.list()}


@pytest.mark.parametrize("keep", [True, False])
def test_a_config_that_names_another_tenants_layer_gets_none_of_it(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, *, keep: bool
) -> None:
    secret, own = private(1), private(2)
    a.images.pull(faulty.add(secret, "a"))
    reference = faulty.add(own.with_diff_ids([diff_id(secret)]), "b")
    with pytest.raises(DiffIDMismatchError):
        b.images.pull(reference, keep_blobs=keep)
    assert names_of(b) == set()
    assert a.check(digests=True) == []


def test_the_same_layer_of_another_tenant_is_fetched_as_if_the_store_were_empty(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    tars = private(1).tars
    a.images.pull(faulty.add(build_image(tars), "a"), keep_blobs=False)
    other = build_image(tars, compression="zstd")
    b.images.pull(faulty.add(other, "b"), keep_blobs=False)
    assert received(b) == sum(len(blob.content) for blob in (other.manifest, *other.blobs))
    assert b.content.info(other.layers[0].digest).claimed == ""


def test_a_blob_that_was_taken_for_an_own_layer_opens_no_other(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    secret, own = private(1), private(2)
    a.images.pull(faulty.add(secret, "a"))
    b.images.pull(faulty.add(own, "b"), keep_blobs=False)
    # It says of the blob, which a has, that it is a layer of b's: b may believe that, for itself.
    b.images.pull(faulty.add(secret.with_diff_ids([diff_id(own)]), "lying"), keep_blobs=False)
    layer = secret.layers[0].digest
    assert b.content.info(layer).claimed == diff_id(own)
    assert diff_id(secret) not in names_of(b)
    with pytest.raises(NotFoundError):
        b.content.rebuild(diff_id(secret), "/dev/null")
    with pytest.raises(NotFoundError, match="not kept"):
        b.content.open(layer)
    # And now the truth about it, from where it cannot be had.
    reference = faulty.add(secret, "b-truth")
    for keep in (False, True):
        faulty.lie(f"b-truth/blobs/{layer}", *[Answer(404)] * 9)
        with pytest.raises(PyctrdError):
            b.images.pull(reference, keep_blobs=keep)
        faulty._faults.clear()
    assert diff_id(secret) not in names_of(b)
    assert b.images.find(reference) is None
    assert a.images.get(f"{faulty.host}/a:latest").read_file("/secret")
    assert a.check(digests=True) == []


def test_what_one_was_taken_for_gives_a_neighbour_nothing(
    a: pyctrd.Engine, b: pyctrd.Engine, state: object, faulty: FaultyRegistry
) -> None:
    del state
    secret, own = private(1), private(2)
    a.images.pull(faulty.add(secret, "a"))
    layer = secret.layers[0].digest
    with pyctrd.Engine(namespace="c") as c:
        c.images.list()
        for name in ("b", "c"):
            a.namespaces.set(name, policy="shared")
        b.images.pull(faulty.add(own, "b"), keep_blobs=False)
        b.images.pull(faulty.add(secret.with_diff_ids([diff_id(own)]), "lying"), keep_blobs=False)
        reference = faulty.add(secret, "c")
        for keep in (True, False):
            faulty.lie(f"c/blobs/{layer}", *[Answer(404)] * 9)
            with pytest.raises(PyctrdError):
                c.images.pull(reference, keep_blobs=keep)
            faulty._faults.clear()
        assert names_of(c) == set()


def test_a_claim_proves_no_source(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    secret, own = private(1), private(2)
    a.images.pull(faulty.add(secret, "a"))
    b.images.pull(faulty.add(own, "b"), keep_blobs=False)
    layer = secret.layers[0].digest
    b.images.pull(faulty.add(secret.with_diff_ids([diff_id(own)]), "mine"), keep_blobs=False)
    # The repository that it named the blob in is b's own, and answers HEAD for it: the bytes never came from there.
    before = received(b)
    b.images.pull(faulty.add(secret, "mine", tag="truth"))
    assert [seen.method for seen in faulty.requests(f"mine/blobs/{layer}")] == ["GET"]
    assert received(b) - before >= len(secret.layers[0].content)


def test_a_claim_does_not_keep_what_its_last_owner_lets_go(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, state: object
) -> None:
    del state
    secret, own = private(1), private(2)
    a.images.pull(theirs := faulty.add(secret, "a"))
    b.images.pull(faulty.add(own, "b"), keep_blobs=False)
    b.images.pull(lying := faulty.add(secret.with_diff_ids([diff_id(own)]), "lying"), keep_blobs=False)
    a.images.remove(theirs)
    assert [item for item in a.gc(dry_run=True, all_namespaces=True).items if item.name == diff_id(secret)] == []
    assert b.images.get(lying).read_file("/secret")
    assert a.check(digests=True) == []
