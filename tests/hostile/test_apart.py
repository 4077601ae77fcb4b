"""Hostile layers that need more than a layer: a second process, a second image, another file system, a log."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import PyctrdError, UnsafeArchiveError
from tests.archives import Tar, compress_gzip
from tests.children import Child
from tests.hostile.cases_symlinks import kept, parents
from tests.hostile.stage import IN_STORE, WAYS, Stage
from tests.hostile.table import GZIP, Packed, differences_from
from tests.images import CAPABILITY
from tests.layers.ways import ingest, open_snapshotter
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root

ROWS = ("L049", "L050", "L053", "L101", "L126")
SNAPSHOTTERS = ("overlayfs", "native", "composefs", "erofs")
SWAPS = 10_000

Record = Callable[[str, object], None]

# Swaps the target of the link `p`, and the folder `q` for a link, until it has done so often enough.
SWAPPER = """
import ctypes, os, sys
target, outside, swaps = sys.argv[1], sys.argv[2], int(sys.argv[3])
renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
os.chdir(target)
print("ready", flush=True)
input()
for number in range(swaps):
    os.symlink(outside if number % 2 else "real", "p.new")
    os.rename("p.new", "p")
    renameat2(-100, b"q", -100, b"q.other", 2)
print("done", flush=True)
input()
"""


@pytest.mark.slow
@pytest.mark.parametrize("leads", ["absolute", "relative"], ids=["L049-unpack-absolute", "L049-unpack-relative"])
def test_a_parent_swapped_by_another_process_leads_nowhere_else(
    leads: str, stage: Stage, record_property: Record
) -> None:
    record_property("row", "L049")
    outside = stage.outside.path if leads == "absolute" else "../../outside"
    # What would change, cut, link, mark or remove something outside, if a name led there.
    names = ("p", "q")
    tar = Tar()
    for number in range(40):
        for name in names:
            tar.file(f"{name}/victim", b"changed").directory(f"{name}/dir", mode=0o777).file(f"{name}/{number}")
            tar.symlink(f"{name}/perm400", "gone").whiteout(f"{name}/dir/inner").fifo(f"{name}/pipe")
            tar.file(f"{name}/dir/inner", b"new").hardlink(f"{name}/linked", f"{name}/victim")
    blob = stage.target.parent / "files" / "layer"
    blob.write_bytes(tar.build())
    for name in ("real", "q"):
        (stage.target / name).mkdir()
    for name in ("p", "q.other"):
        (stage.target / name).symlink_to(outside)
    unpacked = 0
    with stage.outside.watched(), Child(SWAPPER, stage.target, outside, str(SWAPS)) as swapper:
        assert swapper.hear() == "ready"
        swapper.say()
        while not swapper.has_spoken():
            with suppress(PyctrdError, OSError):  # the tree changes under it: refused is as good as done
                pyctrd.unpack(blob, stage.target)
            unpacked += 1
        assert swapper.hear() == "done"
        blob.unlink()
    assert unpacked > 1


# Makes a snapshot when it is told to, and says whether it was the one that did.
MAKER = """
import sys
from pathlib import Path
from pyctrd.errors import AlreadyExistsError
from pyctrd.snapshots.composefs import Composefs
from pyctrd.snapshots.erofs import Erofs
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlayfs import Overlayfs
from pyctrd.snapshots.protocol import LayerRef
kind, root, diff_id, path = sys.argv[1:5]
root = Path(root)
makes = {"overlayfs": Overlayfs, "native": Native, "composefs": Composefs, "erofs": Erofs}
snapshotter = makes[kind](*[root, root.with_name("state")][: 1 + (kind in ("composefs", "erofs"))])
print("ready", flush=True)
while key := input():
    try:
        snapshotter.view(key, [LayerRef(diff_id, Path(path))])
        print("made", flush=True)
    except AlreadyExistsError as error:
        print("exists", error.name, flush=True)
"""


@pytest.mark.parametrize("way", SNAPSHOTTERS, ids=[f"L050-{way}" for way in SNAPSHOTTERS])
def test_of_two_processes_that_make_one_snapshot_one_wins(way: str, stage: Stage, record_property: Record) -> None:
    record_property("row", "L050")
    tar = Tar()
    for number in range(50):
        tar.file(f"d/{number}", b"%d" % number)
    snapshotter = open_snapshotter(way, stage.store)
    ref = ingest(stage.store, tar.build(), form=snapshotter.form)
    with stage.outside.watched():
        with (
            Child(MAKER, way, stage.store, ref.diff_id, ref.path) as one,
            Child(MAKER, way, stage.store, ref.diff_id, ref.path) as other,
        ):
            assert [one.hear(), other.hear()] == ["ready", "ready"]
            for number in range(20):
                key = f"contended-{number}"
                one.say(key)
                other.say(key)
                assert sorted([one.hear(), other.hear()]) == [f"exists {key}", "made"]
        snapshot = snapshotter.find("contended-7")
        assert snapshot is not None
        snapshotter.mount(snapshot, stage.view)
        assert differences_from({f"d/{number}": b"%d" % number for number in range(50)}, read_tree(stage.view)) == []
        snapshotter.unmount(stage.view)


@pytest.mark.parametrize("way", WAYS, ids=[f"L053-{way}" for way in WAYS])
def test_one_layer_leaves_two_bases_as_each_is(way: str, stage: Stage, record_property: Record) -> None:
    record_property("row", "L053")
    upper = Tar().file("tmp/x", b"x").file("srv/y", b"y")
    with stage.outside.watched():
        for mode, owner in ((0o1777, 1000), (0o700, 7)):
            with stage.unpacked(way, [parents(mode, owner), upper]) as seen:
                assert differences_from(kept(mode, owner), seen.tree) == []
            if way not in IN_STORE:
                stage.empty()


@pytest.mark.parametrize("way", SNAPSHOTTERS, ids=[f"L101-{way}" for way in SNAPSHOTTERS])
def test_a_whiteout_takes_nothing_from_another_view(way: str, stage: Stage, record_property: Record) -> None:
    record_property("row", "L101")
    lower, upper = Tar().file("d/f", b"f").directory("d/s"), Tar().whiteout("d").file("n", b"n")
    with stage.outside.watched(), stage.unpacked(way, [lower]) as seen, stage.engine(way) as engine:
        image = engine.images.pull(stage.serve([Packed(lower.build()), Packed(upper.build())]))
        with image.mounted(stage.other):
            assert differences_from({"n": b"n"}, read_tree(stage.other)) == []
        assert differences(dict(seen.tree), read_tree(stage.view)) == []


@pytest.mark.parametrize("way", SNAPSHOTTERS, ids=[f"L101-unpack-over-{way}" for way in SNAPSHOTTERS])
def test_a_whiteout_of_a_mount_point_does_not_enter_it(way: str, stage: Stage, record_property: Record) -> None:
    record_property("row", "L101")
    snapshotter = open_snapshotter(way, stage.store)
    ref = ingest(stage.store, Tar().file("f", b"f").directory("s").build(), form=snapshotter.form)
    # One that can be written to: nothing but the walk itself keeps its files.
    snapshot = snapshotter.prepare("active", [ref])
    layer = stage.target.parent / "files" / "layer"
    mounted = stage.target / "a" / "d"
    mounted.mkdir(parents=True)
    for tar in (
        Tar().whiteout("a/d"),
        Tar().whiteout("a"),
        Tar().opaque("a"),
        Tar().file("a/d"),
        Tar().symlink("a", "x"),
    ):
        snapshotter.mount(snapshot, mounted)
        before = read_tree(mounted)
        layer.write_bytes(tar.build())
        with stage.outside.watched(), pytest.raises(OSError, match="busy") as caught:
            pyctrd.unpack(layer, stage.target)
        assert caught.value.errno == errno.EBUSY
        assert differences(before, read_tree(mounted)) == []
        snapshotter.unmount(mounted)


@pytest.fixture
def without_xattrs(stage: Stage) -> Iterator[Path]:
    """A directory on a file system that has no xattrs."""
    place = stage.target
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(place)], check=True)
    try:
        os.setxattr(place, "user.k", b"v")
        pytest.skip("ramfs has xattrs here")
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP  # noqa: PT017 - the probe, not what is tested
    yield place
    # A failed ingest may still be held by its traceback.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("way", ["unpack", "layer"], ids=["L126-unpack", "L126-layer"])
def test_a_disk_without_xattrs_loses_data_and_no_capability(
    way: str, without_xattrs: Path, stage: Stage, record_property: Record
) -> None:
    record_property("row", "L126")
    xattrs = {"user.k": b"v", "trusted.t": b"v"}
    tar = (
        Tar().file("f", b"f", xattrs=xattrs).directory("d", xattrs=xattrs).symlink("s", "f", xattrs={"trusted.t": b"v"})
    )
    blob = stage.target.parent / "files" / "layer"
    with stage.outside.watched():
        if way == "unpack":
            blob.write_bytes(tar.build())
            assert pyctrd.unpack(blob, without_xattrs / "tree").skipped_xattrs == 5
        else:
            ref = ingest(without_xattrs, tar.build())
            assert (ref.path / "tree").rename(without_xattrs / "tree").is_dir()
        found = read_tree(without_xattrs / "tree")
        assert {name: facts.xattrs for name, facts in found.items()} == dict.fromkeys((b".", b"f", b"d", b"s"), ())
        for lost in ({"security.capability": CAPABILITY}, {"system.posix_acl_access": b"\2\0\0\0"}):
            capable = Tar().file("f", b"f", xattrs=lost).build()
            blob.write_bytes(capable)
            attempt: Callable[[], object] = partial(pyctrd.unpack, blob, without_xattrs / "tree")
            if way == "layer":
                attempt = partial(ingest, without_xattrs, capable)
            with pytest.raises(OSError, match="set xattr") as caught:
                attempt()
            assert caught.value.errno == errno.EOPNOTSUPP
        blob.unlink()


def test_what_a_refused_device_was_to_replace_stays(stage: Stage) -> None:
    layer = stage.target.parent / "files" / "layer"
    for lower in (Tar().file("f", b"lower"), Tar().file("f/in", b"lower")):
        layer.write_bytes(lower.build())
        target = stage.target / str(len(list(stage.target.iterdir())))
        pyctrd.unpack(layer, target)
        before = read_tree(target)
        for upper in (Tar().device("f", stat.S_IFCHR, 0, 0), Tar().symlink("f", ""), Tar().symlink("f", "t" * 5000)):
            layer.write_bytes(upper.build())
            with pytest.raises(UnsafeArchiveError):
                pyctrd.unpack(layer, target)
            assert differences(before, read_tree(target)) == []


@pytest.mark.usefixtures("as_directories")
def test_nobody_but_root_reaches_a_set_id_file_in_the_store(stage: Stage, tmp_path: Path) -> None:
    reference = stage.serve([Packed(Tar().file("f", b"f", mode=0o6755).build())])
    root = tmp_path / "made-by-the-engine"
    old = os.umask(0)
    try:
        with pyctrd.Engine(root=root, state=tmp_path / "state", durability="none") as engine:
            engine.images.pull(reference)
    finally:
        os.umask(old)
    assert [stat.S_IMODE(found.stat().st_mode) for found in root.glob("layers/*/*/tree/f")] == [0o6755]
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_xattrs_that_are_not_set_are_counted_and_told(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    marks = {"trusted.overlay.opaque": b"y", "user.overlay.redirect": b"/x"}
    tar = (
        Tar().directory("d", xattrs=marks).symlink("s", "f", xattrs={"user.k": b"v"}).fifo("p", xattrs={"user.k": b"v"})
    )
    layer = stage.target.parent / "files" / "layer"
    layer.write_bytes(tar.build())
    assert pyctrd.unpack(layer, stage.target).skipped_xattrs == 4
    caplog.set_level(logging.DEBUG, "pyctrd.flows")
    with stage.unpacked("native", [tar]):
        pass
    assert "4 extended attributes were not set" in caplog.text


def test_a_media_type_that_names_another_compression_is_told(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    tar = Tar().file("f", b"f").build()
    caplog.set_level(logging.DEBUG, "pyctrd.flows")
    with stage.unpacked("native", [Packed(tar, tar, GZIP)]):
        pass
    assert "media type says gzip, content is none" in caplog.text
    caplog.clear()
    with stage.unpacked("native", [Packed(compress_gzip(tar), tar, GZIP)]):
        pass
    assert "media type" not in caplog.text
