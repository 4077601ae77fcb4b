"""Ownership recorded: one user's tree that says what it is an image of, as fuse-overlayfs reads it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import DiffIDMismatchError, InvalidError, UnsafeArchiveError
from tests.archives import Tar
from tests.cli.commands import NOBODY, Nobody, as_nobody, is_one_error
from tests.images import CAPABILITY, BuiltImage, Images
from tests.layers.ways import digest_of, without_owners_of_links
from tests.trees import Facts, differences, read_tree

pytestmark = pytest.mark.root

STAT = "user.containers.override_stat"
BESIDE = "user.containers.override_"
ZEROS = f"sha256:{'0' * 64}"
DIFF = "import pyctrd, sys; pyctrd.diff(sys.argv[1], sys.argv[2], compression='none', ownership='recorded')"


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    """A user without any rights."""
    with as_nobody() as user:
        yield user


def every_kind() -> Tar:
    tar = Tar().directory("./", mode=0o755, uid=1, gid=2).directory("d", mode=0o1577, uid=3, gid=4)
    tar.file("d/f", b"content", mode=0o4711, uid=5, gid=6, xattrs={"security.capability": CAPABILITY, "user.k": b"v"})
    tar.hardlink("h", "d/f").symlink("s", "d/f", uid=7, gid=8, xattrs={"trusted.t": b"v"}).symlink("of-root", "s")
    tar.fifo("p", uid=9, gid=10, xattrs={"user.k": b"v", "trusted.t": b"v"}).hardlink("p2", "p")
    tar.device("c", stat.S_IFCHR, 1, 3, uid=11).device("b", stat.S_IFBLK, 259, 1048575, gid=12)
    return tar.file("none", b"", mode=0, uid=4294967294, gid=4294967294).file("x/y/f", b"", mode=0o644)


def unpack(nobody: Nobody, blob: bytes, *options: str) -> dict[str, int]:
    """Unpack as nobody, ownership recorded, into their directory ``tree``; what the command says of it."""
    layer = nobody.home / "layer"
    layer.write_bytes(blob)
    tree = str(nobody.home / "tree")
    done = nobody.run("--json", "unpack", "--ownership", "recorded", *options, str(layer), tree)
    assert (done.status, done.err) == (0, "")
    found: dict[str, int] = done.lines[0]
    return found


def repacked(nobody: Nobody) -> Path:
    """The layer that nobody makes of their tree."""
    out = nobody.home / "out"
    done = nobody.execute(*python(DIFF), str(nobody.home / "tree"), str(out))
    assert (done.status, done.err) == (0, "")
    return out


def python(code: str) -> list[str]:
    return [sys.executable, "-P", "-c", code]


def kept(blobs: Sequence[bytes | Path], directory: Path) -> dict[bytes, Facts]:
    """What root gets of layers who keeps owners."""
    target = directory / "kept"
    for number, blob in enumerate(blobs):
        layer = directory / f"kept-{number}"
        layer.write_bytes(blob if isinstance(blob, bytes) else blob.read_bytes())
        pyctrd.unpack(layer, target)
    found = read_tree(target)
    subprocess.run(["rm", "-rf", str(target)], check=True)
    return found


def test_everything_is_the_users_and_says_whose_it_is(nobody: Nobody) -> None:
    said = unpack(nobody, every_kind().build())
    # What no kernel keeps on a pipe, and what a link has nowhere to record.
    assert (said["skipped_xattrs"], said["unrecorded_owners"]) == (2, 1)
    found = read_tree(nobody.home / "tree")
    assert {(facts.uid, facts.gid) for facts in found.values()} == {(NOBODY, NOBODY)}
    records = {name.decode(): (facts.type, facts.mode, dict(facts.xattrs)) for name, facts in found.items()}
    file = {STAT: b"5:6:4711:file", "user.k": b"v", f"{BESIDE}security.capability": CAPABILITY}
    pipe = {STAT: b"9:10:0600:pipe", f"{BESIDE}trusted.t": b"v"}
    assert records == {
        ".": ("directory", 0o700, {STAT: b"1:2:0755:dir"}),
        "d": ("directory", 0o700, {STAT: b"3:4:1577:dir"}),
        "d/f": ("file", 0o700, file),
        "h": ("file", 0o700, file),
        "s": ("symlink", 0o777, {}),
        "of-root": ("symlink", 0o777, {}),
        "p": ("file", 0o600, pipe),
        "p2": ("file", 0o600, pipe),
        "c": ("file", 0o600, {STAT: b"11:0:0600:char-1-3"}),
        "b": ("file", 0o600, {STAT: b"0:12:0600:block-259-1048575"}),
        "none": ("file", 0o600, {STAT: b"4294967294:4294967294:0000:file"}),
        "x": ("directory", 0o700, {STAT: b"0:0:0755:dir"}),
        "x/y": ("directory", 0o700, {STAT: b"0:0:0755:dir"}),
        "x/y/f": ("file", 0o600, {STAT: b"0:0:0644:file"}),
    }
    assert found[b"p"].same_as == found[b"p2"].same_as == b"p"


def test_a_layer_made_of_it_has_all_but_what_was_counted(nobody: Nobody, tmp_path: Path) -> None:
    tar = every_kind().build()
    unpack(nobody, tar)
    expected = without_owners_of_links(kept([tar], tmp_path))
    assert differences(expected, kept([repacked(nobody)], tmp_path)) == []


# A process each.
LAYERS_MAX = 20
IMAGES: dict[str, Callable[[Images], BuiltImage]] = {
    "tree": lambda images: images.tree.built,
    "tree-zstd": lambda images: images.tree_zstd.built,
    "busybox": lambda images: images.busybox.built,
    "many-layers": lambda images: images.many_layers.built,
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_comes_back_as_it_was(name: str, images: Images, nobody: Nobody, tmp_path: Path) -> None:
    layers = [layer.content for layer in IMAGES[name](images).layers[:LAYERS_MAX]]
    for layer in layers:
        unpack(nobody, layer)
    expected = without_owners_of_links(kept(layers, tmp_path))
    actual = kept([repacked(nobody)], tmp_path)
    # A root that no layer lists is as old as it is.
    actual[b"."] = replace(actual[b"."], mtime_ns=expected[b"."].mtime_ns)
    assert differences(expected, actual) == []


@pytest.mark.skipif(
    shutil.which("fuse-overlayfs") is None or not Path("/dev/fuse").exists(),
    reason="needs fuse-overlayfs and /dev/fuse",
)
def test_fuse_overlayfs_shows_the_owners(nobody: Nobody, tmp_path: Path) -> None:
    tar = every_kind().build()
    unpack(nobody, tar)
    expected = kept([tar], tmp_path)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    options = f"lowerdir={nobody.home / 'tree'},xattr_permissions=2"
    subprocess.run(["fuse-overlayfs", "-o", options, str(mounted)], check=True, capture_output=True)
    try:
        shown = {name: (facts.uid, facts.gid, facts.mode) for name, facts in read_tree(mounted).items()}
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    # It leaves links to the kernel; types it reads since 1.14 alone.
    wanted = {name: (facts.uid, facts.gid, facts.mode) for name, facts in expected.items() if facts.type != "symlink"}
    assert {name: shown[name] for name in wanted} == wanted


LIES = {
    STAT: b"0:0:4777:file",
    f"{BESIDE}security.capability": CAPABILITY,
    "user.fuseoverlayfs.override_stat": b"0:0:4777",
    "user.fuseoverlayfs.opaque": b"y",
    "security.fuseoverlayfs.override_stat": b"0:0:4777",
}


@pytest.mark.parametrize("ownership", ["keep", "recorded"])
def test_a_record_from_an_archive_never_acts(ownership: str, tmp_path: Path) -> None:
    tar = Tar().directory("./", xattrs=LIES).file("f", b"f", uid=5, xattrs=LIES).directory("d", xattrs=LIES)
    (tmp_path / "layer").write_bytes(tar.build())
    done = pyctrd.unpack(tmp_path / "layer", tmp_path / "tree", ownership=ownership)  # type: ignore[arg-type] # both are
    assert done.skipped_xattrs == 3 * len(LIES)
    found = {name: dict(facts.xattrs) for name, facts in read_tree(tmp_path / "tree").items()}
    directory, file = {STAT: b"0:0:0755:dir"}, {STAT: b"5:0:0644:file"}
    recorded = {b".": directory, b"d": directory, b"f": file}
    assert found == (recorded if ownership == "recorded" else {b".": {}, b"d": {}, b"f": {}})


def test_what_a_later_layer_lists_loses_the_record_of_an_earlier_one(nobody: Nobody) -> None:
    acl = b"\2\0\0\0" + b"\1\0\7\0\xff\xff\xff\xff" + b"\4\0\5\0\xff\xff\xff\xff" + b"\x20\0\0\0\xff\xff\xff\xff"
    xattrs = {"trusted.t": b"v", "user.k": b"v", "system.posix_acl_default": acl}
    unpack(nobody, Tar().directory("d", mode=0o700, uid=1, xattrs=xattrs).file("f", b"f", xattrs=xattrs).build())
    tree = nobody.home / "tree"
    assert os.getxattr(tree / "d", f"{BESIDE}system.posix_acl_default") == acl
    assert "system.posix_acl_default" not in os.listxattr(tree / "d")
    unpack(nobody, Tar().directory("d", mode=0o711, gid=2).file("f", b"other", uid=3).build())
    found = {name: dict(facts.xattrs) for name, facts in read_tree(tree).items()}
    assert found == {
        b".": {STAT: b"0:0:0755:dir"},
        b"d": {STAT: b"0:2:0711:dir"},
        b"f": {STAT: b"3:0:0644:file"},
    }


def test_a_file_system_without_xattrs_is_told_before_anything_is_made(nobody: Nobody) -> None:
    place = nobody.home / "ramfs"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(place)], check=True)
    try:
        place.chmod(0o777)
        layer = nobody.home / "layer"
        layer.write_bytes(Tar().file("f", b"f").build())
        done = nobody.run("unpack", "--ownership", "recorded", str(layer), str(place))
        assert (done.status, done.out) == (1, "")
        assert is_one_error(done.err)
        assert f'ownership "recorded" in {place}: needs a file system that keeps user. xattrs' in done.err
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_what_is_refused_is_refused_as_ever(tmp_path: Path) -> None:
    layer, tree = tmp_path / "layer", tmp_path / "tree"
    layer.write_bytes(Tar().device("f", stat.S_IFCHR, 0, 0).build())
    with pytest.raises(UnsafeArchiveError, match="overlayfs' whiteout"):
        pyctrd.unpack(layer, tree, ownership="recorded")
    layer.write_bytes(Tar().file("f", b"f").build())
    with pytest.raises(DiffIDMismatchError):
        pyctrd.unpack(layer, tree, ownership="recorded", diff_id=ZEROS)
    layer.write_bytes(Tar().file("f", b"f").file("g").build())
    with pytest.raises(UnsafeArchiveError) as caught:
        pyctrd.unpack(layer, tree, ownership="recorded", limits=pyctrd.Limits(entries=1))
    assert caught.value.limit == "entries"


def test_an_attribute_whose_record_would_have_too_long_a_name_is_an_error(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.write_bytes(Tar().file("f", xattrs={"trusted." + "n" * 240: b""}).build())
    with pytest.raises(OSError, match="set xattr") as refused:
        pyctrd.unpack(layer, tmp_path / "tree", ownership="recorded")
    assert (refused.value.errno, refused.value.filename) == (errno.ERANGE, "f")


def test_another_word_is_refused(tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(Tar().build())
    with pytest.raises(
        InvalidError, match="invalid ownership: 'root': expected one of keep, mapped, recorded"
    ) as caught:
        pyctrd.unpack(tmp_path / "layer", tmp_path / "tree", ownership="root")  # type: ignore[arg-type] # a wrong one
    assert (caught.value.field, caught.value.value) == ("ownership", "root")
    assert not (tmp_path / "tree").exists()
    with pytest.raises(InvalidError, match="expected keep or recorded") as caught:
        pyctrd.diff(tmp_path, tmp_path / "out", ownership="mapped")  # type: ignore[arg-type] # a wrong one
    assert caught.value.field == "ownership"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree whose ownership is recorded, with a file."""
    (tmp_path / "layer").write_bytes(Tar().file("f", b"f", uid=5, gid=6, mode=0o640).build())
    pyctrd.unpack(tmp_path / "layer", tmp_path / "tree", ownership="recorded")
    return tmp_path / "tree"


@pytest.mark.parametrize("record", [b"", b"0:0", b"0:0:0644:dir", b"0:0:0644:pipe", b"0:0:0644:door", b"x:0:0644:file"])
def test_a_record_that_cannot_be_is_told(record: bytes, tree: Path, tmp_path: Path) -> None:
    os.setxattr(tree / "f", STAT, record)
    with pytest.raises(InvalidError, match=f"invalid {STAT}: f: ") as caught:
        pyctrd.diff(tree, tmp_path / "out", ownership="recorded")
    assert (caught.value.field, caught.value.value) == (STAT, "f")
    assert not (tmp_path / "out").exists()


def test_what_was_made_later_is_roots(tree: Path, tmp_path: Path) -> None:
    (tree / "new").write_bytes(b"new")
    (tree / "new").chmod(0o604)
    os.chown(tree / "new", NOBODY, NOBODY)
    pyctrd.diff(tree, tmp_path / "out", compression="none", ownership="recorded")
    found = kept([tmp_path / "out"], tmp_path)
    owners = {name: (facts.uid, facts.gid, facts.mode) for name, facts in found.items()}
    assert owners == {b".": (0, 0, 0o755), b"f": (5, 6, 0o640), b"new": (0, 0, 0o604)}


def test_records_are_read_below_too(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "lower", symlinks=True)
    assert os.getxattr(tmp_path / "lower" / "f", STAT) == b"5:6:0640:file"
    os.setxattr(tree / "f", STAT, b"5:6:0600:file")
    pyctrd.diff(tree, tmp_path / "out", compression="none", ownership="recorded", lower=tmp_path / "lower")
    found = kept([tmp_path / "out"], tmp_path)
    assert found[b"f"].mode == 0o600


def test_where_owners_are_kept_no_record_gets_into_a_layer(tree: Path, tmp_path: Path) -> None:
    pyctrd.diff(tree, tmp_path / "out", compression="none")
    found = kept([tmp_path / "out"], tmp_path)
    assert {name: (facts.uid, facts.xattrs) for name, facts in found.items()} == {b".": (0, ()), b"f": (0, ())}
    assert STAT.encode() not in (tmp_path / "out").read_bytes()


def test_the_command_says_what_it_left_out(nobody: Nobody) -> None:
    tar = every_kind().build()
    (nobody.home / "layer").write_bytes(tar)
    done = nobody.run("unpack", "--ownership", "recorded", str(nobody.home / "layer"), str(nobody.home / "tree"))
    assert (done.status, done.out) == (0, f"{digest_of(tar)}\n")
    assert done.err.splitlines() == [
        "extended attributes that were not set: 2",
        "symbolic links whose owner is recorded nowhere: 1",
    ]
    wrong = nobody.run("unpack", "--ownership", "root", str(nobody.home / "layer"), str(nobody.home / "tree"))
    assert wrong.status == 2
    assert "--ownership" in wrong.err
