"""Layers that are fetched in parts: as good as whole ones, with fewer bytes, and for nobody who could not have them."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import DiffIDMismatchError, NotFoundError, QuotaError
from pyctrd.metadata.database import Database
from pyctrd.oci.descriptor import ESTARGZ_DIGEST, ZSTD_CHUNKED_DIGEST
from tests.content.stores import files_below
from tests.images import Blob, BuiltImage
from tests.registries import Registry
from tests.registry_faults import Answer, FaultyRegistry
from tests.relays import Relay
from tests.tocs import Tabled, digest_of, estargz, estargz_tar, go_tar, tabled_image, zstd_chunked
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root


def noise(seed: int, count: int) -> bytes:
    """Bytes that no compressor makes fewer."""
    return random.Random(seed).randbytes(count)


LARGE = 700_000
FILES = {"d/": b""} | {f"d/{n}": noise(n, LARGE + n) for n in range(6)} | {"d/short": b"short", "d/empty": b""}
NEW_FILES = FILES | {"d/3": noise(33, LARGE), "d/new": b"new"}
FIRST, SECOND = go_tar(FILES), go_tar(NEW_FILES)
# Each is worth a request, and not much more.
MIDDLING = [noise(200 + n, 300_000) for n in range(9)]
FORMATS: dict[str, Callable[[bytes], Tabled]] = {
    "zstd:chunked": zstd_chunked,
    "without tar-split": lambda tar: zstd_chunked(tar, split=False),
    "estargz": estargz,
}


def made(layer: Tabled) -> BuiltImage:
    """An image of one layer."""
    tar = estargz_tar(layer) if ESTARGZ_DIGEST in layer.annotations else None
    return tabled_image([layer], [tar if tar is not None else _tars[layer.content]])


_tars: dict[bytes, bytes] = {}


def image_of(form: str, tar: bytes) -> BuiltImage:
    """An image of one layer in a format."""
    layer = FORMATS[form](tar)
    _tars[layer.content] = tar
    return made(layer)


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[BuiltImage, BuiltImage]]:
    """Two versions of an image, in each format."""
    return {form: (image_of(form, FIRST), image_of(form, SECOND)) for form in FORMATS}


@pytest.fixture
def served(faulty: FaultyRegistry, pairs: dict[str, tuple[BuiltImage, BuiltImage]]) -> tuple[str, str]:
    """Those of zstd:chunked, by a registry that can lie."""
    first, second = pairs["zstd:chunked"]
    return faulty.add(first, "image", tag="first"), faulty.add(second, "image", tag="second")


@pytest.fixture
def lean(root: Path) -> Iterator[pyctrd.Engine]:
    """An engine that keeps no blobs of layers."""
    del root
    with pyctrd.Engine(keep_blobs=False) as opened:
        yield opened


def layer_of(image: BuiltImage) -> Blob:
    """Its only layer."""
    (layer,) = image.layers
    return layer


def ranges_asked(faulty: FaultyRegistry, image: BuiltImage) -> list[str]:
    """What was asked for of its layer, "" for all of it."""
    return [seen.headers.get("range", "") for seen in faulty.requests(layer_of(image).digest) if seen.method == "GET"]


def assert_second(engine: pyctrd.Engine, reference: str) -> None:
    """All of the second version is there, and nothing is wrong in the store."""
    image = engine.images.get(reference)
    for name, content in NEW_FILES.items():
        if not name.endswith("/"):
            assert image.read_file(f"/{name}") == content, name
    assert engine.check(digests=True) == []


# as good as whole ones


@pytest.mark.parametrize("snapshotter", ["composefs", "overlayfs", "erofs", "native"])
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_made_of_parts_is_what_the_whole_is(
    root: Path,
    registry: Registry,
    tmp_path: Path,
    pairs: dict[str, tuple[BuiltImage, BuiltImage]],
    form: str,
    snapshotter: str,
) -> None:
    del root
    repository = f"parts/{snapshotter}-{form.replace(':', '-').replace(' ', '-')}"
    first, second = (image.push(registry, repository, tag=f"v{n}") for n, image in enumerate(pairs[form]))
    trees = []
    (tmp_path / "mounted").mkdir()
    size = len(layer_of(pairs[form][1]).content)
    with Relay(registry.host) as relay:
        for namespace, before in (("whole", []), ("parts", [first])):
            with pyctrd.Engine(namespace=namespace, snapshotter=snapshotter, keep_blobs=False) as engine:
                for reference in before:
                    engine.images.pull(reference.replace(registry.host, relay.host))
                relay.told_bytes()
                image = engine.images.pull(second.replace(registry.host, relay.host))
                told = relay.told_bytes()
                assert told > size if namespace == "whole" else told < size / 2
                assert image.size_bytes == sum(len(blob.content) for blob in pairs[form][1].blobs)
                with image.mounted(tmp_path / "mounted") as target:
                    trees.append(read_tree(target))
                assert engine.check(digests=True) == []
                engine.images.remove(image.name)
                engine.gc()
    assert differences(*trees) == []


@pytest.mark.parametrize("form", FORMATS)
def test_the_tar_is_the_same(
    lean: pyctrd.Engine,
    faulty: FaultyRegistry,
    pairs: dict[str, tuple[BuiltImage, BuiltImage]],
    tmp_path: Path,
    form: str,
) -> None:
    first, second = pairs[form]
    lean.images.pull(faulty.add(first, "image", tag="first"))
    reference = faulty.add(second, "image", tag="second")
    lean.images.pull(reference)
    assert "" not in ranges_asked(faulty, second)
    lean.content.rebuild(digest_of(second.tars[0]), tmp_path / "tar")
    assert (tmp_path / "tar").read_bytes() == second.tars[0]


def test_only_what_is_missing_is_asked_for(
    lean: pyctrd.Engine,
    faulty: FaultyRegistry,
    served: tuple[str, str],
    pairs: dict[str, tuple[BuiltImage, BuiltImage]],
) -> None:
    first, second = pairs["zstd:chunked"]
    lean.images.pull(served[0])
    assert ranges_asked(faulty, first) == [""], "nothing is here yet"
    lean.images.pull(served[1])
    table, changed, new = ranges_asked(faulty, second)
    manifest = json.loads(second.manifest.content)["layers"][0]["annotations"]
    place = int(manifest["io.github.containers.zstd-chunked.manifest-position"].partition(":")[0])
    assert table.startswith(f"bytes={place}-")
    start, end = map(int, changed.removeprefix("bytes=").split("-"))
    assert LARGE < end - start < LARGE + 100
    start, end = map(int, new.removeprefix("bytes=").split("-"))
    assert end - start < 100
    assert_second(lean, served[1])
    lean.images.pull(served[1])
    assert len(ranges_asked(faulty, second)) == 3, "it is there now"
    # What was made of parts is known as well as what came whole.
    third = image_of("zstd:chunked", go_tar(NEW_FILES | {"d/4": b"changed"}))
    lean.images.pull(faulty.add(third, "image", tag="third"))
    assert "" not in ranges_asked(faulty, third)


def test_with_blobs_kept_all_of_the_layer_comes(
    engine: pyctrd.Engine,
    faulty: FaultyRegistry,
    served: tuple[str, str],
    pairs: dict[str, tuple[BuiltImage, BuiltImage]],
) -> None:
    engine.images.pull(served[0], keep_blobs=False)
    engine.images.pull(served[1])
    assert ranges_asked(faulty, pairs["zstd:chunked"][1]) == [""]
    assert engine.content.info(layer_of(pairs["zstd:chunked"][1]).digest).is_stored


def test_a_layer_that_was_made_of_parts_can_be_had_whole_later(
    lean: pyctrd.Engine, served: tuple[str, str], pairs: dict[str, tuple[BuiltImage, BuiltImage]]
) -> None:
    for reference in served:
        lean.images.pull(reference)
    layer = layer_of(pairs["zstd:chunked"][1])
    with pytest.raises(NotFoundError):
        lean.content.info(layer.digest)
    lean.images.pull(served[1], keep_blobs=True)
    with lean.content.open(layer.digest) as opened:
        assert opened.read() == layer.content
    assert_second(lean, served[1])


# when the whole is taken


@pytest.mark.parametrize(
    "tar",
    [
        pytest.param(go_tar({"d/": b"", "d/0": FILES["d/0"]}), id="small"),
        pytest.param(go_tar({f"d/{n}": noise(90 + n, LARGE) for n in range(6)} | {"d/0": FILES["d/0"]}), id="new"),
        pytest.param(
            go_tar({f"m/{n}-{k}": part for n in range(9) for k, part in (("old", MIDDLING[n]), ("new", noise(n, 9)))}),
            id="many ranges",
        ),
    ],
)
def test_the_whole_is_taken_where_that_is_faster(
    lean: pyctrd.Engine, faulty: FaultyRegistry, served: tuple[str, str], tar: bytes
) -> None:
    lean.images.pull(served[0])
    lean.images.pull(
        faulty.add(image_of("zstd:chunked", go_tar(dict(zip("abcdefghi", MIDDLING, strict=True)))), "image")
    )
    image = image_of("zstd:chunked", tar)
    lean.images.pull(faulty.add(image, "image", tag="other"))
    assert ranges_asked(faulty, image)[-1] == ""
    assert lean.check(digests=True) == []


def whole_after(answer: Answer, *, at: int) -> Callable[[FaultyRegistry, str], None]:
    """Lets so many requests for a blob be answered well, and the next not."""

    def prepare(faulty: FaultyRegistry, path: str) -> None:
        faulty.lie(path, *[Answer(body=None)] * at, answer)

    return prepare


@pytest.mark.parametrize("at", [0, 1], ids=["table", "range"])
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(200, b"all of it, it says"), id="200"),
        pytest.param(Answer(206, bytes(LARGE), {"Content-Range": "bytes 5-700004/9"}), id="another range"),
        pytest.param(Answer(206, bytes(LARGE), {}), id="no range"),
        pytest.param(Answer(416, b""), id="416"),
        pytest.param(Answer(404, b""), id="404"),
        pytest.param(Answer(403, b""), id="403"),
        pytest.param(Answer(body=None, headers={"Content-Encoding": "gzip"}), id="encoded"),
    ],
)
def test_a_registry_that_gives_no_ranges_gives_the_whole(
    lean: pyctrd.Engine,
    faulty: FaultyRegistry,
    served: tuple[str, str],
    pairs: dict[str, tuple[BuiltImage, BuiltImage]],
    answer: Answer,
    at: int,
) -> None:
    lean.images.pull(served[0])
    whole_after(answer, at=at)(faulty, layer_of(pairs["zstd:chunked"][1]).digest)
    lean.images.pull(served[1])
    assert ranges_asked(faulty, pairs["zstd:chunked"][1])[at + 1 :] == [""]
    assert_second(lean, served[1])


@pytest.mark.parametrize("at", [0, 1, 2], ids=["table", "large range", "last range"])
def test_wrong_bytes_are_noticed_and_the_whole_is_taken(
    lean: pyctrd.Engine,
    faulty: FaultyRegistry,
    served: tuple[str, str],
    pairs: dict[str, tuple[BuiltImage, BuiltImage]],
    at: int,
) -> None:
    second = pairs["zstd:chunked"][1]
    with pyctrd.Engine(namespace="before", keep_blobs=False) as other:
        for reference in served:
            other.images.pull(reference)
    asked = ranges_asked(faulty, second)[at].removeprefix("bytes=")
    start, end = map(int, asked.split("-"))
    wrong = bytearray(layer_of(second).content[start : end + 1])
    wrong[len(wrong) // 2] ^= 1
    lean.images.pull(served[0])
    answer = Answer(206, bytes(wrong), {"Content-Range": f"bytes {asked}/{len(layer_of(second).content)}"})
    whole_after(answer, at=at)(faulty, layer_of(second).digest)
    lean.images.pull(served[1])
    assert ranges_asked(faulty, second)[-1] == ""
    assert_second(lean, served[1])


def test_a_range_that_breaks_off_is_asked_for_again(
    lean: pyctrd.Engine,
    faulty: FaultyRegistry,
    served: tuple[str, str],
    pairs: dict[str, tuple[BuiltImage, BuiltImage]],
) -> None:
    lean.images.pull(served[0])
    digest = layer_of(pairs["zstd:chunked"][1]).digest
    faulty.lie(digest, Answer(body=None, cut=9), Answer(body=None), Answer(body=None, cut=300_000), Answer(503, b""))
    lean.images.pull(served[1])
    asked = ranges_asked(faulty, pairs["zstd:chunked"][1])
    assert "" not in asked
    assert asked[0] == asked[1]
    assert asked[2] == asked[3] == asked[4]
    assert_second(lean, served[1])


def test_where_the_digests_lie_the_error_is_the_layers(
    lean: pyctrd.Engine, faulty: FaultyRegistry, served: tuple[str, str], root: Path
) -> None:
    lean.images.pull(served[0])
    before = files_below(root / "layers")
    lying = image_of("zstd:chunked", SECOND).with_diff_ids([digest_of(b"another")])
    manifest = json.loads(lying.manifest.content)
    layer = FORMATS["zstd:chunked"](SECOND)
    manifest["layers"][0]["annotations"] = dict(layer.annotations)
    lying = BuiltImage(Blob(lying.manifest.media_type, json.dumps(manifest).encode()), lying.blobs, tars=lying.tars)
    with pytest.raises(DiffIDMismatchError):
        lean.images.pull(faulty.add(lying, "image", tag="lying"))
    assert "" in ranges_asked(faulty, lying)
    assert files_below(root / "layers") == before
    assert files_below(root / "content/ingest") == []
    assert lean.check(digests=True) == []


def test_a_table_that_lies_costs_time_and_nothing_else(
    lean: pyctrd.Engine, faulty: FaultyRegistry, served: tuple[str, str]
) -> None:
    def lie(table: dict[str, Any]) -> None:
        for entry in table["entries"]:
            if entry["name"] == "d/5":
                entry["digest"] = digest_of(FILES["d/4"])
                entry["size"] = len(FILES["d/4"])

    lean.images.pull(served[0])
    layer = zstd_chunked(SECOND, change=lie)
    _tars[layer.content] = SECOND
    image = made(layer)
    reference = faulty.add(image, "image", tag="lying")
    lean.images.pull(reference)
    assert ranges_asked(faulty, image)[-1] == ""
    assert_second(lean, reference)


def test_a_content_that_was_damaged_here_is_no_ones_new_layer(
    lean: pyctrd.Engine, root: Path, served: tuple[str, str]
) -> None:
    lean.images.pull(served[0])
    damaged = [path for path in (root / "objects").glob("*/*") if path.stat().st_size == LARGE + 1]
    for path in damaged:
        path.chmod(0o600)
        path.write_bytes(bytes(LARGE + 1))
    image = lean.images.pull(served[1])
    layer = root / "layers/sha256" / digest_of(SECOND).removeprefix("sha256:")
    assert layer.is_dir()
    assert image.read_file("/d/3") == NEW_FILES["d/3"]


def test_one_that_is_given_up_leaves_nothing(
    lean: pyctrd.Engine, root: Path, faulty: FaultyRegistry, served: tuple[str, str]
) -> None:
    lean.images.pull(served[0])
    stall = threading.Event()
    digest = layer_of(image_of("zstd:chunked", SECOND)).digest
    faulty.lie(digest, Answer(body=None), Answer(body=None, stall=stall))

    def give_up(_progress: object) -> None:
        if faulty.stalled.is_set():
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            lean.images.pull(served[1], progress=give_up)
    finally:
        stall.set()
    assert files_below(root / "content/ingest") == []
    assert lean.check(digests=True) == []
    lean.images.pull(served[1])
    assert_second(lean, served[1])


# what it is to tenants, quotas and collection


def test_contents_of_another_tenant_are_not_used(
    lean: pyctrd.Engine,
    faulty: FaultyRegistry,
    served: tuple[str, str],
    pairs: dict[str, tuple[BuiltImage, BuiltImage]],
) -> None:
    lean.images.pull(served[0])
    with pyctrd.Engine(namespace="other", keep_blobs=False) as other:
        other.images.pull(served[1])
        assert ranges_asked(faulty, pairs["zstd:chunked"][1]) == [""], "as if the store were empty"
        assert_second(other, served[1])


def test_who_made_a_layer_of_parts_is_not_taken_for_one_who_had_its_blob(
    lean: pyctrd.Engine, faulty: FaultyRegistry, served: tuple[str, str], database: Database
) -> None:
    """A manifest may name any digest: another tenant's private blob, whose layer nobody has shown us."""
    secret_tar = go_tar({"d/": b"", "d/secret": noise(77, 2 * LARGE)})
    secret = image_of("zstd:chunked", secret_tar)
    with pyctrd.Engine(namespace="owner", keep_blobs=False) as owner:
        owner.images.pull(faulty.add(secret, "private", tag="secret"))
    lean.images.pull(served[0])
    # Ours, under the digest and size of theirs: ranges of it are served as if they were of that blob.
    own = FORMATS["zstd:chunked"](SECOND)
    manifest = json.loads(image_of("zstd:chunked", SECOND).manifest.content)
    stolen = layer_of(secret)
    manifest["layers"][0]["digest"] = stolen.digest
    config = image_of("zstd:chunked", SECOND).blobs[0]
    claims = Blob("application/vnd.oci.image.manifest.v1+json", json.dumps(manifest).encode())
    reference = faulty.add(BuiltImage(claims, (config,)), "mine", tag="claims")
    path = f"/v2/mine/blobs/{stolen.digest}"
    faulty._blobs[path] = Blob(own.media_type, own.content)
    lean.images.pull(reference)
    assert_second(lean, reference)
    assert database.content.find("default", stolen.digest) is None
    assert not database.content.came_from(stolen.digest, f"{faulty.host}/mine")
    assert not database.layers.is_layer_of(stolen.digest, digest_of(SECOND))
    # Now a manifest that says what that blob really is.
    del faulty._blobs[path]
    manifest["config"] = secret.blobs[0].descriptor
    manifest["layers"][0] = json.loads(secret.manifest.content)["layers"][0]
    theirs = Blob(claims.media_type, json.dumps(manifest).encode())
    steal = faulty.add(BuiltImage(theirs, (secret.blobs[0],)), "mine", tag="steal")
    with pytest.raises(NotFoundError):
        lean.images.pull(steal)
    with pytest.raises(NotFoundError):
        lean.content.rebuild(digest_of(secret_tar), Path("/dev/null"))


def test_it_is_charged_as_its_blob_and_goes_with_its_image(
    lean: pyctrd.Engine,
    root: Path,
    served: tuple[str, str],
    pairs: dict[str, tuple[BuiltImage, BuiltImage]],
) -> None:
    for reference in served:
        lean.images.pull(reference)
    second = pairs["zstd:chunked"][1]
    records = {record.digest: record for record in lean.content.list()}
    tar = records[digest_of(SECOND)]
    assert (tar.size, tar.is_stored, tar.source) == (len(layer_of(second).content), False, "")
    both = lean.content.usage().charged_bytes
    lean.images.remove(served[0])
    assert_second(lean, served[1])
    alone = lean.content.usage().charged_bytes
    assert alone == len(layer_of(second).content) + len(second.blobs[0].content) + len(second.manifest.content)
    assert alone < both
    # At its quota, what is there is not charged again; and there is no room for more.
    lean.namespaces.set("default", quota=alone)
    lean.images.pull(served[1])
    with pytest.raises(QuotaError):
        lean.images.pull(served[0])
    lean.namespaces.set("default", quota=None)
    lean.images.remove(served[1])
    lean.gc()
    assert (lean.content.list(), files_below(root / "layers"), lean.content.usage().charged_bytes) == ([], [], 0)


def test_two_layers_of_one_image_and_two_images_of_one_layer(
    lean: pyctrd.Engine, faulty: FaultyRegistry, served: tuple[str, str]
) -> None:
    lean.images.pull(served[0])
    other = go_tar({"e/": b"", "e/0": FILES["d/0"], "e/1": FILES["d/1"], "e/new": b"e"})
    layers = [zstd_chunked(SECOND), zstd_chunked(other)]
    image = tabled_image(layers, [SECOND, other])
    reference = faulty.add(image, "image", tag="two")
    pulled = lean.images.pull(reference)
    assert pulled.read_file("/e/1") == FILES["d/1"]
    assert pulled.read_file("/e/new") == b"e"
    assert_second(lean, reference)
    lean.images.pull(served[1])
    lean.images.remove(reference)
    lean.gc()
    assert_second(lean, served[1])


@pytest.mark.parametrize("key", [ZSTD_CHUNKED_DIGEST, ESTARGZ_DIGEST])
def test_a_layer_that_only_says_that_it_has_a_table_is_taken_whole(
    lean: pyctrd.Engine, faulty: FaultyRegistry, served: tuple[str, str], key: str
) -> None:
    lean.images.pull(served[0])
    plain = zstd_chunked(SECOND)
    notes = {key: digest_of(b""), "io.github.containers.zstd-chunked.manifest-position": "nowhere"}
    layer = Tabled(plain.media_type, plain.content, notes)
    image = tabled_image([layer], [SECOND])
    reference = faulty.add(image, "image", tag="liar")
    lean.images.pull(reference)
    assert ranges_asked(faulty, image)[-1] == ""
    assert_second(lean, reference)


def test_one_that_is_lost_is_let_go_of_by_a_repair_and_pulled_again(
    lean: pyctrd.Engine, root: Path, served: tuple[str, str]
) -> None:
    for reference in served:
        lean.images.pull(reference)
    shutil.rmtree(root / "layers/sha256" / digest_of(SECOND).removeprefix("sha256:"))
    assert {found.kind for found in lean.check()} >= {"layer"}
    assert all(found.repaired for found in lean.check(repair=True))
    assert lean.check() == []
    lean.images.pull(served[1])
    assert_second(lean, served[1])


# by other programs


@pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed")
def test_what_buildah_pushes_is_fetched_in_parts(lean: pyctrd.Engine, registry: Registry, tmp_path: Path) -> None:
    """Of buildah 1.28 there is no tar-split, and the annotations have their old names."""
    Path(os.environ["REGISTRY_AUTH_FILE"]).write_text("{}")  # it wants the file that is named
    storage = ["--root", str(tmp_path / "storage"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]

    def buildah(*words: str) -> str:
        done = subprocess.run(["buildah", *storage, *words], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    large = {name: noise(ord(name), 3 << 20) for name in "abcd"}
    references = []
    for version in ("1", "2"):
        source = tmp_path / f"source-{version}"
        source.mkdir()
        for name, content in large.items():
            (source / name).write_bytes(content if (name, version) != ("c", "2") else noise(9, 3 << 20))
        container = buildah("from", "scratch")
        buildah("copy", container, str(source), "/")
        buildah("commit", container, f"made:{version}")
        references.append(f"{registry.host}/buildah/parts:{version}")
        words = ["--tls-verify=false", "--compression-format", "zstd:chunked", f"made:{version}"]
        buildah("push", *words, f"docker://{references[-1]}")
    with Relay(registry.host) as relay:
        first, second = (reference.replace(registry.host, relay.host) for reference in references)
        lean.images.pull(first)
        relay.told_bytes()
        image = lean.images.pull(second)
        assert 3 << 20 < relay.told_bytes() < 4 << 20
    for name, content in large.items():
        assert image.read_file(f"/{name}") == (content if name != "c" else noise(9, 3 << 20))
    assert lean.check(digests=True) == []
