"""Several platforms of one image: all of them come in, stay, are shown, and go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import DiffIDMismatchError, InvalidError, NotFoundError, PolicyError, QuotaError
from pyctrd.metadata.database import Database
from tests.images import BuiltImage, Images
from tests.integration.conftest import forget_volumes
from tests.platforms import (
    DEEP,
    HOST,
    HOSTS,
    INNER,
    NESTED,
    OTHER,
    OTHERS,
    WHOLE,
    blobs_of,
    entry_of,
    here,
    image_for,
    index_of,
    serve,
)
from tests.registry_faults import FaultyRegistry

pytestmark = pytest.mark.root

ALL = blobs_of(WHOLE)
DIGESTS = set(ALL)


def layers_of(engine: pyctrd.Engine) -> set[str]:
    """The layers that are unpacked for the namespace."""
    return {item.name for item in engine.gc(dry_run=True).items if item.kind == "layer"}


def diff_ids(built: BuiltImage) -> set[str]:
    """Of an image's layers."""
    return set(json.loads(built.blobs[0].content)["rootfs"]["diff_ids"])


@pytest.fixture(name="reference")
def _reference(faulty: FaultyRegistry) -> str:
    return serve(faulty, WHOLE, "multi")


# pull


def test_all_platforms_come_in_byte_for_byte_and_one_is_unpacked(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.push(WHOLE, tag="1").reference, all_platforms=True)
    assert (image.digest, image.manifest_digest) == (WHOLE.digest, HOSTS.digest)
    assert image.platforms == (HOST, OTHER, NESTED)
    assert here(engine) == DIGESTS
    for digest, content in ALL.items():
        with engine.content.open(digest) as file:
            assert file.read() == content
    assert layers_of(engine) == diff_ids(HOSTS)
    assert image.read_file("/platform") == HOST.encode()
    assert engine.check(digests=True) == []


def test_a_platform_that_came_beside_is_unpacked_without_its_registry_when_it_is_wanted(
    engine: pyctrd.Engine, faulty: FaultyRegistry, reference: str
) -> None:
    engine.images.pull(reference, all_platforms=True)
    faulty.seen.clear()
    other = engine.images.pull(reference, platform=NESTED)
    assert other.read_file("/platform") == NESTED.encode()
    assert [seen.path for seen in faulty.seen] == ["/v2/multi/manifests/latest"]
    assert other.platforms == (NESTED, OTHER, HOST)
    assert layers_of(engine) == diff_ids(HOSTS) | diff_ids(DEEP)


def test_chosen_platforms_come_and_the_first_of_them_is_unpacked(engine: pyctrd.Engine, reference: str) -> None:
    image = engine.images.pull(reference, platform=[OTHER, HOST])
    assert (image.platform, image.platforms) == (OTHER, (OTHER, HOST))
    assert here(engine) == {WHOLE.digest} | blobs_of(HOSTS).keys() | blobs_of(OTHERS).keys()
    assert layers_of(engine) == diff_ids(OTHERS)
    assert image.read_file("/platform") == OTHER.encode()


def test_another_platform_adds_to_what_is_there(engine: pyctrd.Engine, reference: str) -> None:
    assert engine.images.pull(reference).platforms == (HOST,)
    image = engine.images.pull(reference, platform=NESTED)
    engine.gc()
    assert image.platforms == (NESTED, HOST)
    # A plain pull makes the host's the one that is run again, and lets go of nothing.
    image = engine.images.pull(reference)
    assert engine.gc().items == ()
    assert (image.platform, image.platforms) == (HOST, (HOST, NESTED))
    assert engine.images.pull(reference, platform=NESTED).read_file("/platform") == NESTED.encode()


def test_a_second_pull_of_all_platforms_fetches_nothing(
    engine: pyctrd.Engine, faulty: FaultyRegistry, reference: str
) -> None:
    first = engine.images.pull(reference, all_platforms=True)
    engine.gc()
    faulty.seen.clear()
    assert engine.images.pull(reference, all_platforms=True).created_ns == first.created_ns
    assert [seen.path for seen in faulty.seen] == ["/v2/multi/manifests/latest"]


def test_an_index_is_pulled_by_its_digest(engine: pyctrd.Engine, images: Images) -> None:
    name = images.push(WHOLE).reference
    assert name.endswith(WHOLE.digest)
    image = engine.images.pull(name, all_platforms=True)
    assert (image.name, here(engine)) == (name, DIGESTS)


def test_what_is_no_index_has_one_platform(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.push(HOSTS, tag="1").reference, all_platforms=True)
    assert list(image.platforms) == [HOST]
    with pytest.raises(NotFoundError, match=f"wanted {OTHER}"):
        engine.images.pull(images.push(HOSTS, tag="1").reference, platform=[HOST, OTHER])


def test_nothing_is_unpacked_where_that_is_not_wanted(engine: pyctrd.Engine, reference: str) -> None:
    engine.images.pull(reference, all_platforms=True, unpack=False)
    assert here(engine) == DIGESTS
    assert layers_of(engine) == set()


def test_a_layer_that_another_platform_has_too_is_stored_though_blobs_are_not_kept(
    engine: pyctrd.Engine, reference: str
) -> None:
    engine.images.pull(reference, all_platforms=True, keep_blobs=False)
    own = HOSTS.layers[1].digest
    assert here(engine) == DIGESTS - {own}
    assert engine.content.info(own).is_stored is False
    assert engine.check(digests=True) == []
    assert engine.gc().items == ()


def test_many_pulls_take_platforms_too(engine: pyctrd.Engine, faulty: FaultyRegistry, reference: str) -> None:
    second = serve(faulty, INNER, "inner")
    with engine.images.pull_many([reference, second], platform=[NESTED, NESTED]) as results:
        assert {result.get().platforms for result in results} == {(NESTED,)}
    with engine.images.pull_many([reference], all_platforms=True) as results:
        assert [result.get().platforms for result in results] == [(HOST, OTHER, NESTED)]
    assert here(engine) == DIGESTS


def test_a_platform_that_is_nowhere_is_named_and_nothing_comes_in(engine: pyctrd.Engine, reference: str) -> None:
    with pytest.raises(NotFoundError, match="wanted plan9/mips"):
        engine.images.pull(reference, platform=[HOST, "plan9/mips"])
    with pytest.raises(InvalidError, match="which is unpacked"):
        engine.images.pull(reference, platform=[HOST, OTHER], all_platforms=True)
    assert engine.content.list() == []


def test_a_layer_of_another_platform_must_be_what_its_config_says(
    engine: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    lying = OTHERS.with_diff_ids([*sorted(diff_ids(DEEP)), *sorted(diff_ids(OTHERS))[:1]])
    index = index_of([HOSTS, lying], [entry_of(HOSTS, HOST), entry_of(lying, OTHER)])
    reference = serve(faulty, index, "lying")
    with pytest.raises(DiffIDMismatchError):
        engine.images.pull(reference, all_platforms=True)
    assert engine.images.list() == []
    engine.gc()
    assert engine.content.list() == []
    assert engine.images.pull(reference).platforms == (HOST,)


def test_a_policy_is_asked_of_every_platform(faulty: FaultyRegistry, state: Path) -> None:
    del state
    reference, asked = serve(faulty, WHOLE, "multi"), []

    def policy(candidate: pyctrd.policies.Candidate) -> bool:
        asked.append(candidate.manifest_digest)
        return candidate.manifest_digest != DEEP.digest

    with pyctrd.Engine(policy=policy) as engine:
        with pytest.raises(PolicyError):
            engine.images.pull(reference, all_platforms=True)
        assert engine.content.list() == []
        engine.images.pull(reference, platform=[HOST, OTHER])
    assert {HOSTS.digest, OTHERS.digest, DEEP.digest} <= set(asked)


def test_indexes_in_one_another_without_end_are_refused(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    deep = index_of([HOSTS], [entry_of(HOSTS, HOST)])
    for _ in range(4):
        deep = index_of([deep, HOSTS], [entry_of(HOSTS, HOST), entry_of(deep)])
    with pytest.raises(InvalidError, match="indexes in one another"):
        engine.images.pull(serve(faulty, deep, "deep"), all_platforms=True)
    assert engine.content.list() == []


def test_documents_that_are_too_many_for_memory_are_refused(
    engine: pyctrd.Engine, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyctrd.flows.platforms.DOCUMENTS_MAX_BYTES", len(OTHERS.manifest.content))
    with pytest.raises(InvalidError, match="more than"):
        engine.images.pull(reference, all_platforms=True)
    assert engine.images.pull(reference).platforms == (HOST,)


# what it keeps and costs


def test_collection_keeps_all_of_it_and_removal_frees_all_of_it(
    engine: pyctrd.Engine, root: Path, reference: str
) -> None:
    image = engine.images.pull(reference, all_platforms=True)
    assert engine.gc().items == ()
    told = {item.name: item.reason for item in engine.gc(dry_run=True).items}
    assert {told[digest] for digest in DIGESTS} == {f"image {image.name}"}
    engine.images.tag(image.name, "local/second:1")
    engine.images.remove(image.name)
    assert here(engine) == DIGESTS
    assert engine.images.get("local/second:1").platforms == (HOST, OTHER, NESTED)
    engine.images.remove("local/second:1")
    assert engine.content.list() == []
    assert [path for path in (root / "content/blobs").rglob("*") if path.is_file()] == []
    assert list((root / "layers/sha256").iterdir()) == []


def test_a_name_that_means_another_index_lets_go_of_the_old_ones_platforms(
    engine: pyctrd.Engine, faulty: FaultyRegistry, reference: str
) -> None:
    engine.images.pull(reference, all_platforms=True)
    later = image_for(HOST)
    serve(faulty, index_of([later, OTHERS], [entry_of(later, HOST), entry_of(OTHERS, OTHER)]), "multi")
    image = engine.images.pull(reference)
    engine.gc()
    # What is here of the new one stays: the namespace had it.
    assert image.platforms == (HOST, OTHER)
    assert here(engine) == {image.digest} | blobs_of(later).keys() | blobs_of(OTHERS).keys()


def test_all_of_it_is_charged_and_shown(engine: pyctrd.Engine, reference: str) -> None:
    image = engine.images.pull(reference, all_platforms=True)
    total = sum(map(len, ALL.values()))
    assert engine.content.usage().charged_bytes == total
    (shown,) = engine.df().images
    assert (shown.name, shown.bytes, shown.unique_bytes) == (image.name, total, total)


def test_a_quota_counts_every_platform(engine: pyctrd.Engine, reference: str) -> None:
    total = sum(map(len, ALL.values()))
    engine.namespaces.set("default", quota=total - 1)
    with pytest.raises(QuotaError):
        engine.images.pull(reference, all_platforms=True)
    assert engine.images.list() == []
    assert engine.content.list() == []
    assert engine.images.pull(reference).platforms == (HOST,)
    engine.namespaces.set("default", quota=total)
    assert engine.images.pull(reference, all_platforms=True).platforms == (HOST, OTHER, NESTED)
    assert engine.check() == []


def test_a_document_that_is_lost_stops_collections_until_it_is_fetched_again(
    engine: pyctrd.Engine, root: Path, reference: str
) -> None:
    image = engine.images.pull(reference, all_platforms=True)
    blob = root / "content/blobs/sha256" / DEEP.digest.removeprefix("sha256:")
    blob.unlink()
    assert list(image.platforms) == [HOST]
    assert "image damaged" in engine.gc().skipped
    assert engine.check(repair=True)[0].repaired
    assert engine.gc().items == ()
    assert image.platforms == (HOST, OTHER, NESTED)


@pytest.mark.parametrize("media_type", ["application/vnd.oci.image.manifest.v1+json", WHOLE.manifest.media_type])
def test_an_index_that_calls_its_own_layer_a_document_stops_no_collection(
    engine: pyctrd.Engine, faulty: FaultyRegistry, media_type: str
) -> None:
    layer = HOSTS.layers[0].descriptor | {"mediaType": media_type}
    index = index_of([HOSTS], [entry_of(HOSTS, HOST), layer, HOSTS.blobs[0].descriptor | {"mediaType": media_type}])
    for keep in (True, False):
        image = engine.images.pull(serve(faulty, index, f"odd-{keep}".lower()), keep_blobs=keep)
        assert list(image.platforms) == [HOST]
        assert engine.gc().skipped == ""
    assert engine.check(digests=True) == []


def test_a_store_of_before_learns_what_its_images_need(state: Path, root: Path, reference: str) -> None:
    del state
    with pyctrd.Engine() as engine:
        engine.images.pull(reference, all_platforms=True)
        engine.gc()
    database = Database(root / "pyctrd.db")
    forget_volumes(database)
    database._run("DROP INDEX images_by_root")
    database._run("ALTER TABLE images DROP COLUMN root")
    database._run("ALTER TABLE image_roots RENAME COLUMN manifests TO manifest_digest")
    database._run("UPDATE image_roots SET manifest_digest = ?", (HOSTS.digest,))
    database._run("CREATE INDEX images_by_root ON images(target_digest, manifest_digest)")
    database._run("PRAGMA user_version=10")
    database.close()
    with pyctrd.Engine() as engine:
        assert engine.gc().items == ()
        assert engine.images.get(reference).platforms == (HOST, OTHER, NESTED)


def test_a_served_store_shows_every_platform_that_came(engine: pyctrd.Engine, reference: str) -> None:
    # A registry with a port cannot be said in a path.
    tagged = engine.images.tag(engine.images.pull(reference).name, "example.com/multi:1").name
    with engine.serve_registry(listen="127.0.0.1:0") as server, pyctrd.Engine(namespace="other") as other:
        name = f"{server.address}/{tagged}"
        assert other.images.pull(name).platforms == (HOST,)
        with pytest.raises(NotFoundError):
            other.images.pull(name, all_platforms=True)
        engine.images.tag(engine.images.pull(reference, all_platforms=True).name, tagged)
        assert other.images.pull(name, all_platforms=True).platforms == (HOST, OTHER, NESTED)
