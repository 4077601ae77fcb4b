"""What is frozen, saved, copied and set back, for every snapshotter: every sentence of the protocol's docstrings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyctrd.errors import AlreadyExistsError, ConflictError, NotFoundError
from pyctrd.snapshots.protocol import Snapshot, Snapshotter
from tests.contracts.stacks import change_everything, is_mounted, needy, shown, view_of
from tests.trees import differences

pytestmark = pytest.mark.root


def changed(snapshotter: Snapshotter, root: Path, directory: Path) -> Snapshot:
    """A snapshot in which everything was changed."""
    snapshot = snapshotter.prepare("source", needy(root))
    with shown(snapshotter, snapshot, directory) as target:
        change_everything(target)
        (target / "more").mkdir()
        (target / "more/file").write_bytes(b"x" * 9000)
        (target / "more/name").hardlink_to(target / "more/file")
    return snapshot


def found(snapshotter: Snapshotter, key: str) -> Snapshot:
    snapshot = snapshotter.find(key)
    assert snapshot is not None
    return snapshot


def test_what_is_frozen_is_what_it_was_and_what_begins_with_it_has_it(
    snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    source = changed(snapshotter, root, tmp_path)
    before = view_of(snapshotter, source, tmp_path)
    snapshotter.freeze("source", "one")
    assert differences(before, view_of(snapshotter, found(snapshotter, "source"), tmp_path)) == []
    made = snapshotter.prepare("made", source.layers, frozen=["one"])
    assert differences(before, view_of(snapshotter, made, tmp_path)) == []
    with shown(snapshotter, made, tmp_path) as target:
        (target / "more/file").unlink()
        (target / "more/name").write_bytes(b"other")
    assert differences(before, view_of(snapshotter, found(snapshotter, "source"), tmp_path)) == []
    snapshotter.delete("source")
    assert b"more/file" not in view_of(snapshotter, found(snapshotter, "made"), tmp_path)
    snapshotter.reset("made", ["one"])
    assert differences(before, view_of(snapshotter, found(snapshotter, "made"), tmp_path)) == []


def test_what_stacks_says_whether_it_was_changed_since(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    changed(snapshotter, root, tmp_path)
    assert not snapshotter.is_unchanged("source")
    snapshotter.freeze("source", "one")
    assert snapshotter.is_unchanged("source") == snapshotter.stacks
    with shown(snapshotter, found(snapshotter, "source"), tmp_path) as target:
        target.chmod(0o711)
    assert not snapshotter.is_unchanged("source")


def test_what_is_saved_or_duplicated_is_a_copy(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    source = changed(snapshotter, root, tmp_path)
    before = view_of(snapshotter, source, tmp_path)
    snapshotter.save("source", "kept")
    copy = snapshotter.duplicate("source", "copy")
    assert found(snapshotter, "source").frozen == ()
    with shown(snapshotter, source, tmp_path) as target:
        os.truncate(target / "more/file", 3)
    for snapshot in (copy, snapshotter.prepare("from-saved", source.layers, frozen=["kept"])):
        assert differences(before, view_of(snapshotter, snapshot, tmp_path)) == []
    changes = set(snapshotter.changes("copy"))
    assert set(snapshotter.changes("from-saved")) == changes
    with pytest.raises(AlreadyExistsError):
        snapshotter.duplicate("source", "copy")


def test_what_is_not_there_is_not_found(snapshotter: Snapshotter) -> None:
    for call in (
        lambda: snapshotter.freeze("nothing", "a"),
        lambda: snapshotter.save("nothing", "b"),
        lambda: snapshotter.duplicate("nothing", "c"),
        lambda: snapshotter.reset("nothing", ()),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert snapshotter.find("c") is None


def test_a_reset_to_nothing_frozen_is_the_layers_again(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    untouched = snapshotter.prepare("untouched", needy(root))
    expected = view_of(snapshotter, untouched, tmp_path)
    with shown(snapshotter, untouched, tmp_path) as target:
        change_everything(target)
    snapshotter.reset("untouched", ())
    assert differences(expected, view_of(snapshotter, found(snapshotter, "untouched"), tmp_path)) == []


def test_a_mount_is_retired_unless_somebody_writes(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    snapshot = snapshotter.prepare("key", needy(root))
    target = tmp_path / "target"
    target.mkdir()
    assert snapshotter.retire(target) is None
    snapshotter.mount(snapshot, target)
    with (target / "written").open("w"), pytest.raises(ConflictError):
        snapshotter.retire(target)
    assert is_mounted(target)
    held = snapshotter.retire(target)
    assert held is not None
    assert not is_mounted(target)
    with pytest.raises(OSError, match="Read-only"):
        os.open("another", os.O_WRONLY | os.O_CREAT, dir_fd=held)
    os.close(held)
