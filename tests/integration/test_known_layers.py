"""Layers that a namespace has, in another compression: not fetched where only they are needed, and not made again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import DiffIDMismatchError, NotFoundError, QuotaError
from pyctrd.metadata.database import Database
from pyctrd.metadata.migrations import _CLAIMED, MIGRATIONS
from tests.archives import Tar
from tests.images import Blob, BuiltImage, build_image
from tests.integration.conftest import forget_repositories
from tests.registries import Registry
from tests.registry_faults import FaultyRegistry
from tests.relays import Relay

pytestmark = pytest.mark.root

NOISE = random.Random(7).randbytes(1 << 20)
TARS = [Tar().file("big", NOISE).build(), Tar().file("small", b"small").build()]
FORMS = ("gzip", "zstd", "none")
# What a pull may cost that fetches no layer: a manifest, a config, and the heads of answers.
DOCUMENTS_BYTES = 16_000


@pytest.fixture
def forms() -> dict[str, BuiltImage]:
    """One image in three compressions."""
    return {form: build_image(TARS, compression=form) for form in FORMS}


@pytest.fixture
def references(faulty: FaultyRegistry, forms: dict[str, BuiltImage]) -> dict[str, str]:
    """The same, served, each in a repository of its own."""
    return {form: faulty.add(built, form) for form, built in forms.items()}


@pytest.fixture
def relay(registry: Registry) -> Iterator[Relay]:
    """The session's registry, with its bytes counted."""
    with Relay(registry.host) as running:
        yield running


def diff_ids() -> list[str]:
    """Of the two layers."""
    return [Blob("", tar).digest for tar in TARS]


def got(faulty: FaultyRegistry, built: BuiltImage) -> int:
    """How often bytes of an image's layers were asked for."""
    return sum(seen.method == "GET" for layer in built.layers for seen in faulty.requests(layer.digest))


def assert_whole(engine: pyctrd.Engine, reference: str) -> None:
    """The image can be read, and nothing is wrong."""
    image = engine.images.get(reference)
    assert image.read_file("/big") == NOISE
    assert image.read_file("/small") == b"small"
    assert engine.check(digests=True) == []


# not fetched


@pytest.mark.parametrize("snapshotter", ["overlayfs", "composefs", "erofs"])
def test_the_same_layers_in_another_compression_cost_their_documents_alone(
    state: Path, registry: Registry, relay: Relay, forms: dict[str, BuiltImage], snapshotter: str
) -> None:
    del state
    told = {}
    with pyctrd.Engine(snapshotter=snapshotter, keep_blobs=False) as engine:
        for form, built in forms.items():
            built.push(registry, f"known-{form}", tag="1")
            reference = f"{relay.host}/known-{form}:1"
            engine.images.pull(reference)
            told[form] = relay.told_bytes()
            assert_whole(engine, reference)
        for built in forms.values():
            assert {engine.content.info(layer.digest).is_stored for layer in built.layers} == {False}
    assert told["gzip"] > len(NOISE)
    assert max(told["zstd"], told["none"]) < DOCUMENTS_BYTES


def test_with_blobs_they_come_and_stay_bit_for_bit_and_no_layer_is_made_again(
    engine: pyctrd.Engine, faulty: FaultyRegistry, forms: dict[str, BuiltImage], references: dict[str, str]
) -> None:
    engine.images.pull(references["gzip"])
    written = engine.stages()["apply"]["bytes"]
    for form in ("zstd", "none"):
        engine.images.pull(references[form])
        assert got(faulty, forms[form]) == len(TARS)
        for layer in forms[form].layers:
            with engine.content.open(layer.digest) as blob:
                assert blob.read() == layer.content
        assert_whole(engine, references[form])
    assert engine.stages()["apply"]["bytes"] == written


def test_what_was_taken_is_there_for_the_next_pull_and_comes_when_its_blob_is_wanted(
    engine: pyctrd.Engine, faulty: FaultyRegistry, forms: dict[str, BuiltImage], references: dict[str, str]
) -> None:
    for form in ("gzip", "zstd", "zstd"):
        engine.images.pull(references[form], keep_blobs=False)
    assert got(faulty, forms["zstd"]) == 0
    assert [engine.content.info(layer.digest).claimed for layer in forms["zstd"].layers] == diff_ids()
    engine.images.pull(references["zstd"])
    assert got(faulty, forms["zstd"]) == len(TARS)
    for layer in forms["zstd"].layers:
        record = engine.content.info(layer.digest)
        assert (record.is_stored, record.claimed, record.size) == (True, "", len(layer.content))
    assert_whole(engine, references["zstd"])


def test_a_layer_in_another_form_than_is_wanted_is_fetched(
    state: Path, faulty: FaultyRegistry, forms: dict[str, BuiltImage], references: dict[str, str]
) -> None:
    del state
    for snapshotter, form in (("native", "gzip"), ("composefs", "zstd")):
        with pyctrd.Engine(snapshotter=snapshotter, keep_blobs=False) as engine:
            engine.images.pull(references[form])
            assert_whole(engine, references[form])
    assert got(faulty, forms["zstd"]) == len(TARS)


def test_load_reads_no_blob_of_what_is_there(
    engine: pyctrd.Engine, state: Path, forms: dict[str, BuiltImage], references: dict[str, str], tmp_path: Path
) -> None:
    del state
    engine.images.pull(references["gzip"], keep_blobs=False)
    forms["zstd"].write_layout(tmp_path / "layout")
    for layer in forms["zstd"].layers:
        (tmp_path / "layout/blobs/sha256" / layer.digest.removeprefix("sha256:")).write_bytes(b"others")
    with pyctrd.Engine(keep_blobs=False) as unkept:
        unkept.images.load(tmp_path / "layout", name="example.com/loaded:1")
        assert_whole(unkept, "example.com/loaded:1")


# for how long


def test_it_outlives_what_it_was_taken_for(
    engine: pyctrd.Engine, forms: dict[str, BuiltImage], references: dict[str, str]
) -> None:
    engine.images.pull(references["gzip"], keep_blobs=False)
    engine.images.pull(references["zstd"], keep_blobs=False)
    engine.images.remove(references["gzip"])
    assert {record.digest for record in engine.content.list()}.isdisjoint(b.digest for b in forms["gzip"].layers)
    assert_whole(engine, references["zstd"])
    engine.images.pull(references["none"], keep_blobs=False)  # and may be taken on from
    assert engine.content.info(forms["none"].layers[0].digest).claimed == diff_ids()[0]
    engine.images.remove(references["zstd"])
    assert_whole(engine, references["none"])
    engine.images.remove(references["none"])
    assert engine.content.list() == []
    assert [item for item in engine.gc(dry_run=True, all_namespaces=True).items if item.kind == "layer"] == []
    assert engine.check() == []


def test_what_is_gone_by_the_time_it_is_recorded_is_fetched(
    engine: pyctrd.Engine,
    faulty: FaultyRegistry,
    forms: dict[str, BuiltImage],
    references: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.images.pull(references["gzip"], keep_blobs=False)
    publish = pyctrd._core.publish

    def after_others_removed_it(*args: object, **options: object) -> None:
        monkeypatch.setattr("pyctrd._core.publish", publish)
        engine.images.remove(references["gzip"])
        publish(*args, **options)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr("pyctrd._core.publish", after_others_removed_it)
    engine.images.pull(references["zstd"], keep_blobs=False)
    assert got(faulty, forms["zstd"]) == len(TARS)
    assert engine.content.info(forms["zstd"].layers[0].digest).claimed == ""
    assert_whole(engine, references["zstd"])


def test_a_layer_that_is_lost_comes_back_from_what_was_taken_for_it(
    engine: pyctrd.Engine, root: Path, references: dict[str, str]
) -> None:
    engine.images.pull(references["gzip"], keep_blobs=False)
    engine.images.pull(references["zstd"], keep_blobs=False)
    engine.images.remove(references["gzip"])
    shutil.rmtree(root / "layers/sha256" / diff_ids()[0].removeprefix("sha256:"))
    (found,) = engine.check(repair=True)
    assert found.repaired, found
    assert_whole(engine, references["zstd"])


# charged


def test_it_is_charged_as_its_layer_was_whatever_a_manifest_says(
    engine: pyctrd.Engine, faulty: FaultyRegistry, forms: dict[str, BuiltImage], references: dict[str, str]
) -> None:
    engine.images.pull(references["none"], keep_blobs=False)
    before = engine.content.usage().charged_bytes
    short = forms["none"].with_diff_ids(
        diff_ids(), layers=[Blob(forms["none"].layers[0].media_type, b"%d" % n) for n in range(2)]
    )
    reference = faulty.add(short, "short")
    documents = len(short.manifest.content) + len(short.blobs[0].content)
    engine.namespaces.set("default", quota=before + documents + 1000)
    with pytest.raises(QuotaError):
        engine.images.pull(reference, keep_blobs=False)
    engine.namespaces.set("default", quota=2 * before + documents)
    engine.images.pull(reference, keep_blobs=False)
    engine.images.remove(references["none"])
    assert engine.content.usage().charged_bytes >= sum(len(layer.content) for layer in forms["none"].layers)


# lies


def test_one_blob_cannot_be_taken_for_two_layers(
    engine: pyctrd.Engine, faulty: FaultyRegistry, forms: dict[str, BuiltImage], references: dict[str, str]
) -> None:
    engine.images.pull(references["gzip"], keep_blobs=False)
    layer = forms["zstd"].layers[0]
    reference = faulty.add(forms["zstd"].with_diff_ids(diff_ids(), layers=[layer, layer]), "twice")
    with pytest.raises(DiffIDMismatchError):
        engine.images.pull(reference, keep_blobs=False)
    assert engine.images.find(reference) is None
    assert engine.check(digests=True) == []


def test_a_blob_that_was_seen_is_not_taken_for_another_layer(
    engine: pyctrd.Engine, faulty: FaultyRegistry, forms: dict[str, BuiltImage], references: dict[str, str]
) -> None:
    engine.images.pull(references["gzip"], keep_blobs=False)
    lying = forms["gzip"].with_diff_ids(diff_ids()[::-1])
    with pytest.raises(DiffIDMismatchError):
        engine.images.pull(faulty.add(lying, "lying"), keep_blobs=False)


def test_with_its_blob_a_lie_about_a_layer_that_is_there_is_found(
    engine: pyctrd.Engine, faulty: FaultyRegistry, forms: dict[str, BuiltImage], references: dict[str, str]
) -> None:
    engine.images.pull(references["gzip"])
    other = build_image([Tar().file("x", b"x").build()])
    with pytest.raises(DiffIDMismatchError):
        engine.images.pull(faulty.add(other.with_diff_ids(diff_ids()[:1]), "lying"))
    assert engine.check(digests=True) == []


def test_what_it_was_taken_for_in_error_is_put_right_by_its_bytes(
    engine: pyctrd.Engine, faulty: FaultyRegistry, references: dict[str, str]
) -> None:
    engine.images.pull(references["gzip"], keep_blobs=False)
    other = build_image([Tar().file("x", b"x").build()])
    engine.images.pull(lying := faulty.add(other.with_diff_ids(diff_ids()[:1]), "lying"), keep_blobs=False)
    assert engine.images.get(lying).read_file("/big") == NOISE  # what its config says
    engine.images.remove(references["gzip"])
    engine.images.pull(honest := faulty.add(other, "honest"), keep_blobs=False)
    assert engine.images.get(honest).read_file("/x") == b"x"
    assert engine.content.info(other.layers[0].digest).claimed == ""
    with pytest.raises(NotFoundError, match="not unpacked"):
        engine.images.get(lying).read_file("/big")
    assert engine.check(digests=True) == []


def test_a_store_of_before_claims_nothing(state: Path, root: Path, references: dict[str, str]) -> None:
    del state
    with pyctrd.Engine() as engine:
        engine.images.pull(references["gzip"])
    database = Database(root / "pyctrd.db")
    forget_repositories(database)
    database._run("DROP INDEX content_by_claim")
    database._run("ALTER TABLE content DROP COLUMN claimed")
    database._run(f"PRAGMA user_version={MIGRATIONS.index(_CLAIMED)}")
    database.close()
    with pyctrd.Engine() as engine:
        assert {record.claimed for record in engine.content.list()} == {""}
        assert_whole(engine, references["gzip"])
