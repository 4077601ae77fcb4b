"""All of an entry is kept; what cannot be, by the archive's form or by the file system, is refused or under a rule."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import UnsafeArchiveError
from tests.archives import GNU, gnu_long, header, padded, pax_header
from tests.cli.commands import Nobody, as_nobody, is_one_error
from tests.images import CAPABILITY
from tests.layers.model import Entry, Layer
from tests.layers.ways import WAYS, check, ingest, unpacked
from tests.trees import read_tree

pytestmark = pytest.mark.root

TIME_NS = 1_600_000_000_123_456_789


def acl(*, others: int) -> bytes:
    """A POSIX ACL that no mode can say: user 1 may do more than the group."""
    entries = ((0x01, 7, -1), (0x02, 6, 1), (0x04, 0, -1), (0x08, 5, 2), (0x10, 7, -1), (0x20, others, -1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@pytest.mark.parametrize("way", WAYS)
def test_acls_are_kept(way: str, tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, "system.posix_acl_access", acl(others=5))
    except OSError as error:
        pytest.skip(f"no ACLs here: {error}")
    access, default = {"system.posix_acl_access": acl(others=4)}, {"system.posix_acl_default": acl(others=0)}
    # The mask stands where a mode has its group.
    layer = Layer().file("f", b"x", mode=0o774, uid=5, gid=6, xattrs=access)
    layer.directory("d", mode=0o3774, xattrs=access | default).file("d/inner", mode=0o640).directory("d/sub")
    check(way, [layer], tmp_path)
    check(way, [layer, Layer().file("d/later", mode=0o600).file("g", mode=0o774, xattrs=access)], tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_owners_are_numbers_whatever_their_names_are(way: str, tmp_path: Path) -> None:
    layer = Layer().directory("./")
    layer.raw(header(b"ustar", uid=3, gid=4, fields={265: b"daemon", 297: b"tty"}))
    layer.raw(pax_header({"uname": b"daemon", "gname": b"tty"}) + header(b"pax", uid=5, gid=6))
    layer.raw(pax_header({"uid": b"7", "uname": b"nobody", "gid": b"8", "gname": b""}) + header(b"both"))
    layer.say(Entry(b"ustar", uid=3, gid=4), Entry(b"pax", uid=5, gid=6), Entry(b"both", uid=7, gid=8))
    check(way, [layer], tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_the_access_time_is_the_modification_time(way: str, tmp_path: Path) -> None:
    layer = Layer().directory("./", mtime_ns=TIME_NS).directory("d", mtime_ns=TIME_NS).symlink("s", "d")
    layer.raw(pax_header({"atime": b"1.5", "ctime": b"2.5"}) + header(b"f", mtime=7, size=1) + padded(b"x"))
    with unpacked(way, [layer.build()], tmp_path) as target:
        for name, time_ns in (("f", 7 * 10**9), ("d", TIME_NS)):
            found = (target / name).lstat()
            assert (found.st_atime_ns, found.st_mtime_ns) == (time_ns, time_ns), name


# GNU's own kinds that are parts of a backup, not of a file system; Solaris' ACLs; what no tar has.
REFUSED_KINDS = {
    "multi-volume": b"M",
    "volume-header": b"V",
    "dump-of-a-directory": b"D",
    "old-long-name": b"N",
    "solaris-acl": b"A",
    "solaris-attributes": b"E",
    "inode-alone": b"I",
    "reserved": b"8",
    "unknown": b"Z",
    "binary": b"\xff",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", REFUSED_KINDS)
def test_what_is_no_file_is_refused_and_named(kind: str, way: str, tmp_path: Path) -> None:
    tar = header(b"before") + header(b"part", kind=REFUSED_KINDS[kind], size=2, magic=GNU) + padded(b"ab")
    with pytest.raises(UnsafeArchiveError, match="unknown entry type") as caught, unpacked(way, [tar], tmp_path):
        pass
    assert (caught.value.entry, caught.value.offset) == (b"part", 512)


@pytest.mark.parametrize("kind", [b"0", b"\0"], ids=["0", "nul"])
@pytest.mark.parametrize("records", [{}, {"size": b"512"}, {"path": b"p/"}], ids=["header", "pax-size", "pax-path"])
def test_a_directory_by_its_name_has_no_data(kind: bytes, records: dict[str, bytes], tmp_path: Path) -> None:
    forged = header(b"forged")
    size = 0 if "size" in records else len(forged)
    extended = pax_header(records) if records else b""
    tar = extended + header(b"f" if "path" in records else b"d/", kind=kind, size=size) + forged
    with pytest.raises(UnsafeArchiveError, match="a directory by its name"), unpacked("merge", [tar], tmp_path):
        pass
    assert list((tmp_path).rglob("forged")) == []


def test_a_long_name_before_what_is_refused_is_its_name(tmp_path: Path) -> None:
    tar = gnu_long(b"L", b"n" * 200) + header(b"short", kind=b"V", magic=GNU)
    with pytest.raises(UnsafeArchiveError) as caught, unpacked("merge", [tar], tmp_path):
        pass
    assert caught.value.entry == b"n" * 200


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system that has no extended attributes."""
    target = tmp_path / "bare"
    target.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"ramfs", os.fsencode(target), b"ramfs", 0, None) != 0:
        pytest.skip(f"no ramfs: {os.strerror(ctypes.get_errno())}")
    yield target
    libc.umount2(os.fsencode(target), 2)


def into_a_directory(layer: Layer, directory: Path) -> Path:
    blob = directory / "layer.tar"
    blob.write_bytes(layer.build())
    pyctrd.unpack(blob, directory / "target")
    return directory / "target"


def into_a_store(layer: Layer, directory: Path) -> Path:
    (directory / "store").mkdir()
    return ingest(directory / "store", layer.build()).path / "tree"


WRITERS: dict[str, Callable[[Layer, Path], Path]] = {"merge": into_a_directory, "store": into_a_store}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_system_without_attributes_takes_what_has_none(writer: str, bare: Path, tmp_path: Path) -> None:
    layer = Layer().directory("./", mode=0o711).directory("d", mode=0o2775, gid=7, mtime_ns=TIME_NS).symlink("s", "d")
    layer.file("d/f", b"x", mode=0o6755, uid=1000, gid=1001, mtime_ns=-1).hardlink("h", "d/f").fifo("p")
    layer.device("c", 0o020000, 1, 3).sparse("sparse", 4096, [(512, b"a" * 512)])
    # What the kernel keeps from links and pipes everywhere is no reason to refuse them here.
    layer.symlink("t", "d", xattrs={"user.k": b"v"})
    expected = read_tree(WRITERS[writer](layer, tmp_path))
    assert read_tree(WRITERS[writer](layer, bare)) == expected


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_capability_that_the_file_system_cannot_hold_is_an_error(writer: str, kind: str, bare: Path) -> None:
    xattrs = {"security.capability": CAPABILITY}
    layer = Layer().file("x", xattrs=xattrs) if kind == "file" else Layer().directory("x", xattrs=xattrs)
    with pytest.raises(OSError, match="set xattr") as caught:
        WRITERS[writer](layer, bare)
    assert (caught.value.errno, caught.value.filename) == (errno.EOPNOTSUPP, "x")


def test_other_attributes_that_the_file_system_cannot_hold_are_counted(bare: Path, tmp_path: Path) -> None:
    layer = Layer().file("x", xattrs={"user.k": b"v", "trusted.k": b"v"}).directory("y", xattrs={"user.k": b"v"})
    blob = tmp_path / "layer.tar"
    blob.write_bytes(layer.build())
    assert pyctrd.unpack(blob, bare / "target").skipped_xattrs == 3
    assert pyctrd.unpack(blob, tmp_path / "target").skipped_xattrs == 0


def test_an_opaque_directory_that_the_file_system_cannot_mark_is_an_error(bare: Path) -> None:
    with pytest.raises(OSError, match="mark opaque") as caught:
        into_a_store(Layer().opaque("d"), bare)
    assert (caught.value.errno, caught.value.filename) == (errno.EOPNOTSUPP, "d")


UNPACK = """
import sys, pyctrd
try:
    pyctrd.unpack(sys.argv[1], sys.argv[2])
    print("done")
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.parametrize("kind", [0o020000, 0o060000], ids=["character", "block"])
def test_a_device_that_may_not_be_made_is_an_error(kind: int, tmp_path: Path) -> None:
    said = []
    for layer in (Layer().fifo("p").whiteout("w"), Layer().device("d/dev", kind, 7, 1)):
        blob = tmp_path / "layer.tar"
        blob.write_bytes(layer.build())
        words = ["setpriv", "--bounding-set=-mknod", "--inh-caps=-mknod", sys.executable, "-P", "-c", UNPACK]
        done = subprocess.run([*words, blob, tmp_path / "target"], capture_output=True, text=True, check=True)
        said.append(done.stdout.strip())
    assert said == ["done", f"{errno.EPERM} d/dev"]


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    with as_nobody() as user:
        yield user


CANNOT: dict[str, Callable[[], Layer]] = {
    "an-owner": lambda: Layer().file("x", uid=0, gid=0),
    "the-owner-of-a-link": lambda: Layer().symlink("x", "y", uid=0),
    "the-owner-of-a-directory": lambda: Layer().directory("x", gid=7, uid=65534),
    "a-device": lambda: Layer().device("x", 0o020000, 1, 3, uid=65534, gid=65534),
    "a-capability": lambda: Layer().file("x", uid=65534, gid=65534, xattrs={"security.capability": CAPABILITY}),
    "a-trusted-attribute": lambda: Layer().file("x", uid=65534, gid=65534, xattrs={"trusted.k": b"v"}),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_takes_rights_is_an_error_for_a_user(name: str, nobody: Nobody) -> None:
    (nobody.home / "layer.tar").write_bytes(CANNOT[name]().build())
    done = nobody.run("unpack", "layer.tar", "target")
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert 'ownership "keep": x: ' in done.err
    assert 'not permitted: needs root, or ownership "mapped" or "recorded"\n' in done.err


def test_a_user_unpacks_what_is_theirs(nobody: Nobody) -> None:
    own = {"uid": 65534, "gid": 65534}
    layer = Layer().directory("./", mode=0o711, **own).directory("d", mode=0o500, mtime_ns=TIME_NS, **own)
    layer.file("d/f", b"x", mode=0o4711, **own).symlink("s", "d", **own).fifo("p", **own).hardlink("h", "d/f")
    layer.file("i/implied", b"x", xattrs={"user.k": b"v"}, **own)
    (nobody.home / "layer.tar").write_bytes(layer.build())
    assert nobody.run("unpack", "layer.tar", "target").status == 0
    found = read_tree(nobody.home / "target")
    assert found[b"d"].mtime_ns == TIME_NS
    assert (found[b"d/f"].mode, found[b"d/f"].same_as, found[b"i"].uid) == (0o4711, b"d/f", 65534)
    assert found[b"i/implied"].xattrs == (("user.k", b"v"),)
