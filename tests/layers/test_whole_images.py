"""Whole images: each layer by itself is what GNU tar and bsdtar make of it, all of them merged what umoci does.

``PYCTRD_CORPUS`` names a folder of OCI layouts, each with a tag ``latest``, to take in place of the tests' own images.
"""

from __future__ import annotations

import filecmp
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyctrd
from demo.debian import make_image
from pyctrd import _core
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.protocol import LayerRef
from tests.images import BuiltImage, Images
from tests.layers.oracles import (
    EXTRACT,
    EXTRACT_BSD,
    PlainImage,
    as_marks,
    extract_with_tar,
    find_layouts,
    listed_again,
    listed_late,
    missing_programs,
    names_of,
    read_layout,
    unpack_with_umoci,
    with_times_of,
)
from tests.registries import Registry
from tests.trees import Facts, differences, read_tree

# Read here: no test sees PYCTRD_ variables.
CORPUS = os.environ.get("PYCTRD_CORPUS", "")
MISSING = missing_programs("umoci", "skopeo", "tar", "bsdtar", "gzip", "zstd")
OWN: dict[str, Callable[[Images], BuiltImage]] = {
    "tree": lambda images: images.tree.built,
    "tree-zstd": lambda images: images.tree_zstd.built,
    "busybox": lambda images: images.busybox.built,
    "many-layers": lambda images: images.many_layers.built,
    "debian": lambda images: make_image().image,
}
NAMES = [layout.name for layout in find_layouts(Path(CORPUS))] if CORPUS else list(OWN)

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING or "complete")]


@dataclass(frozen=True)
class Subject:
    """An image in a registry, and the same decompressed."""

    reference: str
    plain: PlainImage


@pytest.fixture(scope="module", params=NAMES)
def subject(
    request: pytest.FixtureRequest, registry: Registry, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    directory = tmp_path_factory.mktemp("subject")
    name = request.param
    if CORPUS:
        layout = Path(CORPUS, name)
    else:
        layout = directory / "layout"
        OWN[name](images).write_layout(layout)
    reference = f"{registry.host}/whole/{name}:latest"
    copy = ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", f"oci:{layout}:latest"]
    subprocess.run([*copy, f"docker://{reference}"], check=True, capture_output=True)
    yield Subject(reference, read_layout(layout, directory / "plain"))
    subprocess.run(["rm", "-rf", str(directory)], check=True)


@pytest.fixture(scope="module")
def merged(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, Facts]:
    """What umoci makes of the image."""
    target = tmp_path_factory.mktemp("umoci") / "rootfs"
    unpack_with_umoci(subject.plain, target)
    found = read_tree(target)
    subprocess.run(["rm", "-rf", str(target)], check=True)
    return found


def unlisted(subject: Subject, found: dict[bytes, Facts]) -> set[bytes]:
    return found.keys() - subject.plain.listed


@pytest.mark.parametrize("snapshotter", ["composefs", "erofs", "overlayfs"])
def test_the_pulled_image_is_what_umoci_unpacks(
    subject: Subject, merged: dict[bytes, Facts], tmp_path: Path, state: Path, snapshotter: str
) -> None:
    target = tmp_path / "mounted"
    target.mkdir()
    with pyctrd.Engine(snapshotter=snapshotter) as engine, engine.images.pull(subject.reference).mounted(target):
        actual = read_tree(target)
    assert differences(with_times_of(merged, actual, unlisted(subject, actual)), actual) == []


def test_native_copies_what_overlayfs_shows(subject: Subject, tmp_path: Path, state: Path) -> None:
    target = tmp_path / "mounted"
    target.mkdir()
    root = Path(os.environ["PYCTRD_ROOT"])
    with pyctrd.Engine(snapshotter="overlayfs") as engine, engine.images.pull(subject.reference).mounted(target):
        expected = read_tree(target)
        layers = [LayerRef(diff_id, root / "layers" / diff_id.replace(":", "/")) for diff_id in subject.plain.diff_ids]
        copied = Native(root).view("copied", layers).path
        assert copied is not None
        assert differences(expected, read_tree(copied)) == []


def test_merging_layers_one_by_one_gives_what_umoci_unpacks(
    subject: Subject, merged: dict[bytes, Facts], tmp_path: Path
) -> None:
    for tar, diff_id in zip(subject.plain.tars, subject.plain.diff_ids, strict=True):
        pyctrd.unpack(tar, tmp_path / "rootfs", diff_id=diff_id)
    actual = read_tree(tmp_path / "rootfs")
    assert differences(with_times_of(merged, actual, unlisted(subject, actual)), actual) == []


@pytest.mark.parametrize("program", [EXTRACT, EXTRACT_BSD], ids=["gnu-tar", "bsdtar"])
def test_each_layer_is_what_tar_extracts(
    subject: Subject, program: tuple[str, ...], tmp_path: Path, state: Path
) -> None:
    for tar, layer in pulled_layers(subject):
        expected_root = tmp_path / tar.name
        extract_with_tar(tar, expected_root, program=program)
        expected, actual = without_markers(read_tree(expected_root)), without_whiteouts(read_tree(layer / "tree"))
        untold = actual.keys() - names_of(tar)
        if program == EXTRACT_BSD:
            untold |= listed_late(tar)
        assert differences(with_times_of(expected, actual, untold), actual) == []
        subprocess.run(["rm", "-rf", str(expected_root)], check=True)


def test_each_layer_can_be_made_again(subject: Subject, tmp_path: Path, state: Path) -> None:
    for tar, layer in pulled_layers(subject):
        diff_id = f"sha256:{tar.name}"
        _core.rebuild_layer(layer, diff_id, tmp_path / "same")
        assert filecmp.cmp(tmp_path / "same", tar, shallow=False)
        pyctrd.diff(layer / "tree", tmp_path / "alike", compression="none")
        index = _core.LayerIndex(layer)
        assert listed_again(tmp_path / "alike", index) == as_marks(tar, index)
        (tmp_path / "same").unlink()


def pulled_layers(subject: Subject) -> Iterator[tuple[Path, Path]]:
    """Each layer's tar, and its directory in the store."""
    with pyctrd.Engine(snapshotter="overlayfs") as engine:
        engine.images.pull(subject.reference)
    for tar, diff_id in zip(subject.plain.tars, subject.plain.diff_ids, strict=True):
        yield tar, Path(os.environ["PYCTRD_ROOT"], "layers", diff_id.replace(":", "/"))


def without_markers(tree: dict[bytes, Facts]) -> dict[bytes, Facts]:
    return {name: facts for name, facts in tree.items() if not name.rpartition(b"/")[2].startswith(b".wh.")}


def without_whiteouts(tree: dict[bytes, Facts]) -> dict[bytes, Facts]:
    return {
        name: facts
        for name, facts in tree.items()
        if (facts.type, facts.device) != ("character", os.makedev(0, 0)) or stat.S_IMODE(facts.mode)
    }
