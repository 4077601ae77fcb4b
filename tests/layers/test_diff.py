"""Layers made: of a tree, of the difference between two, of overlayfs' upper directory; the same bytes each time."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import pyctrd
from pyctrd import _core
from pyctrd.errors import ConflictError, InvalidError, UnsupportedError
from tests import syscalls
from tests.images import BuiltImage, Images
from tests.layers.model import Layer
from tests.layers.oracles import as_marks, listed, listed_again
from tests.layers.random_trees import Step, changings, copy_tree, do, makings
from tests.layers.ways import ingest
from tests.syscalls import Watched
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root

WHY_UNWATCHED = syscalls.why_not()
EXAMPLES = int(os.environ.get("PYCTRD_TEST_EXAMPLES", "60"))
MIB = 1 << 20
COMPRESSIONS = ("gzip", "zstd", "none")

quickly = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextmanager
def own_directory() -> Iterator[Path]:
    """For hypothesis, whose examples share a test's fixtures."""
    directory = Path(tempfile.mkdtemp(prefix="pyctrd-diff-"))
    try:
        yield directory
    finally:
        subprocess.run(["rm", "-rf", str(directory)], check=True)


def made(directory: Path, name: str, steps: list[Step]) -> Path:
    target = directory / name
    target.mkdir()
    do(target, steps)
    return target


@quickly
@given(steps=makings)
def test_unpacking_a_layer_of_a_tree_gives_the_tree(steps: list[Step]) -> None:
    with own_directory() as directory:
        tree = made(directory, "tree", steps)
        done = pyctrd.diff(tree, directory / "layer")
        found = pyctrd.unpack(directory / "layer", directory / "out", diff_id=done.diff_id, digest=done.digest)
        assert found.layer_entries == done.entries
        assert differences(read_tree(tree), read_tree(directory / "out")) == []
        # And what was unpacked is, read in whatever order its own directories give, the same layer.
        again = pyctrd.diff(directory / "out", directory / "again")
        assert (again.digest, again.diff_id) == (done.digest, done.diff_id)


@quickly
@given(before=makings, changes=changings)
def test_the_difference_of_two_trees_applied_to_one_gives_the_other(before: list[Step], changes: list[Step]) -> None:
    with own_directory() as directory:
        lower = made(directory, "lower", before)
        upper = copy_tree(lower, directory / "upper")
        do(upper, changes)
        done = pyctrd.diff(upper, directory / "layer", lower=lower, compression="none")
        merged = copy_tree(lower, directory / "merged")
        pyctrd.unpack(directory / "layer", merged, diff_id=done.diff_id)
        assert differences(read_tree(upper), read_tree(merged)) == []
        nothing = pyctrd.diff(merged, directory / "nothing", lower=upper, compression="none")
        assert nothing.entries == 0


@quickly
@given(before=makings, changes=changings)
def test_an_upper_directory_applied_to_the_lower_one_gives_the_merged_view(
    before: list[Step], changes: list[Step]
) -> None:
    with own_directory() as directory, changed_overlay(directory, before, changes) as (lower, merged):
        done = pyctrd.diff(directory / "upper", directory / "layer", compression="zstd")
        applied = copy_tree(lower, directory / "applied")
        pyctrd.unpack(directory / "layer", applied, diff_id=done.diff_id)
        assert differences(read_tree(merged), read_tree(applied)) == []
        assert not any(b".overlay." in line for line in records(directory / "layer"))


@contextmanager
def changed_overlay(directory: Path, before: list[Step], changes: list[Step]) -> Iterator[tuple[Path, Path]]:
    """The lower directory, and the mounted view in which the changes were made."""
    lower = made(directory, "lower", before)
    for name in ("upper", "work", "merged"):
        (directory / name).mkdir()
    _core.copy_attributes(lower, directory / "upper")
    _core.mount_overlay([lower], directory / "merged", upper=directory / "upper", work=directory / "work")
    try:
        do(directory / "merged", changes)
        yield lower, directory / "merged"
    finally:
        _core.unmount(directory / "merged")


def records(layer: Path) -> list[bytes]:
    return subprocess.run(["zstd", "-dcq", str(layer)], check=True, capture_output=True).stdout.split(b"\n")


def everything(tree: Path) -> Path:
    """One of each, with all that a header cannot hold."""
    tree.mkdir()
    (tree / "dir").mkdir()
    (tree / "dir" / "file").write_bytes(b"content")
    (tree / "dir" / "name").hardlink_to(tree / "dir" / "file")
    (tree / "caf\xe9 \udcff\n").write_bytes(b"odd")
    (tree / ("l" * 255)).write_bytes(b"long")
    deep = tree.joinpath(*["d" * 60] * 4)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    (tree / "link").symlink_to("t" * 150)
    os.mkfifo(tree / "pipe")
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    with (tree / "sparse").open("wb") as file:
        file.write(b"front")
        file.seek(3 * MIB)
        file.write(b"middle")
        file.truncate(5 * MIB + 1)
    os.chown(tree / "dir" / "file", 3_000_000, 4_000_000)
    os.setxattr(tree / "dir", "user.note", b"\0\xff")
    os.utime(tree / "dir", ns=(0, -1_500_000_000))
    os.utime(tree / "link", ns=(0, 1_700_000_000_000_000_001), follow_symlinks=False)
    return tree


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_both_digests_and_sizes_are_those_of_the_file(compression: str, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    done = _core.diff(everything(tmp_path / "tree"), layer, compression=compression)
    programs = {"gzip": ["gzip", "-dc"], "zstd": ["zstd", "-dcq"], "none": ["cat"]}
    tar = subprocess.run([*programs[compression], str(layer)], check=True, capture_output=True).stdout
    assert done.digest == f"sha256:{hashlib.sha256(layer.read_bytes()).hexdigest()}"
    assert done.diff_id == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    assert (done.size_bytes, done.tar_bytes) == (layer.stat().st_size, len(tar))
    assert done.compression == compression
    assert tar.endswith(bytes(1024))
    assert len(tar) < MIB  # holes are not in it


def test_what_a_header_says_comes_from_the_tree_alone(tmp_path: Path) -> None:
    pyctrd.diff(everything(tmp_path / "tree"), tmp_path / "layer")
    assert (tmp_path / "layer").read_bytes()[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    with tarfile.open(tmp_path / "layer") as opened:
        members = opened.getmembers()
    assert {(member.uname, member.gname) for member in members} == {("", "")}
    # Component by component: what is in a directory follows it.
    names = [os.fsencode(member.name).split(b"/") for member in members]
    assert names == sorted(names)
    assert [member.linkname for member in members if member.islnk()] == ["dir/file"]


def test_the_same_tree_on_another_file_system_is_the_same_layer(tmp_path: Path) -> None:
    tree = everything(tmp_path / "tree")
    for number in range(300):
        (tree / f"many-{number * 7919 % 300}").write_bytes(b"x")  # so that readdir has an order of its own
    target = tmp_path / "memory"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(target)], check=True)
    try:
        copy = target / "tree"
        copy.mkdir()
        copy_tree(tree, copy)
        first, second = (pyctrd.diff(path, tmp_path / "layer") for path in (tree, copy))
        assert (first.digest, first.diff_id) == (second.digest, second.diff_id)
    finally:
        subprocess.run(["umount", str(target)], check=True)


def facts_of(member: tarfile.TarInfo) -> tuple[object, ...]:
    return (member.type, member.mode, member.uid, member.gid, int(member.mtime // 1), member.size, member.linkname)


def test_python_and_gnu_tar_read_the_same(tmp_path: Path) -> None:
    tree = everything(tmp_path / "tree")
    pyctrd.diff(tree, tmp_path / "layer", compression="none")
    with tarfile.open(tmp_path / "layer") as opened:
        seen = {os.path.normpath(os.fsencode(member.name)): facts_of(member) for member in opened}
        assert opened.extractfile("sparse").read() == (tree / "sparse").read_bytes()  # type: ignore[union-attr] # it is a file
    for name, found in read_tree(tree).items():
        kind, mode, uid, gid, seconds, size, _ = seen.pop(name)
        expected = (found.mode, found.uid, found.gid, found.mtime_ns // 1_000_000_000)
        if found.type != "symlink":
            assert (mode, uid, gid, seconds) == expected, name
        if kind in (tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE):
            assert size == found.size
    assert seen == {}
    target = tmp_path / "out"
    target.mkdir()
    words = ["tar", "-x", "-p", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    done = subprocess.run(
        [
            *words,
            "--warning=no-timestamp",
            "--delay-directory-restore",
            "-C",
            str(target),
            "-f",
            str(tmp_path / "layer"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert differences(read_tree(tree), read_tree(target)) == []
    assert (target / "sparse").stat().st_blocks * 512 < MIB


def test_no_time_is_after_the_one_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name, time_ns in (("old", 5_000_000_001), ("even", 10_000_000_000), ("new", 10_500_000_000)):
        (tmp_path / "tree" / name).touch()
        os.utime(tmp_path / "tree" / name, ns=(0, time_ns))
    pyctrd.diff(tmp_path / "tree", tmp_path / "layer", clamp_mtime=10)
    pyctrd.unpack(tmp_path / "layer", tmp_path / "out")
    found = {name: facts.mtime_ns for name, facts in read_tree(tmp_path / "out").items()}
    assert found == {b".": 10**10, b"old": 5_000_000_001, b"even": 10**10, b"new": 10**10}


def test_a_socket_is_left_out_and_one_over_a_file_takes_it_away(tmp_path: Path) -> None:
    for name in ("lower", "upper"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "s").touch()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "upper" / "s"))
        pyctrd.diff(tmp_path / "upper", tmp_path / "all", compression="none")
        pyctrd.diff(tmp_path / "upper", tmp_path / "changes", compression="none", lower=tmp_path / "lower")
    assert tar_names(tmp_path / "all") == ["."]
    assert tar_names(tmp_path / "changes") == [".", ".wh.s"]


def tar_names(layer: Path) -> list[str]:
    with tarfile.open(layer) as opened:
        return [member.name for member in opened]


def test_labels_of_the_host_stay_there_and_capabilities_do_not(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").touch()
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(tmp_path / "tree" / "f", "security.capability", capability)
    try:
        os.setxattr(tmp_path / "tree" / "f", "security.SMACK64", b"host")
    except OSError:
        os.setxattr(tmp_path / "tree" / "f", "trusted.overlay.origin", b"host")
    pyctrd.diff(tmp_path / "tree", tmp_path / "layer", compression="none")
    body = (tmp_path / "layer").read_bytes()
    assert b"SCHILY.xattr.security.capability=" in body
    assert b"host" not in body


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh..opq", ".wh..wh.plnk", "d/.wh."])
def test_a_file_named_like_a_whiteout_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / name).touch()
    with pytest.raises(UnsupportedError, match=name.replace(".", r"\.")):
        pyctrd.diff(tmp_path / "tree", tmp_path / "layer")
    assert not (tmp_path / "layer").exists()


def test_a_device_that_means_a_whiteout_is_refused_where_it_is_none(tmp_path: Path) -> None:
    for name in ("lower", "upper"):
        (tmp_path / name).mkdir()
    os.mknod(tmp_path / "upper" / "c", stat.S_IFCHR, os.makedev(0, 0))
    with pytest.raises(UnsupportedError, match="0:0"):
        pyctrd.diff(tmp_path / "upper", tmp_path / "layer", lower=tmp_path / "lower")


@pytest.mark.parametrize(("mark", "value"), [("redirect", b"/elsewhere"), ("metacopy", b""), ("opaque", b"x")], ids=str)
def test_what_an_overlay_says_by_marks_alone_is_refused(mark: str, value: bytes, tmp_path: Path) -> None:
    (tmp_path / "upper" / "d").mkdir(parents=True)
    os.setxattr(tmp_path / "upper" / "d", f"trusted.overlay.{mark}", value)
    with pytest.raises(UnsupportedError, match="overlay"):
        pyctrd.diff(tmp_path / "upper", tmp_path / "layer")
    # In a tree that is compared they mean nothing, and are left out.
    (tmp_path / "lower").mkdir()
    pyctrd.diff(tmp_path / "upper", tmp_path / "layer", lower=tmp_path / "lower", compression="none")
    assert b"overlay" not in (tmp_path / "layer").read_bytes()


def test_a_name_too_long_for_its_whiteout_is_refused(tmp_path: Path) -> None:
    for name in ("lower", "upper"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / ("n" * 252)).touch()
    with pytest.raises(UnsupportedError, match="shorter"):
        pyctrd.diff(tmp_path / "upper", tmp_path / "layer", lower=tmp_path / "lower")


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "layer").write_bytes(b"before")
    with pytest.raises(FileNotFoundError):
        pyctrd.diff(tmp_path / "none", tmp_path / "out" / "layer")
    with pytest.raises(FileNotFoundError):
        pyctrd.diff(tmp_path / "tree", tmp_path / "none" / "layer")
    with pytest.raises(InvalidError):
        pyctrd.diff(tmp_path / "tree", tmp_path / "out" / "layer", compression="bzip2")  # type: ignore[arg-type] # the subject
    (tmp_path / "tree" / ".wh.x").touch()
    with pytest.raises(UnsupportedError):
        pyctrd.diff(tmp_path / "tree", tmp_path / "out" / "layer")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["layer"]
    assert (tmp_path / "out" / "layer").read_bytes() == b"before"


@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
@pytest.mark.parametrize("size", [10, 30 * MIB], ids=["shrinks", "grows"])
def test_a_file_that_changes_its_size_while_it_is_read_is_told(size: int, tmp_path: Path) -> None:
    """Stopped where the first bytes of the file have been written, which is after it was looked at."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    out.mkdir()
    (tree / "file").write_bytes(os.urandom(20 * MIB))
    with Watched(PROGRAM, tree, out / "layer", calls=["write"]) as program:
        for call in program:
            if call.path.startswith(str(out)):
                os.truncate(tree / "file", size)
                call.allow()
                break
            call.allow()
        assert program.finish() == (0, "file file: is changing\n")
    assert list(out.iterdir()) == []


PROGRAM = """
import sys, pyctrd
try:
    pyctrd.diff(sys.argv[1], sys.argv[2], compression="none")
except pyctrd.errors.ConflictError as error:
    print(f"{error.kind} {error.name}: is {error.state}")
"""


def test_a_tree_whose_directories_move_gives_an_error_or_a_layer_of_one_state(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d" / "e").mkdir(parents=True)
    (tree / "d" / "e" / "f").write_bytes(b"inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    code = "import os, sys\nos.chdir(sys.argv[1])\nprint('ready', flush=True)\n"
    code += (
        "while True:\n  os.rename('d', 'x')\n  os.symlink('../outside', 'd')\n  os.unlink('d')\n  os.rename('x', 'd')\n"
    )
    with subprocess.Popen(["python3", "-c", code, str(tree)], stdout=subprocess.PIPE) as mover:
        assert mover.stdout is not None
        mover.stdout.readline()
        try:
            for number in range(300):
                with suppress(ConflictError):
                    pyctrd.diff(tree, tmp_path / f"layer-{number}", compression="none")
        finally:
            mover.kill()
    for layer in tmp_path.glob("layer-*"):
        assert b"secret" not in layer.read_bytes()
        pyctrd.unpack(layer, tmp_path / "out")


OWN: dict[str, Callable[[Images], BuiltImage]] = {
    "tree": lambda images: images.tree.built,
    "busybox": lambda images: images.busybox.built,
    "many-layers": lambda images: images.many_layers.built,
}


@pytest.mark.parametrize("name", OWN)
def test_a_layer_of_an_unpacked_layer_lists_what_that_one_lists(name: str, images: Images, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for tar in OWN[name](images).tars:
        (tmp_path / "tar").write_bytes(tar)
        layer = ingest(root, tar)
        pyctrd.diff(layer.path / "tree", tmp_path / "again", compression="none")
        index = _core.LayerIndex(layer.path)
        assert listed_again(tmp_path / "again", index) == as_marks(tmp_path / "tar", index)


def test_a_layer_with_all_its_marks_comes_back_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    tar = Layer().directory("./").directory("d").opaque("d").file("d/f", b"x").hardlink("d/g", "d/f").whiteout("gone")
    tar.directory("e").whiteout("e/gone").symlink("l", "d").fifo("p").device("c", stat.S_IFCHR, 1, 3)
    tar.sparse("s", 3 * MIB, [(MIB, b"x" * 4096)])
    layer = ingest(root, tar.build())
    (tmp_path / "tar").write_bytes(tar.build())
    first = pyctrd.diff(layer.path / "tree", tmp_path / "again", compression="none")
    assert listed(tmp_path / "again") == listed(tmp_path / "tar")
    # Unpacked and made again it is the same layer: nothing is lost on the way.
    second = ingest(root, (tmp_path / "again").read_bytes())
    assert second.diff_id == first.diff_id
    assert pyctrd.diff(second.path / "tree", tmp_path / "third", compression="none").diff_id == first.diff_id


def test_a_deep_tree_is_read_with_few_descriptors(tmp_path: Path) -> None:
    deep = tmp_path / "tree"
    deep.mkdir()
    directory = os.open(deep, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=directory)
        below = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)
    try:
        done = pyctrd.diff(deep, tmp_path / "layer")
        assert done.entries == 1001
        pyctrd.unpack(tmp_path / "layer", tmp_path / "out", diff_id=done.diff_id)
    finally:
        subprocess.run(["rm", "-rf", str(deep), str(tmp_path / "out")], check=True)
