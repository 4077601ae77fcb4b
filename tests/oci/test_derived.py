"""The documents of an image with a layer more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pyctrd.oci.changes import ConfigChanges
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.derived import derive_config, derive_manifest, repack_descriptor, repack_manifest
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_MANIFEST,
    layer_media_type,
    oci_layer,
)

ONE, TWO = (f"sha256:{digit * 64}" for digit in "12")
CREATED = "2023-11-14T22:13:20Z"


def config(**fields: Any) -> ImageConfig:
    document = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [ONE]}, **fields}
    return ImageConfig.parse(json.dumps(document).encode())


def derive(base: ImageConfig, **options: Any) -> dict[str, Any]:
    body = derive_config(base, TWO, created=CREATED, **options)
    assert [str(diff_id) for diff_id in ImageConfig.parse(body).rootfs.diff_ids] == [ONE, TWO]
    decoded: dict[str, Any] = json.loads(body)
    return decoded


def test_a_config_keeps_what_is_not_known_and_drops_what_was_said_of_a_container() -> None:
    base = config(author="a", custom={"x": 1}, container="c0ffee", container_config={"Cmd": ["x"]}, docker_version="1")
    found = derive(base)
    assert (found["custom"], found["author"], found["created"]) == ({"x": 1}, "a", CREATED)
    assert not {"container", "container_config", "docker_version"} & found.keys()
    assert derive(base, author="b")["author"] == "b"


def test_a_history_has_an_entry_for_each_layer() -> None:
    told = [{"created_by": "one"}, {"created_by": "two", "empty_layer": True}]
    entry = {"created": CREATED, "created_by": "sh", "comment": "why"}
    assert derive(config(history=told), created_by="sh", comment="why")["history"] == [*told, entry]
    assert derive(config())["history"] == [{"comment": "not recorded"}, {"created": CREATED}]
    assert derive(config(history=None))["history"] == [{"comment": "not recorded"}, {"created": CREATED}]


def test_changes_are_made_over_what_is_there() -> None:
    run = {"Env": ["A=1", "B=2=3"], "Labels": {"l": "1"}, "ExposedPorts": {"80/tcp": {}}, "Cmd": ["x"], "Custom": 1}
    changes = ConfigChanges(env={"A": "x"}, labels={"m": "2"}, exposed_ports=("81",), cmd=(), user="u")
    assert derive(config(config=run), changes=changes)["config"] == {
        "Env": ["A=x", "B=2=3"],
        "Labels": {"l": "1", "m": "2"},
        "ExposedPorts": {"80/tcp": {}, "81": {}},
        "Cmd": [],
        "Custom": 1,
        "User": "u",
    }
    assert derive(config(config=None), changes=ConfigChanges(user="u"))["config"] == {"User": "u"}


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("application/x-unknown", "application/x-unknown"),
    ],
)
def test_a_manifest_is_ocis_whatever_its_base_was(media_type: str, expected: str) -> None:
    assert oci_layer(media_type) == expected
    layer = {"mediaType": media_type, "digest": ONE, "size": 5, "urls": ["https://example.com"]}
    described = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": ONE, "size": 7}
    base = Manifest.parse(json.dumps({"schemaVersion": 2, "config": described, "layers": [layer]}).encode())
    new = Descriptor(layer_media_type("gzip"), Digest.parse(TWO), 9)
    body = derive_manifest(base, Descriptor(OCI_CONFIG, Digest.parse(TWO), 8), new)
    assert Manifest.parse(body).media_type == OCI_MANIFEST
    assert json.loads(body)["layers"][0] == layer | {"mediaType": expected}
    assert json.loads(body)["layers"][1] == {"mediaType": layer_media_type("gzip"), "digest": TWO, "size": 9}


DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"


def docker_manifest(*media_types: str) -> Manifest:
    layers = [{"mediaType": media_type, "digest": ONE, "size": 5} for media_type in media_types]
    described = {"mediaType": DOCKER_CONFIG, "digest": ONE, "size": 7}
    document = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": described, "layers": layers, "own": 1}
    return Manifest.parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("media_type", "compression", "docker", "expected"),
    [
        (f"{DOCKER_LAYER}.gzip", "none", True, DOCKER_LAYER),
        (DOCKER_LAYER, "gzip", True, f"{DOCKER_LAYER}.gzip"),
        (f"{DOCKER_FOREIGN}.gzip", "none", True, DOCKER_FOREIGN),
        (f"{DOCKER_LAYER}.gzip", "zstd", False, f"{OCI_LAYER}+zstd"),
        (f"{DOCKER_FOREIGN}.gzip", "zstd", False, f"{OCI_FOREIGN}+zstd"),
        (f"{OCI_LAYER}+zstd", "none", False, OCI_LAYER),
        (f"{OCI_FOREIGN}+gzip", "zstd", False, f"{OCI_FOREIGN}+zstd"),
    ],
)
def test_a_layer_in_another_form_keeps_what_is_said_of_its_tar(
    media_type: str, compression: str, *, docker: bool, expected: str
) -> None:
    said = {"kept": "yes", "io.containers.zstd-chunked.manifest-position": "1:2:3:1", "io.containers.estargz.x": "1"}
    raw = {"mediaType": media_type, "digest": ONE, "size": 5, "annotations": said, "urls": ["https://example.com"]}
    manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": OCI_CONFIG, "digest": ONE, "size": 7},
        "layers": [raw | {"own": 1}],
    }
    (base,) = Manifest.parse(json.dumps(manifest).encode()).layers
    made = repack_descriptor(base, compression, TWO, 9, {"new": "said"}, docker=docker)
    assert (made.media_type, str(made.digest), made.size) == (expected, TWO, 9)
    assert made.raw == {
        "mediaType": expected,
        "digest": TWO,
        "size": 9,
        "own": 1,
        "annotations": {"kept": "yes", "new": "said"},
    }


def test_a_docker_manifest_stays_one_until_a_layer_is_in_zstd() -> None:
    base = docker_manifest(f"{DOCKER_LAYER}.gzip", f"{DOCKER_FOREIGN}.gzip")
    plain = [repack_descriptor(layer, "none", TWO, 9, {}, docker=True) for layer in base.layers]
    media_type, body = repack_manifest(base, plain)
    again = Manifest.parse(body)
    assert (media_type, again.media_type, again.config.media_type) == (DOCKER_MANIFEST, DOCKER_MANIFEST, DOCKER_CONFIG)
    zstd = [repack_descriptor(base.layers[0], "zstd", TWO, 9, {}, docker=False), base.layers[1]]
    media_type, body = repack_manifest(base, zstd)
    again = Manifest.parse(body)
    assert (media_type, again.media_type, again.config.media_type) == (OCI_MANIFEST, OCI_MANIFEST, OCI_CONFIG)
    assert [layer.media_type for layer in again.layers] == [f"{OCI_LAYER}+zstd", f"{OCI_FOREIGN}+gzip"]
    assert again.raw["own"] == 1
