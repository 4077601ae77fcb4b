"""Containers in user namespaces of their own: which ids they have, and that on disk files have the container's."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import ConflictError, InvalidError, NotFoundError, UnsupportedError
from tests.images import Images
from tests.integration.conftest import Cli
from tests.runtimes import RUNTIMES, usable
from tests.subids import Ranges

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not Path("/etc/subuid").exists(), reason="needs /etc/subuid, to mount another over it"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc"),
]

FIRST, COUNT = 1_000_000, 200_000
DEADLINE_SECONDS = 60.0
MAPPED = Path("/run/pyctrd-mapped")


@pytest.fixture
def ranges(tmp_path: Path) -> Iterator[Ranges]:
    """Three containers' ids and some."""
    with Ranges(tmp_path, f"containers:{FIRST}:{COUNT}", "somebody:500000:1000", "somebody:600000:70000") as made:
        yield made


@pytest.fixture
def busybox(engine: pyctrd.Engine, images: Images) -> str:
    """Something to run, pulled."""
    engine.images.pull(images.busybox.reference)
    return images.busybox.reference


def output(container: pyctrd.Container) -> str:
    """What a container wrote to its end, at which it was content."""
    ended = container.wait(timeout=DEADLINE_SECONDS)
    text = "".join(container.logs())
    assert ended.exit_code == 0, text
    return text


def shell(container: pyctrd.Container, script: str, *, user: str = "") -> str:
    """What a line of sh writes in a container that runs."""
    done = container.exec_output(["sh", "-c", script], user=user)
    assert done.exit_code == 0, (done.stdout, done.stderr)
    text: str = done.stdout.decode()
    return text


def namespace(pid: int) -> Path:
    """Which user namespace a process is in."""
    return Path(f"/proc/{pid}/ns/user").readlink()


@pytest.mark.usefixtures("ranges")
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("snapshotter", ["composefs", "overlayfs", "native"])
def test_files_have_the_containers_ids_on_disk(images: Images, state: Path, snapshotter: str, runtime: str) -> None:
    script = (
        "cat /proc/self/uid_map; touch /made; chown 5:6 /made; echo more >> /etc/passwd; stat -c '%u:%g' /made /bin"
    )
    with usable(runtime), pyctrd.Engine(snapshotter=snapshotter, runtime=runtime, state=state) as engine:
        engine.images.pull(images.busybox.reference)
        container = engine.containers.run(images.busybox.reference, ["sh", "-c", script], userns="auto")
        try:
            assert [line.split() for line in output(container).splitlines()] == [
                ["0", str(FIRST), "65536"],
                ["5:6"],
                ["0:0"],
            ]
            with tarfile.open(fileobj=io.BytesIO(b"".join(container.copy_from("/made")))) as copied:
                assert [(one.uid, one.gid) for one in copied] == [(5, 6)]
            made = container.commit("example.com/made:1")
            plain = engine.containers.run(made, ["stat", "-c", "%u:%g", "/made", "/etc/passwd"])
            assert output(plain) == "5:6\n0:0\n"
            plain.delete()
        finally:
            container.delete(force=True)
        assert not (MAPPED / container.id).exists()


@pytest.mark.usefixtures("ranges")
def test_no_two_containers_have_the_same_ids(engine: pyctrd.Engine, busybox: str) -> None:
    made = [engine.containers.create(busybox, ["cat", "/proc/self/uid_map"], userns="auto") for _ in range(3)]
    made[0].delete()  # by which its ids are free
    fork = made[1].fork()
    made += [fork, engine.containers.create(busybox, ["cat", "/proc/self/gid_map"], userns="auto:size=1000")]
    found = []
    for container in made[1:]:
        container.start()
        inside, outside, length = map(int, output(container).split())
        assert inside == 0
        found.append((outside, outside + length))
        told = container.inspect()["user_namespace"]
        assert told == {"mode": "auto", "uids": [[0, outside, length]], "gids": [[0, outside, length]]}
    assert all(start >= FIRST and end <= FIRST + COUNT for start, end in found)
    in_order = sorted(found)
    assert all(before[1] <= after[0] for before, after in pairwise(in_order)), found


def test_ids_that_are_used_up_or_nobodys_are_told(engine: pyctrd.Engine, busybox: str, ranges: Ranges) -> None:
    for number in range(3):
        engine.containers.create(busybox, ["true"], userns="auto", name=f"c{number}")
    with pytest.raises(ConflictError, match="no free ids: 65536 users in a row"):
        engine.containers.create(busybox, ["true"], userns="auto", name="refused")
    assert engine.containers.find("refused") is None
    ranges.set("somebody:1:2")
    with pytest.raises(UnsupportedError, match="a range of ids for containers in /etc/subuid"):
        engine.containers.create(busybox, ["true"], userns="auto")
    with pytest.raises(UnsupportedError, match="a range of ids for anybody in /etc/subuid"):
        engine.containers.create(busybox, ["true"], subuidname="anybody")


@pytest.mark.usefixtures("ranges")
def test_ids_are_those_that_were_given(engine: pyctrd.Engine, busybox: str, cli: Cli) -> None:
    show = "cat /proc/self/uid_map; echo; cat /proc/self/gid_map"

    def told(*words: str) -> list[list[int]]:
        done = cli("run", "--rm", *words, busybox, "sh", "-c", show)
        assert done.status == 0, done.err
        return [[int(word) for word in part.split()] for part in done.out.split("\n\n")]

    assert told("--uidmap", "0:700000:3", "--uidmap", "3:800000:1000") == [[0, 700000, 3, 3, 800000, 1000]] * 2
    assert told("--uidmap", "0:700000:3", "--gidmap", "0:5") == [[0, 700000, 3], [0, 5, 1]]
    assert told("--subuidname", "somebody") == [[0, 500000, 1000, 1000, 600000, 70000]] * 2
    assert told("--userns", "keep-id") == [[0, 0, 4294967295]] * 2
    assert told("--userns", "host") == [[0, 0, 4294967295]] * 2


@pytest.mark.usefixtures("ranges")
def test_processes_and_files_go_in_and_out(engine: pyctrd.Engine, busybox: str, tmp_path: Path) -> None:
    binds = ["volume:/etc/volume", "/home", "own:/home/own"]
    container = engine.containers.run(busybox, ["sleep", "1000"], userns="auto", binds=binds)
    assert shell(container, "id -u; touch /etc/volume/f /home/own/f; stat -c %u /etc/volume /etc/volume/f /home") == (
        "0\n0\n0\n0\n"
    )
    assert shell(container, "id -u; touch /home/app/f; stat -c %u /home/app /home/app/f", user="app") == (
        "1000\n1000\n1000\n"
    )
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_text("content")
    os.chown(source / "f", 5, 6)
    container.copy_file_to(source, "/as-root")
    container.copy_file_to(source, "/as-it-was", archive=True)
    container.copy_file_to(source, "/dev/shm/memory")
    container.copy_file_to(source, "/home/own/volume", archive=True)
    paths = "/as-root /as-root/f /as-it-was/f /dev/shm/memory/f /home/own/volume/f"
    assert shell(container, f"stat -c %u:%g {paths}") == "0:0\n0:0\n5:6\n0:0\n5:6\n"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("g")
        entry.uid, entry.gid = 7, 8
        tar.addfile(entry)
    container.copy_to("/tmp", archive.getvalue(), archive=True)
    assert shell(container, "stat -c %u:%g /tmp/g") == "7:8\n"
    container.copy_file_from("/as-it-was/f", tmp_path / "kept", archive=True)
    container.copy_file_from("/as-it-was/f", tmp_path / "ours")
    assert [(path.stat().st_uid, path.stat().st_gid) for path in (tmp_path / "kept", tmp_path / "ours")] == [
        (5, 6),
        (os.geteuid(), os.getegid()),
    ]
    container.export(tmp_path / "all.tar")
    with tarfile.open(tmp_path / "all.tar") as tar:
        assert [(tar.getmember(name).uid, tar.getmember(name).gid) for name in ("as-it-was/f", "etc")] == [
            (5, 6),
            (0, 0),
        ]
    # None of this thread's is left as the container's.
    (tmp_path / "mine").touch()
    assert (tmp_path / "mine").stat().st_uid == os.geteuid()


@pytest.mark.usefixtures("ranges")
def test_a_fork_and_a_rollback_keep_the_ids(engine: pyctrd.Engine, busybox: str) -> None:
    container = engine.containers.run(busybox, ["sleep", "1000"], userns="auto")
    shell(container, "mkdir /d; touch /d/f; chown 7:8 /d/f")
    name = container.snapshot()
    fork = container.fork()
    fork.start()
    assert shell(fork, "stat -c %u:%g /d/f /d; touch /d/g") == "7:8\n0:0\n"
    shell(container, "rm -r /d")
    container.rollback(name, restart=True)
    assert shell(container, "stat -c %u:%g /d/f; ls /d") == "7:8\nf\n"
    assert {change.path for change in container.diff()} == {"/d", "/d/f"}


@pytest.mark.usefixtures("ranges")
def test_it_is_mounted_again_where_a_reboot_took_it(engine: pyctrd.Engine, busybox: str) -> None:
    container = engine.containers.run(busybox, ["sh", "-c", "touch /f; stat -c %u /f"], userns="auto")
    output(container)
    subprocess.run(["umount", str(MAPPED / container.id / "rootfs")], check=True)
    shutil.rmtree(MAPPED / container.id)
    container.start()
    assert output(container) == "0\n0\n"


@pytest.mark.usefixtures("ranges")
def test_the_namespace_of_another_container_is_joined(engine: pyctrd.Engine, busybox: str) -> None:
    first = engine.containers.run(busybox, ["sleep", "1000"], userns="auto", name="first")
    same = namespace(first.status.pid)
    for mode in ("container:first", f"ns:/proc/{first.status.pid}/ns/user"):
        second = engine.containers.run(busybox, ["sleep", "1000"], userns=mode)
        assert namespace(second.status.pid) == same
        assert shell(second, "touch /f; stat -c %u /f") == "0\n"
        second.delete(force=True)
    third = engine.containers.create(busybox, ["sleep", "1000"], userns="container:first")
    first.restart(timeout=0)
    third.start()
    assert namespace(third.status.pid) == namespace(first.status.pid)
    engine.containers.run(busybox, ["sleep", "1000"], name="plain")
    fourth = engine.containers.run(busybox, ["sleep", "1000"], userns="container:plain")
    assert namespace(fourth.status.pid) == namespace(os.getpid())


@pytest.mark.usefixtures("ranges")
def test_a_namespace_with_a_name_is_joined(engine: pyctrd.Engine, busybox: str, tmp_path: Path) -> None:
    first = engine.containers.run(busybox, ["sleep", "1000"], userns="auto")
    kept = tmp_path / "kept"
    kept.touch()
    subprocess.run(["mount", "--bind", f"/proc/{first.status.pid}/ns/user", str(kept)], check=True)
    try:
        second = engine.containers.run(busybox, ["sh", "-c", "cat /proc/self/uid_map"], userns=str(kept))
        assert output(second).split() == ["0", str(FIRST), "65536"]
        assert second.inspect()["user_namespace"]["mode"] == "path"
    finally:
        subprocess.run(["umount", str(kept)], check=True)


@pytest.mark.usefixtures("ranges")
def test_it_goes_with_namespaces_of_the_host(engine: pyctrd.Engine, busybox: str) -> None:
    script = "cat /proc/self/uid_map; test -e /sys/class/net/lo; test -e /proc/1/stat; ps > /dev/null"
    container = engine.containers.run(
        busybox, ["sh", "-e", "-c", script], userns="auto", network="host", pid="host", ipc="host", uts="host"
    )
    assert output(container).split() == ["0", str(FIRST), "65536"]


@pytest.mark.usefixtures("ranges")
def test_a_directory_is_run_with_other_owners(engine: pyctrd.Engine, busybox: str, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    with engine.images.get(busybox).mounted(root):
        shutil.copytree(root, tmp_path / "copy", symlinks=True)
    container = engine.containers.run(
        None, ["sh", "-c", "touch /f; chown 5 /f; stat -c %u /bin /f"], rootfs=tmp_path / "copy", userns="auto"
    )
    assert output(container) == "0\n5\n"
    assert (tmp_path / "copy/f").stat().st_uid == 5


@pytest.mark.usefixtures("ranges")
@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"userns": "nomap"}, InvalidError, "is for a caller that is not root"),
        ({"userns": "keep-id:uid=5"}, InvalidError, "is for a caller that is not root"),
        ({"userns": "other"}, InvalidError, "invalid userns: other: expected host, auto"),
        ({"userns": "private"}, InvalidError, "needs uidmap, gidmap or subuidname"),
        ({"userns": "auto:size=x"}, InvalidError, "expected size=N"),
        ({"userns": "auto:uidmapping=0:1:2"}, UnsupportedError, "auto:uidmapping"),
        ({"userns": "auto", "uidmaps": ["0:1:2"]}, InvalidError, "its ids cannot be chosen"),
        ({"uidmaps": ["0:1:2"], "subuidname": "somebody"}, InvalidError, "expected one of them"),
        ({"uidmaps": ["0"]}, InvalidError, "expected CONTAINER:HOST"),
        ({"uidmaps": ["0:10:5", "4:20:5"]}, InvalidError, "overlap"),
        ({"uidmaps": ["5:700000:10"]}, InvalidError, "user: 0: not in the container's user namespace"),
        (
            {"uidmaps": ["0:700000:10"], "user": "app"},
            InvalidError,
            "user: 1000: not in the container's user namespace",
        ),
        ({"userns": "container:nothing"}, NotFoundError, "container not found: nothing"),
        ({"userns": "/no/such/path"}, InvalidError, "userns: /no/such/path: No such file"),
        ({"userns": "/proc/self/ns/user"}, InvalidError, "is the namespace that the engine is in"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_left(
    engine: pyctrd.Engine, busybox: str, options: pyctrd.ContainerOptions, error: type[Exception], said: str
) -> None:
    before = set(MAPPED.iterdir()) if MAPPED.exists() else set()
    with pytest.raises(error, match=said):
        engine.containers.create(busybox, ["true"], **options)
    assert engine.containers.list() == []
    assert (set(MAPPED.iterdir()) if MAPPED.exists() else set()) == before
