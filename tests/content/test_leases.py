"""Leases: what they keep, for how long, and whose."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import InvalidError, NotFoundError
from tests.archives import Tar
from tests.children import Child
from tests.content.stores import blob_path, files_below, sha256
from tests.images import build_image
from tests.registry_faults import FaultyRegistry

TAR = Tar().file("f", b"content").build()
DAY_NS = 86400 * 10**9

HOLD = """
import sys
import pyctrd
with pyctrd.Engine() as engine:
    lease = engine.leases.create(expires=float(sys.argv[2]) if sys.argv[2] else None)
    lease.add(sys.argv[1])
    print(lease.id, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def root() -> Path:
    """The root that an engine takes from the environment."""
    return Path(os.environ["PYCTRD_ROOT"])


@pytest.fixture
def reference() -> Iterator[str]:
    """An image of one layer."""
    with FaultyRegistry() as registry:
        yield registry.add(build_image([TAR]), "app")


@pytest.fixture
def engine() -> Iterator[pyctrd.Engine]:
    with pyctrd.Engine() as opened:
        yield opened


def test_an_image_that_is_leased_stays_whole_without_its_name(
    engine: pyctrd.Engine, root: Path, reference: str
) -> None:
    image = engine.images.pull(reference)
    with engine.leases.create(labels={"for": "a build"}) as lease:
        lease.add(reference)
        engine.images.remove(reference)
        told = {item.name: item for item in engine.gc(dry_run=True).items}
        assert told[image.digest].kept
        assert told[image.digest].reason == f"lease {lease.id}"
        assert image.read_file("/f") == b"content"
        assert {record.digest for record in engine.content.list()} == {
            resource.name for resource in lease.resources() if resource.kind == "blob"
        }
        assert [(found.id, found.labels) for found in engine.leases.list()] == [(lease.id, {"for": "a build"})]
        assert engine.leases.get(lease.id).created_ns == lease.created_ns
        assert engine.check(digests=True) == []
    assert engine.leases.list() == []
    engine.gc()
    assert files_below(root / "content/blobs") == []
    assert files_below(root / "layers") == []
    assert files_below(root / "locks/lease") == []


def test_a_blob_and_a_layer_are_kept_alone(engine: pyctrd.Engine, root: Path, reference: str) -> None:
    image = engine.images.pull(reference)
    blob = str(image.manifest.layers[0].digest)
    with engine.leases.create() as lease:
        lease.add(blob)
        lease.add(sha256(TAR))
        engine.images.remove(reference)
        assert [record.digest for record in engine.content.list()] == [blob]
        assert (root / "layers" / sha256(TAR).replace(":", "/")).is_dir()
        assert [tuple(resource) for resource in lease.resources()] == [("blob", blob), ("layer", sha256(TAR))]


@pytest.mark.parametrize("name", ["", "../../x", "sha256:" + "0" * 64, "sha256:zz", "app:latest", "x" * 5000])
def test_what_is_not_there_cannot_be_leased(engine: pyctrd.Engine, name: str) -> None:
    with engine.leases.create() as lease:
        with pytest.raises(NotFoundError, match="content not found"):
            lease.add(name)
        assert lease.resources() == []


def test_another_namespaces_content_is_as_if_it_were_not_there(engine: pyctrd.Engine, reference: str) -> None:
    image = engine.images.pull(reference)
    mine = engine.leases.create()
    missing = "sha256:" + "0" * 64
    with pyctrd.Engine(namespace="other") as other, other.leases.create() as lease:
        for name in (image.digest, str(image.manifest.layers[0].digest), sha256(TAR), reference):
            with pytest.raises(NotFoundError) as refused:
                lease.add(name)
            with pytest.raises(NotFoundError) as unknown:
                lease.add(missing)
            assert str(refused.value).replace(name, missing) == str(unknown.value)
            assert (refused.value.kind, refused.value.hint) == (unknown.value.kind, unknown.value.hint)
        assert [found.id for found in other.leases.list()] == [lease.id]
        for use in (other.leases.get, other.leases.delete):
            for known in (mine.id, "nothing", f"../default/{mine.id}"):
                with pytest.raises(NotFoundError, match="lease not found"):
                    use(known)
    assert [found.id for found in engine.leases.list()] == [mine.id]


def test_a_lease_ends_with_the_process_that_holds_it(engine: pyctrd.Engine, root: Path, reference: str) -> None:
    image = engine.images.pull(reference)
    with Child(HOLD, reference, "") as holder:
        lease_id = holder.hear()
        engine.images.remove(reference)
        assert engine.leases.get(lease_id).expires_ns is None
        assert blob_path(root, image.digest).exists()
        holder.kill()
    assert engine.leases.list() == []
    with pytest.raises(NotFoundError):
        engine.leases.get(lease_id).add(image.digest)
    assert len(engine.gc().items) == 4
    assert not blob_path(root, image.digest).exists()


def test_one_that_expires_outlives_its_process_until_then(
    engine: pyctrd.Engine, root: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = engine.images.pull(reference)
    with Child(HOLD, reference, "3600") as holder:
        lease_id = holder.hear()
        holder.kill()
    engine.images.remove(reference)
    lease = engine.leases.get(lease_id)
    assert lease.expires_ns is not None
    assert blob_path(root, image.digest).exists()
    now = lease.expires_ns
    monkeypatch.setattr(time, "time_ns", lambda: now)
    assert engine.leases.list() == []
    engine.gc()
    assert not blob_path(root, image.digest).exists()


@pytest.mark.parametrize("jump_ns", [DAY_NS, -DAY_NS])
def test_no_jump_of_the_clock_ends_a_lease_that_is_held(
    engine: pyctrd.Engine, root: Path, reference: str, monkeypatch: pytest.MonkeyPatch, jump_ns: int
) -> None:
    image = engine.images.pull(reference)
    with Child(HOLD, reference, "60") as holder:
        lease_id = holder.hear()
        later = time.time_ns() + jump_ns
        monkeypatch.setattr(time, "time_ns", lambda: later)
        engine.images.remove(reference)
        engine.gc()
        assert [lease.id for lease in engine.leases.list()] == [lease_id]
        assert blob_path(root, image.digest).exists()


def test_closing_the_engine_ends_those_that_do_not_expire(reference: str) -> None:
    with pyctrd.Engine() as engine:
        engine.images.pull(reference)
        ending, lasting = engine.leases.create(), engine.leases.create(expires=60)
        lasting.add(reference)
    with pyctrd.Engine() as engine:
        assert [lease.id for lease in engine.leases.list()] == [lasting.id]
        assert ending.id != lasting.id
        engine.leases.delete(lasting.id)
        with pytest.raises(NotFoundError):
            engine.leases.delete(lasting.id)


@pytest.mark.parametrize("expires", [0, -1, float("nan"), float("inf"), 1e12])
def test_a_time_that_is_none_is_refused(engine: pyctrd.Engine, expires: float) -> None:
    with pytest.raises(InvalidError, match="invalid expires"):
        engine.leases.create(expires=expires)
    assert engine.leases.list() == []


@pytest.mark.parametrize("label", [("name", "\udc80"), ("", "x"), ("a\0b", "x"), ("a", "\n"), ("a", "x" * 5000)])
def test_a_label_that_is_none_is_refused_and_leaves_nothing(
    engine: pyctrd.Engine, root: Path, label: tuple[str, str]
) -> None:
    with pytest.raises(InvalidError, match="invalid label"):
        engine.leases.create(labels=dict([label]))
    assert engine.leases.list() == []
    assert files_below(root / "locks/lease") == []
