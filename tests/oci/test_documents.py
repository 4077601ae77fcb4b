"""Manifests, indexes and configs, read field by field: a wrong one is refused by the name of the field."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.digest import Digest
from pyctrd.oci.document import DOCUMENT_MAX_BYTES, Fields
from pyctrd.oci.index import Index, detect
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    is_layer,
    layer_compression,
)
from pyctrd.oci.platform import Platform

SHA = Digest.of(b"content")
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": SHA, "size": 7}
CONFIG = {"mediaType": OCI_CONFIG, "digest": SHA, "size": 7}
REMOVED = object()


def manifest(**changes: Any) -> bytes:
    return document({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}, changes)


def index(*entries: dict[str, Any], **changes: Any) -> bytes:
    return document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}, changes)


def entry(platform: str = "", **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": Digest.of(platform.encode()), "size": 7}
    if platform:
        system, architecture, *variant = platform.split("/")
        made["platform"] = {"os": system, "architecture": architecture} | ({"variant": variant[0]} if variant else {})
    return made | changes


def config(**changes: Any) -> bytes:
    base = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [SHA]}}
    return document(base, changes)


def document(base: dict[str, Any], changes: dict[str, Any]) -> bytes:
    merged = {name: value for name, value in (base | changes).items() if value is not REMOVED}
    return json.dumps(merged).encode()


def test_manifest_is_read() -> None:
    read = Manifest.parse(manifest(annotations={"a": "b"}, future={"kept": True}))
    assert (read.media_type, read.config.digest, read.layers[0].size) == (OCI_MANIFEST, SHA, 7)
    assert read.annotations == {"a": "b"}
    assert read.raw["future"] == {"kept": True}


def test_docker_manifest_is_read() -> None:
    assert Manifest.parse(manifest(mediaType=DOCKER_MANIFEST)).media_type == DOCKER_MANIFEST


def test_manifest_may_leave_its_media_type_out() -> None:
    body = manifest(mediaType=REMOVED)
    assert Manifest.parse(body).media_type == detect(body) == OCI_MANIFEST


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schemaVersion": 1}, "schemaVersion"),
        ({"schemaVersion": "2"}, "schemaVersion"),
        ({"schemaVersion": True}, "schemaVersion"),
        ({"schemaVersion": REMOVED}, "schemaVersion"),
        ({"mediaType": "text/plain"}, "mediaType"),
        ({"mediaType": 7}, "mediaType"),
        ({"mediaType": OCI_INDEX}, "mediaType"),
        ({"config": REMOVED}, "config"),
        ({"config": []}, "config"),
        ({"config": CONFIG | {"size": -1}}, "config.size"),
        ({"config": CONFIG | {"size": 1.5}}, "config.size"),
        ({"config": CONFIG | {"size": 2**63}}, "config.size"),
        ({"config": CONFIG | {"size": True}}, "config.size"),
        ({"config": CONFIG | {"digest": "sha256:../../etc/passwd"}}, "config.digest"),
        ({"config": CONFIG | {"mediaType": "x"}}, "config.mediaType"),
        ({"layers": {}}, "layers"),
        ({"layers": REMOVED}, "layers"),
        ({"layers": [LAYER, 7]}, "layers[1]"),
        ({"layers": [LAYER, LAYER | {"digest": None}]}, "layers[1].digest"),
        ({"layers": [LAYER] * 1001}, "layers"),
        ({"annotations": {"a": 1}}, "annotations.a"),
        ({"annotations": []}, "annotations"),
        ({"manifests": []}, "manifests"),
        ({"fsLayers": []}, "fsLayers"),
    ],
)
def test_wrong_manifest_names_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Manifest.parse(manifest(**changes))
    assert caught.value.field == field
    assert field in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"nothing", b"[]", b"null", b'"text"', b'{"a":', b"\xff\xfe{}", b"{}" * 2])
def test_what_is_no_object_is_no_document(body: bytes) -> None:
    for parse in (Manifest.parse, Index.parse, ImageConfig.parse, detect):
        with pytest.raises(InvalidError):
            parse(body)


def test_document_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(InvalidError, match="at most"):
        Manifest.parse(b" " * (DOCUMENT_MAX_BYTES + 1))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InvalidError):
        Manifest.parse(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


@pytest.mark.parametrize(
    "changes",
    [{"manifests": [entry()]}, {"config": REMOVED, "layers": REMOVED}, {"mediaType": OCI_INDEX}, {"mediaType": "a/b"}],
)
def test_document_of_two_types_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        detect(manifest(**changes))


def test_names_are_read_in_their_exact_case_only() -> None:
    read = Manifest.parse(manifest(Layers=[], LAYERS=7))
    assert len(read.layers) == 1
    assert "LAYERS" in read.raw


def test_repeated_name_is_refused() -> None:
    with pytest.raises(InvalidError, match="each name once") as caught:
        Manifest.parse(b'{"schemaVersion":1,' + manifest()[1:])
    assert caught.value.field == "schemaVersion"


@pytest.mark.parametrize("data", ["Y29udGVudA==", None])
def test_embedded_content_that_is_the_content_is_accepted(data: str | None) -> None:
    assert Manifest.parse(manifest(config=CONFIG | {"data": data})).config.digest == SHA


@pytest.mark.parametrize("data", ["b3RoZXI=", "Y29udGVudA", "!", 7])
def test_embedded_content_that_is_other_is_refused(data: object) -> None:
    with pytest.raises(InvalidError) as caught:
        Manifest.parse(manifest(config=CONFIG | {"data": data}))
    assert caught.value.field == "config.data"


def test_schema_1_is_unsupported_by_name() -> None:
    with pytest.raises(UnsupportedError, match="schema 1"):
        detect(b'{"schemaVersion":1,"fsLayers":[],"history":[]}')


def test_artifact_is_no_image() -> None:
    read = Manifest.parse(manifest(config=CONFIG | {"mediaType": "application/vnd.oci.empty.v1+json"}))
    with pytest.raises(InvalidError, match="artifact"):
        read.check_is_image("example/artifact")


def test_index_is_read() -> None:
    read = Index.parse(index(entry("linux/amd64"), entry("linux/arm/v7"), annotations={"a": "b"}))
    assert [str(item.platform) for item in read.manifests] == ["linux/amd64", "linux/arm/v7"]
    assert Index.parse(index(mediaType=DOCKER_LIST)).manifests == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schemaVersion": 1}, "schemaVersion"),
        ({"mediaType": OCI_MANIFEST}, "mediaType"),
        ({"manifests": None}, "manifests"),
        ({"manifests": [entry() | {"platform": []}]}, "manifests[0].platform"),
        ({"manifests": [entry() | {"platform": {"os": 7}}]}, "manifests[0].platform.os"),
        ({"layers": []}, "layers"),
        ({"config": {}}, "config"),
    ],
)
def test_wrong_index_names_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Index.parse(index(**changes))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("host", "offers", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm64"], 1),
        ("linux/arm/v7", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", [], None),
        ("linux/amd64", ["unknown/unknown", ""], 1),
        ("linux/amd64", ["", "linux/amd64"], 1),
    ],
)
def test_best_manifest_is_chosen(host: str, offers: list[str], chosen: int | None) -> None:
    read = Index.parse(index(*(entry(offer, annotations={"n": str(n)}) for n, offer in enumerate(offers))))
    found = read.choose(Platform.parse(host))
    assert (None if found is None else int(found.annotations["n"])) == chosen


def test_attestations_and_artifacts_are_passed_over() -> None:
    attestation = entry(annotations={"vnd.docker.reference.type": "attestation-manifest"})
    artifact = entry() | {"mediaType": "application/vnd.example+json"}
    assert Index.parse(index(attestation, artifact)).choose(Platform.parse("amd64")) is None


def test_config_is_read() -> None:
    run = {
        "Env": ["A=b"],
        "Entrypoint": ["/e"],
        "Cmd": ["c", "d"],
        "User": "1:2",
        "WorkingDir": "/w",
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/v": {}},
        "Labels": {"l": "1"},
        "StopSignal": "SIGINT",
        "Healthcheck": {"Test": ["NONE"]},
    }
    read = ImageConfig.parse(config(config=run, created="2024-01-01T00:00:00Z", author="ada"))
    assert (read.env, read.entrypoint, read.cmd) == (("A=b",), ("/e",), ("c", "d"))
    assert (read.user, read.working_dir, read.stop_signal) == ("1:2", "/w", "SIGINT")
    assert (read.exposed_ports, read.volumes, read.labels) == (("80/tcp",), ("/v",), {"l": "1"})
    assert (str(read.platform), read.rootfs.diff_ids) == ("linux/amd64", (SHA,))
    assert read.raw["config"]["Healthcheck"] == {"Test": ["NONE"]}


def test_config_takes_null_for_nothing() -> None:
    run = dict.fromkeys(("Env", "Entrypoint", "Cmd", "User", "Volumes", "Labels", "ExposedPorts", "StopSignal"))
    read = ImageConfig.parse(config(config=run))
    assert (read.env, read.cmd, read.user, read.volumes, read.labels) == ((), (), "", (), {})
    assert ImageConfig.parse(config(config=None)).env == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rootfs": REMOVED}, "rootfs"),
        ({"rootfs": {"type": "other", "diff_ids": []}}, "rootfs.type"),
        ({"rootfs": {"type": "layers", "diff_ids": ["x"]}}, "rootfs.diff_ids[0]"),
        ({"rootfs": {"type": "layers", "diff_ids": SHA}}, "rootfs.diff_ids"),
        ({"rootfs": {"type": "layers", "diff_ids": [SHA] * 1001}}, "rootfs.diff_ids"),
        ({"config": []}, "config"),
        ({"config": {"Env": "A=b"}}, "config.Env"),
        ({"config": {"Env": ["A=b", 7]}}, "config.Env[1]"),
        ({"config": {"Env": ["A=b\0"]}}, "config.Env[0]"),
        ({"config": {"User": 7}}, "config.User"),
        ({"config": {"WorkingDir": "/a\0b"}}, "config.WorkingDir"),
        ({"config": {"Volumes": []}}, "config.Volumes"),
        ({"os": 7}, "os"),
    ],
)
def test_wrong_config_names_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        ImageConfig.parse(config(**changes))
    assert caught.value.field == field


def test_config_must_have_a_diff_id_for_each_layer() -> None:
    read = Manifest.parse(manifest(layers=[LAYER, LAYER]))
    with pytest.raises(InvalidError, match="one for each layer"):
        read.check_config(ImageConfig.parse(config()))


def test_values_are_frozen() -> None:
    read = Manifest.parse(manifest())
    with pytest.raises(AttributeError):
        read.media_type = "x"  # type: ignore[misc] # that it fails is the test
    with pytest.raises(AttributeError):
        read.config.size = 0  # type: ignore[misc] # that it fails is the test


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        ("application/vnd.oci.image.layer.v1.tar", "none"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "gzip"),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "zstd"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "gzip"),
        ("application/vnd.oci.image.layer.v1.tar+encrypted", None),
        (OCI_CONFIG, None),
    ],
)
def test_media_types_of_layers_are_known(media_type: str, compression: str | None) -> None:
    assert layer_compression(media_type) == compression
    assert is_layer(media_type) == (compression is not None)


SCALARS = st.none() | st.booleans() | st.integers() | st.just(1.5) | st.sampled_from(["", "x", SHA, OCI_INDEX])
JSON = (
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.sampled_from(["size", "digest"]), SCALARS, max_size=2)
)
FIELDS = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "rootfs", "os", "architecture", "annotations"]
)


@given(st.dictionaries(FIELDS, JSON, max_size=4), st.sampled_from([manifest, index, config]))
def test_any_document_is_read_or_refused(changes: dict[str, Any], make: Any) -> None:
    body = make(**changes)
    for parse in (Manifest.parse, Index.parse, ImageConfig.parse, detect):
        with contextlib.suppress(InvalidError, UnsupportedError):
            parse(body)


# Objects as lists of pairs, in which a name may stand twice; the last two names are one, in two forms.
NAMES = st.sampled_from(['"a"', '":"', '"\\""', '"b\\\\"', '"c"', '"\\u0063"'])
TEXTS = st.recursive(
    st.sampled_from(["1", "null", '":"', '"\\":{"', '""']),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: f"[{','.join(values)}]")
        | st.lists(st.tuples(NAMES, inner), max_size=4).map(
            lambda pairs: f"{{{','.join(f'{name}: {value}' for name, value in pairs)}}}"
        )
    ),
    max_leaves=8,
)


@given(TEXTS)
def test_a_name_that_stands_twice_is_found_wherever_it_is(text: str) -> None:
    repeated = []
    json.loads(text, object_pairs_hook=lambda pairs: repeated.append(len(dict(pairs)) < len(pairs)))
    body = f'{{"found": {text}}}'.encode()
    if any(repeated):
        with pytest.raises(InvalidError, match="each name once"):
            Fields.parse(body, kind="document")
    else:
        assert Fields.parse(body, kind="document").values == json.loads(body)


@pytest.mark.parametrize(
    ("depth", "told"), [(98, r"each name once"), (99, r"nested too deep"), (1000, r"too deep|no JSON")]
)
def test_a_document_is_refused_by_its_depth_before_its_names(depth: int, told: str) -> None:
    body = b'{"a":' * depth + b'{"b":1,"b":2}' + b"}" * depth
    with pytest.raises(InvalidError, match=told):
        Fields.parse(body, kind="document")
