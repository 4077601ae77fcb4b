"""T11, T12, D17: whose the directories are, what others may do in them, and what they stand on."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.errors import ConflictError, InvalidError, UnsupportedError
from pyctrd.flows import directories
from pyctrd.flows.directories import network_file_system
from tests.children import Child
from tests.cli.commands import NOBODY, is_one_error, run
from tests.images import Images

pytestmark = pytest.mark.root

# What the OCI runtime makes for itself, in a directory that is its user's alone.
RUNTIMES = ("runtime.log", "init.pid")
# What is in them has modes of its own: an image's, a container's, the runtime's.
OTHERS = ("tree", "rootfs", "upper", "work", "empty", "runtimes")
FULL_LIFE = """
import os, sys
import pyctrd
os.umask(int(sys.argv[2], 8))
with pyctrd.Engine() as engine:
    image = engine.images.pull(sys.argv[1])
    container = engine.containers.run(image, ["sleep", "600"], name="made")
    container.commit("example.com/committed:1")
    engine.check(digests=True)
    print("ready", flush=True)
    input()
    container.delete(force=True)
"""
# ext4, XFS, btrfs, tmpfs, overlayfs, ZFS, F2FS, FUSE.
LOCAL = [0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x794C7630, 0x2FC12FC1, 0xF2F52010, 0x65735546]
NETWORK = {"NFS": 0x6969, "CIFS": 0xFF534D42, "SMB": 0xFE534D42, "9p": 0x01021997, "Ceph": 0xC36400}


def modes(directory: Path) -> Iterator[tuple[str, str]]:
    """The modes of all below that is the store's own."""
    for where, names, files in os.walk(directory):
        names[:] = [name for name in names if name not in OTHERS and not os.path.ismount(os.path.join(where, name))]  # noqa: PTH118 - as os.walk
        for path in (Path(where), *(Path(where, name) for name in files if name not in RUNTIMES)):
            yield str(path.relative_to(directory)), stat.filemode(path.lstat().st_mode)


@pytest.mark.parametrize("umask", ["0", "077"])
def test_t11_everything_is_its_owners_alone_whatever_the_umask(
    images: Images, root: Path, state: Path, umask: str
) -> None:
    with Child(FULL_LIFE, images.busybox.reference, umask) as child:
        assert child.hear() == "ready"
        found = dict(modes(root)) | {f"state/{name}": mode for name, mode in modes(state)}
        child.say()
        assert child.wait() == 0
    for name, mode in found.items():
        blob = name.startswith(("content/blobs/sha256/", "objects/"))
        if "/stack-" in name and name.endswith("/root"):
            continue  # as it is in the image
        assert mode in {"drwx------", "-rw-------", "srw-------", *(["-r--r--r--", "-r--------"] if blob else [])}, name
    assert {"content/blobs", "layers/sha256", "locks/store", "containers/default", "state/shims"} < set(found)
    assert any(name.endswith("attach.sock") for name in found)


def test_t11_a_umask_that_keeps_the_owner_out_is_refused(root: Path) -> None:
    mask = os.umask(0o777)
    try:
        with pytest.raises(InvalidError, match="invalid umask: 0777: expected one that leaves the owner's rights"):
            pyctrd.Engine()
        assert not root.exists()
    finally:
        os.umask(mask)


def test_t11_what_is_made_above_the_root_is_not_open_for_writing(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        with pyctrd.Engine(root=tmp_path / "very/new/root", state=tmp_path / "other/state"):
            pass
    finally:
        os.umask(mask)
    for name, mode in {"very": 0o755, "very/new": 0o755, "other": 0o755, "very/new/root": 0o700}.items():
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode, name


@pytest.mark.parametrize("what", ["root", "state"])
@pytest.mark.parametrize("mode", [0o755, 0o777, 0o2750])
def test_t12_a_directory_of_ours_that_is_open_to_others_is_closed_and_told(
    root: Path, state: Path, what: str, mode: int
) -> None:
    with pyctrd.Engine() as engine:
        engine.images.list()
    directory = {"root": root, "state": state}[what]
    (state / "shims").mkdir(mode=0o700)
    directory.chmod(mode)
    with pyctrd.Engine() as engine:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        [event] = list(engine.events(all_namespaces=True, types=["store"]))
    assert (event.action, event.name) == ("repaired", str(directory))
    assert event.attributes == {"what": f"mode was {mode:04o}, is 0700"}


@pytest.mark.parametrize("what", ["root", "state"])
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_t12_a_directory_that_others_use_is_refused_and_left_as_it_is(tmp_path: Path, what: str, mode: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "something").touch()
    shared.chmod(mode)
    done = run(f"--{what}", str(shared), "images")
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert f"{what} directory refused: {shared}: is open to others (mode {mode:04o})" in done.err
    assert stat.S_IMODE(shared.stat().st_mode) == mode
    assert [path.name for path in shared.iterdir()] == ["something"]


@pytest.mark.parametrize("what", ["root", "state"])
def test_t12_a_directory_of_another_user_is_refused(tmp_path: Path, what: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, NOBODY)
    done = run(f"--{what}", str(theirs), "images")
    assert done.status == 1
    assert f"{what} directory refused: {theirs}: belongs to user {NOBODY}: expected a directory of user 0" in done.err
    assert list(theirs.iterdir()) == []


@pytest.mark.parametrize("what", ["root", "state"])
def test_t12_a_link_is_followed_only_where_an_administrator_put_it(tmp_path: Path, what: str) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    elsewhere.mkdir(mode=0o700)
    link.symlink_to(elsewhere)
    assert run(f"--{what}", str(link), "images").status == 0
    assert what == "state" or (elsewhere / "pyctrd.db").exists()
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    done = run(f"--{what}", str(link), "images")
    assert done.status == 1
    assert f"{what} directory refused: {link}: is a symbolic link of user {NOBODY}" in done.err


def test_t12_what_a_link_leads_to_is_looked_at_as_well(tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    elsewhere.mkdir(mode=0o777)
    os.chown(elsewhere, NOBODY, NOBODY)
    link.symlink_to(elsewhere)
    with pytest.raises(ConflictError, match=f"belongs to user {NOBODY}"):
        pyctrd.Engine(root=link)


@pytest.mark.parametrize("what", ["root", "state"])
def test_d17_a_read_only_file_system_is_told_as_such(tmp_path: Path, what: str) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700,size=16M", "tmpfs", str(place)], check=True)
    assert run(f"--{what}", str(place), "images").status == 0
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    done = run(f"--{what}", str(place), "images")
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert "read-only file system" in done.err.lower()
    assert str(place) in done.err


@pytest.mark.parametrize("name", NETWORK)
def test_d17_a_network_file_system_is_known_by_its_number(name: str) -> None:
    assert network_file_system(NETWORK[name]) == name
    assert network_file_system(NETWORK[name] - (1 << 32)) == name  # as a signed number of 32 bits


@pytest.mark.parametrize("magic", LOCAL)
def test_d17_a_file_system_of_this_host_is_none(magic: int) -> None:
    assert network_file_system(magic) is None


def test_d17_a_root_on_a_network_file_system_is_refused_before_anything_is_made(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No NFS server is to be had here: the file system that the root does stand on is called one."""
    root.mkdir(mode=0o700)
    monkeypatch.setitem(directories.NETWORK_FILE_SYSTEMS, _core.file_system(root), "NFS")
    with pytest.raises(UnsupportedError, match=f"root on a network file system: {root}: NFS"):
        pyctrd.Engine()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_d17_a_root_on_memory_or_on_overlayfs_works(images: Images, tmp_path: Path, state: Path, kind: str) -> None:
    del state
    for name in ("place", "lower", "upper", "work"):
        (tmp_path / name).mkdir(mode=0o700)
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    words = ["-o", "mode=0700,size=64M"] if kind == "tmpfs" else ["-o", options]
    subprocess.run(["mount", "-t", kind, *words, kind, str(tmp_path / "place")], check=True)
    with pyctrd.Engine(root=tmp_path / "place") as engine:
        image = engine.images.pull(images.busybox.reference)
        container = engine.containers.run(image, ["echo", "hello"])
        assert container.wait(60).exit_code == 0
        assert container.logs() == "hello\n"
        container.delete()
        assert engine.check(digests=True) == []
