"""What the process and the directories around it have must not get into a tree."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers.model import Layer
from tests.layers.ways import WAYS, check

pytestmark = pytest.mark.root

GROUP = 4242


def acl(*entries: tuple[int, int]) -> bytes:
    """A POSIX ACL as its xattr holds it: version 2, then tag, permissions and id of each entry."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in entries)


# Owner rwx, group ---, mask rwx, others ---: with `user:1` between, so that it is no plain mode.
DEFAULT_ACL = acl((0x01, 7))[:12] + struct.pack("<HHI", 0x02, 7, 1) + acl((0x04, 0), (0x10, 7), (0x20, 0))[4:]


def everything() -> Layer:
    layer = Layer().directory("./", mode=0o755).directory("d", mode=0o755).file("d/f", b"x", mode=0o666)
    layer.symlink("d/s", "f").fifo("d/p").device("d/c", 0o020000, 1, 3).directory("d/e", mode=0o777)
    return layer.file("implied/parent/f", b"x", mode=0o600, uid=5, gid=6).hardlink("d/h", "d/f")


@pytest.fixture
def set_gid(tmp_path: Path) -> Path:
    """A directory that gives its group to all that is made in it."""
    os.chown(tmp_path, 0, GROUP)
    tmp_path.chmod(0o2755)
    return tmp_path


@pytest.fixture
def with_acl(tmp_path: Path) -> Path:
    """A directory that gives an ACL to all that is made in it."""
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", DEFAULT_ACL)
    except OSError as error:
        pytest.skip(f"no ACLs here: {error}")
    return tmp_path


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    old = os.umask(request.param)
    yield tmp_path
    os.umask(old)


@pytest.mark.parametrize("way", WAYS)
def test_a_set_gid_directory_passes_no_group_on(way: str, set_gid: Path) -> None:
    check(way, [everything()], set_gid)


@pytest.mark.parametrize("way", WAYS)
def test_a_default_acl_is_not_passed_on(way: str, with_acl: Path) -> None:
    check(way, [everything()], with_acl)


@pytest.mark.parametrize("way", WAYS)
def test_the_umask_takes_nothing_away(way: str, umask: Path) -> None:
    check(way, [everything()], umask)


@pytest.mark.parametrize("way", WAYS)
def test_a_lower_set_gid_directory_passes_no_group_on(way: str, tmp_path: Path) -> None:
    lower = Layer().directory("d", mode=0o2775, gid=GROUP).directory("implied", mode=0o2775, gid=GROUP)
    check(way, [lower, everything(), Layer().file("d/n").directory("d/m").symlink("d/l", "n")], tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_a_lower_default_acl_is_not_passed_on(way: str, tmp_path: Path) -> None:
    xattrs = {"system.posix_acl_default": DEFAULT_ACL}
    lower = Layer().directory("d", xattrs=xattrs).directory("implied", xattrs=xattrs)
    check(
        way,
        [lower, Layer().file("d/n", mode=0o666).directory("d/m", mode=0o777).fifo("d/p").file("implied/x/y")],
        tmp_path,
    )
