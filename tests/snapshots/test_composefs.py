"""Composefs: images that are mounted once, objects that are written once, and layers in both forms."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.errors import UnsupportedError
from pyctrd.snapshots.composefs import Composefs
from pyctrd.snapshots.imaged import IMAGE, Stacks
from pyctrd.snapshots.protocol import LayerRef
from tests.children import Child
from tests.images import Images, build_image
from tests.layers.model import SECOND_NS, Layer
from tests.layers.ways import ingest
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root

BIG = random.Random(7).randbytes(300_000)
HUGE = random.Random(8).randbytes(3 << 20)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    made.mkdir()
    return made


@pytest.fixture
def snapshotter(root: Path, state: Path) -> Iterator[Composefs]:
    opened = Composefs(root, state)
    yield opened
    for target in mounted_below(state):
        _core.unmount(Path(target), lazy=True)


def mounted_below(directory: Path) -> list[str]:
    with Path("/proc/self/mounts").open() as file:
        return [line.split()[1] for line in file if line.split()[1].startswith(f"{directory}/")]


def objects(root: Path) -> dict[str, bytes]:
    return {path.parent.name + path.name: path.read_bytes() for path in (root / "objects").glob("*/*")}


def example(*, mtime_ns: int = SECOND_NS) -> Layer:
    layer = Layer().directory("d", mtime_ns=mtime_ns).file("d/small", b"small", mtime_ns=mtime_ns)
    return layer.file("d/big", BIG, mtime_ns=mtime_ns).file("d/huge", HUGE, mode=0o4755, mtime_ns=mtime_ns)


def layers_of(root: Path, *layers: Layer) -> list[LayerRef]:
    return [ingest(root, layer.build(), form="objects") for layer in layers]


def target_in(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    return made


def test_an_image_is_mounted_once_and_goes_with_its_last_overlay(
    snapshotter: Composefs, root: Path, state: Path, tmp_path: Path
) -> None:
    layers = layers_of(root, example())
    one, two = target_in(tmp_path, "one"), target_in(tmp_path, "two")
    snapshotter.mount(snapshotter.prepare("one", layers), one)
    snapshotter.mount(snapshotter.view("two", layers), two)
    assert len(mounted_below(state)) == 1
    snapshotter.unmount(one)
    assert len(mounted_below(state)) == 1
    assert (two / "d/big").read_bytes() == BIG
    snapshotter.unmount(two)
    assert mounted_below(state) == []
    assert list((state / "mounts").glob("*/*")) == []


def test_what_a_killed_process_held_is_released_and_nothing_else(
    snapshotter: Composefs, root: Path, state: Path, tmp_path: Path
) -> None:
    live = target_in(tmp_path, "live")
    snapshotter.mount(snapshotter.prepare("live", layers_of(root, example())), live)
    gone = target_in(tmp_path, "gone")
    snapshotter.mount(snapshotter.prepare("gone", layers_of(root, Layer().file("other", BIG))), gone)
    _core.unmount(gone)  # by hand, and no word to anybody
    assert len(mounted_below(state)) == 2
    snapshotter.collect([])
    [left] = mounted_below(state)
    assert (live / "d/big").read_bytes() == BIG
    assert (Path(left) / "d").is_dir()
    snapshotter.unmount(live)


def test_an_image_that_was_made_anew_is_mounted_anew(
    snapshotter: Composefs, root: Path, state: Path, tmp_path: Path
) -> None:
    layers = layers_of(root, example())
    old, new = target_in(tmp_path, "old"), target_in(tmp_path, "new")
    snapshotter.mount(snapshotter.prepare("old", layers), old)
    [image] = (root / "snapshots").glob(f"stack-*/{IMAGE}")
    Stacks(root).drop_image(image)
    snapshotter.mount(snapshotter.prepare("new", layers), new)
    assert len(mounted_below(state)) == 1
    assert differences(read_tree(old), read_tree(new)) == []
    snapshotter.unmount(old)
    snapshotter.unmount(new)
    assert mounted_below(state) == []


def test_an_image_can_be_mounted_by_a_loop_device(snapshotter: Composefs, root: Path, tmp_path: Path) -> None:
    snapshotter.settle(layers_of(root, example()))
    [image] = (root / "snapshots").glob(f"stack-*/{IMAGE}")
    direct, looped = target_in(tmp_path, "direct"), target_in(tmp_path, "looped")
    _core.mount_erofs(image, direct)
    try:
        _core.mount_erofs(image, looped, loop_device=True)
    except UnsupportedError as error:
        pytest.skip(str(error))
    finally:
        seen = read_tree(direct)
        _core.unmount(direct)
    assert differences(seen, read_tree(looped)) == []
    device = looped.stat().st_dev
    _core.unmount(looped)
    assert not Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop").exists()


def test_a_path_that_is_longer_than_an_option_may_be_is_mounted(state: Path, tmp_path: Path) -> None:
    root = tmp_path / ("r" * 200) / ("s" * 100)
    root.mkdir(parents=True)
    _core.remove_tree(root.parent, root.name)
    root.mkdir()
    [ref] = layers_of(root, example())
    made = target_in(tmp_path, "made")
    _core.compose_layers([ref.path], made, "x")
    moved = root / IMAGE
    (made / IMAGE).rename(moved)
    _core.mount_erofs(moved, target_in(tmp_path, "t"))
    assert (tmp_path / "t/d/small").read_bytes() == b"small"
    _core.unmount(tmp_path / "t")
    del state


def test_no_upper_directory_gets_metadata_alone(snapshotter: Composefs, root: Path, tmp_path: Path) -> None:
    target = target_in(tmp_path, "target")
    snapshotter.mount(snapshotter.prepare("key", layers_of(root, example())), target)
    (target / "d/huge").chmod(0o600)
    os.chown(target / "d/big", 5, 6)
    upper = root / "snapshots/key/upper/d"
    assert (upper / "huge").read_bytes() == HUGE
    assert (upper / "big").read_bytes() == BIG
    for path in upper.iterdir():
        assert not {"trusted.overlay.metacopy", "trusted.overlay.redirect"} & set(os.listxattr(path))
    snapshotter.unmount(target)
    made = snapshotter.diff("key", tmp_path / "layer", compression="none")
    assert made.tar_bytes > len(HUGE) + len(BIG)


def test_the_same_files_with_new_times_are_no_new_objects(root: Path) -> None:
    layers_of(root, example())
    before = objects(root)
    assert sorted(map(len, before.values())) == [len(BIG), len(HUGE)]
    stats = {path: path.stat().st_ctime_ns for path in (root / "objects").glob("*/*")}
    layers_of(root, example(mtime_ns=99 * SECOND_NS))
    assert objects(root) == before
    assert {path: path.stat().st_ctime_ns for path in (root / "objects").glob("*/*")} == stats


def test_objects_are_plain_files_of_ours_that_nobody_runs(root: Path) -> None:
    old = os.umask(0o077)
    try:
        layers_of(root, example())
    finally:
        os.umask(old)
    for path in (root / "objects").glob("*/*"):
        stat = path.lstat()
        assert (stat.st_mode, stat.st_uid, stat.st_nlink) == (0o100444, os.geteuid(), 1)


WRITER = """
import sys
from pathlib import Path
from tests.layers.ways import ingest
root, layer = map(Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
ingest(root, layer.read_bytes(), form="objects")
print("made", flush=True)
"""


def test_processes_may_write_the_same_objects_at_the_same_moment(root: Path, tmp_path: Path) -> None:
    contents = [random.Random(seed).randbytes(20_000) for seed in range(100)]
    made = []
    for number in range(4):
        layer = Layer().file("own", f"{number}".encode())
        for position, content in enumerate(contents):
            layer.file(f"{position}", content, uid=number)
        (tmp_path / f"layer-{number}").write_bytes(layer.build())
        made.append(tmp_path / f"layer-{number}")
    (root / "content").mkdir()
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    children = [Child(path + WRITER, root, layer) for layer in made]
    with ThreadPoolExecutor(4) as pool:

        def drive(child: Child) -> list[object]:
            with child:
                heard = [child.hear()]
                child.say()
                return [*heard, child.hear(), child.wait()]

        assert list(pool.map(drive, children)) == [["ready", "made", 0]] * 4
    assert sorted(objects(root).values()) == sorted(contents)
    assert list((root / "content/ingest").iterdir()) == []


def test_a_pull_gives_a_layer_its_other_form_with_no_download(images: Images, state: Path, tmp_path: Path) -> None:
    layers = [example().build(), Layer().file("d/n", BIG + b"n").build()]
    reference = images.push(build_image(layers)).reference
    target = target_in(tmp_path, "target")
    views = []
    for name in ("overlayfs", "composefs", "overlayfs", "native"):
        with pyctrd.Engine(snapshotter=name, state=state) as engine:
            image = engine.images.pull(reference)
            with image.mounted(target):
                views.append(read_tree(target))
            assert engine.check(digests=True) == []
            assert image.read_file("/d/big") == BIG
            for diff_id in image.config.rootfs.diff_ids:
                engine.content.rebuild(str(diff_id), tmp_path / "rebuilt")
    for view in views[1:]:
        assert differences(views[0], view) == []
    for layer in (Path(os.environ["PYCTRD_ROOT"]) / "layers/sha256").iterdir():
        assert sorted(path.name for path in layer.iterdir()) == ["frame", "index", "pack", "tree"]


def test_a_layer_in_the_wrong_form_is_told_with_what_to_do(images: Images, state: Path, tmp_path: Path) -> None:
    reference = images.push(build_image([example().build()])).reference
    for made, used in (("overlayfs", "composefs"), ("composefs", "overlayfs")):
        with pyctrd.Engine(snapshotter=made, state=state, root=tmp_path / made) as engine:
            engine.images.pull(reference)
        with (
            pyctrd.Engine(snapshotter=used, state=state, root=tmp_path / made) as engine,
            pytest.raises(UnsupportedError, match="pull its image again"),
        ):
            engine.containers.create(reference, ["true"])


def test_the_default_is_composefs_where_it_works_and_leaves_no_mount(state: Path) -> None:
    with pyctrd.Engine(state=state) as engine:
        info = engine.info()
        assert info["snapshotter"] == "composefs"
        assert info["snapshotters_not_usable"] == {}
    with pyctrd.Engine(state=state, snapshotter="overlayfs") as engine:
        assert engine.info()["snapshotter"] == "overlayfs"
    assert mounted_below(Path(os.environ["PYCTRD_ROOT"])) == []


def test_an_image_leaves_a_mounted_directory_of_its_layers_alone(root: Path, state: Path, tmp_path: Path) -> None:
    layers = layers_of(root, example())
    targets = [tmp_path / "directory", tmp_path / "image"]
    opened = [Composefs(root, state, directories=True), Composefs(root, state, directories=False)]
    for snapshotter, target in zip(opened, targets, strict=True):
        target.mkdir()
        snapshotter.mount(snapshotter.view(target.name, layers), target)
    try:
        shown = [{path.name: path.read_bytes() for path in (target / "d").iterdir()} for target in targets]
    finally:
        for snapshotter, target in zip(opened, targets, strict=True):
            snapshotter.unmount(target)
            snapshotter.delete(target.name)
    assert shown == [{"small": b"small", "big": BIG, "huge": HUGE}] * 2
    Stacks(root).keep([])
    assert list((root / "snapshots").glob("stack-*")) == []
    for path in mounted_below(state):
        _core.unmount(Path(path), lazy=True)
