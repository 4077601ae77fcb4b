"""Several platforms of one image go out of the store: to registries, layouts and archives; by command as well."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

import pyctrd
from pyctrd.errors import InvalidError, NotFoundError, RegistryError
from tests.images import Images
from tests.integration.conftest import Cli
from tests.integration.saves import members, read, tree_of
from tests.platforms import (
    ATTESTATION,
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
    serve,
)
from tests.registries import Registry
from tests.registry_faults import FaultyRegistry

pytestmark = pytest.mark.root

ALL = blobs_of(WHOLE)
DIGESTS = set(ALL)


@pytest.fixture(name="reference")
def _reference(faulty: FaultyRegistry) -> str:
    return serve(faulty, WHOLE, "multi")


def test_all_platforms_are_pushed_without_the_registry_that_they_came_from(
    engine: pyctrd.Engine, faulty: FaultyRegistry, registry: Registry, reference: str
) -> None:
    engine.images.pull(reference, all_platforms=True)
    faulty.close()
    target = f"{registry.host}/pushed-{HOST.partition('/')[2]}:1"
    assert engine.images.push(reference, target, all_platforms=True) == WHOLE.digest
    with pyctrd.Engine(namespace="other") as other:
        assert other.images.pull(target, all_platforms=True).platforms == (HOST, OTHER, NESTED)
        assert here(other) == DIGESTS


def test_only_what_is_missing_is_asked_of_the_registry_that_it_came_from(
    engine: pyctrd.Engine, faulty: FaultyRegistry, registry: Registry, reference: str
) -> None:
    engine.images.pull(reference, platform=[HOST, OTHER])
    faulty.seen.clear()
    engine.images.push(reference, f"{registry.host}/handed-on:1", all_platforms=True)
    asked = {seen.path.rpartition("/")[2] for seen in faulty.seen if seen.method == "GET" and "/v2/" in seen.path}
    assert asked - {""} == blobs_of(INNER).keys() | blobs_of(ATTESTATION).keys()


def test_a_platform_that_is_nowhere_any_more_is_named(
    engine: pyctrd.Engine, faulty: FaultyRegistry, registry: Registry, reference: str, tmp_path: Path
) -> None:
    engine.images.pull(reference)
    faulty.close()
    with pytest.raises(NotFoundError, match=f"platform not in the store: .*: {OTHER}: and not to be had") as caught:
        engine.images.push(reference, f"{registry.host}/sparse:1", all_platforms=True)
    assert caught.value.kind == "platform"
    assert "--all-platforms" in caught.value.hint
    with pytest.raises(NotFoundError, match=f"platform not in the store: .*: {OTHER}, manifest {INNER.digest}"):
        engine.images.save(reference, tmp_path / "saved", all_platforms=True)
    with pytest.raises(NotFoundError, match="platform not in the store"):
        engine.images.push(reference, f"oci:{tmp_path}/layout", all_platforms=True)
    assert not (tmp_path / "saved").exists()


def test_a_platform_of_the_store_is_pushed_alone(
    engine: pyctrd.Engine, faulty: FaultyRegistry, registry: Registry, reference: str, tmp_path: Path
) -> None:
    engine.images.pull(reference, all_platforms=True)
    faulty.close()
    assert engine.images.push(reference, f"{registry.host}/alone:1", platform=NESTED) == DEEP.digest
    assert engine.images.push(reference, f"oci:{tmp_path}/alone", platform=NESTED) == DEEP.digest
    assert engine.images.push(reference, f"oci:{tmp_path}/two", platform=[HOST, OTHER]) == WHOLE.digest
    saved = {f"sha256:{name.rpartition('/')[2]}" for name in tree_of(tmp_path / "two") if name.startswith("blobs/")}
    assert saved == {WHOLE.digest, INNER.digest} | blobs_of(HOSTS).keys() | blobs_of(OTHERS).keys()
    with pytest.raises(NotFoundError, match="plan9/mips"):
        engine.images.push(reference, f"{registry.host}/alone:2", platform="plan9/mips")
    with pytest.raises(InvalidError, match="all of them"):
        engine.images.push(reference, platform=HOST, all_platforms=True)


def test_an_index_is_reduced_for_a_registry_that_takes_none_which_is_not_whole(
    engine: pyctrd.Engine, registry: Registry, reference: str
) -> None:
    engine.images.pull(reference, platform=[HOST, NESTED])
    target = f"{registry.host}/reduced-{HOST.partition('/')[2]}:1"
    with pytest.raises(RegistryError, match="blob unknown to registry") as refused:
        engine.images.push(reference, target, platform=[HOST, NESTED])
    assert "--reduced" in refused.value.hint
    digest = engine.images.push(reference, target, platform=[HOST, NESTED], reduced=True)
    assert digest != WHOLE.digest
    made, whole = (orjson.loads(engine.registry.repository(name).manifest()[1]) for name in (target, reference))
    assert made["manifests"] == [entry_of(HOSTS, HOST), entry_of(DEEP, NESTED)]  # and not the index in between
    assert made | {"manifests": []} == whole | {"manifests": []}
    with pyctrd.Engine(namespace="other") as other:
        assert other.images.pull(target, all_platforms=True).platforms == (HOST, NESTED)
    alone = engine.images.push(reference, target, platform=NESTED, reduced=True)
    assert alone not in (digest, DEEP.digest)
    with pytest.raises(InvalidError, match=rf"the image is {alone}"):
        engine.images.push(reference, f"{target}@{WHOLE.digest}", platform=NESTED, reduced=True)
    with pytest.raises(InvalidError, match="reduced to platforms"):
        engine.images.push(reference, target, reduced=True)
    with pytest.raises(InvalidError, match="an index are written as they are"):
        engine.images.push(reference, "oci:layout", platform=[HOST, NESTED], reduced=True)


def test_chosen_platforms_are_copied(engine: pyctrd.Engine, registry: Registry, reference: str) -> None:
    target, copied = f"{registry.host}/copied-{HOST.partition('/')[2]}", engine.images.copy
    with pytest.raises(RegistryError, match="blob unknown to registry") as refused:
        copied(reference, f"{target}:1", platform=[HOST, NESTED])
    assert "--reduced" in refused.value.hint
    reduced = copied(reference, f"{target}:1", platform=[HOST, NESTED], reduced=True)
    made = orjson.loads(engine.registry.repository(f"{target}:1").manifest()[1])
    assert made["manifests"] == [entry_of(HOSTS, HOST), entry_of(DEEP, NESTED)]
    assert copied(reference, f"{target}:1@{reduced}", platform=[HOST, NESTED], reduced=True) == reduced
    with pytest.raises(InvalidError, match=rf"the image is {reduced}"):
        copied(reference, f"{target}@{WHOLE.digest}", platform=[HOST, NESTED], reduced=True)
    with pytest.raises(InvalidError, match="reduced to platforms"):
        copied(reference, f"{target}:1", reduced=True)
    assert engine.images.pull(f"{target}:1", all_platforms=True).platforms == (HOST, NESTED)
    with engine.serve_registry(listen="127.0.0.1:0", anonymous="push") as server:  # which refuses it as well
        other = f"{server.address.removeprefix('http://')}/copied:1"
        with pytest.raises(NotFoundError, match="manifest not found") as not_found:
            copied(reference, other, platform=[HOST, NESTED])
        assert "--reduced" in not_found.value.hint
        assert copied(reference, other, platform=[HOST, NESTED], reduced=True) == reduced


def test_all_that_is_saved_is_loaded_again(engine: pyctrd.Engine, reference: str, tmp_path: Path) -> None:
    engine.images.pull(reference, all_platforms=True)
    archive = tmp_path / "saved.tar"
    engine.images.save(reference, archive, all_platforms=True)
    assert {f"blobs/{digest.replace(':', '/')}" for digest in DIGESTS} <= set(members(archive))
    assert read(archive, f"blobs/{WHOLE.digest.replace(':', '/')}") == WHOLE.manifest.content
    with pyctrd.Engine(namespace="other") as other:
        (image,) = other.images.load(archive, all_platforms=True)
        assert (image.digest, image.platforms, here(other)) == (WHOLE.digest, (HOST, OTHER, NESTED), DIGESTS)
        other.images.remove(image.name)
        image = other.images.pull(f"oci-archive:{archive}", platform=[OTHER, NESTED])
        assert image.platforms == (OTHER, NESTED)


def test_some_platforms_are_saved_and_one_archive_form_has_one(
    engine: pyctrd.Engine, reference: str, tmp_path: Path
) -> None:
    engine.images.pull(reference, platform=[HOST, OTHER])
    engine.images.save(reference, tmp_path / "two", format="oci", platform=[OTHER, HOST])
    saved = {f"sha256:{name.rpartition('/')[2]}" for name in tree_of(tmp_path / "two") if name.startswith("blobs/")}
    assert saved == {WHOLE.digest} | blobs_of(HOSTS).keys() | blobs_of(OTHERS).keys()
    with pytest.raises(NotFoundError, match=f"wanted {NESTED}"):
        engine.images.save(reference, tmp_path / "three", platform=[HOST, NESTED])
    with pytest.raises(InvalidError, match="has one"):
        engine.images.save(reference, tmp_path / "docker", format="docker-archive", platform=[HOST, OTHER])


def test_an_index_that_is_not_here_whole_is_no_load_of_all(
    engine: pyctrd.Engine, reference: str, tmp_path: Path
) -> None:
    engine.images.pull(reference)
    engine.images.save(reference, tmp_path / "sparse")
    with pyctrd.Engine(namespace="other") as other:
        with pytest.raises(NotFoundError):
            other.images.load(tmp_path / "sparse", all_platforms=True)
        assert other.content.list() == []


# the command line


def test_the_command_line_says_it(cli: Cli, images: Images, tmp_path: Path) -> None:
    name = images.push(WHOLE, tag="cli").reference
    shown = cli("pull", "--json", "--platform", HOST, "--platform", OTHER, name)
    assert shown.lines[0]["platforms"] == [HOST, OTHER]
    assert cli("save", "--all-platforms", "--format", "oci", "-o", str(tmp_path / "no"), name).status == 1
    assert cli("pull", "--all-platforms", name).out == f"{WHOLE.digest}\n"
    assert f"{HOST},{OTHER},{NESTED}" in cli("images").out
    assert cli("inspect", name).lines[0]["platforms"] == [HOST, OTHER, NESTED]
    layout = str(tmp_path / "layout")
    assert cli("save", "--all-platforms", "--format", "oci", "-o", layout, name).status == 0
    assert cli("-n", "other", "load", "--all-platforms", "-i", layout).status == 0
    assert cli("push", "--platform", OTHER, name, f"oci:{tmp_path}/one").out == f"{OTHERS.digest}\n"
    for words in (
        ["pull", "--all-platforms", "--platform", HOST, "--platform", OTHER, name],
        ["push", "--all-platforms", "--platform", HOST, name],
        ["push", "--compression", "zstd", "--platform", HOST, name],
        ["save", "--all-platforms", "--platform", HOST, "-o", layout, name],
    ):
        assert cli(*words).status == 2
    assert cli("check", "--digests").out == "clean\n"
