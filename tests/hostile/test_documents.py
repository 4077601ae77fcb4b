"""Manifests, indexes and configs of part M: each case by its id, through a pull, and what it leaves."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import (
    DigestMismatchError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    PyctrdError,
    SizeMismatchError,
    UnsupportedError,
)
from pyctrd.oci.media_types import OCI_INDEX, OCI_MANIFEST
from tests.archives import Tar, compress_gzip
from tests.cli.commands import run
from tests.content.stores import blob_path, sha512
from tests.hostile.documents import (
    CONFIG,
    GOOD,
    LAYER,
    TAR,
    Served,
    config,
    described,
    dump,
    index,
    layer,
    leftovers,
    manifest,
    root,
)
from tests.images import Blob, build_image
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root

# An OCI layout or an archive is read by `load`, which the issue asks for later; both cases come with it.
LATER = {"M29": "OCI layout with blobs outside of it", "M30": "archive with an index.json of 10 GiB"}
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
REPOSITORY = "hostile"


@pytest.fixture(name="registry")
def _registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as running:
        yield running


@pytest.fixture(name="elsewhere")
def _elsewhere() -> Iterator[FaultyRegistry]:
    """A host that no document may send us to: it must see nothing."""
    with FaultyRegistry() as running:
        yield running
        assert running.seen == []


@pytest.fixture(name="engine")
def _engine() -> Iterator[pyctrd.Engine]:
    with pyctrd.Engine() as opened:
        yield opened


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


def padded_manifest(size: int) -> Blob:
    """The good manifest, made so large with spaces."""
    return manifest(body=GOOD.manifest.content.ljust(size))


def with_config(changed: Blob) -> Served:
    return Served(manifest(config=changed.descriptor), [changed])


def nest(depth: int) -> Served:
    """An index of an index, so deep, and the good manifest at the bottom."""
    documents = [GOOD.manifest]
    for _ in range(depth):
        documents.append(index(described(documents[-1], platform=None)))
    return Served(documents[-1], documents=documents[:-1])


def image_of(platform: str, *, content: bytes = b"") -> Any:
    return build_image([Tar().file("who", content or platform.encode()).build()], platform=platform)


def artifact_layer(media_type: str) -> Refused:
    return Refused(Served(manifest(layers=[layer(mediaType=media_type)])), InvalidError, media_type)


ZEROS = "0" * 64
OTHER = image_of("linux/s390x")
SELF = Blob(OCI_INDEX, b"")

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


def refuse(
    engine: pyctrd.Engine, registry: FaultyRegistry, served: Served, error: type[PyctrdError], told: str
) -> PyctrdError:
    """Pull what must not come in, and look at what that leaves."""
    reference = served.add(registry, REPOSITORY)
    with pytest.raises(error) as caught:
        engine.images.pull(reference)
    assert told in str(caught.value)
    assert str(caught.value).isprintable(), "control characters of a stranger's"
    assert len(str(caught.value)) < 1000
    assert leftovers(engine) == []
    assert [request.path for request in registry.seen if ".." in request.path] == []
    return caught.value


def pull_good(engine: pyctrd.Engine, registry: FaultyRegistry) -> pyctrd.Image:
    """The same name with a good image: nothing that was refused before stands in its way."""
    image = engine.images.pull(registry.add(GOOD, REPOSITORY))
    assert image.read_file("/d/f") == b"content"
    assert engine.check(digests=True) == []
    return image


def accept(engine: pyctrd.Engine, registry: FaultyRegistry, served: Served) -> pyctrd.Image:
    image = engine.images.pull(served.add(registry, REPOSITORY))
    assert engine.check(digests=True) == []
    return image


# what is accepted, and what takes more than one document


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


@dataclass(frozen=True)
class Sha512(Blob):
    """A blob that is known by its other digest."""

    @property
    def digest(self) -> str:
        return sha512(self.content)


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
    assert (root() / "layers/sha512" / sha512(TAR).removeprefix("sha512:") / "tree/d/f").is_file()
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


def test_m22_a_layer_that_is_there_a_thousand_times_is_fetched_once(
    registry: FaultyRegistry, engine: pyctrd.Engine
) -> None:
    diff_id = json.loads(CONFIG.content)["rootfs"]["diff_ids"][0]
    described_config = config(rootfs={"type": "layers", "diff_ids": [diff_id] * 1000})
    served = Served(manifest(layers=[layer()] * 1000, config=described_config.descriptor), [described_config])
    image = accept(engine, registry, served)
    assert len(registry.requests(f"/blobs/{LAYER.digest}")) == 1
    assert image.read_file("/d/f") == b"content"


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


# completeness


def test_every_case_of_part_m_is_here() -> None:
    own = {match[1].upper() for name in globals() if (match := re.match(r"test_(m\d\d)_", name))}
    here = set(REFUSED) | own | set(LATER)
    assert sorted(here) == [f"M{number:02}" for number in range(1, 32)]
    assert not LATER.keys() & (set(REFUSED) | own)
    assert not hasattr(pyctrd.Images, "load"), "load is here: so are M29 and M30"
    assert os.environ["PYCTRD_ROOT"] == str(root())
