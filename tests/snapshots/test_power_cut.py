"""What a power cut leaves of snapshots: whole, or not there, and never in the way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import pyctrd
from pyctrd.snapshots.protocol import LayerRef
from pyctrd.snapshots.store import SnapshotStore
from tests import syscalls
from tests.archives import Tar
from tests.images import Images, build_image
from tests.syscalls import Watched

WHY_UNWATCHED = syscalls.why_not()
SETTLE = """
import sys
from pathlib import Path
from pyctrd.snapshots.overlayfs import Overlayfs
from pyctrd.snapshots.protocol import LayerRef
root, *layers = map(Path, sys.argv[1:])
Overlayfs(root).settle([LayerRef(f"sha256:{layer.name}", layer) for layer in layers])
"""


@pytest.mark.root
@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
def test_all_of_a_fixup_layer_is_flushed_before_it_gets_its_name(images: Images, state: Path) -> None:
    with pyctrd.Engine(snapshotter="overlayfs") as engine:
        diff_ids = engine.images.pull(images.tree.reference).config.rootfs.diff_ids
    root = Path(os.environ["PYCTRD_ROOT"])
    (fixup,) = (root / "snapshots").glob("fixup-*")
    files = sum(path.is_file() and not path.is_symlink() for path in fixup.rglob("*"))
    assert files > 1  # layers.json, and what a layer links to below
    shutil.rmtree(fixup)
    layers = [root / "layers" / diff_id.algorithm / diff_id.hex for diff_id in diff_ids]
    flushed = []
    with Watched(SETTLE, root, *layers, calls=["fdatasync", "rename"]) as program:
        for call in program:
            if call.name == "rename" and call.path == str(fixup):
                break
            flushed.append(call.path)
            call.allow()
    assert sum("/trial-" in path for path in flushed) == files


COMPOSE = """
import sys
from pathlib import Path
from pyctrd.snapshots.composefs import Composefs
from pyctrd.snapshots.protocol import LayerRef
root, state, *layers = map(Path, sys.argv[1:])
Composefs(root, state).settle([LayerRef(f"sha256:{layer.name}", layer) for layer in layers])
"""
UNPACK = """
import sys
import pyctrd
with pyctrd.Engine(snapshotter="composefs") as engine:
    engine.images.pull(sys.argv[1])
"""


@pytest.mark.root
@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
def test_all_of_an_image_is_flushed_before_it_gets_its_name(images: Images, state: Path) -> None:
    with pyctrd.Engine(snapshotter="composefs") as engine:
        diff_ids = engine.images.pull(images.tree.reference).config.rootfs.diff_ids
    root = Path(os.environ["PYCTRD_ROOT"])
    (stack,) = (root / "snapshots").glob("stack-*")
    shutil.rmtree(stack)
    layers = [root / "layers" / diff_id.algorithm / diff_id.hex for diff_id in diff_ids]
    flushed = []
    with Watched(COMPOSE, root, state, *layers, calls=["fdatasync", "rename"]) as program:
        for call in program:
            if call.name == "rename" and call.path == str(stack):
                break
            flushed.append(Path(call.path).name)
            call.allow()
    assert sorted(flushed) == ["digest.json", "image.erofs", "layers.json"]


@pytest.mark.root
@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
@pytest.mark.parametrize(("count", "names_flushed"), [(2, "directory"), (100, "flush")])
def test_objects_are_flushed_before_they_get_names_and_these_before_a_layer_that_needs_them(
    images: Images, count: int, names_flushed: str
) -> None:
    tar = Tar()
    for number in range(count):
        tar.file(f"f{number}", b"%d" % number * 5000)
    pushed = images.push(build_image([tar.build()]))
    with pyctrd.Engine(snapshotter="composefs") as engine:
        engine.info()  # tried here, so that what is watched does not try it
    order: list[str] = []
    with Watched(UNPACK, pushed.reference, calls=["syncfs", "fsync", "renameat2"]) as program:
        for call in program:
            names = call.path.split("/")
            if call.name == "syncfs":
                order.append("flush")
            elif call.name == "fsync":
                if "objects" in names and "content" not in names:
                    order.append("directory")
            elif "objects" in names or (len(names[-1]) == 62 and len(names[-2]) == 2):
                order.append("object")
            elif "layers" in names:
                order.append("layer")
            call.allow()
    short = [what for at, what in enumerate(order) if order[at - 1 : at] != [what]]
    assert short == ["flush", "object", names_flushed, "layer"]


def test_a_record_that_was_cut_off_is_no_snapshot_and_can_be_deleted(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    path = store.create("key", "active", [LayerRef("sha256:0", tmp_path)])
    assert store.read("key") == ("active", (LayerRef("sha256:0", tmp_path),))
    (path / "snapshot.json").write_bytes(b'{"kind": "act')
    assert store.read("key") is None
    store.remove(path)
    assert not path.exists()
