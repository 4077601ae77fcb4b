"""Convert: the same tars in other blobs, bit for bit, with everything that a reader of them needs."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pytest

import pyctrd
from pyctrd.errors import (
    DiffIDMismatchError,
    DigestMismatchError,
    InvalidError,
    NotFoundError,
    QuotaError,
    UnsafeArchiveError,
)
from pyctrd.metadata.database import Database
from pyctrd.oci.media_types import DOCKER_MANIFEST, OCI_CONFIG, OCI_MANIFEST
from pyctrd.oci.platform import Platform
from tests.archives import Tar
from tests.children import Child
from tests.chunked import PREFIX, decompress_zstd, read_files, read_table, rebuild, sha256
from tests.content.stores import blob_path, files_below
from tests.images import CAPABILITY, BuiltImage, Images, build_image, build_index, busybox_tar, tree_tars
from tests.integration.conftest import Cli
from tests.trees import Facts, differences, read_tree

pytestmark = pytest.mark.root

Packing = Literal["gzip", "zstd", "zstd:chunked", "none"]
PACKINGS: tuple[Packing, ...] = ("gzip", "zstd", "zstd:chunked", "none")
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "zstd": decompress_zstd,
    "none": lambda content: content,
}
TARGET = "local/converted:1"


def contents_of(root: Path, image: pyctrd.Image) -> list[bytes]:
    """The layers' blobs."""
    return [blob_path(root, str(layer.digest)).read_bytes() for layer in image.manifest.layers]


def store_of(root: Path, database: Database) -> tuple[list[str], list[str], int]:
    """What a failure must not change: files, content records, and what the tenant is charged."""
    found = [name for name in files_below(root / "content") if not name.endswith("lock")]
    return found, [row.digest for row in database.content.walk("default")], database.usage.charged("default")


def pulled(engine: pyctrd.Engine, images: Images, built: BuiltImage, **options: Any) -> pyctrd.Image:
    return engine.images.pull(images.push(built).reference, **options)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("source", ["tree", "tree_zstd", "tree_plain"])
def test_every_form_has_the_tars_of_the_source(
    engine: pyctrd.Engine, images: Images, root: Path, source: str, packing: Packing
) -> None:
    pushed = getattr(images, source)
    before = engine.images.pull(pushed.reference)
    image = engine.images.convert(pushed.reference, TARGET, compression=packing)
    assert engine.images.get(TARGET).digest == image.digest == image.manifest_digest
    assert image.manifest.config.digest == before.manifest.config.digest
    assert image.config == before.config
    base = packing.partition(":")[0]
    docker = source == "tree_plain" and base != "zstd"
    assert image.manifest.media_type == (DOCKER_MANIFEST if docker else OCI_MANIFEST)
    assert all(
        layer.media_type.startswith("application/vnd.docker." if docker else "application/vnd.oci.")
        for layer in image.manifest.layers
    )
    assert docker or image.manifest.config.media_type == OCI_CONFIG
    assert [DECOMPRESS[base](content) for content in contents_of(root, image)] == list(pushed.built.tars)
    assert engine.check(digests=True) == []
    assert image.read_file("/nanoseconds") == b"x"


def test_a_layer_that_has_the_form_stays_unless_a_level_is_asked_for(engine: pyctrd.Engine, images: Images) -> None:
    before = engine.images.pull(images.tree.reference)
    same = engine.images.convert(before.name, TARGET, compression="gzip")
    assert same.manifest_digest == before.manifest_digest
    first = engine.images.convert(before.name, "local/level:1", compression="gzip", level=1)
    ninth = engine.images.convert(before.name, "local/level:9", compression="gzip", level=9)
    assert len({same.manifest_digest, first.manifest_digest, ninth.manifest_digest}) == 3
    assert ninth.size_bytes < first.size_bytes


def test_there_and_back_keeps_every_diff_id_and_gives_the_same_tree(
    engine: pyctrd.Engine, images: Images, tmp_path: Path
) -> None:
    built = build_image([busybox_tar(), *tree_tars()])
    before = pulled(engine, images, built)
    there = engine.images.convert(before.name, "local/there:1", compression="zstd:chunked")
    back = engine.images.convert(there.name, "local/back:1", compression="gzip")
    assert there.config.rootfs == back.config.rootfs == before.config.rootfs
    assert all("annotations" not in layer.raw for layer in back.manifest.layers)
    trees: list[dict[bytes, Facts]] = []
    for name in (before.name, back.name):
        target = tmp_path / f"mounted-{len(trees)}"
        target.mkdir()
        with engine.images.get(name).mounted(target):
            trees.append(read_tree(target))
    assert differences(trees[0], trees[1]) == []


@pytest.mark.parametrize("packing", ["gzip", "zstd", "zstd:chunked"])
def test_the_same_tar_gives_the_same_bytes_from_whatever_it_came(
    images: Images, state: Path, tmp_path: Path, packing: Packing
) -> None:
    noise = random.Random(7)
    big = Tar().file("big", noise.randbytes(3 << 20) + bytes(1 << 20) + noise.randbytes(100_000) * 3)
    for number in range(300):
        big.file(f"small-{number}", noise.randbytes(number * 7))
    digests = set()
    for number, compression in enumerate(("none", "gzip", "zstd")):
        with pyctrd.Engine(root=tmp_path / f"root-{number}", state=state) as engine:
            before = pulled(engine, images, build_image([big.build(), busybox_tar()], compression=compression))
            image = engine.images.convert(before.name, TARGET, compression=packing, level=3)
            digests.add(tuple(layer.digest for layer in image.manifest.layers))
    assert len(digests) == 1


def odd_tars() -> Iterator[tuple[str, bytes]]:
    """Tars of which every byte counts, and that a table can tell."""
    plain = Tar().file("a", b"content").directory("d/", mode=0o40755)
    yield "types in modes", plain.file("f", b"x" * 700, mode=0o100644).build()
    yield "bytes behind the end", plain.build() + bytes(100_000) + b"rubbish" * 999
    yield "no end", b"".join(plain._parts)
    yield "nothing but an end", Tar().build()
    yield "long names", Tar().file("long/" * 40 + "file", b"1").symlink("s", "t" * 180).build()
    yield "times", Tar().file("f", b"1", pax={"mtime": b"-1.5", "atime": b"1700000000.25", "ctime": b"7"}).build()
    yield (
        "xattrs",
        Tar().file("f", b"1", xattrs={"user.b": b"\0\xff", "user.a": b"", "security.capability": CAPABILITY}).build(),
    )
    holes = b"a" * 100 + bytes(5000) + b"b" + bytes(1023) + b"c" + bytes(1024)
    yield "holes", Tar().file("holes", holes).file("zeros", bytes(70_000)).file("empty").file("one", b"\0").build()
    yield "devices", tree_tars()[1]
    yield "names", Tar().file('quo"te\\\n\t', b"1").file("umlaut-ü", b"2").file("./dotted", b"3").build()
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        written = BytesIO()
        with tarfile.open(fileobj=written, mode="w", format=form) as opened:
            opened.add(Path(__file__).parent, "here", recursive=False)
            opened.add(__file__, "here/" + "n" * 90)
        yield f"tarfile's {form}", written.getvalue()


@pytest.mark.parametrize(("name", "tar"), [pytest.param(*odd, id=odd[0]) for odd in odd_tars()])
def test_a_table_tells_all_files_and_the_record_gives_the_tar(
    engine: pyctrd.Engine, images: Images, root: Path, name: str, tar: bytes
) -> None:
    del name
    before = pulled(engine, images, build_image([tar]))
    image = engine.images.convert(before.name, TARGET, compression="zstd:chunked")
    (blob,), (layer,) = contents_of(root, image), image.manifest.layers
    assert decompress_zstd(blob) == tar
    table = read_table(blob, layer.annotations)
    files = read_files(blob, table)
    assert rebuild(table, files) == tar
    with tarfile.open(fileobj=BytesIO(tar), ignore_zeros=False) as opened:
        told = [entry for entry in table.entries if entry["type"] != "chunk"]
        for member, entry in zip(opened, told, strict=True):
            assert member.name == entry["name"].rstrip("/")
            assert member.size == entry.get("size", 0)
            assert (member.uid, member.gid) == (entry.get("uid", 0), entry.get("gid", 0))
            assert (member.mode & 0o7777, member.linkname) == (entry.get("mode", 0) & 0o7777, entry.get("linkName", ""))


SPARSE = Tar().sparse("sparse", 1 << 20, [(0, b"head" * 128), ((1 << 20) - 4, b"tail")]).build()


@pytest.mark.parametrize(
    "tar",
    [
        pytest.param(Tar().file("a", b"1").file(b"\xff\xfe", b"2").build(), id="a name that is not UTF-8"),
        pytest.param(Tar().file("a", b"1").file("b", b"2").file("a", b"3").build(), id="a name twice"),
        pytest.param(SPARSE, id="a sparse file"),
        pytest.param(Tar().file("a", b"1").raw(Tar().add("g", kind=b"g")._parts[0]).file("b").build(), id="global"),
    ],
)
def test_what_no_table_can_tell_is_zstd_without_one(
    engine: pyctrd.Engine, images: Images, root: Path, tar: bytes
) -> None:
    before = pulled(engine, images, build_image([tar, Tar().file("other", b"1").build()]))
    image = engine.images.convert(before.name, TARGET, compression="zstd:chunked")
    assert decompress_zstd(contents_of(root, image)[0]) == tar
    first, second = image.manifest.layers
    assert "annotations" not in first.raw
    assert f"{PREFIX}manifest-checksum" in second.annotations
    assert engine.check(digests=True) == []


def test_what_was_said_of_the_old_bytes_is_not_said_of_the_new_ones(engine: pyctrd.Engine, images: Images) -> None:
    built = build_image([Tar().file("a", b"1").build()])
    manifest = json.loads(built.manifest.content)
    said = {"containerd.io/snapshot/stargz/toc.digest": "sha256:1", f"{PREFIX}manifest-checksum": "x", "kept": "yes"}
    manifest["layers"][0] |= {"annotations": said, "own": 1}
    manifest |= {"annotations": {"of": "all"}}
    content = json.dumps(manifest).encode()
    changed = BuiltImage(type(built.manifest)(built.manifest.media_type, content), built.blobs)
    before = pulled(engine, images, changed)
    (layer,) = engine.images.convert(before.name, TARGET, compression="zstd").manifest.layers
    assert (layer.annotations, layer.raw["own"]) == ({"kept": "yes"}, 1)
    assert engine.images.get(TARGET).manifest.annotations == {"of": "all"}


def test_of_an_index_the_platform_that_is_there_is_converted_alone(engine: pyctrd.Engine, images: Images) -> None:
    host = str(Platform.host())
    tars = {name: [Tar().file("platform", name.encode()).build()] for name in (host, "linux/s390x")}
    built = build_index({name: build_image(tar, platform=name) for name, tar in tars.items()})
    before = pulled(engine, images, built)
    image = engine.images.convert(before.name, TARGET, compression="zstd")
    assert image.digest == image.manifest_digest != before.manifest_digest
    assert (image.platform, image.read_file("/platform")) == (host, host.encode())


@pytest.mark.parametrize("snapshotter", ["overlayfs", "composefs", "erofs"])
def test_a_layer_whose_blob_was_dropped_is_put_together_again(
    images: Images, state: Path, root: Path, snapshotter: str
) -> None:
    del state
    built = build_image([busybox_tar(), tree_tars()[0]])
    with pyctrd.Engine(snapshotter=snapshotter) as engine:
        before = pulled(engine, images, built, keep_blobs=False)
        image = engine.images.convert(before.name, TARGET, compression="gzip")
        assert [gzip.decompress(blob) for blob in contents_of(root, image)] == list(built.tars)
        assert engine.check(digests=True) == []


@pytest.mark.usefixtures("as_directories")
def test_a_tree_that_was_changed_gives_no_layer(images: Images, root: Path, database: Database) -> None:
    built = build_image([Tar().file("file", b"as it was").build()])
    with pyctrd.Engine() as engine:
        before = pulled(engine, images, built, keep_blobs=False)
        diff_id = str(before.config.rootfs.diff_ids[0])
        (root / "layers/sha256" / diff_id.removeprefix("sha256:") / "tree/file").write_bytes(b"otherwise")
        stood = store_of(root, database)
        with pytest.raises(DiffIDMismatchError, match=diff_id):
            engine.images.convert(before.name, TARGET, compression="zstd")
        assert engine.images.find(TARGET) is None
        assert store_of(root, database) == stood


def test_a_layer_that_is_nowhere_is_told(engine: pyctrd.Engine, images: Images, root: Path) -> None:
    before = pulled(engine, images, build_image([Tar().file("a", b"1").build()]), keep_blobs=False)
    shutil.rmtree(root / "layers")
    with pytest.raises(NotFoundError, match="neither its blob is stored nor is it unpacked"):
        engine.images.convert(before.name, TARGET)


def hostile() -> Iterator[tuple[str, bytes, dict[str, int], type[Exception]]]:
    yield "no tar", b"\x01" * 4096, {}, UnsafeArchiveError
    yield "cut off", Tar().file("a", b"1" * 5000).build()[:2048], {}, UnsafeArchiveError
    yield "a bomb", Tar().file("a", bytes(80 << 20)).build(), {"ratio": 10}, UnsafeArchiveError
    yield "entries", Tar().file("a").file("b").file("c").build(), {"entries": 2}, UnsafeArchiveError
    yield "bytes", Tar().file("a", b"1" * 5000).build(), {"bytes": 4000}, UnsafeArchiveError


@pytest.mark.parametrize("packing", PACKINGS[1:])
@pytest.mark.parametrize(("tar", "limits", "error"), [pytest.param(*case[1:], id=case[0]) for case in hostile()])
def test_what_is_no_layer_is_refused_by_one_error_and_leaves_nothing(
    images: Images,
    state: Path,
    root: Path,
    database: Database,
    tar: bytes,
    limits: dict[str, int],
    error: type[Exception],
    packing: Packing,
) -> None:
    del state
    built = build_image([Tar().file("good", b"1").build(), tar])
    with pyctrd.Engine() as engine:
        before = pulled(engine, images, built, unpack=False)
    stood = store_of(root, database)
    with pyctrd.Engine(limits=pyctrd.Limits(**limits)) as engine:
        with pytest.raises(error, match=before.manifest.layers[1].digest.hex):
            engine.images.convert(before.name, TARGET, compression=packing)
        assert engine.images.find(TARGET) is None
        assert store_of(root, database) == stood


def test_a_blob_that_was_damaged_gives_no_layer(
    engine: pyctrd.Engine, images: Images, root: Path, database: Database
) -> None:
    before = pulled(engine, images, build_image([busybox_tar()], compression="none"))
    path = blob_path(root, str(before.manifest.layers[0].digest))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    stood = store_of(root, database)
    with pytest.raises(DigestMismatchError):
        engine.images.convert(before.name, TARGET, compression="zstd:chunked")
    assert store_of(root, database) == stood


def test_a_tenant_is_charged_for_what_is_made_and_refused_what_is_too_much(
    engine: pyctrd.Engine, images: Images, root: Path, database: Database
) -> None:
    before = pulled(engine, images, build_image([Tar().file("f", random.Random(3).randbytes(200_000)).build()]))
    charged = database.usage.charged("default")
    engine.namespaces.set("default", quota=charged + 100_000)
    stood = store_of(root, database)
    with pytest.raises(QuotaError):
        engine.images.convert(before.name, TARGET, compression="zstd")
    assert store_of(root, database) == stood
    engine.namespaces.set("default", quota=charged + 300_000)
    image = engine.images.convert(before.name, TARGET, compression="zstd")
    made = image.manifest.layers[0].size + len(blob_path(root, image.manifest_digest).read_bytes())
    assert database.usage.charged("default") == charged + made


def test_an_event_tells_of_it(engine: pyctrd.Engine, images: Images) -> None:
    before = engine.images.pull(images.tree.reference)
    image = engine.images.convert(before.name, TARGET, compression="none")
    told = [event for event in engine.events(follow=False) if event.type == "image"][-1]
    assert (told.action, told.name, told.attributes["by"]) == ("created", image.name, "convert")
    assert told.attributes["digest"] == image.digest


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        (TARGET, {"compression": "bzip2"}, "invalid compression: 'bzip2': expected gzip, zstd, zstd:chunked, none"),
        (TARGET, {"compression": "gzip", "level": 10}, "invalid level: 10: gzip has 1 to 9"),
        (TARGET, {"compression": "zstd", "level": 0}, "invalid level: 0: zstd has 1 to 19"),
        (TARGET, {"compression": "zstd:chunked", "level": 20}, "invalid level: 20: zstd:chunked has 1 to 19"),
        (TARGET, {"compression": "none", "level": 1}, "invalid level: 1: 'none' has no levels"),
        ("local/x@sha256:" + "0" * 64, {}, "a new image has no digest yet"),
        ("local/X:1", {}, "invalid reference"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_at_once(
    engine: pyctrd.Engine, images: Images, target: str, options: dict[str, Any], words: str
) -> None:
    before = engine.images.pull(images.tree.reference)
    with pytest.raises(InvalidError, match=words):
        engine.images.convert(before.name, target, **options)
    with pytest.raises(NotFoundError, match="image not found: local/none"):
        engine.images.convert("local/none:1", TARGET)


class _EnoughError(Exception):
    """What a caller raises who has had enough."""


def test_a_conversion_that_is_given_up_leaves_nothing(
    engine: pyctrd.Engine, images: Images, root: Path, database: Database
) -> None:
    noise = random.Random(11)
    tars = [Tar().file(f"f-{number}", noise.randbytes(4 << 20)).build() for number in range(3)]
    before = pulled(engine, images, build_image(tars))
    stood = store_of(root, database)
    states: set[str] = set()

    def progress(told: pyctrd.PullProgress) -> None:
        states.update(layer.state for layer in told.layers)
        if told.layers:
            raise _EnoughError

    with pytest.raises(_EnoughError):
        engine.images.convert(before.name, TARGET, compression="gzip", level=9, progress=progress)
    assert "converting" in states or "done" in states
    assert store_of(root, database) == stood
    assert engine.images.find(TARGET) is None
    told: list[pyctrd.PullProgress] = []
    engine.images.convert(before.name, TARGET, compression="zstd", progress=told.append)
    assert [layer.state for layer in told[-1].layers] == ["done"] * 3
    assert all(layer.received_bytes == layer.size_bytes for layer in told[-1].layers)


CONVERTER = """
import sys, pyctrd
with pyctrd.Engine() as engine:
    print("ready", flush=True)
    def progress(told):
        if told.layers:
            print("on", flush=True)
    engine.images.convert(sys.argv[1], sys.argv[2], compression="gzip", level=9, progress=progress)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_converter_that_is_killed_leaves_nothing_behind(
    images: Images, state: Path, root: Path, database: Database, number: signal.Signals
) -> None:
    del state
    built = build_image([Tar().file("f", random.Random(12).randbytes(24 << 20)).build()], compression="none")
    with pyctrd.Engine() as engine:
        before = pulled(engine, images, built)
    stood = store_of(root, database)
    with Child(CONVERTER, before.name, TARGET) as child:
        assert child.hear() == "ready"
        assert child.hear() == "on"
        os.kill(child.pid, number)
        child.wait()
    with pyctrd.Engine() as engine:
        assert engine.images.find(TARGET) is None
        assert store_of(root, database) == stood
        assert engine.check(digests=True) == []


def test_the_command_prints_the_digest_and_has_the_levels(cli: Cli, images: Images, root: Path) -> None:
    reference = images.tree.reference
    assert cli("pull", "-q", reference).status == 0
    done = cli("convert", "--compression", "zstd:chunked", reference, TARGET)
    assert (done.status, done.out.count("\n")) == (0, 1)
    assert done.err == ""
    (told,) = cli("--json", "convert", "--compression", "zstd", "--level", "1", reference, "local/json:1").lines
    assert {layer["media_type"].rpartition("+")[2] for layer in told["layers"]} == {"zstd"}
    assert told["name"] == "docker.io/local/json:1"
    assert cli("images", "-q").out.count("local/") == 2
    wrong = cli("convert", "--level", "77", reference, TARGET)
    assert (wrong.status, wrong.err.splitlines()[0]) == (1, "pyctrd: invalid level: 77: gzip has 1 to 9")
    assert cli("convert", "--compression", "lzma", reference, TARGET).status == 2
    del root


def test_the_layers_digest_is_what_the_manifest_says(engine: pyctrd.Engine, images: Images, root: Path) -> None:
    image = engine.images.convert(engine.images.pull(images.busybox.reference).name, TARGET, compression="zstd:chunked")
    assert [sha256(blob) for blob in contents_of(root, image)] == [str(layer.digest) for layer in image.manifest.layers]
