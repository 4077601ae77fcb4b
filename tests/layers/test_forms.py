"""Each form of the tar format means the same in every way of unpacking, however it is compressed and cut."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from tests.archives import Tar, compress_gzip, compress_zstd, header, padded, zstd_skippable
from tests.layers.forms import ENDS, FORMS
from tests.layers.model import Entry, Layer
from tests.layers.ways import WAYS, check, compare, digest_of, expected_tree, ingest, unpacked
from tests.trees import read_tree

pytestmark = pytest.mark.root


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORMS)
def test_a_form_means_what_it_says(name: str, way: str, tmp_path: Path) -> None:
    check(way, [FORMS[name]()], tmp_path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ENDS)
def test_an_archive_may_end_in_any_of_these_ways(end: str, way: str, tmp_path: Path) -> None:
    tar = header(b"f", size=3) + padded(b"abc") + ENDS[end]
    layer = Layer().say(Entry(b"f", content=b"abc"))
    with unpacked(way, [tar], tmp_path) as target:
        assert compare(way, expected_tree([layer]), read_tree(target)) == []


def test_a_tree_of_a_thousand_levels_is_made_and_removed(tmp_path: Path) -> None:
    layer = Layer().file("/".join(["d"] * 1000) + "/f", b"deep")
    try:
        for way in WAYS:
            check(way, [layer], tmp_path)
    finally:
        # Python's own removal stops at its limit of recursion.
        for name in [path.name for path in tmp_path.iterdir()]:
            _core.remove_tree(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def members(tar: bytes) -> Iterator[bytes]:
    """A gzip member for each piece, empty pieces and optional header fields among them."""
    cut = random.Random(3)
    at = 0
    while at < len(tar):
        length = cut.choice((0, 1, 511, 512, 5000))
        yield gzip.compress(tar[at : at + length], 1, mtime=0)
        at += length
    # FEXTRA, FNAME, FCOMMENT and FHCRC set; then deflate's empty block and its trailer.
    yield b"\x1f\x8b\x08\x1e\0\0\0\0\0\xff" + b"\x03\0abc" + b"name\0" + b"comment\0" + b"\0\0" + b"\x03\0" + bytes(8)


def frames(tar: bytes) -> bytes:
    cut = len(tar) // 3
    pieces = (tar[:cut], b"", tar[cut : 2 * cut], tar[2 * cut :])
    return zstd_skippable(b"a table of contents") + b"".join(
        compress_zstd(piece) + zstd_skippable(bytes(n)) for n, piece in enumerate(pieces)
    )


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda tar: tar,
    "gzip": compress_gzip,
    "gzip-members": lambda tar: b"".join(members(tar)),
    "gzip-padded": lambda tar: compress_gzip(tar) + bytes(1000),
    "zstd": compress_zstd,
    "zstd-frames": frames,
}


@pytest.fixture(scope="module")
def rich() -> Layer:
    """Everything in one layer, with content that compresses and content that does not."""
    layer = FORMS["everything-of-an-entry"]()
    layer.file("zeros", bytes(3 << 20)).file("noise", random.Random(1).randbytes(1 << 20))
    return layer.sparse("sparse", 1 << 20, [(512, b"x" * 512), (700_000, b"y" * 100)])


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compression_changes_nothing(compression: str, rich: Layer, tmp_path: Path) -> None:
    tar = rich.build()
    blob = COMPRESSIONS[compression](tar)
    tree = expected_tree([rich])
    (tmp_path / "layer").write_bytes(blob)
    done = pyctrd.unpack(tmp_path / "layer", tmp_path / "merged", diff_id=digest_of(tar), digest=digest_of(blob))
    assert (done.compression, done.size) == (compression.partition("-")[0].replace("plain", "none"), len(blob))
    assert compare("merge", tree, read_tree(tmp_path / "merged")) == []
    (tmp_path / "store").mkdir()
    ref = ingest(tmp_path / "store", blob, tar=tar)
    assert compare("overlayfs", tree, read_tree(ref.path / "tree")) == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("length", [1, 3, 511, 513])
def test_the_blob_may_come_in_pieces_of_any_length(compression: str, length: int, tmp_path: Path) -> None:
    tar = Tar().directory("d").file("d/f", b"content" * 100).symlink("d/s", "f").build()
    blob = COMPRESSIONS[compression](tar)
    one = _core.Ingest(tmp_path, "pieces", digest=digest_of(blob), size=len(blob), diff_id=digest_of(tar), unpack=True)
    for at in range(0, len(blob), length):
        one.write(blob[at : at + length])
    done = one.finish()
    assert done.compression == compression.partition("-")[0].replace("plain", "none")
    assert done.layer_entries == 3
    one.abort()


def test_holes_stay_holes(tmp_path: Path) -> None:
    layer = Layer().sparse("sparse", 64 << 20, [(32 << 20, b"middle" * 512)])
    for way in WAYS:
        with unpacked(way, [layer.build()], tmp_path) as target:
            # Of what is an object, the image knows the size alone until somebody opens it.
            found = (target / "sparse").open("rb")
            assert os.lseek(found.fileno(), 0, os.SEEK_DATA) == 32 << 20
            assert os.lseek(found.fileno(), 32 << 20, os.SEEK_HOLE) < 33 << 20
            found.close()
