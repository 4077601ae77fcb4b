"""Blobs and layers on disk: found, read, removed and checked by digest alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyctrd import _core
from pyctrd.content.blobs import Blobs
from pyctrd.content.layers import Layers
from pyctrd.errors import DigestMismatchError, IntegrityError, InvalidError, NotFoundError
from pyctrd.oci.digest import Digest
from tests.archives import Tar
from tests.content.stores import NewIngest, files_below, put, sha256, sha512

CONTENT = b"some bytes\n" * 1000
ABSENT = sha256(b"absent")
TAR = (
    Tar()
    .directory("d")
    .file("d/f", b"content")
    .symlink("d/s", "f")
    .hardlink("d/h", "d/f")
    .fifo("pipe")
    .whiteout("gone")
    .build()
)


@pytest.fixture
def blobs(root: Path, new_ingest: NewIngest) -> Blobs:
    """A store with the same bytes under both algorithms."""
    ingests = [new_ingest(CONTENT), new_ingest(CONTENT, digest=sha512(CONTENT))]
    for ingest in ingests:
        put(ingest, CONTENT)
    _core.publish(root, ingests, durability="none")
    return Blobs(root)


@pytest.fixture
def layers(root: Path, new_ingest: NewIngest) -> Layers:
    """A store with one layer."""
    ingest = new_ingest(TAR, diff_id=sha256(TAR), unpack=True)
    put(ingest, TAR)
    _core.publish(root, [ingest], durability="none")
    return Layers(root)


# blobs


@pytest.mark.parametrize("digest", [sha256(CONTENT), sha512(CONTENT), Digest(sha256(CONTENT))])
def test_a_blob_is_found_and_read_by_its_digest(blobs: Blobs, digest: str) -> None:
    assert blobs.exists(digest)
    assert blobs.stat(digest).size == len(CONTENT)
    assert blobs.stat(digest).digest == digest
    assert blobs.read(digest) == CONTENT
    with blobs.open(digest) as file:
        file.seek(5)
        assert file.read(5) == CONTENT[5:10]
    blobs.verify(digest)


@pytest.mark.parametrize(
    "call", [Blobs.stat, Blobs.open, Blobs.read, Blobs.verify, Blobs.delete], ids=lambda call: call.__name__
)
def test_a_blob_that_is_not_there_is_not_found(blobs: Blobs, call: Callable[[Blobs, str], object]) -> None:
    with pytest.raises(NotFoundError, match=ABSENT) as caught:
        call(blobs, ABSENT)
    assert (caught.value.kind, caught.value.name) == ("blob", ABSENT)
    assert not blobs.exists(ABSENT)
    blobs.delete(ABSENT, missing_ok=True)


@pytest.mark.parametrize("digest", ["sha256:../../victim", "../victim", f"sha256:{'A' * 64}", "", "sha256:", "md5:00"])
def test_no_text_leads_out_of_the_store(blobs: Blobs, layers: Layers, root: Path, digest: str) -> None:
    (root / "content" / "victim").write_bytes(b"x")
    for call in (blobs.path, blobs.exists, blobs.read, blobs.delete, layers.path, layers.exists, layers.delete):
        with pytest.raises(InvalidError):
            call(digest)
    assert (root / "content" / "victim").exists()


def test_blobs_of_both_algorithms_are_walked(blobs: Blobs) -> None:
    assert list(blobs.walk()) == [sha256(CONTENT), sha512(CONTENT)]
    blobs.delete(sha256(CONTENT))
    assert list(blobs.walk()) == [sha512(CONTENT)]


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    assert list(Blobs(tmp_path).walk()) == []
    assert list(Layers(tmp_path).walk()) == []
    assert not Blobs(tmp_path).exists(ABSENT)


def test_deleting_a_blob_leaves_those_who_read_it_alone(blobs: Blobs) -> None:
    with blobs.open(sha256(CONTENT)) as file:
        blobs.delete(sha256(CONTENT))
        assert file.read() == CONTENT


def test_a_flipped_bit_is_found(blobs: Blobs) -> None:
    path = blobs.path(sha256(CONTENT))
    content = bytearray(CONTENT)
    content[500] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(DigestMismatchError) as caught:
        blobs.verify(sha256(CONTENT))
    assert caught.value.actual == sha256(bytes(content))
    blobs.verify(sha512(CONTENT))


def test_what_is_no_blob_is_told_apart_and_left_alone(blobs: Blobs, root: Path) -> None:
    strangers = [
        root / "content/blobs/md5/0",
        root / "content/blobs/README",
        root / "content/blobs/sha256/README",
        root / "content/blobs/sha256" / ("A" * 64),
        root / "content/blobs/sha512" / ("a" * 64),
    ]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert list(blobs.walk()) == [sha256(CONTENT), sha512(CONTENT)]
    assert set(blobs.strays()) == {root / "content/blobs/md5", *strangers[1:]}


# layers


def test_a_layer_is_found_by_its_diff_id(layers: Layers) -> None:
    assert layers.exists(sha256(TAR))
    assert list(layers.walk()) == [sha256(TAR)]
    found = {entry.path: entry.kind for entry in layers.open_index(sha256(TAR)).walk()}
    assert found[b"d/f"] == "file"
    assert found[b"gone"] == "whiteout"
    layers.verify(sha256(TAR))


def test_a_layer_that_is_not_there_is_not_found(layers: Layers) -> None:
    for call in (layers.delete, layers.verify, layers.open_index):
        with pytest.raises(NotFoundError) as caught:
            call(ABSENT)
        assert caught.value.kind == "layer"
    layers.delete(ABSENT, missing_ok=True)


def test_deleting_a_layer_leaves_it_in_the_trash_alone(layers: Layers, root: Path) -> None:
    layers.delete(sha256(TAR))
    assert files_below(root / "layers") == []
    assert not layers.exists(sha256(TAR))
    (gone,) = (root / "trash").iterdir()
    assert (gone / "tree/d/f").exists()
    assert _core.empty_trash(root)
    assert list((root / "trash").iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda tree: (tree / "d/f").write_bytes(b"shorter"[:3]), "has 3 bytes"),
        (lambda tree: (tree / "d/s").unlink(), "is missing"),
        (lambda tree: (tree / "pipe").rename(tree / "d/s"), "is no symlink"),
        (lambda tree: (tree / "d").rename(tree / "e"), "d: is missing"),
        (lambda tree: ((tree / "d").rename(tree / "e"), (tree / "d").write_bytes(b"")), "d: is no directory"),
        (lambda tree: (tree.parent / "index").write_bytes(b"no index"), "index"),
        (lambda tree: (tree.parent / "index").unlink(), "its index is missing"),
        (lambda tree: tree.rename(tree.with_name("elsewhere")), "tree"),
    ],
)
def test_a_damaged_layer_is_found(layers: Layers, damage: Callable[[Path], object], told: str) -> None:
    damage(layers.path(sha256(TAR)) / "tree")
    with pytest.raises(IntegrityError, match=f"layer damaged: {sha256(TAR)}: .*{told}"):
        layers.verify(sha256(TAR))


def test_a_layer_cut_anywhere_in_its_index_is_damaged(layers: Layers) -> None:
    index = layers.path(sha256(TAR)) / "index"
    content = index.read_bytes()
    for length in range(len(content)):
        index.write_bytes(content[:length])
        with pytest.raises(IntegrityError):
            layers.verify(sha256(TAR))
    for at in range(0, len(content), 7):
        index.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with pytest.raises(IntegrityError):
            layers.verify(sha256(TAR))
