"""An unpacked layer gives its tar again, bit for bit, or says why it cannot; never another one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.errors import DiffIDMismatchError, InvalidError, NotFoundError, PyctrdError
from tests.archives import Tar, header, padded
from tests.images import Images, build_image
from tests.layers.forms import FORMS
from tests.layers.model import Layer
from tests.layers.ways import digest_of, ingest

pytestmark = pytest.mark.root

# Content that stands nowhere in the tree: replaced, hidden or never written.
LOST: dict[str, Callable[[], bytes]] = {
    "a-file-that-was-replaced": lambda: Tar().file("f", b"first" * 1000).file("f", b"second").build(),
    "a-file-whose-directory-was-replaced": lambda: Tar().file("d/f", b"first").symlink("d", "/e").build(),
    "a-file-that-a-directory-replaced": lambda: Tar().file("x", b"was a file").directory("x").file("x/y").build(),
    "a-file-that-lives-on-as-its-link": lambda: Tar().file("a", b"one").hardlink("b", "a").file("a", b"2").build(),
    "a-file-that-was-replaced-twice": lambda: Tar().file("f", b"1").file("f", b"22").file("f", b"333").build(),
    "a-whiteout-with-bytes": lambda: header(b".wh.f", size=5) + padded(b"bytes") + bytes(1024),
    "a-reserved-name-with-bytes": lambda: header(b".wh..wh.plnk", size=3) + padded(b"abc") + bytes(1024),
    "bytes-after-the-end": lambda: Tar().file("f", b"x").build() + os.urandom(5000),
    "no-end-at-all": lambda: Tar().file("f", b"x" * 600).build()[:1536],
    "nothing-but-the-end": lambda: bytes(1024),
    "padding-that-is-not-zero": lambda: header(b"f", size=3) + b"abc" + b"\xff" * 509 + bytes(1024),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    made.mkdir()
    return made


@pytest.mark.parametrize("name", [*FORMS, *LOST])
def test_the_tar_comes_back_bit_for_bit(name: str, root: Path, tmp_path: Path) -> None:
    tar = LOST[name]() if name in LOST else FORMS[name]().build()
    layer = ingest(root, tar)
    assert _core.rebuild_layer(layer.path, layer.diff_id, tmp_path / "again.tar") == len(tar)
    assert (tmp_path / "again.tar").read_bytes() == tar
    assert _core.rebuild_layer(layer.path, layer.diff_id) == len(tar)


def test_what_gnu_tar_made_of_a_tree_comes_back(root: Path, tmp_path: Path) -> None:
    tar = subprocess.run(
        ["tar", "-c", "--sparse", "--xattrs", "--format=pax", "-C", "/", "etc"], check=True, stdout=subprocess.PIPE
    ).stdout
    layer = ingest(root, tar)
    _core.rebuild_layer(layer.path, layer.diff_id, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == tar


def test_a_file_that_is_there_is_not_written_over(root: Path, tmp_path: Path) -> None:
    layer = ingest(root, Tar().file("f", b"x").build())
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        _core.rebuild_layer(layer.path, layer.diff_id, tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda tree: (tree / "f").write_bytes(b"contenT"), DiffIDMismatchError),
        (lambda tree: (tree / "f").write_bytes(b"short"), InvalidError),
        (lambda tree: (tree / "f").unlink(), OSError),
        (lambda tree: subprocess.run(["sh", "-c", "rm f; mkfifo f"], cwd=tree, check=True), OSError),
        (lambda tree: [(tree / "f").unlink(), (tree / "f").symlink_to("/etc/passwd")], OSError),
    ],
)
def test_a_tree_that_was_changed_is_no_layer_any_more(
    change: Callable[[Path], object], error: type[Exception], root: Path
) -> None:
    layer = ingest(root, Tar().file("f", b"content").build())
    change(layer.path / "tree")
    with pytest.raises(error):
        _core.rebuild_layer(layer.path, layer.diff_id)


def test_a_damaged_frame_is_never_taken_for_a_whole_one(root: Path) -> None:
    tar = LOST["a-file-that-was-replaced"]()
    layer = ingest(root, tar)
    frame = layer.path / "frame"
    whole = frame.read_bytes()
    refused = 0
    for position in range(len(whole)):
        for damaged in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :]):
            frame.write_bytes(damaged)
            try:
                # Some bits of a zstd header mean nothing.
                assert _core.rebuild_layer(layer.path, layer.diff_id) == len(tar)
            except (PyctrdError, OSError):
                refused += 1
    assert refused > 1.9 * len(whole)
    frame.unlink()
    with pytest.raises(NotFoundError):
        _core.rebuild_layer(layer.path, layer.diff_id)


def test_the_engine_gives_the_tars_of_its_namespace_alone(images: Images, state: Path, tmp_path: Path) -> None:
    del state
    layers = [Layer().file("a", b"one").build(), Layer().file("a", b"two").whiteout("b").build()]
    pushed = images.push(build_image(layers))
    with pyctrd.Engine() as engine, pyctrd.Engine(namespace="other") as other:
        engine.images.pull(pushed.reference)
        for tar in layers:
            assert engine.content.rebuild(digest_of(tar), tmp_path / "layer.tar") == len(tar)
            assert (tmp_path / "layer.tar").read_bytes() == tar
            with pytest.raises(NotFoundError):
                other.content.rebuild(digest_of(tar), tmp_path / "theirs.tar")
        with pytest.raises(InvalidError):
            engine.content.rebuild("sha256:../..", tmp_path / "x")
    assert [path.name for path in tmp_path.glob("*.tar")] == ["layer.tar"]


@pytest.mark.parametrize(
    ("snapshotter", "size", "place"),
    [
        ("overlayfs", 7, "layers/*/*/tree/f"),
        ("composefs", 7, "layers/*/*/pack"),
        ("composefs", 7000, "objects/*/*"),
        ("erofs", 7, "layers/*/*/blocks"),
        ("erofs", 7000, "layers/*/*/blocks"),
    ],
)
def test_check_proves_layers_by_what_they_rebuild_to(
    images: Images, state: Path, tmp_path: Path, snapshotter: str, size: int, place: str
) -> None:
    del state
    pushed = images.push(build_image([Tar().file("f", b"c" * size).build()]))
    with pyctrd.Engine(snapshotter=snapshotter) as engine:
        image = engine.images.pull(pushed.reference)
        assert engine.check(digests=True) == []
        diff_id = image.config.rootfs.diff_ids[0]
        (file,) = Path(os.environ["PYCTRD_ROOT"]).glob(place)
        before = file.stat()
        with file.open("r+b") as content:
            content.seek(size - 1)
            content.write(b"C")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert engine.check() == []
        found = {(finding.kind, finding.name) for finding in engine.check(digests=True)}
        assert ("layer", str(diff_id)) in found
        with pytest.raises(DiffIDMismatchError):
            engine.content.rebuild(str(diff_id), tmp_path / "x")
    assert list(tmp_path.glob("*x*")) == []
