"""Whether a layer is unpacked: each namespace is told what it did itself, whatever others did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import NotFoundError
from tests.archives import Tar
from tests.images import build_image
from tests.registry_faults import FaultyRegistry

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("state")]
IMAGE = build_image([Tar().file("f", b"f" * 3000).build(), Tar().file("g", b"g").build()])


@pytest.fixture
def reference() -> Iterator[str]:
    with FaultyRegistry() as registry:
        yield registry.add(IMAGE, "app")


def outcome(call: Callable[[], object]) -> str:
    try:
        return f"done: {call()}"
    except NotFoundError as error:
        return f"{error}"


def seen(engine: pyctrd.Engine, reference: str, scratch: Path) -> list[object]:
    """All that tells whether the image's layers are unpacked."""
    image = engine.images.get(reference)
    scratch.mkdir(exist_ok=True)
    diff_ids = [str(diff_id) for diff_id in image.config.rootfs.diff_ids]
    found: list[object] = [sorted(engine.gc(dry_run=True).items)]
    with engine.leases.create() as lease:
        found += [outcome(partial(lease.add, diff_id)) for diff_id in diff_ids]
    found += [outcome(partial(engine.content.rebuild, diff_id, scratch / "layer.tar")) for diff_id in diff_ids]
    found.append(outcome(lambda: [entry.path for entry in image.walk()]))
    found.append(outcome(lambda: image.read_file("/f")))

    def mount() -> str:
        with image.mounted(scratch):
            return "mounted"

    found.append(outcome(mount))
    found.append(outcome(lambda: engine.containers.create(image, ["true"], name="made").delete()))
    return found


def story(root: Path, reference: str, scratch: Path, *, beside_another: bool) -> list[object]:
    """What a tenant sees after each of its own steps."""
    told: list[object] = []
    if beside_another:
        with pyctrd.Engine(root=root, namespace="other") as other:
            other.images.pull(reference)
    with pyctrd.Engine(root=root, namespace="tenant") as tenant:
        for unpack in (False, True):
            tenant.images.pull(reference, unpack=unpack)
            told.append(seen(tenant, reference, scratch))
        tenant.images.remove(reference, collect=False)
        told.append([sorted(tenant.gc(dry_run=True).items), sorted(tenant.gc().items)])
        tenant.images.pull(reference, unpack=False)
        told.append(seen(tenant, reference, scratch))
        assert tenant.check() == []
    return told


def test_what_another_unpacked_is_not_unpacked_for_a_tenant(reference: str, tmp_path: Path) -> None:
    alone = story(tmp_path / "alone", reference, tmp_path / "mounted", beside_another=False)
    beside = story(tmp_path / "beside", reference, tmp_path / "mounted", beside_another=True)
    assert beside == alone
    assert "layer not unpacked" in str(alone[0])
    assert "mounted" in str(alone[1])
    assert alone[3] == alone[0]


def test_a_namespace_that_is_removed_leaves_nothing_of_it_behind(reference: str, tmp_path: Path) -> None:
    with pyctrd.Engine(root=tmp_path / "root") as keeper:
        with pyctrd.Engine(root=tmp_path / "root", namespace="tenant") as tenant:
            tenant.images.pull(reference)
        keeper.images.pull(reference)
        keeper.namespaces.remove("tenant", force=True)
        with pyctrd.Engine(root=tmp_path / "root", namespace="tenant") as tenant:
            image = tenant.images.pull(reference, unpack=False)
            with pytest.raises(NotFoundError, match="not unpacked"):
                tenant.containers.create(image, ["true"])
