"""``Engine.df``: what takes the disk, as a tenant may know it and as the store's keeper does."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import pyctrd
from tests.archives import Tar
from tests.images import build_image
from tests.registry_faults import FaultyRegistry


def layer(seed: int) -> bytes:
    return Tar().file(f"file-{seed}", random.Random(seed).randbytes(50_000)).build()


def test_an_image_is_told_what_it_alone_needs_and_what_it_shares(a: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    base, one, two = (layer(seed) for seed in (1, 2, 3))
    first = a.images.pull(faulty.add(build_image([base, one]), "first"))
    alone = a.df()
    assert [tuple(image) for image in alone.images] == [(first.name, alone.charged_bytes, alone.charged_bytes, 0)]
    second = a.images.pull(faulty.add(build_image([base, two]), "second"))
    shared = first.manifest.layers[0].size
    space = a.df()
    assert [image.name for image in space.images] == sorted([first.name, second.name])
    assert {image.shared_bytes for image in space.images} == {shared}
    assert sum(image.unique_bytes for image in space.images) + shared == space.charged_bytes
    assert all(image.bytes == image.unique_bytes + image.shared_bytes for image in space.images)
    freed = next(image.unique_bytes for image in space.images if image.name == second.name)
    a.images.remove(second.name)
    assert a.df().charged_bytes == space.charged_bytes - freed
    assert a.df() == alone


def test_what_others_have_shows_to_the_keeper_alone(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference = faulty.add(build_image([layer(4)]), "both")
    a.images.pull(reference)
    before = a.df()
    assert (before.namespaces, before.store) == ((), None)
    kept = a.df(all_namespaces=True)
    b.images.pull(reference)
    assert a.df() == before
    space = a.df(all_namespaces=True)
    assert space.store == kept.store
    assert space.store is not None
    assert space.store.blob_bytes == before.charged_bytes
    assert [tuple(known) for known in kept.namespaces] == [
        ("a", before.charged_bytes, before.charged_bytes, 0),
        ("b", 0, 0, 0),
    ]
    assert [tuple(known) for known in space.namespaces] == [
        ("a", before.charged_bytes, 0, 0),
        ("b", before.charged_bytes, 0, 0),
    ]


@pytest.mark.root
def test_a_container_is_told_by_what_it_wrote(a: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    image = a.images.pull(faulty.add(build_image([layer(5)]), "run"))
    container = a.containers.create(image, ["x"], name="writer")
    (small,) = a.df().containers
    assert small.name == "writer"
    snapshots = Path(os.environ["PYCTRD_ROOT"], "snapshots")
    (upper,) = [*snapshots.glob("container-*/upper"), *snapshots.glob("container-*/rootfs")]
    (upper / "file").write_bytes(random.Random(6).randbytes(1 << 20))
    (large,) = a.df().containers
    assert large.bytes >= small.bytes + (1 << 20)
    container.delete()
    assert a.df().containers == ()
