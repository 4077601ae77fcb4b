"""A store in a user namespace: who is root there and nobody outside pulls, mounts, and commits what was changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.archives import Tar
from tests.images import Images, build_image

ENTER = ["unshare", "--user", "--map-root-user", "--mount"]
WORK = """
import json, shutil, subprocess, sys
from pathlib import Path
import pyctrd
from pyctrd.snapshots.overlayfs import in_user_namespace

def facts(root):
    found = {}
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        content = path.read_bytes().hex()[:64] if path.is_file() and not path.is_symlink() else ""
        found[str(path.relative_to(root))] = [oct(stat.st_mode), stat.st_uid, stat.st_mtime_ns, stat.st_nlink, content]
    return found

reference, target = sys.argv[1], Path(sys.argv[2])
target.mkdir()
with pyctrd.Engine() as engine:
    image = engine.images.pull(reference)
    with image.mounted(target):
        shown = facts(target)
    container = engine.containers.create(image, ["true"], name="made")
    rootfs = Path(engine.info()["root"]) / "containers/default" / container.id / "rootfs"
    if not rootfs.is_mount():  # a copied tree needs no mount
        rootfs = Path(engine.info()["root"]) / "snapshots" / f"container-{container.id}" / "rootfs"
    shutil.rmtree(rootfs / "d")
    (rootfs / "d").mkdir()
    (rootfs / "d/new").write_bytes(b"n" * 5000)
    (rootfs / "big").open("ab").write(b"more")
    changes = [f"{change.kind} {change.path}" for change in container.diff()]
    made = container.commit("example.com/made:1")
    with made.mounted(target):
        after = facts(target)
    container.delete()
    found = [str(finding) for finding in engine.check(digests=True)]
    print(json.dumps([in_user_namespace(), engine.info()["snapshotter"], shown, changes, after, found]))
"""


def work(reference: str, directory: Path, *, enter: list[str], **env: str) -> list[Any]:
    directory.mkdir()
    environment = os.environ | {"PYCTRD_ROOT": str(directory / "root"), "PYCTRD_STATE": str(directory / "state")} | env
    command = [*enter, sys.executable, "-P", "-c", WORK, reference, str(directory / "target")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: list[Any] = json.loads(done.stdout)
    return told


@pytest.mark.root
@pytest.mark.parametrize("snapshotter", ["composefs", "overlayfs", "native"])
def test_a_user_namespace_shows_and_makes_what_root_does(images: Images, tmp_path: Path, snapshotter: str) -> None:
    if subprocess.run([*ENTER, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespace can be made")
    lower = Tar().directory("d", mode=0o750).file("d/f", b"f" * 3000).file("d/g", b"g").file("big", b"b" * 9000)
    lower.symlink("s", "d/f").directory("gone").file("gone/x", b"x").fifo("p")
    upper = Tar().hardlink("d/h", "d/f").directory("gone").opaque("gone").whiteout("d/g").file("gone/y", b"y" * 2000)
    pushed = images.push(build_image([lower.build(), upper.build()]))
    inside = work(pushed.reference, tmp_path / "inside", enter=ENTER, PYCTRD_SNAPSHOTTER=snapshotter)
    outside = work(pushed.reference, tmp_path / "outside", enter=[], PYCTRD_SNAPSHOTTER=snapshotter)
    assert inside[0] is True
    assert outside[0] is False
    for told in (inside, outside):
        for changed in ("d", "d/new", "big"):  # when that was is its own
            told[4][changed][2] = 0
    assert inside[1:] == outside[1:]
    assert inside[1] == snapshotter
    assert inside[2]["d/h"][-1] == (b"f" * 3000).hex()[:64]
    assert "gone/x" not in inside[2]
    assert inside[3] == ["C /big", "C /d", "D /d/f", "D /d/h", "A /d/new"]
    assert inside[5] == []
