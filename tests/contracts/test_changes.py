"""What a snapshotter says was changed, and the layer that it makes of that: the same whichever was asked."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from pyctrd.errors import ConflictError, NotFoundError
from pyctrd.snapshots.protocol import Change, LayerRef, Snapshotter
from tests.contracts.conftest import SNAPSHOTTERS
from tests.contracts.stacks import STACKS, base, marked, shown, stack, view_of
from tests.layers.model import Layer
from tests.layers.ways import ingest
from tests.trees import differences

pytestmark = pytest.mark.root

DAY_NS = 86_400 * 10**9


def change(target: Path) -> None:
    """One change of each kind. The names of one file are left alone: overlayfs makes two files of them."""
    (target / "new").mkdir()
    (target / "new" / "file").write_bytes(b"new")
    (target / "new" / "name").hardlink_to(target / "new" / "file")
    with (target / "d" / "f").open("ab") as file:
        file.write(b" and more")
    os.setxattr(target / "d" / "f", "user.note", b"changed")
    shutil.rmtree(target / "d" / "sub")
    (target / "d" / "sub").mkdir()
    (target / "d" / "sub" / "other").write_bytes(b"another")
    (target / "l").unlink()
    (target / "l").mkdir()
    (target / "p").rename(target / "q")
    (target / "c").unlink()
    for name in ("new/file", "new", "d/f", "d/sub/other", "d/sub", "d", "l", "."):
        os.utime(target / name, ns=(DAY_NS, DAY_NS))


CHANGES = [
    ("D", "/c"),
    ("D", "/p"),
    ("C", "/d"),
    ("C", "/d/f"),
    ("C", "/d/sub"),
    ("D", "/d/sub/g"),
    ("A", "/d/sub/other"),
    ("C", "/l"),
    ("A", "/new"),
    ("A", "/new/file"),
    ("A", "/new/name"),
    ("A", "/q"),
]


def prepared(snapshotter: Snapshotter, root: Path, *layers: Layer) -> list[LayerRef]:
    made = stack(root, *layers, form=snapshotter.form)
    snapshotter.prepare("key", made)
    return made


def changed(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> list[LayerRef]:
    """A snapshot in which things were changed; its layers."""
    layers = prepared(snapshotter, root, base())
    snapshot = snapshotter.find("key")
    assert snapshot is not None
    with shown(snapshotter, snapshot, tmp_path) as target:
        change(target)
    return layers


def test_changes_are_listed_parents_first_and_sorted(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    changed(snapshotter, root, tmp_path)
    assert [tuple(found) for found in snapshotter.changes("key")] == CHANGES
    assert isinstance(snapshotter.changes("key")[0], Change)


def test_all_make_the_same_layer(root: Path, tmp_path: Path) -> None:
    made = []
    for name, opens in SNAPSHOTTERS.items():
        (tmp_path / name).mkdir()
        changed(opens(tmp_path / name), tmp_path / name, tmp_path)
        snapshotter = opens(tmp_path / name)
        # The pipe's time is its own.
        made.append(snapshotter.diff("key", tmp_path / f"{name}.tar", compression="none", clamp_mtime=0))
    assert len({one.diff_id for one in made}) == 1
    assert made[0].entries == len(CHANGES) + 1


def test_the_layer_on_top_of_the_others_is_what_the_snapshot_shows(
    snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    layers = changed(snapshotter, root, tmp_path)
    snapshotter.diff("key", tmp_path / "layer", compression="none")
    top = ingest(root, (tmp_path / "layer").read_bytes())
    expected = view_of(snapshotter, snapshotter.find("key"), tmp_path)  # type: ignore[arg-type] # it was just made
    for name, opens in SNAPSHOTTERS.items():
        other = opens(root)
        if other.form != snapshotter.form and name != "native":
            continue  # each stacks what it is made for
        snapshot = other.view(f"view-{name}", [*layers, top])
        assert differences(expected, view_of(other, snapshot, tmp_path)) == []


@pytest.mark.parametrize("name", [name for name in STACKS if name not in ("no-layers", "120-layers")])
def test_what_was_not_changed_is_not_listed(name: str, snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    prepared(snapshotter, root, *STACKS[name]())
    snapshot = snapshotter.find("key")
    assert snapshot is not None
    with shown(snapshotter, snapshot, tmp_path) as target:
        # Opened to be written to and not written, touched and set back: nothing is changed by either.
        for path in (path for path in target.rglob("*") if path.is_file() and not path.is_symlink()):
            before = path.stat()
            if before.st_nlink == 1:
                path.open("ab").close()
                path.touch()
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert snapshotter.changes("key") == []
    assert snapshotter.diff("key", tmp_path / "layer").entries == 0


def test_the_layer_is_compressed_as_asked_and_clamped(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    changed(snapshotter, root, tmp_path)
    beginnings = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "none": b"./\0\0"}
    found = set()
    for compression, beginning in beginnings.items():
        made = snapshotter.diff("key", tmp_path / "layer", compression=compression, clamp_mtime=7)  # type: ignore[arg-type] # one of the three
        assert (tmp_path / "layer").read_bytes().startswith(beginning)
        found.add(made.diff_id)
    assert len(found) == 1
    with tarfile.open(tmp_path / "layer") as opened:
        assert max(member.mtime for member in opened) == 7


def test_a_missing_snapshot_and_a_view_have_no_changes(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    snapshotter.view("view", stack(root, base(), marked("a")))
    for call in (snapshotter.changes, lambda key: snapshotter.diff(key, tmp_path / "layer")):
        with pytest.raises(NotFoundError, match="snapshot not found: none"):
            call("none")
        with pytest.raises(ConflictError, match="no changes"):
            call("view")
    assert not (tmp_path / "layer").exists()
