"""Unpack: a layer from memory into a directory, beside GNU tar, Python's tarfile, umoci, and the limit.

``PYCTRD_CORPUS`` names a folder of OCI layouts, each with a tag ``latest``: then every layer of theirs is measured, not
a layer of this machine's own files. The limit is what no unpacker can go below: each file of the layer created, its
bytes written, nothing read, parsed, digested or given an attribute.
"""

from __future__ import annotations

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
from tests.images import BuiltImage

Fresh = Callable[[], Path]
pytestmark = [pytest.mark.root, pytest.mark.benchmark(group="unpack")]
CORPUS = os.environ.get("PYCTRD_CORPUS", "")
OWN = ("gzip", "zstd", "none")
MEMORY = Path("/dev/shm")
SHORT_DIGITS = 8


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


@pytest.mark.skipif(bool(CORPUS), reason="it unpacks images, not layers")
def test_umoci(measure: Measure, fresh: Fresh, built: dict[str, BuiltImage], tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    built["gzip"].write_layout(layout)

    def work(dest: Path) -> None:
        subprocess.run(["umoci", "unpack", "--image", f"{layout}:latest", str(dest)], check=True, capture_output=True)

    measure(work, size=len(built["none"].layers[0].content), fresh=fresh)


def _expanded(layer: Path) -> bytes:
    with layer.open("rb") as file:
        magic = file.read(4)
    programs = {b"\x1f\x8b": ["gzip", "-dc"], b"\x28\xb5": ["zstd", "-dc"]}
    program = programs.get(magic[:2])
    if program is None:
        return layer.read_bytes()
    with layer.open("rb") as file:
        return subprocess.run(program, stdin=file, stdout=subprocess.PIPE, check=True).stdout
