"""Unpack: a layer from memory into a directory, beside GNU tar, Python's tarfile, umoci, and the limit.

``PYCTRD_CORPUS`` names a folder of OCI layouts, each with a tag ``latest``: then every layer of theirs is measured, not
a layer of this machine's own files. The limit is what no unpacker can go below: each file of the layer created, its
bytes written, nothing read, parsed, digested or given an attribute. As root each layer is unpacked on an ext4 of its
own, where nothing was deleted before: on a disk in use the same work differs threefold.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyctrd
from benches.conftest import Measure
from benches.peers.disk import fresh_disk
from tests.images import Blob, BuiltImage, build_image

Fresh = Callable[[], Path]
pytestmark = [pytest.mark.root, pytest.mark.benchmark(group="unpack")]
CORPUS = os.environ.get("PYCTRD_CORPUS", "")
OWN = ("gzip", "zstd", "none")
MEMORY = Path("/dev/shm")
SHORT_DIGITS = 8
# Trees of a layer that stay until its disk goes: five tools' rounds and warm-ups, and umoci's copies of the blob.
TREES = 32
SPARE_GIB = 6  # for the inodes that come with them: layers of small files have 6,000 in 30 MB
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5"
PROGRAMS = {GZIP: ("gzip", "-dc"), ZSTD: ("zstd", "-dc")}
MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Subject:
    """A layer in memory, as it is transferred and uncompressed."""

    layer: Path
    tar: Path

    @property
    def size(self) -> int:
        """Bytes of the tar: what all of them have to write."""
        return self.tar.stat().st_size


def _corpus() -> dict[str, Path]:
    """The layers of a folder of layouts, by image, number and digest; one that several images have once."""
    found: dict[Path, str] = {}
    for index in sorted(Path(CORPUS).glob("*/index.json")):
        blobs = index.parent / "blobs"
        digest = json.loads(index.read_bytes())["manifests"][0]["digest"]
        manifest = json.loads((blobs / digest.replace(":", "/")).read_bytes())
        for number, layer in enumerate(manifest["layers"]):
            algorithm, _, digits = layer["digest"].partition(":")
            name = f"{index.parent.name}-{number}-{digits[:SHORT_DIGITS]}"
            known = {path.name for path in found}
            if digits not in known:
                found[blobs / algorithm / digits] = name
    return {name: path for path, name in found.items()}


LAYERS = _corpus() if CORPUS else {}


@pytest.fixture(scope="module", params=list(LAYERS) or OWN)
def subject(request: pytest.FixtureRequest, built: dict[str, BuiltImage]) -> Iterator[Subject]:
    directory = MEMORY if MEMORY.is_dir() else Path("/tmp")
    layer, tar = directory / f"bench-{os.getpid()}-layer", directory / f"bench-{os.getpid()}-tar"
    try:
        if CORPUS:
            layer.write_bytes(LAYERS[request.param].read_bytes())
        else:
            layer.write_bytes(built[request.param].layers[0].content)
        tar.write_bytes(_expanded(layer))
        yield Subject(layer, tar)
    finally:
        layer.unlink(missing_ok=True)
        tar.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def disk(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For one layer; a directory where nothing can be mounted."""
    directory = tmp_path_factory.mktemp("disk")
    if os.geteuid() != 0:
        yield directory
        return
    with fresh_disk(directory, size_gib=(TREES * subject.size >> 30) + SPARE_GIB) as mounted:
        yield mounted


@pytest.fixture
def fresh(disk: Path, request: pytest.FixtureRequest) -> Fresh:
    """Names that are not there yet. What the tool before has written is on the disk: its write-back is not ours."""
    os.sync()
    numbers = itertools.count()
    return lambda: disk / f"{request.function.__name__}-{next(numbers)}"


def test_pyctrd(measure: Measure, fresh: Fresh, subject: Subject) -> None:
    measure(lambda dest: pyctrd.unpack(subject.layer, dest), size=subject.size, fresh=fresh)


def test_gnu_tar(measure: Measure, fresh: Fresh, subject: Subject) -> None:
    def work(dest: Path) -> None:
        dest.mkdir()
        command = ["tar", "-x", "-f", str(subject.layer), "-C", str(dest), "--numeric-owner", "--xattrs"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)  # it tells of whiteouts' times

    measure(work, size=subject.size, fresh=fresh)


def test_python_tarfile(measure: Measure, fresh: Fresh, subject: Subject) -> None:
    """Of the uncompressed tar: CPython 3.11 reads no zstd."""

    def work(dest: Path) -> None:
        with tarfile.open(subject.tar) as tar:
            tar.extractall(dest, numeric_owner=True, filter="tar")

    measure(work, size=subject.size, fresh=fresh)


def test_limit(measure: Measure, fresh: Fresh, subject: Subject) -> None:
    with tarfile.open(subject.tar) as tar:
        files = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    content = subject.tar.read_bytes()

    def work(dest: Path) -> None:
        dest.mkdir()
        directories: dict[str, int] = {}
        for name, offset, size in files:
            parent, _, base = name.rpartition("/")
            if parent not in directories:
                (dest / parent).mkdir(parents=True, exist_ok=True)
                directories[parent] = os.open(dest / parent, os.O_RDONLY | os.O_DIRECTORY)
            descriptor = os.open(base, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=directories[parent])
            with memoryview(content)[offset : offset + size] as data:
                os.write(descriptor, data)
            os.close(descriptor)
        for descriptor in directories.values():
            os.close(descriptor)

    measure(work, size=subject.size, fresh=fresh)


def test_umoci(measure: Measure, fresh: Fresh, subject: Subject, tmp_path: Path) -> None:
    """Of an image with this layer alone."""
    magic = _magic(subject.layer)
    if magic == ZSTD:
        pytest.skip("umoci 0.4 reads no zstd")
    image = build_image([subject.tar.read_bytes()], compression="none")
    layer = Blob(f"{MEDIA_TYPE}+gzip" if magic == GZIP else MEDIA_TYPE, subject.layer.read_bytes())
    image.with_diff_ids([image.layers[0].digest], layers=[layer]).write_layout(tmp_path / "layout")

    def work(dest: Path) -> None:
        command = ["umoci", "unpack", "--image", f"{tmp_path}/layout:latest", str(dest)]
        subprocess.run(command, check=True, capture_output=True)

    measure(work, size=subject.size, fresh=fresh)


def _expanded(layer: Path) -> bytes:
    magic = _magic(layer)
    if magic not in PROGRAMS:
        return layer.read_bytes()
    with layer.open("rb") as file:
        return subprocess.run(PROGRAMS[magic], stdin=file, stdout=subprocess.PIPE, check=True).stdout


def _magic(layer: Path) -> bytes:
    with layer.open("rb") as file:
        return file.read(2)
