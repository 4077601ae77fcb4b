"""Layers whose blobs are not kept: verified as all are, never written, and counted for what they are."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import DigestMismatchError, InvalidError, NotFoundError, QuotaError
from pyctrd.metadata.database import Database
from pyctrd.metadata.migrations import _NOT_KEPT, MIGRATIONS
from tests.archives import Tar
from tests.children import until
from tests.content.stores import files_below
from tests.images import Blob, BuiltImage, Images, build_image, tree_tars
from tests.integration.conftest import Cli, forget_repositories
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root

NOISE = random.Random(5).randbytes(2 << 20)


@pytest.fixture
def built() -> BuiltImage:
    """Two layers, one with files that become objects."""
    return build_image([Tar().file("big", NOISE).build(), Tar().file("small", b"small").build()])


@pytest.fixture
def reference(faulty: FaultyRegistry, built: BuiltImage) -> str:
    """The same, served."""
    return faulty.add(built, "image")


@pytest.fixture
def other(state: Path) -> Iterator[pyctrd.Engine]:
    """Another tenant of the same store."""
    del state
    with pyctrd.Engine(namespace="other") as opened:
        yield opened


def blobs_in(root: Path) -> set[str]:
    """The blobs on disk."""
    return {f"sha256:{path.name}" for path in (root / "content/blobs/sha256").iterdir()}


def documents(built: BuiltImage) -> set[str]:
    """The blobs of an image that are no layers."""
    return {built.digest, built.blobs[0].digest}


def fetched(faulty: FaultyRegistry, blob: Blob) -> int:
    """How often a blob's bytes were asked for."""
    return len([seen for seen in faulty.requests(blob.digest) if seen.method == "GET"])


def assert_whole(engine: pyctrd.Engine, reference: str) -> None:
    """The image can be read, and nothing is wrong."""
    image = engine.images.get(reference)
    assert image.read_file("/big") == NOISE
    assert image.read_file("/small") == b"small"
    assert engine.check(digests=True) == []


# pulled so


def test_no_blob_of_a_layer_is_there_and_all_else_is(
    engine: pyctrd.Engine, root: Path, reference: str, built: BuiltImage, tmp_path: Path
) -> None:
    image = engine.images.pull(reference, keep_blobs=False)
    assert blobs_in(root) == documents(built)
    assert_whole(engine, reference)
    assert image.size_bytes == sum(len(blob.content) for blob in built.blobs)
    assert [found.name for found in engine.images.list()] == [reference]
    stored = {record.digest: record.is_stored for record in engine.content.list()}
    assert stored == {blob.digest: False for blob in built.layers} | dict.fromkeys(documents(built), True)
    for refuse in (engine.content.open, engine.content.check):
        with pytest.raises(NotFoundError, match="blob not kept") as refused:
            refuse(built.layers[0].digest)
        assert "content.rebuild" in refused.value.hint
    engine.content.rebuild(Blob("", built.tars[0]).digest, tmp_path / "tar")
    assert (tmp_path / "tar").read_bytes() == built.tars[0]


def test_the_tree_is_the_same(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.push(build_image(tree_tars())).reference, keep_blobs=False)
    assert image.read_file("/a/file") == b"second\n"
    assert engine.check(digests=True) == []


def test_bytes_on_their_way_are_never_in_a_file(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry, reference: str, built: BuiltImage
) -> None:
    stall = threading.Event()
    faulty.lie(built.layers[0].digest, Answer(body=None, stall=stall))
    pulling = threading.Thread(target=lambda: engine.images.pull(reference, keep_blobs=False))
    pulling.start()
    until(faulty.stalled.is_set)
    try:
        until(lambda: any("layer" in name or "objects" in name for name in files_below(root / "content/ingest")))
        data = [path.read_bytes() for path in (root / "content/ingest").glob("*/data")]
        assert set(data) <= {built.manifest.content, built.blobs[0].content, b""}
    finally:
        stall.set()
        pulling.join()
    assert_whole(engine, reference)


def test_a_body_that_breaks_off_is_gone_on_with_in_the_same_pull(
    engine: pyctrd.Engine, faulty: FaultyRegistry, reference: str, built: BuiltImage
) -> None:
    faulty.lie(built.layers[0].digest, Answer(body=None, cut=700_000))
    engine.images.pull(reference, keep_blobs=False)
    assert faulty.requests(built.layers[0].digest)[-1].headers["range"] == "bytes=700000-"
    assert_whole(engine, reference)


def test_wrong_bytes_leave_nothing(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry, reference: str, built: BuiltImage
) -> None:
    wrong = build_image([Tar().file("big", NOISE[::-1]).build()]).layers[0].content
    faulty.lie(built.layers[0].digest, Answer(200, wrong.ljust(len(built.layers[0].content), b"\0")))
    with pytest.raises(DigestMismatchError):
        engine.images.pull(reference, keep_blobs=False)
    assert (files_below(root / "content"), files_below(root / "layers"), engine.images.list()) == ([], [], [])
    assert engine.check() == []


def test_neither_blobs_nor_layers_is_refused_and_what_is_not_unpacked_is_kept(
    state: Path, root: Path, reference: str, built: BuiltImage
) -> None:
    del state
    with pyctrd.Engine(keep_blobs=False) as engine:
        with pytest.raises(InvalidError, match="nothing would be kept"):
            engine.images.pull(reference, unpack=False, keep_blobs=False)
        engine.images.pull(reference, unpack=False)  # the engine's setting is for what is unpacked
        assert blobs_in(root) == documents(built) | {layer.digest for layer in built.layers}
        assert engine.check(digests=True) == []


# pulled again


def test_a_pull_finds_it_there(
    engine: pyctrd.Engine, faulty: FaultyRegistry, reference: str, built: BuiltImage
) -> None:
    for _ in range(3):
        engine.images.pull(reference, keep_blobs=False)
    assert [fetched(faulty, layer) for layer in built.layers] == [1, 1]
    assert [fetched(faulty, blob) for blob in built.blobs[:1]] == [1]


def test_a_pull_that_wants_the_blobs_fetches_them_and_they_stay(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry, reference: str, built: BuiltImage
) -> None:
    engine.images.pull(reference, keep_blobs=False)
    engine.images.pull(reference)
    engine.images.pull(reference, keep_blobs=False)
    assert [fetched(faulty, layer) for layer in built.layers] == [2, 2]
    assert blobs_in(root) == documents(built) | {layer.digest for layer in built.layers}
    with engine.content.open(built.layers[0].digest) as blob:
        assert blob.read() == built.layers[0].content
    assert all(record.is_stored for record in engine.content.list())
    assert_whole(engine, reference)


def test_a_form_that_is_not_there_is_unpacked_from_where_it_came(
    state: Path, root: Path, faulty: FaultyRegistry, reference: str, built: BuiltImage
) -> None:
    del state
    for snapshotter in ("native", "composefs", "native"):
        with pyctrd.Engine(snapshotter=snapshotter, keep_blobs=False) as engine:
            engine.images.pull(reference)
            assert_whole(engine, reference)
    assert [fetched(faulty, layer) for layer in built.layers] == [2, 2]
    assert blobs_in(root) == documents(built)


def test_many_and_load_go_by_the_engine(state: Path, root: Path, images: Images, tmp_path: Path) -> None:
    del state
    images.tree.built.write_layout(tmp_path / "layout")
    with pyctrd.Engine(keep_blobs=False) as engine:
        assert [result.error for result in engine.images.pull_many([images.app.reference])] == [None]
        engine.images.load(tmp_path / "layout", name="example.com/loaded:1")
        assert blobs_in(root) == documents(images.app.built) | documents(images.tree.built)
        assert engine.images.get("example.com/loaded:1").read_file("/a/file") == b"second\n"
        assert engine.check(digests=True) == []


def test_what_is_committed_over_it_is_an_image(engine: pyctrd.Engine, root: Path, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference, keep_blobs=False)
    container = engine.containers.run(image, ["sh", "-c", "echo new > /new"])
    assert container.wait(timeout=60).exit_code == 0
    committed = container.commit("example.com/committed:1")
    container.delete()
    assert committed.read_file("/new") == b"new\n"
    assert committed.read_file("/etc/motd") == b"hello from a layer\n"
    assert images.busybox.built.layers[0].digest not in blobs_in(root)
    assert engine.check(digests=True) == []


# counted


def test_it_is_charged_and_takes_no_room(engine: pyctrd.Engine, reference: str, built: BuiltImage) -> None:
    engine.images.pull(reference, keep_blobs=False)
    layers = sum(len(layer.content) for layer in built.layers)
    rest = len(built.manifest.content) + len(built.blobs[0].content)
    assert engine.content.usage().charged_bytes == layers + rest
    space = engine.df(all_namespaces=True)
    assert space.charged_bytes == space.images[0].unique_bytes == layers + rest
    assert space.store is not None
    assert (space.store.blobs, space.store.blob_bytes, space.store.layers) == (2, rest, 2)
    assert space.namespaces[0].exclusive_bytes == rest
    would = {item.name: item.bytes for item in engine.gc(dry_run=True).items if item.kind == "blob"}
    assert [would[layer.digest] for layer in built.layers] == [0, 0]
    engine.images.pull(reference)
    assert engine.content.usage().charged_bytes == layers + rest


def test_a_quota_holds_for_it(engine: pyctrd.Engine, faulty: FaultyRegistry, reference: str, built: BuiltImage) -> None:
    engine.namespaces.set("default", quota=len(built.layers[0].content))
    with pytest.raises(QuotaError):
        engine.images.pull(reference, keep_blobs=False)
    assert fetched(faulty, built.layers[0]) == 0


def test_removing_the_image_removes_all(engine: pyctrd.Engine, root: Path, reference: str) -> None:
    engine.images.pull(reference, keep_blobs=False)
    engine.images.remove(reference)
    for left in ("content/blobs", "layers", "objects", "content/ingest", "trash"):
        assert files_below(root / left) == [], left
    assert engine.content.list() == []
    assert engine.check() == []


def test_a_lease_keeps_its_layer(engine: pyctrd.Engine, reference: str) -> None:
    engine.images.pull(reference, keep_blobs=False)
    with engine.leases.create() as lease:
        lease.add(reference)
        engine.images.remove(reference)
        engine.gc()
        assert engine.check(digests=True) == []
        assert len(engine.content.list()) == 4
    engine.gc()
    assert engine.content.list() == []


# with others


def test_blobs_that_another_tenant_keeps_do_not_show_and_go_with_him(
    engine: pyctrd.Engine, other: pyctrd.Engine, root: Path, reference: str, built: BuiltImage
) -> None:
    engine.images.pull(reference, keep_blobs=False)
    other.images.pull(reference)
    assert built.layers[0].digest in blobs_in(root)
    with pytest.raises(NotFoundError, match="blob not kept"):
        engine.content.open(built.layers[0].digest)
    with other.content.open(built.layers[0].digest) as blob:
        assert blob.read() == built.layers[0].content
    assert_whole(engine, reference)
    other.images.remove(reference)
    assert blobs_in(root) == documents(built)
    assert_whole(engine, reference)
    assert other.content.list() == []


@pytest.mark.parametrize(("first", "second", "times"), [(False, False, 1), (False, True, 2), (True, False, 1)])
def test_what_the_registry_shows_to_another_is_given_as_far_as_it_is_there(
    engine: pyctrd.Engine,
    other: pyctrd.Engine,
    faulty: FaultyRegistry,
    reference: str,
    built: BuiltImage,
    *,
    first: bool,
    second: bool,
    times: int,
) -> None:
    engine.images.pull(reference, keep_blobs=first)
    other.images.pull(reference, keep_blobs=second)
    assert [fetched(faulty, layer) for layer in built.layers] == [times, times]
    assert {record.is_stored for record in other.content.list() if record.digest == built.layers[0].digest} == {second}
    assert_whole(other, reference)
    engine.images.remove(reference)
    assert_whole(other, reference)


def test_another_repository_is_given_nothing(
    engine: pyctrd.Engine, other: pyctrd.Engine, faulty: FaultyRegistry, reference: str, built: BuiltImage
) -> None:
    engine.images.pull(reference, keep_blobs=False)
    other.images.pull(faulty.add(built, "elsewhere"), keep_blobs=False)
    assert [fetched(faulty, layer) for layer in built.layers] == [2, 2]


# repaired


def test_repair_fetches_no_blob_and_unpacks_a_lost_layer_from_its_source(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry, reference: str, built: BuiltImage
) -> None:
    engine.images.pull(reference, keep_blobs=False)
    assert engine.check(digests=True, repair=True) == []
    assert fetched(faulty, built.layers[0]) == 1
    diff_id = Blob("", built.tars[0]).digest
    shutil.rmtree(root / "layers/sha256" / diff_id.removeprefix("sha256:"))
    faulty.lie(built.layers[0].digest, *[Answer(503)] * 20)
    (found,) = engine.check(repair=True)
    assert (found.kind, found.name, found.repaired) == ("layer", diff_id, False)
    faulty._faults.clear()
    (found,) = engine.check(repair=True)
    assert found.repair == f"unpacked again from {built.layers[0].digest}"
    assert blobs_in(root) == documents(built)
    assert_whole(engine, reference)


def test_a_layer_that_no_source_has_any_more_is_dropped_and_comes_with_the_next_pull(
    engine: pyctrd.Engine, root: Path, faulty: FaultyRegistry, reference: str, built: BuiltImage
) -> None:
    engine.images.pull(reference, keep_blobs=False)
    diff_id = Blob("", built.tars[0]).digest
    shutil.rmtree(root / "layers/sha256" / diff_id.removeprefix("sha256:"))
    faulty.lie(built.layers[0].digest, Answer(404))
    (found,) = [found for found in engine.check(repair=True) if found.kind == "layer"]
    assert found.repaired
    assert "pull its images again" in found.repair
    assert engine.check() == []
    engine.images.pull(reference, keep_blobs=False)
    assert_whole(engine, reference)


def test_a_lost_blob_of_one_tenant_takes_nothing_from_another(
    engine: pyctrd.Engine, other: pyctrd.Engine, root: Path, faulty: FaultyRegistry, reference: str, built: BuiltImage
) -> None:
    engine.images.pull(reference, keep_blobs=False)
    other.images.pull(reference)
    (root / "content/blobs/sha256" / built.layers[0].digest.removeprefix("sha256:")).unlink()
    faulty.lie(built.layers[0].digest, *[Answer(404)] * 9)
    found = engine.check(repair=True)
    assert ("blob", "record dropped: nobody has it to give") in {(one.kind, one.repair) for one in found}
    assert engine.content.info(built.layers[0].digest).is_stored is False
    assert engine.images.get(reference).read_file("/big") == NOISE


def test_a_database_built_anew_knows_which_blobs_were_not_kept(
    state: Path, root: Path, reference: str, built: BuiltImage
) -> None:
    del state
    with pyctrd.Engine() as engine:
        engine.images.pull(reference, keep_blobs=False)
    with (root / "pyctrd.db").open("r+b") as file:  # the last page of what is in it
        file.seek(-4096, os.SEEK_END)
        file.write(b"\xff" * 4096)
    with pyctrd.Engine() as engine:
        engine.check(repair=True)
        assert blobs_in(root) == documents(built)
        assert engine.check(digests=True) == []
        if (record := engine.content.list()) and engine.images.find(reference) is not None:
            assert {one.is_stored for one in record if one.digest == built.layers[0].digest} <= {False}
        engine.images.pull(reference, keep_blobs=False)
        assert_whole(engine, reference)


def test_a_store_of_before_keeps_all_that_it_has(state: Path, root: Path, reference: str, built: BuiltImage) -> None:
    del state
    with pyctrd.Engine() as engine:
        engine.images.pull(reference)
    database = Database(root / "pyctrd.db")
    forget_repositories(database)
    database._run("DROP INDEX content_by_claim")
    for column in ("claimed", "is_stored"):
        database._run(f"ALTER TABLE content DROP COLUMN {column}")
    database._run(f"PRAGMA user_version={MIGRATIONS.index(_NOT_KEPT)}")
    database.close()
    with pyctrd.Engine() as engine:
        assert all(record.is_stored for record in engine.content.list())
        assert len(blobs_in(root)) == len(built.blobs) + 1
        assert_whole(engine, reference)


# the command line


def test_the_command_line_says_it(
    cli: Cli, root: Path, reference: str, built: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("pull", "--no-keep-blobs", "--no-unpack", reference).status == 2
    assert cli("pull", "-q", "--no-keep-blobs", reference).out == f"{built.digest}\n"
    assert blobs_in(root) == documents(built)
    assert cli("check", "--deep").out == "clean\n"
    assert cli("rmi", reference).status == 0
    monkeypatch.setenv("PYCTRD_KEEP_BLOBS", "0")
    assert cli("pull", "-q", reference).status == 0
    assert blobs_in(root) == documents(built)
    monkeypatch.setenv("PYCTRD_KEEP_BLOBS", "no")
    assert "expected 0 or 1" in cli("images").err
