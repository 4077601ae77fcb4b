"""Limits and names that change, stopped half-way: what was told is so, and all else is as it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyctrd

if TYPE_CHECKING:
    from tests.faults.works import Shop

UPDATE = """
    made = engine.containers.get('made')
    made.update(memory_bytes=64 << 20, pids=7)
    say('updated')
    made.rename('renamed')
    say('renamed')"""


def has_made(engine: pyctrd.Engine, shop: Shop) -> None:
    """A container that is to be changed."""
    engine.containers.create(shop.reference("kept"), ["true"], name="made")


def judge_updated(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    """It has the limits and the name that were told, or those of before."""
    (container,) = engine.containers.list()
    assert container.name in (["renamed"] if "renamed" in said else ["made", "renamed"])
    bundle = shop.root / "containers/default" / container.id
    resources = json.loads((bundle / "config.json").read_bytes())["linux"]["resources"]
    found = (resources.get("memory"), resources.get("pids"))
    both, none = ({"limit": 64 << 20}, {"limit": 7}), (None, None)
    assert found in ([both] if "updated" in said else [both, none])
    container.update(memory_bytes=64 << 20, pids=7)
    container.delete()
    assert list((shop.root / "containers").glob("*/*")) == []
