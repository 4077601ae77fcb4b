"""T17, T18, T20: what is stored once is written to by nobody, and each sees its own owner, mode, time and xattrs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

import pyctrd
from tests.archives import Tar
from tests.images import Images, build_image, busybox_tar

pytestmark = pytest.mark.root

CONTENT = b"the same bytes for both\n" * 1000
# Each way to change a file: its bytes, its length, its mode, its times, its name, and holes in it.
WRITES = """
set -e
echo changed > /etc/motd
truncate -s 3 /etc/os-release 2>/dev/null || : > /etc/os-release
chmod 777 /etc/group
touch -d @0 /etc/passwd
rm /bin/cat
ln /bin/busybox /bin/another
dd if=/dev/zero of=/bin/busybox bs=1 count=1 conv=notrunc 2>/dev/null || true
mkdir /new
rm -r /home
"""


def everything(directory: Path) -> dict[str, tuple[object, ...]]:
    """All that a tree is: types, modes, owners, times, links, bytes and xattrs."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        stat = path.lstat()
        whole = path.is_file() and not path.is_symlink()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if whole else ""
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
        found[str(path.relative_to(directory))] = (
            *(stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime_ns, stat.st_nlink, stat.st_size, content),
            *xattrs,
        )
    return found


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_t17_t20_what_a_container_writes_changes_nothing_of_what_another_tenant_sees(
    images: Images, state: Path, snapshotter: str
) -> None:
    del state
    root = Path(os.environ["PYCTRD_ROOT"])
    with (
        pyctrd.Engine(namespace="a", snapshotter=snapshotter) as a,
        pyctrd.Engine(namespace="b", snapshotter=snapshotter) as b,
    ):
        for engine in (a, b):
            engine.images.pull(images.busybox.reference)
        before = everything(root / "layers")
        reading = a.containers.create(images.busybox.reference, ["sh", "-c", "cat /etc/motd; ls /home"])
        writing = b.containers.run(images.busybox.reference, ["sh", "-c", WRITES])
        assert writing.wait(60).exit_code == 0, writing.logs()
        assert everything(root / "layers") == before
        reading.start()
        assert reading.wait(60).exit_code == 0
        assert reading.logs() == "hello from a layer\napp\n"
        assert a.images.get(images.busybox.reference).read_file("/etc/motd") == b"hello from a layer\n"
        assert a.check(digests=True) == []
        changed = {change.path for change in writing.diff()}
        assert {"/etc/motd", "/new", "/home", "/bin/cat"} <= changed
        for container in (reading, writing):
            container.delete()
        assert everything(root / "layers") == before


def test_t18_two_files_of_the_same_bytes_share_nothing_else(images: Images, state: Path, tmp_path: Path) -> None:
    del state
    of = {
        "a": Tar().file("same", CONTENT, mode=0o644, mtime=10**9, xattrs={"user.of": b"a"}),
        "b": Tar().file("same", CONTENT, mode=0o4755, uid=1000, gid=1001, mtime=10**9 + 1, xattrs={"user.of": b"b"}),
    }
    seen = {}
    for namespace, tar in of.items():
        pushed = images.push(build_image([busybox_tar(), tar.build()]))
        target = tmp_path / namespace
        target.mkdir()
        with pyctrd.Engine(namespace=namespace) as engine, engine.images.pull(pushed.reference).mounted(target) as view:
            stat = (view / "same").stat()
            assert (view / "same").read_bytes() == CONTENT
            seen[namespace] = (
                *(stat.st_mode & 0o7777, stat.st_uid, stat.st_gid, int(stat.st_mtime), stat.st_nlink),
                os.getxattr(view / "same", "user.of"),
            )
    assert seen == {
        "a": (0o644, 0, 0, 10**9, 1, b"a"),
        "b": (0o4755, 1000, 1001, 10**9 + 1, 1, b"b"),
    }
