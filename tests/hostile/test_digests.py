"""Digests of part M: other bytes than those that were named, other algorithms, other places; through a pull."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import (
    DigestMismatchError,
    IntegrityError,
    NotFoundError,
)
from pyctrd.oci.media_types import OCI_MANIFEST
from tests.archives import Tar, compress_gzip
from tests.content.stores import blob_path, sha512
from tests.hostile.documents import (
    CONFIG,
    GOOD,
    LAYER,
    REPOSITORY,
    TAR,
    Served,
    accept,
    config,
    described,
    dump,
    index,
    layer,
    leftovers,
    manifest,
    padded_manifest,
    pull_good,
    refuse,
    root,
)
from tests.images import Blob
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


@dataclass(frozen=True)
class Sha512(Blob):
    """A blob that is known by its other digest."""

    @property
    def digest(self) -> str:
        return sha512(self.content)


@pytest.mark.parametrize("by", ["digest", "index", "header"])
def test_m10_another_manifest_than_was_asked_for_is_refused(
    by: str, registry: FaultyRegistry, engine: pyctrd.Engine
) -> None:
    other = padded_manifest(5000)
    registry.add(GOOD, REPOSITORY)
    headers = {"Content-Type": OCI_MANIFEST}
    if by == "digest":
        reference = f"{registry.host}/{REPOSITORY}@{GOOD.digest}"
        registry.lie(f"/manifests/{GOOD.digest}", Answer(200, other.content, headers))
    elif by == "index":
        top = index(described(GOOD.manifest))
        reference = registry.add_manifest(top, REPOSITORY)
        registry.lie(f"/manifests/{GOOD.digest}", Answer(200, other.content, headers))
    else:
        reference = f"{registry.host}/{REPOSITORY}:latest"
        lie = headers | {"Docker-Content-Digest": GOOD.digest}
        registry.lie("/manifests/latest", Answer(200, other.content, lie))
    with pytest.raises(DigestMismatchError):
        engine.images.pull(reference)
    assert leftovers(engine) == []
    pull_good(engine, registry)


@pytest.mark.parametrize("part", ["config", "layer"])
def test_m10_another_blob_than_was_asked_for_is_refused(
    part: str, registry: FaultyRegistry, engine: pyctrd.Engine
) -> None:
    reference = registry.add(GOOD, REPOSITORY)
    blob = CONFIG if part == "config" else LAYER
    registry.lie(f"/blobs/{blob.digest}", Answer(200, bytes(len(blob.content))))
    with pytest.raises(DigestMismatchError):
        engine.images.pull(reference)
    assert leftovers(engine) == []
    pull_good(engine, registry)


def test_m11_no_digest_of_the_registrys_leads_out_of_the_store(
    registry: FaultyRegistry, engine: pyctrd.Engine, tmp_path: Path
) -> None:
    victim = tmp_path / "outside/victim"
    victim.parent.mkdir()
    victim.write_bytes(b"x")
    registry.add(GOOD, REPOSITORY)
    for header in ("sha256:../../../outside/victim", "", "sha256:", "md5:0"):
        lie = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": header}
        registry.lie("/manifests/latest", Answer(200, GOOD.manifest.content, lie))
        with pytest.raises(IntegrityError):
            engine.images.pull(f"{registry.host}/{REPOSITORY}:latest")
    assert leftovers(engine) == []
    assert victim.read_bytes() == b"x"


def test_m14_a_sha512_digest_is_as_good(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    long_layer = Sha512(LAYER.media_type, LAYER.content)
    long_config = Sha512(
        CONFIG.media_type, dump(json.loads(CONFIG.content) | {"rootfs": {"type": "layers", "diff_ids": [sha512(TAR)]}})
    )
    top = Sha512(OCI_MANIFEST, manifest(layers=[long_layer.descriptor], config=long_config.descriptor).content)
    image = accept(engine, registry, Served(index(described(top)), [long_layer, long_config], [top]))
    assert image.read_file("/d/f") == b"content"
    for blob in (top, long_layer, long_config):
        assert blob_path(root(), blob.digest).read_bytes() == blob.content
    assert (root() / "layers/sha512" / sha512(TAR).removeprefix("sha512:") / "index").is_file()
    wrong = Sha512(LAYER.media_type, compress_gzip(TAR + bytes(512)))
    registry.lie(f"/blobs/{wrong.digest}", Answer(200, LAYER.content))
    bad = manifest(layers=[wrong.descriptor | {"size": len(LAYER.content)}])
    with pytest.raises(DigestMismatchError):
        engine.images.pull(registry.add_manifest(bad, REPOSITORY, tag="wrong"))
    assert engine.check(digests=True) == []


def test_m15_urls_are_never_followed(
    registry: FaultyRegistry, elsewhere: FaultyRegistry, engine: pyctrd.Engine
) -> None:
    urls = [f"{elsewhere.base}/layer", "file:///etc/passwd", "http://169.254.169.254/latest/meta-data"]
    for media_type in (LAYER.media_type, FOREIGN, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"):
        served = Served(manifest(layers=[layer(urls=urls, mediaType=media_type)]))
        assert accept(engine, registry, served).read_file("/d/f") == b"content"
        engine.images.remove(f"{registry.host}/{REPOSITORY}:latest")


def test_m15_a_layer_that_only_its_url_has_is_refused(
    registry: FaultyRegistry, elsewhere: FaultyRegistry, engine: pyctrd.Engine
) -> None:
    absent = Blob(FOREIGN, compress_gzip(Tar().file("absent").build()))
    elsewhere.add(GOOD, "x")
    served = Served(manifest(layers=[absent.descriptor | {"urls": [f"{elsewhere.base}/layer"]}]))
    refuse(engine, registry, served, NotFoundError, absent.digest)
    pull_good(engine, registry)


def test_m22_a_layer_that_is_there_a_thousand_times_is_fetched_once(
    registry: FaultyRegistry, engine: pyctrd.Engine
) -> None:
    diff_id = json.loads(CONFIG.content)["rootfs"]["diff_ids"][0]
    described_config = config(rootfs={"type": "layers", "diff_ids": [diff_id] * 1000})
    served = Served(manifest(layers=[layer()] * 1000, config=described_config.descriptor), [described_config])
    image = accept(engine, registry, served)
    assert len(registry.requests(f"/blobs/{LAYER.digest}")) == 1
    assert image.read_file("/d/f") == b"content"
