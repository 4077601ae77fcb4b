"""Layouts and archives of part M: what a stranger may put into them, and that nothing outside of them is read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import (
    DigestMismatchError,
    InvalidError,
    NotFoundError,
    PyctrdError,
    SizeMismatchError,
    UnsafeArchiveError,
)
from pyctrd.oci.media_types import OCI_MANIFEST
from tests.archives import Tar, compress_zstd, header
from tests.hostile.documents import CONFIG, GOOD, LAYER, TAR, ZEROS, dump, layer, leftovers, manifest
from tests.images import Blob

pytestmark = pytest.mark.root

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
TEN_GIB = 10 << 30
# What a layout is made of: content by name, or a function that makes something else there.
Special = Callable[[Path], None]
Content = bytes | Special | None


def blob_name(blob: Blob) -> str:
    return f"blobs/{blob.digest.replace(':', '/')}"


def index(target: Blob = GOOD.manifest, **changes: Any) -> bytes:
    described = target.descriptor | {"annotations": {"org.opencontainers.image.ref.name": "local/image:1"}} | changes
    return dump({"schemaVersion": 2, "manifests": [described]})


GOOD_LAYOUT: Mapping[str, bytes] = {
    "oci-layout": LAYOUT,
    "index.json": index(),
    **{blob_name(blob): blob.content for blob in (GOOD.manifest, CONFIG, LAYER)},
}


@dataclass(frozen=True)
class Case:
    """A source that is refused.

    Attributes:
        changes: Files of the good layout that are otherwise; None for one that is not there.
        error: The class that says so.
        told: A part of the message.
    """

    changes: Mapping[str, Content]
    error: type[PyctrdError]
    told: str


def of_manifest(changed: Blob, error: type[PyctrdError], told: str) -> Case:
    """Another manifest, under its own digest."""
    return Case({"index.json": index(changed), blob_name(changed): changed.content}, error, told)


def links_to(target: str | Path) -> Special:
    return lambda path: path.symlink_to(target)


def link_outside(blob: Blob) -> Special:
    """A link to the right bytes, elsewhere: it would do no harm to follow it, but for the next one."""

    def make(path: Path) -> None:
        outside = path.parents[len(Path(blob_name(blob)).parents) - 1].with_name("outside")
        outside.mkdir(exist_ok=True)
        (outside / "victim").write_bytes(blob.content)
        path.symlink_to(outside / "victim")

    return make


def link_within(path: Path) -> None:
    path.with_name("real").write_bytes(LAYER.content)
    path.symlink_to("real")


OUTSIDE = f"sha256:../../../outside/{ZEROS}"
BOTH: dict[str, Case] = {
    "index-digest-leads-out": Case({"index.json": index(digest=OUTSIDE)}, InvalidError, "manifests[0].digest"),
    "layer-digest-leads-out": of_manifest(
        manifest(layers=[layer(digest="sha256:../../outside/victim")]), InvalidError, "layers[0].digest"
    ),
    "layer-digest-of-no-algorithm": of_manifest(
        manifest(layers=[layer(digest=f"blobs:{ZEROS}")]), InvalidError, "layers[0].digest"
    ),
    "manifest-bytes-differ": Case(
        {blob_name(GOOD.manifest): GOOD.manifest.content.replace(b"2", b"3", 1)}, DigestMismatchError, GOOD.digest
    ),
    "config-bytes-differ": Case(
        {blob_name(CONFIG): CONFIG.content.replace(b"2", b"3", 1)}, DigestMismatchError, CONFIG.digest
    ),
    "layer-bytes-differ": Case({blob_name(LAYER): bytes(len(LAYER.content))}, DigestMismatchError, LAYER.digest),
    "manifest-is-longer": Case(
        {blob_name(GOOD.manifest): GOOD.manifest.content + b" "}, SizeMismatchError, GOOD.digest
    ),
    "layer-is-longer": Case({blob_name(LAYER): LAYER.content + b"x"}, SizeMismatchError, LAYER.digest),
    "layer-is-shorter": Case({blob_name(LAYER): LAYER.content[:-1]}, SizeMismatchError, LAYER.digest),
    "manifest-is-missing": Case({blob_name(GOOD.manifest): None}, NotFoundError, GOOD.digest),
    "config-is-missing": Case({blob_name(CONFIG): None}, NotFoundError, CONFIG.digest),
    "layer-is-missing": Case({blob_name(LAYER): None}, NotFoundError, LAYER.digest),
    "layer-is-a-link-out": Case({blob_name(LAYER): link_outside(LAYER)}, InvalidError, blob_name(LAYER)),
    "layer-is-a-link-within": Case({blob_name(LAYER): link_within}, InvalidError, blob_name(LAYER)),
    "layer-is-a-link-to-nowhere": Case({blob_name(LAYER): links_to("/nowhere")}, InvalidError, blob_name(LAYER)),
    "config-is-a-link-to-the-host": Case({blob_name(CONFIG): links_to("/etc/passwd")}, InvalidError, blob_name(CONFIG)),
    "layer-is-a-fifo": Case({blob_name(LAYER): os.mkfifo}, InvalidError, blob_name(LAYER)),
    "index-is-a-link": Case({"index.json": links_to("/etc/passwd")}, InvalidError, "index.json"),
    "index-is-a-fifo": Case({"index.json": os.mkfifo}, InvalidError, "index.json"),
    "layout-file-is-missing": Case({"oci-layout": None}, NotFoundError, "oci-layout"),
    "index-is-missing": Case({"index.json": None}, NotFoundError, "index.json"),
    "index-is-of-two-types": Case({"index.json": index()[:-1] + b',"layers":[]}'}, InvalidError, "layers"),
    "index-names-a-name-twice": Case({"index.json": index()[:-1] + b',"manifests":[]}'}, InvalidError, "manifests"),
    "index-names-another-type": Case(
        {"index.json": index(mediaType=OCI_MANIFEST.replace("manifest", "index"))}, InvalidError, "reads as"
    ),
    "manifest-is-said-to-be-10-gib": Case({"index.json": index(size=TEN_GIB)}, SizeMismatchError, GOOD.digest),
    "name-is-none": Case(
        {"index.json": index(annotations={"org.opencontainers.image.ref.name": "../../x:\x1b[31m"})},
        InvalidError,
        "invalid reference",
    ),
    "name-lies": Case(
        {"index.json": index(annotations={"io.containerd.image.name": f"local/image@sha256:{ZEROS}"})},
        InvalidError,
        f"the image is {GOOD.digest}",
    ),
}


def write_directory(directory: Path, changes: Mapping[str, Content]) -> Path:
    """The good layout with changes."""
    files: dict[str, Content] = {**GOOD_LAYOUT, **changes}
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            content(path)
    return directory


def sources(layout: Path, way: str) -> Path:
    """A layout as it is handed over: a directory, a tar, or a tar that comes once."""
    if way == "directory":
        return layout
    archive = layout.with_name(f"{layout.name}.tar")
    names = sorted(path.name for path in layout.iterdir())
    subprocess.run(["tar", "-C", str(layout), "-cf", str(archive), *names], check=True)
    if way == "zstd":
        archive.write_bytes(compress_zstd(archive.read_bytes()))
    return archive


def refuse(engine: pyctrd.Engine, source: Path, error: type[Exception], told: str) -> None:
    """Load what must not come in, and look at what that leaves."""
    with pytest.raises(error) as caught:
        engine.images.load(source)
    message = str(caught.value)
    assert told in message
    assert message.isprintable(), message
    assert len(message) < 1000
    assert leftovers(engine) == []


def load_good(engine: pyctrd.Engine, directory: Path) -> None:
    """A good layout of the same name comes in: nothing that was refused stands in its way."""
    (image,) = engine.images.load(write_directory(directory, {}))
    assert image.read_file("/d/f") == b"content"
    assert engine.check(digests=True) == []


@pytest.mark.parametrize("way", ["directory", "tar", "zstd"])
@pytest.mark.parametrize("name", BOTH)
def test_m29_a_layout_that_lies_or_leads_out_is_refused(
    name: str, way: str, engine: pyctrd.Engine, tmp_path: Path
) -> None:
    case = BOTH[name]
    layout = write_directory(tmp_path / "layout", case.changes)
    refuse(engine, sources(layout, way), case.error, case.told)
    load_good(engine, tmp_path / "good")


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256"])
def test_m29_a_directory_on_the_way_to_a_blob_may_be_no_link(part: str, engine: pyctrd.Engine, tmp_path: Path) -> None:
    layout = write_directory(tmp_path / "layout", {})
    (layout / part).rename(tmp_path / "elsewhere")
    (layout / part).symlink_to(tmp_path / "elsewhere")
    refuse(engine, layout, InvalidError, "symbolic link")


def layout_tar() -> Tar:
    tar = Tar()
    for name, content in GOOD_LAYOUT.items():
        tar.file(name, content)
    return tar


TARS: dict[str, tuple[Tar, str]] = {
    "blob-twice": (layout_tar().file(blob_name(LAYER), b"other"), "twice"),
    "blob-twice-by-another-spelling": (layout_tar().file(f"./{blob_name(LAYER)}", LAYER.content), "twice"),
    "index-twice": (layout_tar().file("index.json", b"{}"), "twice"),
    "a-name-is-absolute": (layout_tar().file("/etc/cron.d/x", b"x"), "leads out"),
    "a-name-goes-up": (layout_tar().file("../outside", b"x"), "leads out"),
    "a-name-goes-up-within": (layout_tar().file("blobs/../../outside", b"x"), "leads out"),
    "a-name-with-control-characters-twice": (layout_tar().file("\x1b[2J", b"").file("\x1b[2J", b""), "twice"),
    "a-blob-is-a-hard-link": (
        Tar()
        .file("oci-layout", LAYOUT)
        .file("index.json", index())
        .file(blob_name(GOOD.manifest), GOOD.manifest.content)
        .file(blob_name(CONFIG), CONFIG.content)
        .file("real", LAYER.content)
        .hardlink(blob_name(LAYER), "real"),
        "hardlink",
    ),
    "a-document-is-sparse": (
        Tar().file("oci-layout", LAYOUT).sparse("index.json", 4096, [(0, index().ljust(512))]),
        "sparse",
    ),
    "a-directory-of-its-name": (Tar().file("oci-layout", LAYOUT).directory("index.json"), "index.json"),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", TARS)
def test_m29_names_in_a_tar_stand_once_and_stay_inside(
    name: str, pack: Callable[[bytes], bytes], engine: pyctrd.Engine, tmp_path: Path
) -> None:
    tar, told = TARS[name]
    archive = tmp_path / "archive"
    archive.write_bytes(pack(tar.build()))
    refuse(engine, archive, PyctrdError, told)
    load_good(engine, tmp_path / "good")


DOCKER: dict[str, tuple[dict[str, Any], str]] = {
    "config-of-the-host": ({"Config": "/etc/passwd"}, "/etc/passwd"),
    "config-above": ({"Config": "../../etc/passwd"}, "etc/passwd"),
    "layer-of-the-host": ({"Layers": ["/etc/passwd"]}, "/etc/passwd"),
    "layer-is-a-link-out": ({"Layers": ["out/layer.tar"]}, "out/layer.tar"),
    "layer-is-a-link-up": ({"Layers": ["up/layer.tar"]}, "up/layer.tar"),
    "layer-is-a-link-to-a-link": ({"Layers": ["twice/layer.tar"]}, "no regular file"),
    "layer-with-control-characters": ({"Layers": ["\x1b[2J\n"]}, "blob not found"),
    "name-is-none": ({"RepoTags": ["../../x"]}, "invalid reference"),
    "name-is-no-text": ({"RepoTags": [7]}, "RepoTags[0]"),
    "more-layers-than-diff-ids": ({"Layers": ["layer.tar", "layer.tar"]}, "Layers"),
    "no-config": ({"Config": None}, "Config"),
}


@pytest.mark.parametrize("name", DOCKER)
def test_m29_a_docker_archive_names_its_own_files_alone(name: str, engine: pyctrd.Engine, tmp_path: Path) -> None:
    changes, told = DOCKER[name]
    entry = {"Config": "config", "RepoTags": ["local/image:1"], "Layers": ["layer.tar"]} | changes
    tar = Tar().file("config", CONFIG.content).file("layer.tar", TAR).symlink("out/layer.tar", "/etc/passwd")
    tar.symlink("up/layer.tar", "../../layer.tar").symlink("twice/layer.tar", "../twice/again")
    tar.symlink("twice/again", "../layer.tar").file("manifest.json", dump([entry]))
    archive = tmp_path / "archive"
    archive.write_bytes(tar.build())
    refuse(engine, archive, PyctrdError, told)
    load_good(engine, tmp_path / "good")


@pytest.mark.parametrize("document", ["index.json", "manifest.json", "oci-layout"])
def test_m30_a_document_of_10_gib_is_not_read(document: str, engine: pyctrd.Engine, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with archive.open("wb") as file:
        file.write(header(document.encode(), size=TEN_GIB))
        file.truncate(TEN_GIB + 1024)
    refuse(engine, archive, InvalidError, str(TEN_GIB))
    if document != "manifest.json":
        layout = write_directory(tmp_path / "layout", {})
        with (layout / document).open("r+b") as file:
            file.truncate(TEN_GIB)
        refuse(engine, layout, InvalidError, str(TEN_GIB))


def test_m30_a_manifest_of_10_gib_is_not_read(engine: pyctrd.Engine, tmp_path: Path) -> None:
    layout = write_directory(tmp_path / "layout", {"index.json": index(size=TEN_GIB)})
    with (layout / blob_name(GOOD.manifest)).open("r+b") as file:
        file.truncate(TEN_GIB)
    refuse(engine, layout, InvalidError, str(TEN_GIB))


# Of the stream, the header comes, and then zeros for as long as somebody reads.
ENDLESS = """
import os, sys
os.write(1, bytes.fromhex(sys.argv[1]))
try:
    while True:
        os.write(1, bytes(65536))
except BrokenPipeError:
    pass
"""


@pytest.mark.parametrize(
    ("name", "size", "error", "told"),
    [
        ("index.json", TEN_GIB, InvalidError, str(TEN_GIB)),
        ("large", TEN_GIB, UnsafeArchiveError, "over the limit bytes="),
        ("empty", 0, UnsafeArchiveError, "follow the end"),
    ],
)
def test_m30_a_stream_without_end_is_refused_early(
    name: str, size: int, error: type[Exception], told: str, tmp_path: Path
) -> None:
    del tmp_path
    words = [sys.executable, "-c", ENDLESS, header(name.encode(), size=size).hex()]
    with (
        pyctrd.Engine(limits=pyctrd.Limits(bytes=1 << 30)) as engine,
        subprocess.Popen(words, stdout=subprocess.PIPE) as sender,
    ):
        assert sender.stdout is not None
        with sender.stdout as stream, pytest.raises(error, match=told):
            engine.images.load(stream)
        assert leftovers(engine) == []


def test_m30_members_without_number_are_refused(engine: pyctrd.Engine, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    blocks = [header(b"%07d" % number) for number in range(40_000)]
    archive.write_bytes(b"".join(blocks) + bytes(1024))
    refuse(engine, archive, InvalidError, "too many members")


def test_m30_few_bytes_that_come_to_many_are_refused(engine: pyctrd.Engine, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    made = header(b"member", size=1 << 30)
    words = ["zstd", "-q", "-o", str(archive)]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as packing:
        assert packing.stdin is not None
        packing.stdin.write(made)
        for _ in range(256):
            packing.stdin.write(bytes(1 << 20))
    refuse(engine, archive, UnsafeArchiveError, "ratio")


def test_every_document_of_a_good_layout_is_needed(engine: pyctrd.Engine, tmp_path: Path) -> None:
    load_good(engine, tmp_path / "layout")
    assert json.loads(GOOD_LAYOUT["index.json"])["manifests"][0]["digest"] == engine.images.list()[0].digest
