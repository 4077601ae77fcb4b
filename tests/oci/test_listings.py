"""What layouts and archives list."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from pyctrd.oci.config import ImageConfig
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.index import Index
from pyctrd.oci.listings import (
    IMAGE_NAME,
    REF_NAME,
    ImageEntry,
    describe_named,
    image_list,
    layout_index,
    old_layers,
    repositories,
)
from pyctrd.oci.media_types import OCI_MANIFEST

OLD = Digest(f"sha256:{'0' * 64}")
NEW = Digest(f"sha256:{'1' * 64}")


def entry(digest: Digest, **annotations: str) -> dict[str, Any]:
    return {"mediaType": OCI_MANIFEST, "digest": digest, "size": 2, "annotations": annotations}


@pytest.mark.parametrize(
    ("before", "new", "stays"),
    [
        ({IMAGE_NAME: "docker.io/x/y:1", REF_NAME: "1"}, ("docker.io/x/y:1", "1"), False),
        ({IMAGE_NAME: "docker.io/x/z:1", REF_NAME: "1"}, ("docker.io/x/y:1", "1"), True),
        ({REF_NAME: "docker.io/x/y:1"}, ("docker.io/x/y:1", "1"), False),
        ({REF_NAME: "1"}, ("docker.io/x/y:1", "1"), False),
        ({REF_NAME: "2"}, ("docker.io/x/y:1", "1"), True),
        ({IMAGE_NAME: "docker.io/x/y:1", REF_NAME: "1"}, ("", "1"), False),
        ({IMAGE_NAME: "docker.io/x/y:2", REF_NAME: "2"}, ("", "1"), True),
        ({IMAGE_NAME: "docker.io/x/y:1", REF_NAME: "made-of-it"}, ("docker.io/x/y:1", "1"), True),
        ({IMAGE_NAME: "docker.io/x/z:1", REF_NAME: "made-of-it"}, ("docker.io/x/y:made-of-it", "made-of-it"), False),
        ({}, ("docker.io/x/y:1", "1"), True),
        ({}, ("docker.io/x/y@" + NEW, ""), True),
    ],
)
def test_a_new_image_takes_the_place_of_what_is_called_so(
    before: dict[str, str], new: tuple[str, str], *, stays: bool
) -> None:
    there = Index.parse(orjson.dumps({"schemaVersion": 2, "manifests": [entry(OLD, **before)], "own": "kept"}))
    made = json.loads(layout_index([describe_named(Descriptor(OCI_MANIFEST, NEW, 2), *new)], before=there))
    assert [item["digest"] for item in made["manifests"]] == ([OLD] if stays else []) + [NEW]
    assert made["own"] == "kept"


def test_lists_are_as_docker_has_them() -> None:
    assert json.loads(image_list([ImageEntry("c.json", ["x/y:1"], ["a.tar", "a.tar"])])) == [
        {"Config": "c.json", "RepoTags": ["x/y:1"], "Layers": ["a.tar", "a.tar"]}
    ]
    assert json.loads(repositories({"host:5000/x:1": "a", "host:5000/x:2": "b", "y:1": "a"})) == {
        "host:5000/x": {"1": "a", "2": "b"},
        "y": {"1": "a"},
    }


def test_a_layer_of_the_first_form_is_known_by_what_it_stands_on() -> None:
    def config(*diff_ids: str, **more: Any) -> ImageConfig:
        rootfs = {"type": "layers", "diff_ids": diff_ids}
        return ImageConfig.parse(orjson.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs, **more}))

    first = old_layers(config(OLD, OLD, NEW, config={"Cmd": ["x"]}))
    assert len({layer.id for layer in first}) == 3  # one layer twice is two images
    documents = [json.loads(layer.body) for layer in first]
    assert [document.get("parent") for document in documents] == [None, first[0].id, first[1].id]
    assert [document["id"] for document in documents] == [layer.id for layer in first]
    assert documents[2]["config"] == {"Cmd": ["x"]}
    assert "config" not in documents[0]
    again = old_layers(config(OLD, OLD, NEW, config={"Cmd": ["y"]}))
    assert [layer.id for layer in again[:2]] == [layer.id for layer in first[:2]]
    assert again[2].id != first[2].id
    assert old_layers(config()) == []
