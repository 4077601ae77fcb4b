"""The snapshotter protocol: what is to be seen in a snapshot, whichever implementation makes it, and who changes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyctrd.snapshots.protocol import Snapshotter
from tests.contracts.conftest import SNAPSHOTTERS, Opens
from tests.contracts.stacks import (
    KINDS,
    STACKS,
    base,
    change_everything,
    marked,
    needy,
    shown,
    stack,
    states,
    view_of,
)
from tests.images import tree_tars
from tests.layers.model import Layer
from tests.layers.ways import compare, expected_tree, ingest
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STACKS)
def test_the_merged_view_is_what_the_layers_say(
    name: str, kind: str, snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    layers = STACKS[name]()
    snapshot = KINDS[kind](snapshotter, "key", stack(root, *layers))
    assert compare(snapshotter.name, expected_tree(layers), view_of(snapshotter, snapshot, tmp_path)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_view_is_the_same_whichever_makes_it(kind: str, root: Path, tmp_path: Path) -> None:
    views = []
    for name, opens in SNAPSHOTTERS.items():
        snapshotter = opens(root / name)
        layers = [ingest(root / name, tar, form=snapshotter.form) for tar in tree_tars()]
        snapshot = KINDS[kind](snapshotter, f"by-{snapshotter.name}", layers)
        views.append(view_of(snapshotter, snapshot, tmp_path))
        snapshotter.delete(snapshot.key)
    assert [differences(views[0], view) for view in views[1:]] == [[]] * (len(SNAPSHOTTERS) - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["no-layers", "no-layer-lists-the-root", "implied-parents"])
def test_the_merged_view_has_nothing_of_the_process_that_makes_it(
    name: str, kind: str, opens: Opens, root: Path, tmp_path: Path
) -> None:
    layers = STACKS[name]()
    refs = stack(root, *layers)
    os.chown(root, 0, 4242)
    root.chmod(0o2700)
    old = os.umask(0o077)
    try:
        snapshotter = opens(root)
        snapshot = KINDS[kind](snapshotter, "key", refs)
    finally:
        os.umask(old)
    assert compare(snapshotter.name, expected_tree(layers), view_of(snapshotter, snapshot, tmp_path)) == []


def test_layers_are_given_lowest_first(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    low, high = stack(root, Layer().file("who", b"low"), Layer().file("who", b"high"))
    for key, layers, expected in (("a", [low, high], "high"), ("b", [high, low], "low")):
        with shown(snapshotter, snapshotter.view(key, layers), tmp_path) as target:
            assert (target / "who").read_text() == expected


def test_a_root_may_have_any_name(opens: Opens, tmp_path: Path) -> None:
    root = tmp_path / 'a:b,c d=e"f\\g\\\\h'
    root.mkdir()
    snapshotter = opens(root)
    layers = [base(), marked("a")]
    for kind, make in KINDS.items():
        snapshot = make(snapshotter, kind, stack(root, *layers))
        assert compare(snapshotter.name, expected_tree(layers), view_of(snapshotter, snapshot, tmp_path)) == []


@pytest.mark.parametrize("count", [1, 2])
def test_writing_changes_no_layer(count: int, snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    layers = stack(root, base().file("d/a", b"a"), marked("a"))[:count]
    snapshotter.settle(layers)
    before, settled = read_tree(root / "layers"), states(root)
    with shown(snapshotter, snapshotter.prepare("key", layers), tmp_path) as target:
        change_everything(target)
        assert differences(before, read_tree(root / "layers")) == []
    assert differences(before, read_tree(root / "layers")) == []
    after = states(root)
    assert {path: after[path] for path in settled} == settled
    snapshotter.delete("key")
    assert differences(before, read_tree(root / "layers")) == []


def test_snapshots_of_the_same_layers_do_not_see_each_other(
    snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    layers = needy(root)
    one, two = snapshotter.prepare("one", layers), snapshotter.prepare("two", layers)
    with (
        shown(snapshotter, one, tmp_path) as first,
        shown(snapshotter, two, tmp_path) as second,
        shown(snapshotter, snapshotter.view("view", layers), tmp_path) as view,
    ):
        untouched = read_tree(second)
        change_everything(first)
        assert read_tree(second) == read_tree(view) == untouched
        changed = read_tree(first)
        (second / "f").write_bytes(b"second")
        (second / "only").touch()
        assert read_tree(first) == changed
        assert read_tree(view) == untouched
