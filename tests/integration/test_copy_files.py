"""Files copied into containers and out of them, running or not, whatever the container does to its names."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import ConflictError, InvalidError, NotFoundError, PyctrdError, UnsafeArchiveError
from tests.archives import Tar
from tests.images import Images
from tests.integration.conftest import Cli, command
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root
LOOP = "echo ready; while :; do sleep 1; done"


@pytest.fixture(params=["running", "stopped"])
def container(request: pytest.FixtureRequest, engine: pyctrd.Engine, images: Images) -> pyctrd.Container:
    """One that runs, and one that was never started."""
    engine.images.pull(images.busybox.reference)
    script = "ln -s /etc/passwd /tmp/out; ln -s / /tmp/root; ln -s /tmp /tmp/loop; mkdir /tmp/d; " + LOOP
    made = engine.containers.create(images.busybox.reference, ["sh", "-c", script], user="7:8")
    inside = rootfs(made)
    (inside / "tmp").mkdir(exist_ok=True)
    (inside / "tmp").chmod(0o1777)
    if request.param == "running":
        made.start()
        for _ in made.log_lines(follow=True):
            break
    else:
        subprocess.run(["/bin/sh", "-c", script.replace("/tmp/", "tmp/").partition("echo")[0]], cwd=inside, check=True)
    return made


def rootfs(container: pyctrd.Container) -> Path:
    from pyctrd.flows.run import mount_rootfs

    return mount_rootfs(container._rooms, container._record)


def read(container: pyctrd.Container, path: str) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(b"".join(container.copy_from(path))))


def test_an_archive_comes_in_and_goes_out_again(container: pyctrd.Container) -> None:
    made = Tar().directory("a", mode=0o750, uid=5).file("a/f", b"text", mode=0o4711, uid=5, xattrs={"user.x": b"\xff"})
    made.hardlink("a/g", "a/f").symlink("a/l", "/nowhere").directory("d").file("d/in", b"x")
    container.copy_to("/tmp", made.build())
    back = read(container, "/tmp/a")
    assert [member.name for member in back] == ["a", "a/f", "a/g", "a/l"]
    file = back.getmember("a/f")
    assert (file.mode, file.uid, file.gid) == (0o4711, 7, 8)
    assert back.extractfile("a/g").read() == b"text"  # type: ignore[union-attr]
    assert back.getmember("a/g").islnk()
    assert back.getmember("a/l").linkname == "/nowhere"
    container.copy_to("/tmp", io.BytesIO(made.build()), archive=True)
    assert read(container, "/tmp/a").getmember("a").uid == 5
    assert [member.name for member in read(container, "/tmp/a/")] == ["f", "g", "l"]


def test_links_lead_where_they_lead_in_the_container(container: pyctrd.Container) -> None:
    container.copy_to("/tmp/root/tmp/loop/d", Tar().file("f", b"inside").build())
    assert (rootfs(container) / "tmp/d/f").read_bytes() == b"inside"
    # A directory of the archive that is a link there is the one that the link leads to.
    container.copy_to("/tmp", Tar().directory("loop").file("loop/g", b"too").build())
    assert (rootfs(container) / "tmp/g").read_bytes() == b"too"
    # A file takes the link's place, and nothing is written through it.
    before = Path("/etc/passwd").read_bytes(), (rootfs(container) / "etc/passwd").read_bytes()
    container.copy_to("/tmp", Tar().file("out", b"mine").build())
    assert (rootfs(container) / "tmp/out").read_bytes() == b"mine"
    assert (Path("/etc/passwd").read_bytes(), (rootfs(container) / "etc/passwd").read_bytes()) == before
    assert read(container, "/tmp/loop").getmember("loop").issym()
    with pytest.raises(NotFoundError):
        container.copy_to("/../../nowhere", Tar().file("f", b"").build())


def test_a_hostile_archive_is_refused_and_changes_nothing(container: pyctrd.Container) -> None:
    before = sorted(path.name for path in (rootfs(container) / "tmp").iterdir())
    for archive in (
        Tar().file("first", b"x").build()[:700],
        Tar().file("first", b"x").file("d/.wh.second", b"").build(),
        gzip.compress(Tar().file("first", b"x").file(".wh.second", b"").build()),
        Tar().file("first", b"x").hardlink("h", "../../../etc/passwd").build(),
    ):
        with pytest.raises(PyctrdError):
            container.copy_to("/tmp", archive)
        assert sorted(path.name for path in (rootfs(container) / "tmp").iterdir()) == before
    # A link of the archive's own leads where it would if the directory were all that there is.
    container.copy_to("/tmp", Tar().symlink("l", "/etc").file("l/inside", b"x").build())
    assert not (rootfs(container) / "etc/inside").exists()
    # As in a layer, ".." ends at the directory that the archive is unpacked into.
    container.copy_to("/tmp", Tar().file("../../escaped", b"x").build())
    assert (rootfs(container) / "tmp/escaped").read_bytes() == b"x"
    with pytest.raises(UnsafeArchiveError):
        container.copy_to("/tmp", Tar().hardlink("h", "/etc/passwd").build())


def test_kinds_do_not_replace_each_other(container: pyctrd.Container) -> None:
    with pytest.raises(ConflictError):
        container.copy_to("/tmp", Tar().file("d", b"x").build())
    container.copy_to("/tmp", Tar().file("f", b"x").build())
    with pytest.raises(ConflictError):
        container.copy_to("/tmp", Tar().directory("f").build())
    with pytest.raises(InvalidError):
        container.copy_to("/tmp/f", Tar().file("f", b"x").build())
    with pytest.raises(NotFoundError):
        list(container.copy_from("/tmp/nothing"))


def test_files_are_copied_as_docker_cp_does(container: pyctrd.Container, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_text("text")
    (source / "link").symlink_to("sub/file")
    container.copy_file_to(source, "/tmp")
    container.copy_file_to(source, "/tmp/renamed")
    container.copy_file_to(f"{source}/.", "/tmp/d")
    container.copy_file_to(source / "sub/file", "/tmp/one")
    inside = rootfs(container) / "tmp"
    for path in ("source/sub/file", "renamed/sub/file", "d/sub/file", "one"):
        assert (inside / path).read_text() == "text"
        assert (inside / path).stat().st_uid == 7
    container.copy_file_from("/tmp/source", tmp_path / "back")
    assert differences(read_tree(source), read_tree(tmp_path / "back")) == []
    container.copy_file_from("/tmp/source/.", tmp_path / "back")
    container.copy_file_from("/tmp/one", tmp_path)
    assert (tmp_path / "one").read_text() == "text"
    with pytest.raises(NotFoundError):
        container.copy_file_from("/tmp/one", f"{tmp_path}/nowhere/")


def test_an_export_is_the_whole_tree_and_the_same_each_time(container: pyctrd.Container, tmp_path: Path) -> None:
    container.export(tmp_path / "first.tar")
    again = io.BytesIO()
    container.export(again)
    assert again.getvalue() == (tmp_path / "first.tar").read_bytes()
    pyctrd.unpack(tmp_path / "first.tar", tmp_path / "tree")
    expected, found = read_tree(rootfs(container)), read_tree(tmp_path / "tree")
    for tree in (expected, found):
        del tree[b"."]  # the archive says nothing of the directory that it is unpacked into
    assert differences(expected, found) == []


def test_a_container_that_swaps_its_names_leads_nobody_out(
    engine: pyctrd.Engine, images: Images, tmp_path: Path
) -> None:
    engine.images.pull(images.busybox.reference)
    outside = tmp_path / "outside"
    outside.mkdir()
    up = "/.." * 20
    script = f"""mkdir /a; ln -s {up}{outside} /b; echo ready
        while :; do mv /a /c; mv /b /a; mv /a /b; mv /c /a; done 2>/dev/null"""
    container = engine.containers.run(images.busybox.reference, ["sh", "-c", script])
    for _ in container.log_lines(follow=True):
        break
    archive = Tar().directory("a").file("a/f", b"x").directory("a/sub").file("a/sub/g", b"x").build()
    for _ in range(60):
        try:
            container.copy_to("/", archive)
        except (PyctrdError, OSError):
            continue
    assert list(outside.iterdir()) == []


def test_the_command_line_copies_and_exports(cli: Cli, images: Images, tmp_path: Path) -> None:
    assert cli("pull", images.busybox.reference).status == 0
    assert cli("run", "--name", "one", images.busybox.reference, "true").status == 0
    (tmp_path / "file").write_text("text")
    assert cli("cp", str(tmp_path / "file"), "one:/etc/copied").status == 0
    assert cli("cp", "one:/etc/copied", str(tmp_path / "back")).status == 0
    assert (tmp_path / "back").read_text() == "text"
    tar = subprocess.run(command("cp", "one:/etc/copied", "-"), capture_output=True, check=True).stdout
    done = subprocess.run(command("cp", "-a", "-", "one:/home"), input=tar, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert cli("export", "-o", str(tmp_path / "out.tar"), "one").status == 0
    with tarfile.open(tmp_path / "out.tar") as exported:
        assert exported.extractfile("home/copied").read() == b"text"  # type: ignore[union-attr]
    wrong = cli("cp", "one:/a", "two:/b")
    assert (wrong.status, wrong.err.count("\n") <= 2) == (1, True)
    assert cli("rm", "one").status == 0
    assert list((Path(os.environ["PYCTRD_ROOT"]) / "content/ingest").iterdir()) == []
