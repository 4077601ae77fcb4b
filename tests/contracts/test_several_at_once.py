"""The snapshotter protocol: processes that end, and several that want the same at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from pyctrd.errors import (
    AlreadyExistsError,
)
from pyctrd.snapshots.protocol import LayerRef, Snapshot, Snapshotter
from pyctrd.snapshots.store import SnapshotStore
from tests.children import Child
from tests.contracts.conftest import Opens
from tests.contracts.stacks import (
    base,
    is_mounted,
    keys,
    marked,
    needy,
    on_disk,
    shown,
    stack,
    view_of,
)
from tests.layers.ways import compare, expected_tree

pytestmark = pytest.mark.root

T = TypeVar("T")
DEADLINE_SECONDS = 60.0


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    """What threads give that all start at the same moment."""
    barrier = threading.Barrier(count)

    def run(number: int) -> T:
        barrier.wait(DEADLINE_SECONDS)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


ELSEWHERE = """
import sys
from pathlib import Path
from pyctrd.snapshots.composefs import Composefs
from pyctrd.snapshots.erofs import Erofs
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlayfs import Overlayfs
from pyctrd.snapshots.protocol import LayerRef
name, root, key, target, *layers = sys.argv[1:]
root = Path(root)
makes = {"overlayfs": Overlayfs, "native": Native, "composefs": Composefs, "erofs": Erofs}
snapshotter = makes[name](*[root, root.with_name("state")][: 1 + (name in ("composefs", "erofs"))])
refs = [LayerRef(f"sha256:{Path(layer).name}", Path(layer)) for layer in layers]
print("ready", flush=True)
sys.stdin.readline()
snapshot = snapshotter.prepare(key, refs)
if target:
    snapshotter.mount(snapshot, Path(target))
    Path(target, "written").write_text("elsewhere")
print("made", flush=True)
"""


def elsewhere(snapshotter: Snapshotter, root: Path, key: str, layers: Sequence[LayerRef], target: str = "") -> Child:
    """A process that prepares a snapshot when it is told to, and may mount it."""
    return Child(ELSEWHERE, snapshotter.name, root, key, target, *(layer.path for layer in layers))


def test_snapshots_and_mounts_survive_the_process(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    layers = needy(root)
    target = tmp_path / "target"
    target.mkdir()
    with elsewhere(snapshotter, root, "key", layers, str(target)) as child:
        child.say()
        assert [child.hear(), child.hear(), child.wait()] == ["ready", "made", 0]
    assert is_mounted(target)
    assert (target / "written").read_text() == "elsewhere"
    found = snapshotter.find("key")
    assert found is not None
    assert (found.kind, found.layers) == ("active", tuple(layers))
    (target / "again").write_text("here")
    snapshotter.unmount(target)
    with shown(snapshotter, found, tmp_path) as shown_again:
        assert (shown_again / "again").read_text() == "here"


def test_no_snapshot_is_swept_with_what_a_killed_process_left(
    snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    made = [snapshotter.prepare(key, needy(root)) for key in ("container-a", "fixup-a", "trial-a")]
    before = [view_of(snapshotter, snapshot, tmp_path) for snapshot in made]
    (root / "snapshots" / "trial-0123456789abcdef").mkdir()
    SnapshotStore(root).sweep()  # as the next engine does that opens the root
    assert not (root / "snapshots" / "trial-0123456789abcdef").exists()
    assert list(snapshotter.walk()) == made
    assert [view_of(snapshotter, snapshot, tmp_path) for snapshot in made] == before


def test_processes_may_prepare_over_one_stack_at_the_same_moment(snapshotter: Snapshotter, root: Path) -> None:
    layers = needy(root)
    names = ["p-0", "p-1", "p-2"]
    with (
        elsewhere(snapshotter, root, "p-0", layers) as first,
        elsewhere(snapshotter, root, "p-1", layers) as second,
        elsewhere(snapshotter, root, "p-2", layers) as third,
    ):
        children = (first, second, third)
        assert [child.hear() for child in children] == ["ready"] * 3
        for child in children:
            child.say()
        assert [child.hear() for child in children] == ["made"] * 3
        assert [child.wait() for child in children] == [0] * 3
    assert keys(snapshotter) == names
    assert_settled_once(snapshotter, root, names)


def test_threads_may_prepare_over_one_stack_at_the_same_moment(
    snapshotter: Snapshotter, opens: Opens, root: Path, tmp_path: Path
) -> None:
    layers = [base(), marked("a")]
    refs = stack(root, *layers)
    made = at_once(8, lambda number: opens(root).prepare(f"t-{number}", refs))
    assert list(snapshotter.walk()) == made
    assert_settled_once(snapshotter, root, [snapshot.key for snapshot in made])
    for snapshot in made:
        assert compare(snapshotter.name, expected_tree(layers), view_of(snapshotter, snapshot, tmp_path)) == []


def test_threads_may_settle_one_stack_at_the_same_moment(snapshotter: Snapshotter, root: Path) -> None:
    layers = needy(root)
    at_once(8, lambda _: snapshotter.settle(layers))
    assert_settled_once(snapshotter, root, [])


def test_of_threads_that_want_one_key_one_gets_it(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    layers = [base(), marked("a")]
    refs = stack(root, *layers)

    def prepare(_: int) -> Snapshot | None:
        try:
            return snapshotter.prepare("key", refs)
        except AlreadyExistsError:
            return None

    (made,) = [snapshot for snapshot in at_once(8, prepare) if snapshot is not None]
    assert list(snapshotter.walk()) == [made]
    assert compare(snapshotter.name, expected_tree(layers), view_of(snapshotter, made, tmp_path)) == []


def assert_settled_once(snapshotter: Snapshotter, root: Path, expected: Sequence[str]) -> None:
    """Overlayfs has one fix-up layer for all of them, native none; nothing else is left."""
    beside = on_disk(root) - set(expected)
    assert len(beside) == (0 if snapshotter.name == "native" else 1)
    assert not any(name.startswith("trial-") for name in beside)
