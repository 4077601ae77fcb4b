"""Indexes of part M: which of many manifests is taken, and how far an index leads; through a pull."""

from __future__ import annotations

import pytest

import pyctrd
from pyctrd.errors import (
    DigestMismatchError,
    InvalidError,
    NotFoundError,
)
from pyctrd.oci.media_types import OCI_INDEX, OCI_MANIFEST
from tests.archives import Tar
from tests.hostile.documents import (
    GOOD,
    OTHER,
    REPOSITORY,
    ZEROS,
    Served,
    accept,
    described,
    image_of,
    index,
    leftovers,
    nest,
    pull_good,
)
from tests.images import build_image
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root


def test_m16_an_index_that_leads_to_itself_ends(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    top = index({"mediaType": OCI_INDEX, "digest": f"sha256:{ZEROS}", "size": 300})
    registry.add_manifest(top, REPOSITORY)
    for _ in range(50):
        registry.lie(f"/manifests/sha256:{ZEROS}", Answer(200, top.content, {"Content-Type": OCI_INDEX}))
    with pytest.raises(DigestMismatchError):
        engine.images.pull(f"{registry.host}/{REPOSITORY}:latest")
    assert len(registry.requests("/manifests/")) == 2
    assert leftovers(engine) == []
    pull_good(engine, registry)


def test_m16_a_few_indexes_in_one_another_are_fine(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    assert accept(engine, registry, nest(4)).manifest_digest == GOOD.digest
    registry.seen.clear()
    refuse_deeper = nest(6).add(registry, "deeper")
    with pytest.raises(InvalidError):
        engine.images.pull(refuse_deeper)


def test_m17_of_ten_thousand_manifests_the_one_that_fits_is_taken(
    registry: FaultyRegistry, engine: pyctrd.Engine
) -> None:
    others = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": f"sha256:{number:064x}",
            "size": 1,
            "platform": {"os": "linux", "architecture": "none"},
        }
        for number in range(9_999)
    ]
    image = accept(engine, registry, Served(index(*others, described(GOOD.manifest)), documents=[GOOD.manifest]))
    assert image.manifest_digest == GOOD.digest
    assert len(registry.requests("/manifests/")) == 2


def test_m18_of_two_that_match_the_first_is_taken(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    second = build_image([Tar().file("second").build()])
    served = Served(
        index(described(GOOD.manifest), described(second.manifest)), second.blobs, [GOOD.manifest, second.manifest]
    )
    assert accept(engine, registry, served).manifest_digest == GOOD.digest


def test_m18_of_variants_the_best_that_runs_is_taken(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    variants = {name: image_of(f"linux/arm/{name}") for name in ("v5", "v7", "v6", "v8")}
    served = Served(
        index(*(described(image.manifest, platform=f"linux/arm/{name}") for name, image in variants.items())),
        [blob for image in variants.values() for blob in image.blobs],
        [image.manifest for image in variants.values()],
    )
    reference = served.add(registry, REPOSITORY)
    assert engine.images.pull(reference, platform="linux/arm/v7").manifest_digest == variants["v7"].digest
    assert engine.images.pull(reference, platform="linux/arm/v6").manifest_digest == variants["v6"].digest


def test_m18_where_no_platform_is_named_the_configs_decides(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    served = Served(index(described(GOOD.manifest, platform=None)), documents=[GOOD.manifest])
    assert accept(engine, registry, served).manifest_digest == GOOD.digest


def test_m19_another_platform_comes_where_it_is_asked_for(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    served = Served(index(described(OTHER.manifest)), OTHER.blobs, [OTHER.manifest])
    reference = served.add(registry, REPOSITORY)
    with pytest.raises(NotFoundError):
        engine.images.pull(reference, platform="linux/s390x")  # the index names none
    by_digest = f"{registry.host}/{REPOSITORY}@{OTHER.digest}"
    with pytest.raises(NotFoundError, match="linux/s390x"):
        engine.images.pull(by_digest)
    assert leftovers(engine) == []
    assert engine.images.pull(by_digest, platform="linux/s390x").platform == "linux/s390x"
