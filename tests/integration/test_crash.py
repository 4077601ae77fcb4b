"""Killed in the middle of making or deleting: whatever the step, the next engine leaves nothing half done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import NotFoundError
from tests import syscalls
from tests.images import Images
from tests.syscalls import Watched

WHY_UNWATCHED = syscalls.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)]

PROGRAM = """
import os, sys, pyctrd
what, reference, target = sys.argv[1:]
with pyctrd.Engine() as engine:
    image = engine.images.get(reference)
    made = engine.containers.find("made")
    os.write(1, b"begin")
    if what == "create":
        engine.containers.create(image, ["true"], name="made")
    elif what == "delete":
        made.delete()
    else:
        image.mount(target)
"""
STEPS = ["fdatasync", "fsync", "mkdir", "mkdirat", "rename", "renameat2", "rmdir", "unlink", "unlinkat", "write"]
MANY = 10_000


def run_until(step: int, *arguments: str) -> int:
    """Run the program, and kill it before its step of this number; how many steps were let in."""
    done = -1
    with Watched(PROGRAM, *arguments, calls=STEPS) as program:
        for call in program:
            if done == step:
                break
            if done >= 0 or (call.name == "write" and call.path.startswith("pipe:")):
                done += 1
            call.allow()
    return done


@pytest.mark.parametrize("what", ["create", "delete", "mount"])
def test_what_was_killed_half_done_is_whole_or_gone_and_keeps_nothing(
    images: Images, state: Path, tmp_path: Path, what: str
) -> None:
    reference = images.tree.reference
    root, target = Path(os.environ["PYCTRD_ROOT"]), tmp_path / "target"
    target.mkdir()
    outcomes = set()
    with pyctrd.Engine() as engine:
        engine.images.pull(reference)

        def set_out() -> None:
            if what == "delete" and engine.containers.find("made") is None:
                engine.containers.create(reference, ["true"], name="made")

        def take_back() -> bool:
            """With another engine: everything; whether there was anything."""
            with pyctrd.Engine() as after:
                assert after.check() == []
                left = after.containers.list()
                for container in left:
                    container.delete()
                try:
                    after.images.unmount(target)
                except NotFoundError:
                    return bool(left)
                return True

        set_out()
        steps = run_until(MANY, what, reference, str(target))
        assert 3 < steps < MANY
        take_back()
        for step in range(steps):
            set_out()
            run_until(step, what, reference, str(target))
            outcomes.add(take_back())
            snapshots = [path.name for path in (root / "snapshots").iterdir()]
            assert [name for name in snapshots if not name.startswith(("fixup-", "stack-"))] == []
            assert list((root / "containers").glob("*/*")) == []
        assert outcomes == {True, False}
        engine.images.remove(reference)
    assert list((root / "layers/sha256").iterdir()) == []
    assert str(root) not in Path("/proc/self/mounts").read_text()
