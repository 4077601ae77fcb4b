"""D20: what a boot that crashed left of mounts, groups and states: ours is taken over or away, and nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.runtime import cgroup
from tests.images import Images

pytestmark = pytest.mark.root


def mounts() -> str:
    """All of this namespace."""
    return Path("/proc/self/mounts").read_text()


def test_d20_after_a_reboot_containers_are_there_and_start_again(
    engine: pyctrd.Engine, images: Images, root: Path, state: Path
) -> None:
    """A boot takes mounts, processes, groups and the state directory, and leaves what is on the disk."""
    engine.images.pull(images.busybox.reference)
    ran = engine.containers.run(images.busybox.reference, ["sleep", "600"], name="ran")
    engine.containers.create(images.busybox.reference, ["echo", "hello"], name="made")
    ran.kill()
    ran.wait(60)
    for container in engine.containers.list():
        subprocess.run(["umount", str(root / "containers/default" / container.id / "rootfs")], check=True)
    for path in state.glob("mounts/*/*/image"):
        subprocess.run(["umount", path], check=True)
    for path in state.iterdir():
        shutil.rmtree(path)
    with pyctrd.Engine() as after:
        assert after.check(digests=True) == []
        assert sorted(container.name for container in after.containers.list()) == ["made", "ran"]
        made = after.containers.get("made")
        made.start()
        assert made.wait(60).exit_code == 0
        assert made.logs() == "hello\n"


def test_d20_a_mount_in_the_trash_keeps_no_store_from_opening(images: Images, root: Path, state: Path) -> None:
    del state
    with pyctrd.Engine() as engine:
        engine.images.pull(images.busybox.reference)
    left = root / "trash/a name with blanks"
    for name in ("lower", "upper", "work", "merged"):
        (left / name).mkdir(parents=True)
    _core.mount_overlay([left / "lower"], left / "merged", upper=left / "upper", work=left / "work")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(left / "merged")], check=True)
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []
    assert list((root / "trash").iterdir()) == []
    assert str(root) not in mounts()


def test_d20_strangers_mounts_and_groups_are_left_alone(
    engine: pyctrd.Engine, images: Images, root: Path, tmp_path: Path
) -> None:
    """Also such as look like ours: under another root, or beside it by name."""
    beside = tmp_path / "root-of-another/trash/left"
    beside.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(beside)], check=True)
    (root / "trash").mkdir(exist_ok=True, parents=True)
    (root / "trash/left").mkdir()
    group = (
        Path("/sys/fs/cgroup") / ("" if cgroup.cgroup_form() == "unified" else "pids") / f"pyctrd-test-{os.getpid()}"
    )
    made = group.parent.is_dir() and not group.exists()
    if made:
        group.mkdir()
    try:
        with pyctrd.Engine() as after:
            container = after.containers.run(after.images.pull(images.busybox.reference), ["true"])
            container.wait(60)
            container.delete()
        assert beside.is_mount()
        assert not made or group.is_dir()
        assert list((root / "trash").iterdir()) == []
    finally:
        if made:
            group.rmdir()


def test_d20_a_container_whose_shim_and_runtime_state_are_gone_is_deleted_with_its_mount_and_group(
    engine: pyctrd.Engine, images: Images, root: Path, state: Path
) -> None:
    container = engine.containers.run(engine.images.pull(images.busybox.reference), ["sleep", "600"], name="lost")
    pid = container.status.pid
    groups = [line.rpartition(":")[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    mine = [group for group in groups if container.id in group]
    assert mine
    container.delete(force=True)
    assert not Path(f"/proc/{pid}").exists()
    assert container.id not in mounts()
    left = [path for path, _, _ in os.walk("/sys/fs/cgroup") if container.id in Path(path).name]
    assert left == []
    assert not (state / "shims" / container.id).exists()
    assert list((state / "runtimes").glob(f"*/{container.id}")) == []
