"""Manifests and configs of part M: each case by its id, through a pull, and what it leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import (
    InvalidError,
    NotFoundError,
    PyctrdError,
    SizeMismatchError,
    UnsupportedError,
)
from pyctrd.oci.media_types import OCI_INDEX, OCI_MANIFEST
from tests.cli.commands import run
from tests.content.stores import blob_path
from tests.hostile.documents import (
    CONFIG,
    GOOD,
    LAYER,
    OTHER,
    REPOSITORY,
    ZEROS,
    Served,
    accept,
    config,
    described,
    dump,
    index,
    layer,
    leftovers,
    manifest,
    nest,
    padded_manifest,
    pull_good,
    refuse,
    root,
)
from tests.images import Blob
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Refused:
    """A case that is refused.

    Attributes:
        served: What the registry has.
        error: The class that says so.
        told: A part of the message.
        blobs: Whether blobs may have been asked for before it was noticed.
    """

    served: Served
    error: type[PyctrdError]
    told: str
    blobs: bool = False


def nested(depth: int) -> bytes:
    """The good manifest with an annotation that no object of strings could be."""
    return GOOD.manifest.content[:-1] + b',"future":' + b"[" * depth + b"]" * depth + b"}"


def sized(text: str) -> Blob:
    """The good manifest with a number as somebody might write it as the layer's size."""
    body = GOOD.manifest.content.replace(b'"size":%d}]' % len(LAYER.content), b'"size":%s}]' % text.encode())
    assert body != GOOD.manifest.content
    return manifest(body=body)


def with_digest(text: str) -> Served:
    return Served(manifest(layers=[layer(digest=text)]))


def with_config(changed: Blob) -> Served:
    return Served(manifest(config=changed.descriptor), [changed])


def artifact_layer(media_type: str) -> Refused:
    return Refused(Served(manifest(layers=[layer(mediaType=media_type)])), InvalidError, media_type)


REFUSED: dict[str, dict[str, Refused]] = {
    "M01": {
        "both": Refused(Served(manifest(manifests=[described(GOOD.manifest)])), InvalidError, "manifests"),
        "in-index": Refused(
            Served(
                index(described(bad := index(described(GOOD.manifest), layers=[layer()]))),
                documents=[bad, GOOD.manifest],
            ),
            InvalidError,
            "manifest",
        ),
    },
    "M02": {
        "index-is-manifest": Refused(
            Served(index(described(GOOD.manifest, mediaType=OCI_INDEX)), documents=[GOOD.manifest]),
            InvalidError,
            "mediaType",
        ),
        "manifest-is-index": Refused(
            Served(
                index(described(inner := index(described(GOOD.manifest)), mediaType=OCI_MANIFEST)),
                documents=[inner, GOOD.manifest],
            ),
            InvalidError,
            "mediaType",
        ),
        "served-as-index": Refused(Served(GOOD.manifest, called=OCI_INDEX), InvalidError, "served as"),
    },
    "M04": {
        "layers": Refused(Served(manifest(body=GOOD.manifest.content[:-1] + b',"layers":[]}')), InvalidError, "layers"),
        "deep": Refused(
            Served(
                manifest(body=GOOD.manifest.content.replace(b'"layers":[{', b'"layers":[{"digest":"sha256:%d",' % 0))
            ),
            InvalidError,
            "digest",
        ),
        "escaped": Refused(
            Served(manifest(body=GOOD.manifest.content[:-1] + b',"\\u006cayers":[]}')), InvalidError, "layers"
        ),
    },
    "M06": {
        "64-mib": Refused(Served(padded_manifest(64 << 20)), InvalidError, str(4 << 20)),
        "4-mib-and-1": Refused(Served(padded_manifest((4 << 20) + 1)), InvalidError, str(4 << 20)),
    },
    "M07": {
        "deep": Refused(Served(manifest(body=nested(100_000))), InvalidError, "manifest"),
        "a-little": Refused(Served(manifest(body=nested(1010))), InvalidError, "manifest"),
        "config": Refused(
            with_config(Blob(CONFIG.media_type, b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
            InvalidError,
            "config",
            blobs=True,
        ),
    },
    "M08": {
        text: Refused(Served(sized(text)), InvalidError, "")
        for text in ("1e400", str(2**64), "-1", '"12"', "1.5", "true", "null", "[1]", "0x10")
    },
    "M09": {
        "layer-smaller": Refused(
            Served(manifest(layers=[layer(size=len(LAYER.content) - 1)])), SizeMismatchError, LAYER.digest, blobs=True
        ),
        "layer-larger": Refused(
            Served(manifest(layers=[layer(size=len(LAYER.content) + 1)])), SizeMismatchError, LAYER.digest, blobs=True
        ),
        "config-smaller": Refused(
            Served(manifest(config=CONFIG.descriptor | {"size": len(CONFIG.content) - 1})),
            SizeMismatchError,
            CONFIG.digest,
            blobs=True,
        ),
        "config-larger": Refused(
            Served(manifest(config=CONFIG.descriptor | {"size": len(CONFIG.content) + 1})),
            SizeMismatchError,
            CONFIG.digest,
            blobs=True,
        ),
        "manifest-larger": Refused(
            Served(index(described(GOOD.manifest, size=len(GOOD.manifest.content) + 1)), documents=[GOOD.manifest]),
            SizeMismatchError,
            GOOD.manifest.digest,
            blobs=True,
        ),
    },
    "M11": {
        text: Refused(with_digest(text), InvalidError, "layers[0].digest")
        for text in ("sha256:../../../outside/victim", "sha256:/etc/passwd", "../x", f"sha256:{ZEROS}/../x")
    },
    "M12": {
        text: Refused(with_digest(text), InvalidError, "layers[0].digest")
        for text in (
            LAYER.digest.upper(),
            LAYER.digest.replace("a", "A"),
            f"sha256:{ZEROS[1:]}",
            f"sha256:{ZEROS}0",
            "",
            ZEROS,
            f"sha256{ZEROS}",
            f"sha256:{ZEROS[1:]}\n",
            f" {LAYER.digest}",
        )
    },
    "M13": {
        text.partition(":")[0]: Refused(with_digest(text), InvalidError, "layers[0].digest")
        for text in (f"md5:{'0' * 32}", f"sha1:{'0' * 40}", f"sha256+b64:{'A' * 43}", f"SHA256:{ZEROS}")
    },
    "M16": {"50-deep": Refused(nest(50), InvalidError, "indexes in one another")},
    "M17": {
        "100-000": Refused(
            Served(index(*[{"mediaType": OCI_MANIFEST, "digest": f"sha256:{ZEROS}", "size": 1}] * 100_000)),
            InvalidError,
            str(4 << 20),
        ),
        "10-001": Refused(
            Served(index(*[{"mediaType": OCI_MANIFEST, "digest": f"sha256:{ZEROS}", "size": 1}] * 10_001)),
            InvalidError,
            "manifests",
        ),
    },
    "M18": {
        "none-matches": Refused(
            Served(
                index(*(described(GOOD.manifest, platform=name) for name in ("linux/s390x", "windows/amd64"))),
                documents=[GOOD.manifest],
            ),
            NotFoundError,
            "linux/s390x, windows/amd64",
        ),
        "missing-and-config-is-another": Refused(
            Served(index(described(OTHER.manifest, platform=None)), OTHER.blobs, [OTHER.manifest]),
            NotFoundError,
            "linux/s390x",
            blobs=True,
        ),
    },
    "M19": {
        "config-is-another": Refused(
            Served(index(described(OTHER.manifest)), OTHER.blobs, [OTHER.manifest]),
            NotFoundError,
            "linux/s390x",
            blobs=True,
        )
    },
    "M20": {
        "fewer-diff-ids": Refused(
            with_config(config(rootfs={"type": "layers", "diff_ids": []})), InvalidError, "rootfs.diff_ids", blobs=True
        ),
        "more-diff-ids": Refused(
            with_config(config(rootfs={"type": "layers", "diff_ids": [LAYER.digest] * 2})),
            InvalidError,
            "rootfs.diff_ids",
            blobs=True,
        ),
        "fewer-layers": Refused(Served(manifest(layers=[])), InvalidError, "rootfs.diff_ids", blobs=True),
    },
    "M21": {
        **{
            f"type-{name}": Refused(
                with_config(config(rootfs={"type": kind, "diff_ids": [LAYER.digest]})),
                InvalidError,
                "rootfs.type",
                blobs=True,
            )
            for name, kind in (("other", "layers+base"), ("upper", "Layers"), ("number", 1), ("empty", ""))
        },
        **{
            f"diff-id-{number}": Refused(
                with_config(config(rootfs={"type": "layers", "diff_ids": [text]})),
                InvalidError,
                "rootfs.diff_ids[0]",
                blobs=True,
            )
            for number, text in enumerate(("sha256:../../x", "md5:0", LAYER.digest.upper(), 7, None))
        },
        "no-rootfs": Refused(with_config(config(rootfs=None)), InvalidError, "rootfs", blobs=True),
    },
    "M22": {
        "1001-times": Refused(Served(manifest(layers=[layer()] * 1001)), InvalidError, "layers"),
    },
    "M23": {
        "2-60": Refused(Served(manifest(layers=[layer(size=2**60)])), InvalidError, "layers[0].size"),
        "config": Refused(Served(manifest(config=CONFIG.descriptor | {"size": 2**60})), InvalidError, "config.size"),
        "a-tib-and-1": Refused(Served(manifest(layers=[layer(size=2**40 + 1)])), InvalidError, "layers[0].size"),
    },
    "M25": {
        "layer": Refused(Served(manifest(layers=[layer(data="bm90IGl0")])), InvalidError, "layers[0].data"),
        "config": Refused(Served(manifest(config=CONFIG.descriptor | {"data": "e30="})), InvalidError, "config.data"),
        "no-base64": Refused(Served(manifest(layers=[layer(data="\x1b[2J")])), InvalidError, "layers[0].data"),
        "manifest": Refused(
            Served(index(described(GOOD.manifest, data="e30=")), documents=[GOOD.manifest]),
            InvalidError,
            "manifests[0].data",
        ),
    },
    "M27": {
        "schema-1": Refused(
            Served(
                Blob(
                    "application/vnd.docker.distribution.manifest.v1+prettyjws",
                    dump(
                        {
                            "schemaVersion": 1,
                            "name": "x",
                            "tag": "y",
                            "fsLayers": [{"blobSum": LAYER.digest}],
                            "history": [],
                        }
                    ),
                )
            ),
            UnsupportedError,
            "schema 1",
        )
    },
    "M28": {
        "utf-16": Refused(
            Served(manifest(body=GOOD.manifest.content.decode().encode("utf-16"))), InvalidError, "no JSON"
        ),
        "utf-16-be": Refused(
            Served(manifest(body=GOOD.manifest.content.decode().encode("utf-16-be"))), InvalidError, "no JSON"
        ),
        "bom": Refused(Served(manifest(body=b"\xef\xbb\xbf" + GOOD.manifest.content)), InvalidError, "no JSON"),
        "surrogate": Refused(
            Served(manifest(body=GOOD.manifest.content[:-1] + b',"annotations":{"a":"\\ud800"}}')),
            InvalidError,
            "no JSON",
        ),
        "surrogate-bytes": Refused(
            Served(manifest(body=GOOD.manifest.content[:-1] + b',"annotations":{"a":"\xed\xa0\x80"}}')),
            InvalidError,
            "no JSON",
        ),
        "overlong": Refused(
            Served(manifest(body=GOOD.manifest.content.replace(b"schema", b"\xc1\xb3chema"))), InvalidError, "no JSON"
        ),
    },
    "M31": {
        name.rpartition(".")[2]: artifact_layer(name)
        for name in (
            "application/vnd.erofs.layer.v1.erofs",
            "application/vnd.oci.image.layer.v1.squashfs",
            "application/vnd.oci.image.layer.v1.ext4",
            "application/vnd.oci.image.layer.v1.tar+gzip+erofs",
        )
    },
}


FLAT = {f"{number}-{name}": case for number, cases in REFUSED.items() for name, case in cases.items()}


@pytest.mark.parametrize("name", FLAT)
def test_hostile_document_is_refused(
    name: str, registry: FaultyRegistry, elsewhere: FaultyRegistry, engine: pyctrd.Engine
) -> None:
    case = FLAT[name]
    refuse(engine, registry, case.served, case.error, case.told)
    if not case.blobs:
        assert registry.requests("/blobs/") == []
    pull_good(engine, registry)


def test_m03_a_media_type_may_stand_in_the_descriptor_alone(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    bare = manifest(mediaType=None)
    assert accept(engine, registry, Served(bare)).digest == bare.digest
    top = index(described(bare), mediaType=None)
    body = {name: value for name, value in json.loads(top.content).items() if value is not None}
    nameless = Blob(OCI_INDEX, dump(body))
    image = accept(engine, registry, Served(nameless, documents=[bare]))
    assert (image.digest, image.manifest_digest) == (nameless.digest, bare.digest)


def test_m05_names_count_as_they_are_written(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    body = GOOD.manifest.content[:-1] + b',"Layers":[],"LAYERS":7,"Config":{},"SchemaVersion":1,"MediaType":"x"}'
    image = accept(engine, registry, Served(manifest(body=body)))
    assert [str(layer.digest) for layer in image.manifest.layers] == [LAYER.digest]
    assert image.read_file("/d/f") == b"content"


def test_m06_a_manifest_of_4_mib_is_a_manifest(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    assert accept(engine, registry, Served(padded_manifest(4 << 20))).read_file("/d/f") == b"content"


def test_m06_no_more_is_read_than_a_manifest_may_have(registry: FaultyRegistry, engine: pyctrd.Engine) -> None:
    reference = registry.add(GOOD, REPOSITORY)
    registry.lie("/manifests/latest", Answer(200, GOOD.manifest.content.ljust(64 << 20), chunked=True))
    with pytest.raises(InvalidError, match=str(4 << 20)):
        engine.images.pull(reference)
    assert leftovers(engine) == []


def test_m24_an_artifact_is_stored_and_is_no_image(
    registry: FaultyRegistry, engine: pyctrd.Engine, tmp_path: Path
) -> None:
    empty = Blob("application/vnd.oci.empty.v1+json", b"{}")
    chart = Blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"no tar at all")
    top = manifest(config=empty.descriptor, layers=[chart.descriptor], artifactType="application/vnd.example")
    served = Served(top, [empty, chart])
    refuse(engine, registry, served, InvalidError, "another kind of artifact")
    assert registry.requests("/blobs/") == []
    reference = served.add(registry, REPOSITORY)
    stored = engine.images.pull(reference, unpack=False)
    assert (stored.digest, stored.platform) == (top.digest, "")
    for blob in (top, empty, chart):
        assert blob_path(root(), blob.digest).read_bytes() == blob.content
    assert engine.check(digests=True) == []
    target = tmp_path / "mounted"
    target.mkdir()
    uses: list[Callable[[], object]] = [
        lambda: stored.config,
        lambda: stored.read_file("/x"),
        lambda: stored.mount(target),
        lambda: engine.containers.create(stored, ["true"]),
        lambda: engine.images.pull(reference),
    ]
    for use in uses:
        with pytest.raises(InvalidError, match="another kind of artifact"):
            use()
    assert engine.containers.list() == []
    assert run("images").status == 0
    done = run("inspect", reference)
    assert (done.status, done.lines[0]["config"]) == (0, None)
    engine.images.remove(reference)
    assert leftovers(engine) == []


CONTROL = "\x1b[31mred\x07\r\n\x9b"


NAMES = ("org.opencontainers.image.ref.name", "pyctrd.namespace", "containerd.io/gc.root", "io.pyctrd/label", CONTROL)


def test_m26_annotations_are_nobodys_labels_and_are_not_printed_raw(
    registry: FaultyRegistry, engine: pyctrd.Engine
) -> None:
    notes = dict.fromkeys(NAMES, f"{CONTROL}\x00" + "x" * (1 << 19))
    top = manifest(annotations=notes, layers=[layer(annotations={CONTROL: "../../x"})])
    image = accept(engine, registry, Served(top))
    assert dict(image.manifest.annotations) == notes
    container = engine.containers.create(image, ["true"])
    assert dict(container.labels) == {}
    container.delete()
    reference = image.name
    for words in (["images"], ["inspect", reference], ["pull", reference], ["images", "--json"], ["check"]):
        done = run(*words)
        assert done.status == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.out + done.err), words


def test_every_case_of_part_m_is_here() -> None:
    from tests.hostile import test_digests, test_handed_over, test_indexes

    modules = (globals(), vars(test_digests), vars(test_handed_over), vars(test_indexes))
    own = {match[1].upper() for names in modules for name in names if (match := re.match(r"test_(m\d\d)_", name))}
    assert sorted(set(REFUSED) | own) == [f"M{number:02}" for number in range(1, 32)]
