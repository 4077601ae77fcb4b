"""Pulls that break off, what is kept of them then, and pulls that go on."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.errors import UnavailableError
from tests.archives import Tar
from tests.children import Child, until
from tests.content.stores import files_below
from tests.images import Blob, BuiltImage, build_image
from tests.integration.conftest import Cli
from tests.registry_faults import Answer, FaultyRegistry

BLOCK = _core.BLOCK_BYTES
SIZE = 3 * BLOCK + 1000
# Longer than a pull waits for: it ends there.
GONE = Answer(503, headers={"Retry-After": "3600"})
PULL = "import sys, pyctrd\nwith pyctrd.Engine() as engine:\n print(engine.images.pull(sys.argv[1]).digest)"


def noise(seed: int, size: int = SIZE) -> bytes:
    """Bytes that no compression makes fewer."""
    return random.Random(seed).randbytes(size)


def image_of(*layers: bytes) -> BuiltImage:
    """An image with a file in each layer, uncompressed: what is sent has these bytes in it."""
    return build_image([Tar().file(f"f{at}", content).build() for at, content in enumerate(layers)], compression="none")


def kept(root: Path) -> list[Path]:
    """What is in staging, which must be blobs' bytes and locks only."""
    names = files_below(root / "content/ingest")
    assert {Path(name).name for name in names} <= {"data", "lock"}, names
    return [root / "content/ingest" / name for name in names if name.endswith("/data")]


def ranges(faulty: FaultyRegistry, blob: Blob) -> list[str | None]:
    """From where on a blob was asked for, each time."""
    return [seen.headers.get("range") for seen in faulty.requests(f"/blobs/{blob.digest}") if seen.method == "GET"]


def cut(faulty: FaultyRegistry, built: BuiltImage, count: int, *, name: str = "app") -> str:
    """A pull whose connection breaks for good after some bytes of the first layer."""
    reference = faulty.add(built, name)
    faulty.lie(f"/v2/{name}/blobs/{built.layers[0].digest}", Answer(body=None, cut=count), GONE)
    with pyctrd.Engine() as engine, pytest.raises(UnavailableError):
        engine.images.pull(reference)
    faulty.seen.clear()
    return reference


def assert_done(cli: Cli, root: Path, reference: str, built: BuiltImage) -> None:
    """Another process brings the rest; then nothing is left of what was kept."""
    done = cli("pull", reference)
    assert (done.status, done.out) == (0, f"{built.digest}\n")
    assert (root / "content/ingest").is_dir()
    assert kept(root) == []
    assert files_below(root / "content/ingest") == []
    assert cli("check", "--digests").out == "clean\n"
    with pyctrd.Engine() as engine:
        assert engine.content.usage().reserved_bytes == 0
        for at, layer in enumerate(built.layers):
            assert engine.images.get(reference).read_file(f"/f{at}") in layer.content


def kill_in_the_middle(faulty: FaultyRegistry, root: Path, built: BuiltImage) -> str:
    """SIGKILL to a process that has two blocks of the first layer."""
    reference = faulty.add(built, "app")
    faulty.lie(
        f"/blobs/{built.layers[0].digest}", Answer(body=None, stall=threading.Event(), stall_after=2 * BLOCK + 1)
    )
    with Child(PULL, reference):
        until(lambda: any(path.stat().st_size >= 2 * BLOCK for path in kept_of_dead(root)))
    return reference


def kept_of_dead(root: Path) -> list[Path]:
    """As ``kept``, where trees may be under way."""
    return sorted((root / "content/ingest").glob("*/data"))


LAYER_SIZE = len(image_of(noise(0)).layers[0].content)
