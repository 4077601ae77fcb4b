"""What containerd asks of its snapshotters, asked of ours in our own words.

Ours are given layers, which are somebody else's; a snapshot is never a layer, and becomes none: what changed in it is
written out (``diff``), and comes in again as a layer. That is "commit" here. Cases of containerd's suite, and where
each is tested:

=========================== ===========================================================================================
Basic                       test_changes_are_committed_and_seen_by_the_next
StatActive                  test_a_snapshot_that_is_being_written_to_says_what_it_is
StatComitted                test_a_commit_leaves_the_snapshot_as_it_is
TransitivityTest            test_a_snapshot_names_all_that_it_stands_on
PreareViewFailingtest       test_snapshotter.py: test_a_key_that_is_taken_is_refused
Update                      none: a snapshot has no labels and no times, and nothing of it changes
Remove                      test_a_key_may_be_used_again
Walk                        test_snapshotter.py: test_walk_gives_all_snapshots_by_key_and_nothing_else; no filters
LayerFileupdate             test_each_commit_shows_the_next_one_what_was_there: "a-file-is-written-again"
RemoveDirectoryInLowerLayer the same: "a-directory-goes-and-comes-again"
Chown                       the same: "owners-change"
DirectoryPermissionOnCommit the same: "modes-of-directories-stay"
DeletedFilesInChildSnapshot the same: "a-file-goes-and-stays-away"
MoveFileFromLowerLayer      the same: "a-lower-file-is-moved"
Rename                      the same: "a-directory-is-renamed"
RemoveIntermediateSnapshot  test_what_a_container_stands_on_is_not_taken_from_below_it: layers go by collection alone
ViewReadonly                test_snapshotter.py: test_a_view_cannot_be_written_to
StatInWalk                  test_each_may_be_looked_up_while_all_are_walked
CloseTwice                  none: a snapshotter holds nothing open, and is not closed
RootPermission              test_the_root_of_nothing_is_everybodys_to_read
128LayersMount              test_128_commits_one_upon_another
=========================== ===========================================================================================
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import pyctrd
from pyctrd.snapshots.protocol import LayerRef, Snapshotter
from tests.contracts.stacks import KINDS, keys, needy, on_disk, shown, view_of
from tests.images import Images
from tests.layers.ways import ingest
from tests.trees import Facts, differences, read_tree

pytestmark = pytest.mark.root

Changes = Callable[[Path], object]
MANY = 128


def commit(snapshotter: Snapshotter, root: Path, key: str) -> LayerRef:
    """What was changed in a snapshot, brought into the store as one more layer."""
    dest = root.parent / f"{key}.tar"
    made = snapshotter.diff(key, dest, compression="none")
    layer = ingest(root, dest.read_bytes())
    dest.unlink()
    assert layer.diff_id == made.diff_id
    return layer


def change(
    snapshotter: Snapshotter, root: Path, key: str, layers: Sequence[LayerRef], changes: Changes
) -> tuple[LayerRef, dict[bytes, Facts]]:
    """Make changes in a snapshot of its own, and commit them: the layer, and all that was to be seen."""
    with shown(snapshotter, snapshotter.prepare(key, layers), root.parent) as target:
        changes(target)
        seen = read_tree(target)
    layer = commit(snapshotter, root, key)
    snapshotter.delete(key)
    return layer, seen


def put(path: Path, content: str, mode: int = 0o644) -> None:
    """A file with these bytes, new or not."""
    path.write_text(content)
    path.chmod(mode)


def test_changes_are_committed_and_seen_by_the_next(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    def first(target: Path) -> None:
        put(target / "foo", "foo\n", 0o777)
        (target / "a/b/c").mkdir(parents=True)

    def second(target: Path) -> None:
        assert (target / "foo").read_text() == "foo\n"
        assert (target / "a/b/c").is_dir()
        put(target / "bar", "bar\n", 0o777)
        put(target / "foo", "bar\n", 0o777)
        shutil.rmtree(target / "a/b")

    lower, _ = change(snapshotter, root, "first", [], first)
    upper, seen = change(snapshotter, root, "second", [lower], second)
    view = snapshotter.view("view", [lower, upper])
    assert differences(seen, view_of(snapshotter, view, tmp_path)) == []
    with shown(snapshotter, view, tmp_path) as target:
        assert (target / "foo").read_text() == (target / "bar").read_text() == "bar\n"
        assert list((target / "a").iterdir()) == []
    snapshotter.delete("view")
    assert keys(snapshotter) == []
    snapshotter.collect([])
    assert on_disk(root) == set()


def test_a_snapshot_that_is_being_written_to_says_what_it_is(
    snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    made = snapshotter.prepare("key", needy(root))
    with shown(snapshotter, made, tmp_path) as target:
        (target / "foo").write_text("foo")
        assert snapshotter.find("key") == made
        assert made.kind == "active"


def test_a_commit_leaves_the_snapshot_as_it_is(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    made = snapshotter.prepare("key", [])
    with shown(snapshotter, made, tmp_path) as target:
        (target / "foo").write_text("foo")
        layer = commit(snapshotter, root, "key")  # also while it is mounted
        (target / "later").write_text("not committed")
    assert snapshotter.find("key") == made
    assert sorted(view_of(snapshotter, made, tmp_path)) == [b".", b"foo", b"later"]
    with shown(snapshotter, snapshotter.view("view", [layer]), tmp_path) as target:
        assert {path.name: path.read_text() for path in target.iterdir()} == {"foo": "foo"}


def test_a_snapshot_names_all_that_it_stands_on(snapshotter: Snapshotter, root: Path) -> None:
    layers: list[LayerRef] = []
    for name in ("a", "b", "c"):
        layer, _ = change(snapshotter, root, name, layers, lambda target: put(target / "foo", target.name))
        layers.append(layer)
    assert snapshotter.prepare("none", []).layers == ()
    assert snapshotter.prepare("one", layers[:1]).layers == tuple(layers[:1])
    assert snapshotter.view("all", layers).layers == tuple(layers)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_a_key_may_be_used_again(first: str, second: str, snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    layer, seen = change(snapshotter, root, "base", [], lambda target: put(target / "foo", "foo"))
    KINDS[first](snapshotter, "key", [layer])
    snapshotter.delete("key")
    again = KINDS[second](snapshotter, "key", [])
    assert (again.kind, again.layers) == (second, ())
    assert sorted(view_of(snapshotter, again, tmp_path)) == [b"."]
    snapshotter.delete("key")
    again = KINDS[second](snapshotter, "key", [layer])
    assert differences(seen, view_of(snapshotter, again, tmp_path)) == []


def hosts(target: Path) -> None:
    (target / "etc").mkdir(mode=0o700)
    put(target / "etc/hosts", "10.0.0.1 one")
    put(target / "etc/profile", "PATH=/bin")
    (target / "bin").mkdir()
    put(target / "bin/sh", "#!", 0o755)
    put(target / "root-file", "x", 0o600)


def owned(target: Path) -> None:
    (target / "opt/a/b").mkdir(parents=True)
    put(target / "opt/a/file", "text")
    (target / "opt/link").symlink_to("a/file")


def change_owners(target: Path) -> None:
    for name in ("opt", "opt/a", "opt/a/file"):
        os.chown(target / name, 1, 2)
    os.chown(target / "opt/link", 3, 4, follow_symlinks=False)


def closed(target: Path) -> None:
    for number, mode in enumerate((0o700, 0o711, 0o1777, 0o2750)):
        directory = target / f"dir{number}"
        directory.mkdir()
        put(directory / "file", "x")
        os.chown(directory, number + 1, number + 2)
        directory.chmod(mode)


def change_within(target: Path) -> None:
    """What is in them, and never they themselves."""
    for number in range(4):
        put(target / f"dir{number}/file", "changed")
    os.chown(target / "dir0/file", 9, 9)
    put(target / "dir1/new", "new")
    (target / "dir2/file").unlink()


def moved(target: Path) -> None:
    (target / "dir3").mkdir(mode=0o700)
    (target / "dir1/f1").rename(target / "dir3/f1")
    shutil.rmtree(target / "dir1")
    (target / "dir3/f2").hardlink_to(target / "dir2/f2")
    (target / "dir2/f2").unlink()


def rename_directory(target: Path) -> None:
    # As mv does: the kernel may refuse to rename what is of a lower layer.
    shutil.move(target / "dir1", target / "dir2")
    (target / "dir2/f1").rename(target / "dir2/renamed")


def two_directories(target: Path) -> None:
    for name in ("dir1", "dir2"):
        (target / name).mkdir(mode=0o700)
    put(target / "dir1/f1", "Hello")
    put(target / "dir2/f2", "...")


def one_directory(target: Path) -> None:
    two_directories(target)
    shutil.rmtree(target / "dir2")


def replace_directory(target: Path) -> None:
    shutil.rmtree(target / "etc")
    (target / "etc").mkdir()
    put(target / "etc/profile", "new")


CASES: dict[str, list[Changes]] = {
    "a-file-is-written-again": [
        hosts,
        lambda target: put(target / "etc/hosts", "10.0.0.2 two"),
        lambda target: put(target / "etc/profile", "PATH=/sbin"),
        lambda target: put(target / "etc/hosts", ""),
    ],
    "a-directory-goes-and-comes-again": [
        hosts,
        lambda target: shutil.rmtree(target / "etc"),
        lambda target: (target / "etc").mkdir(mode=0o755),
        lambda target: put(target / "etc/other", "x"),
    ],
    "a-directory-goes-and-comes-in-one": [
        hosts,
        replace_directory,
    ],
    "owners-change": [owned, change_owners, lambda target: os.chown(target / "opt/a/b", 5, 6)],
    "modes-of-directories-stay": [closed, change_within, lambda target: (target / "dir3/file").unlink()],
    "a-file-goes-and-stays-away": [
        hosts,
        lambda target: (target / "root-file").unlink(),
        lambda target: None,
        lambda target: put(target / "root-file", "again"),
    ],
    "a-lower-file-is-moved": [two_directories, moved],
    "a-directory-is-renamed": [
        one_directory,
        rename_directory,
        lambda target: shutil.move(target / "dir2", target / "dir1"),
    ],
    "nothing-changes": [hosts, lambda target: None, lambda target: None],
}


@pytest.mark.parametrize("name", CASES)
def test_each_commit_shows_the_next_one_what_was_there(
    name: str, snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    layers: list[LayerRef] = []
    for number, changes in enumerate(CASES[name]):
        layer, seen = change(snapshotter, root, f"step-{number}", layers, changes)
        layers.append(layer)
        view = snapshotter.view(f"view-{number}", layers)
        assert differences(seen, view_of(snapshotter, view, tmp_path)) == [], number


def test_what_a_container_stands_on_is_not_taken_from_below_it(
    opens: Callable[[Path], Snapshotter], images: Images, state: Path, tmp_path: Path
) -> None:
    del state
    with pyctrd.Engine(snapshotter=opens(tmp_path).name) as engine:
        image = engine.images.pull(images.many_layers.reference)
        container = engine.containers.create(image, ["true"])
        layers = [Path(os.environ["PYCTRD_ROOT"]) / "layers/sha256" / str(d)[7:] for d in image.config.rootfs.diff_ids]
        engine.images.remove(image.name, force=True)
        engine.gc(all_namespaces=True)
        assert all((layer / "index").is_file() for layer in layers)
        assert engine.check(digests=True) == []
        container.delete()
        engine.gc(all_namespaces=True)
        assert not any(layer.exists() for layer in layers)


def test_each_may_be_looked_up_while_all_are_walked(snapshotter: Snapshotter, root: Path) -> None:
    layers = needy(root)
    made = [KINDS[kind](snapshotter, f"key-{kind}-{number}", layers) for kind in KINDS for number in range(3)]
    found = []
    for snapshot in snapshotter.walk():
        assert snapshotter.find(snapshot.key) == snapshot
        snapshotter.usage(snapshot.key)
        snapshotter.delete(snapshot.key)
        found.append(snapshot)
    assert sorted(found) == sorted(made)
    assert keys(snapshotter) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_the_root_of_nothing_is_everybodys_to_read(
    kind: str, mask: int, snapshotter: Snapshotter, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        made = KINDS[kind](snapshotter, "key", [])
    finally:
        os.umask(before)
    with shown(snapshotter, made, tmp_path) as target:
        assert target.stat().st_mode & 0o7777 == 0o755


def test_128_commits_one_upon_another(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    def lowest(target: Path) -> None:
        put(target / "bottom", "at the bottom", 0o777)
        put(target / "again", "first")
        for name in ("more", "only"):
            (target / name).mkdir()
        put(target / "only/bottom", "bye")

    def upper(number: int) -> Changes:
        def changes(target: Path) -> None:
            assert len(list((target / "more").iterdir())) == number - 1
            put(target / "again", f"{number}")
            put(target / f"more/file-{number}", "same")
            shutil.rmtree(target / "only")
            (target / "only").mkdir()
            put(target / f"only/file-{number}", "only me")

        return changes

    layer, _ = change(snapshotter, root, "layer-0", [], lowest)
    layers = [layer]
    for number in range(1, MANY):
        layer, seen = change(snapshotter, root, f"layer-{number}", layers, upper(number))
        layers.append(layer)
    view = snapshotter.view("view", layers)
    assert differences(seen, view_of(snapshotter, view, tmp_path)) == []
    with shown(snapshotter, view, tmp_path) as target:
        assert (target / "bottom").read_text() == "at the bottom"
        assert (target / "again").read_text() == f"{MANY - 1}"
        assert [path.name for path in (target / "only").iterdir()] == [f"file-{MANY - 1}"]
