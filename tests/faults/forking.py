"""Forks, snapshots and volumes stopped half-way: whoever was there has what it had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyctrd

if TYPE_CHECKING:
    from tests.faults.works import Shop

FORK = """
    made = engine.containers.get('made')
    made.fork(name='forked')
    say('forked')
    made.snapshot('kept')
    say('kept')
    made.rollback('kept')
    say('back')
    engine.containers.get('forked').delete()
    say('deleted')"""
VOLUME = """
    engine.containers.create(words[0], ['true'], name='new', binds=['data:/d', '/l'])
    say('created')
    engine.containers.get('new').delete(volumes=True)
    say('deleted')
    engine.volumes.remove('data')
    say('removed')"""


def _rootfs(container: pyctrd.Container) -> Path:
    from pyctrd.flows.run import mount_rootfs

    return mount_rootfs(container._rooms, container._record)


def judge_forked(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    """The source has what it had whatever happened, and so has a fork."""
    names = {container.name for container in engine.containers.list()}
    assert names <= {"made", "forked"}
    assert "made" in names
    assert "forked" in names or "forked" not in said or "back" in said, "forked was made and is gone"
    assert "forked" not in names or "deleted" not in said
    made = engine.containers.get("made")
    assert [one.name for one in made.snapshots()] == ["kept"] or "kept" not in said
    for name in names:
        rootfs = _rootfs(engine.containers.get(name))
        assert (rootfs / "d/changed").read_bytes() == b"in the container"
        assert not (rootfs / "d/g").exists()
    if made.snapshots():
        made.rollback("kept")
        assert (_rootfs(made) / "d/changed").read_bytes() == b"in the container"
    for container in engine.containers.list():
        container.delete()
    assert [
        path.name for path in (shop.root / "snapshots").iterdir() if not path.name.startswith(("fixup-", "stack-"))
    ] == []


def judge_volumes(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    """A volume has all that the image has there, or nothing, and what was removed is gone."""
    volume = engine.volumes.find("data")
    assert volume is not None or "created" not in said or "deleted" in said
    assert volume is None or "removed" not in said
    if volume is not None and volume.path.exists():
        found = {path.name: path.read_bytes() for path in volume.path.iterdir()}
        assert found in (
            [{"f": b"first"}] if "created" in said and "removed" not in said else [{"f": b"first"}, {}]
        ) or ("deleted" in said)
    for container in engine.containers.list():
        container.delete(volumes=True)
    engine.volumes.prune(named=True)
    assert list((shop.root / "volumes").glob("*/*")) == []
    assert engine.volumes.list() == []
