"""A directory of the user's own is run, with no image: as it is, or beneath a layer; and it stays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import InvalidError, NotFoundError, UnsupportedError
from tests.images import Images
from tests.integration.conftest import Cli
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root


@pytest.fixture
def bundle(engine: pyctrd.Engine, images: Images, tmp_path: Path) -> Path:
    """A root file system that is nobody's."""
    image = engine.images.pull(images.busybox.reference)
    (tmp_path / "mounted").mkdir()
    with image.mounted(tmp_path / "mounted"):
        subprocess.run(["cp", "-a", str(tmp_path / "mounted"), str(tmp_path / "own")], check=True)
    for name in ("dev", "proc", "sys"):
        (tmp_path / "own" / name).mkdir(exist_ok=True)
    return tmp_path / "own"


def test_a_directory_is_run_as_it_is_and_stays(engine: pyctrd.Engine, bundle: Path) -> None:
    container = engine.containers.run(command=["sh", "-c", "echo x > /written; cat /etc/passwd"], rootfs=bundle)
    assert container.wait(60).exit_code == 0
    assert "root" in container.logs()
    assert (container.image_name, container.command[0]) == ("", "sh")
    assert engine.check() == []
    container.copy_to("/etc", b"".join(container.copy_from("/written")))
    assert (bundle / "etc/written").read_text() == "x\n"
    container.start()
    container.wait(60)
    for refused in (container.fork, container.snapshot, container.diff):
        with pytest.raises(UnsupportedError):
            refused()
    container.delete()
    assert (bundle / "written").read_text() == "x\n"
    assert [path.name for path in bundle.parent.iterdir() if path == bundle] == ["own"]
    engine.gc()
    assert engine.check() == []


def test_with_an_overlay_it_is_not_written_to(engine: pyctrd.Engine, bundle: Path) -> None:
    before = read_tree(bundle)
    options = {"rootfs": str(bundle), "overlay": True}
    container = engine.containers.run(None, ["sh", "-c", "rm /etc/passwd; echo x > /x"], **options)  # type: ignore[arg-type]
    assert container.wait(60).exit_code == 0, container.logs()
    fork = container.fork()
    container.snapshot("one")
    container.rollback("one")
    container.delete()
    assert b"x\n" in b"".join(fork.copy_from("/x"))
    fork.delete()
    assert differences(before, read_tree(bundle)) == []
    assert engine.check() == []


def test_what_is_no_directory_is_refused(engine: pyctrd.Engine, images: Images, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="rootfs not found"):
        engine.containers.create(command=["true"], rootfs=tmp_path / "nothing")
    with pytest.raises(InvalidError, match="an image or a rootfs"):
        engine.containers.create(images.busybox.reference, ["true"], rootfs=tmp_path)
    with pytest.raises(InvalidError, match="an image or a rootfs"):
        engine.containers.create(command=["true"])
    with pytest.raises(InvalidError, match="command"):
        engine.containers.create(rootfs=tmp_path)
    assert engine.containers.list() == []
    assert tmp_path.exists()


def test_the_command_line_runs_a_directory(cli: Cli, bundle: Path) -> None:
    done = cli("run", "--rm", "--rootfs", str(bundle), "sh", "-c", "echo out; echo x > /from-the-shell")
    assert (done.status, done.out) == (0, "out\n")
    assert (bundle / "from-the-shell").exists()
    assert cli("run", "--rm", "--rootfs", str(bundle), "--rootfs-overlay", "rm", "/from-the-shell").status == 0
    assert (bundle / "from-the-shell").exists()
    assert cli("run", "--rm", "--rootfs", "/no/such", "true").status == 125
