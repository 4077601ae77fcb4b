"""The snapshotter protocol, method by method: every sentence of its docstrings, for every implementation."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from pyctrd.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PyctrdError,
    UnsafeArchiveError,
    UnsupportedError,
)
from pyctrd.snapshots.protocol import LayerRef, Snapshotter
from tests.contracts.conftest import SNAPSHOTTERS, Opens
from tests.contracts.stacks import (
    KINDS,
    REFUSED,
    base,
    bytes_below,
    change_everything,
    is_mounted,
    keys,
    marked,
    needy,
    on_disk,
    shown,
    stack,
    states,
    view_of,
)
from tests.layers.model import Layer
from tests.layers.ways import compare, digest_of, expected_tree, ingest
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root

MIB = 1 << 20
DEADLINE_SECONDS = 60.0
CAP_SYS_ADMIN = 21
CAPABILITY_VERSION_3 = 0x20080522


def give_up_mounting() -> None:
    """Drop this thread's right to mount."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the lower words, then the upper ones
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << CAP_SYS_ADMIN)
    assert libc.capset(header, sets) == 0


def test_a_layer_is_named_by_the_digest_of_its_tar_and_holds_a_tree_and_an_index(root: Path) -> None:
    tar = base().build()
    layer = ingest(root, tar)
    assert layer.diff_id == digest_of(tar)
    assert (layer.path / "tree").is_dir()
    assert (layer.path / "index").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_says_what_it_was_made_as(kind: str, snapshotter: Snapshotter, root: Path) -> None:
    layers = stack(root, base(), marked("a"), marked("b"))
    snapshot = KINDS[kind](snapshotter, "key", layers)
    assert (snapshot.key, snapshot.kind, snapshot.layers) == ("key", kind, tuple(layers))
    # The key names its directory as well.
    assert (root / "snapshots" / "key").is_dir()


@pytest.mark.parametrize("kind", KINDS)
def test_the_path_of_a_snapshot_is_its_root_file_system_where_it_has_one(
    kind: str, snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    snapshot = KINDS[kind](snapshotter, "key", needy(root))
    assert (snapshot.path is None) == (snapshotter.name != "native")
    if snapshot.path is not None:
        assert differences(view_of(snapshotter, snapshot, tmp_path), read_tree(snapshot.path)) == []


def test_each_implementation_has_a_name_of_its_own(root: Path) -> None:
    assert [opens(root).name for opens in SNAPSHOTTERS.values()] == [*list(SNAPSHOTTERS)[:4], "composefs"]


@pytest.mark.parametrize("key", ["a", "0", "A-b-9", "x" * 128, "fixup-a", "trial-a", "fixup-", "trash"])
def test_a_key_is_letters_digits_and_dashes(key: str, snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    snapshot = snapshotter.prepare(key, needy(root))
    with shown(snapshotter, snapshot, tmp_path) as target:
        (target / "written").write_text("kept")
    snapshotter.collect([])
    assert keys(snapshotter) == [key]
    assert snapshotter.find(key) == snapshot
    with shown(snapshotter, snapshot, tmp_path) as target:
        assert (target / "written").read_text() == "kept"
    snapshotter.delete(key)
    assert keys(snapshotter) == []


@pytest.mark.parametrize(
    "key", ["", ".", "..", "a/b", "../a", "/a", "a_b", "a.b", "a b", "a\n", "\xe4", "\u0663", "a\0"]
)
def test_any_other_key_is_refused_wherever_it_is_given(key: str, snapshotter: Snapshotter, root: Path) -> None:
    layers = needy(root)
    snapshotter.settle(layers)
    before = states(root)
    calls: list[Callable[[], object]] = [
        lambda: snapshotter.prepare(key, layers),
        lambda: snapshotter.view(key, layers),
        lambda: snapshotter.find(key),
        lambda: snapshotter.delete(key),
        lambda: snapshotter.usage(key),
    ]
    for call in calls:
        with pytest.raises(InvalidError) as caught:
            call()
        assert (caught.value.field, caught.value.value) == ("key", key)
    assert states(root) == before


def test_prepare_finds_what_settle_made(snapshotter: Snapshotter, root: Path) -> None:
    layers = needy(root)
    snapshotter.settle(layers)
    settled = states(root)
    snapshotter.prepare("active", layers)
    snapshotter.view("view", layers)
    after = states(root)
    assert {path: after[path] for path in settled} == settled
    assert {path.relative_to(root / "snapshots").parts[0] for path in after.keys() - settled.keys()} == {
        "active",
        "view",
    }


def test_settling_again_is_a_no_op(snapshotter: Snapshotter, opens: Opens, root: Path) -> None:
    layers = needy(root)
    snapshotter.settle(layers)
    before = states(root)
    snapshotter.settle(layers)
    opens(root).settle(layers)
    assert states(root) == before


def moved(layers: list[LayerRef], directory: Path) -> list[LayerRef]:
    """The top layer in another place than its own, as one that has no name yet."""
    staged = directory / "staged"
    layers[-1].path.rename(staged)
    return [*layers[:-1], LayerRef(layers[-1].diff_id, staged)]


def test_what_is_made_before_layers_have_their_names_is_there_when_they_have(
    snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    layers = needy(root)
    staged = moved(layers, root)
    with snapshotter.settling(staged) as make:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(make).result()
        assert not list((root / "snapshots").glob("[!t]*"))  # a trial alone
        staged[-1].path.rename(layers[-1].path)
    before = states(root)
    snapshotter.settle(layers)
    assert states(root) == before
    shows = view_of(snapshotter, snapshotter.view("key", layers), tmp_path)
    snapshotter.delete("key")
    snapshotter.collect([])
    assert on_disk(root) == set()
    assert differences(view_of(snapshotter, snapshotter.view("key", layers), tmp_path), shows) == []


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_of_what_was_not_made_or_not_wanted_any_more(
    snapshotter: Snapshotter, root: Path, *, fails: bool
) -> None:
    layers = needy(root)
    before = on_disk(root)
    with suppress(KeyboardInterrupt), snapshotter.settling(layers) as make:
        if fails:
            make()
            raise KeyboardInterrupt
    assert on_disk(root) == before


def test_where_a_layer_is_gone_before_it_was_looked_at_nothing_is_made(snapshotter: Snapshotter, root: Path) -> None:
    layers = needy(root)
    staged = moved(layers, root)
    with snapshotter.settling(staged) as make:
        staged[-1].path.rename(layers[-1].path)
        with pytest.raises((PyctrdError, OSError)):
            make()
    assert on_disk(root) == set()
    snapshotter.settle(layers)


def test_settling_no_layers_does_nothing(snapshotter: Snapshotter, root: Path) -> None:
    snapshotter.settle([])
    assert on_disk(root) == set()


def test_what_is_settled_is_beside_the_layers(snapshotter: Snapshotter, root: Path) -> None:
    layers = needy(root)
    before = read_tree(root / "layers")
    snapshotter.settle(layers)
    assert differences(before, read_tree(root / "layers")) == []


@pytest.mark.parametrize("name", REFUSED)
def test_settle_refuses_a_layer_that_cannot_be_applied_to_those_below(
    name: str, snapshotter: Snapshotter, root: Path
) -> None:
    layers = stack(root, base(), REFUSED[name](), Layer().file("n"))
    for _ in range(2):
        with pytest.raises(UnsafeArchiveError):
            snapshotter.settle(layers)
        assert on_disk(root) == set()


def test_an_active_snapshot_can_be_written_to(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    with shown(snapshotter, snapshotter.prepare("key", needy(root)), tmp_path) as target:
        change_everything(target)
        assert (target / "d" / "f").read_bytes() == b"lower and more"
        assert not (target / "d" / "sub" / "g").exists()


WRITES: dict[str, Callable[[Path], object]] = {
    "a-new-file": lambda target: (target / "new").write_text("x"),
    "a-file": lambda target: (target / "d" / "f").write_text("x"),
    "a-new-directory": lambda target: (target / "d" / "new").mkdir(),
    "a-removal": lambda target: (target / "d" / "f").unlink(),
    "a-new-name": lambda target: (target / "f").rename(target / "g"),
    "another-name": lambda target: (target / "h").hardlink_to(target / "f"),
    "a-mode": lambda target: (target / "f").chmod(0o777),
    "the-root's-mode": lambda target: target.chmod(0o777),
    "an-owner": lambda target: os.chown(target / "f", 1, 1),
    "a-time": lambda target: os.utime(target / "f", (0, 0)),
    "an-xattr": lambda target: os.setxattr(target / "f", "user.new", b"x"),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("count", [1, 2])
def test_a_view_cannot_be_written_to(
    count: int, name: str, snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    snapshot = snapshotter.view("key", needy(root)[:count])
    with shown(snapshotter, snapshot, tmp_path) as target:
        before = read_tree(target)
        with pytest.raises(OSError, match="Read-only") as caught:
            WRITES[name](target)
        assert caught.value.errno == errno.EROFS
        assert read_tree(target) == before


def test_a_view_of_no_layers_cannot_be_written_to(snapshotter: Snapshotter, tmp_path: Path) -> None:
    with shown(snapshotter, snapshotter.view("key", []), tmp_path) as target:
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        assert list(target.iterdir()) == []


@pytest.mark.parametrize("again", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_a_key_that_is_taken_is_refused(
    first: str, again: str, snapshotter: Snapshotter, opens: Opens, root: Path, tmp_path: Path
) -> None:
    made = KINDS[first](snapshotter, "key", needy(root))
    before = view_of(snapshotter, made, tmp_path)
    for one in (snapshotter, opens(root)):
        with pytest.raises(AlreadyExistsError) as caught:
            KINDS[again](one, "key", stack(root, Layer().file("other")))
        assert (caught.value.kind, caught.value.name) == ("snapshot", "key")
    # The first one is as it was.
    assert snapshotter.find("key") == made
    assert view_of(snapshotter, made, tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_cannot_be_applied_make_no_snapshot_and_leave_the_key_free(
    name: str, kind: str, snapshotter: Snapshotter, root: Path
) -> None:
    with pytest.raises(UnsafeArchiveError):
        KINDS[kind](snapshotter, "key", stack(root, base(), REFUSED[name]()))
    assert on_disk(root) == set()
    assert snapshotter.find("key") is None
    made = KINDS[kind](snapshotter, "key", needy(root))
    assert snapshotter.find("key") == made


@pytest.mark.parametrize("settled", [False, True])
def test_a_layer_that_is_gone_makes_no_snapshot_and_leaves_the_key_free(
    settled: bool,  # noqa: FBT001 - pytest gives it
    snapshotter: Snapshotter,
    root: Path,
) -> None:
    layers = stack(root, base(), Layer().directory("./").file("n"))
    if settled:
        snapshotter.settle(layers)
    before = on_disk(root)
    moved = layers[-1].path.rename(root / "moved")
    with pytest.raises((FileNotFoundError, NotFoundError)):
        snapshotter.prepare("key", layers)
    assert on_disk(root) == before
    moved.rename(layers[-1].path)
    assert snapshotter.prepare("key", layers) == snapshotter.find("key")


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_at_any_moment_leaves_nothing_behind_and_the_key_free(
    kind: str, opens: Opens, root: Path, tmp_path: Path
) -> None:
    # Without xattrs of users, which a tmpfs takes since Linux 6.6 only.
    layers = [Layer().file("f", b"f").file("d/f", b"x"), marked("a")]
    subprocess.run(["mount", "-t", "tmpfs", "full", root], check=True)
    try:
        refs = stack(root, *layers)
        snapshotter = opens(root)
        used = os.statvfs(root)
        failures = 0
        while failures < 100:
            inodes = used.f_files - used.f_ffree + failures
            subprocess.run(["mount", "-o", f"remount,nr_inodes={inodes}", root], check=True)
            with suppress(OSError):
                made = KINDS[kind](snapshotter, "key", refs)
                break
            assert snapshotter.find("key") is None
            assert not any(name.startswith(("key", "trial-")) for name in on_disk(root))
            failures += 1
        assert failures >= 4  # the directory, its record, and what is in it
        subprocess.run(["mount", "-o", "remount,nr_inodes=0", root], check=True)
        assert compare(snapshotter.name, expected_tree(layers), view_of(snapshotter, made, tmp_path)) == []
    finally:
        subprocess.run(["umount", root], check=True)


def test_find_gives_none_where_there_is_no_snapshot(snapshotter: Snapshotter, root: Path) -> None:
    snapshotter.settle(needy(root))
    assert snapshotter.find("key") is None
    for name in on_disk(root):  # what settle made is no snapshot
        assert snapshotter.find(name) is None


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_find_gives_the_snapshot_as_it_was_made(
    kind: str, count: int, snapshotter: Snapshotter, opens: Opens, root: Path
) -> None:
    made = KINDS[kind](snapshotter, "key", needy(root)[:count])
    assert snapshotter.find("key") == made
    assert opens(root).find("key") == made


def test_walk_gives_all_snapshots_by_key_and_nothing_else(snapshotter: Snapshotter, opens: Opens, root: Path) -> None:
    assert list(snapshotter.walk()) == []
    layers = needy(root)
    snapshotter.settle(stack(root, base()))
    (root / "snapshots" / "trial-0123456789abcdef").mkdir()  # of a process that was killed
    made = [
        KINDS[kind](snapshotter, key, layers)
        for key, kind in (("b", "view"), ("B", "active"), ("a-1", "view"), ("a", "active"), ("0", "view"))
    ]
    assert list(snapshotter.walk()) == sorted(made)
    assert list(opens(root).walk()) == sorted(made)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_is_there_until_it_is_taken_away(
    kind: str, snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    snapshot = KINDS[kind](snapshotter, "key", needy(root))
    target = tmp_path / "target"
    target.mkdir()
    (target / "hidden").write_text("before")
    snapshotter.mount(snapshot, target)
    assert is_mounted(target)
    assert (target / "d" / "a").read_text() == "a"
    assert not (target / "hidden").exists()
    snapshotter.unmount(target)
    assert not is_mounted(target)
    assert [path.name for path in target.iterdir()] == ["hidden"]


def test_what_was_written_is_there_when_it_is_mounted_again(
    snapshotter: Snapshotter, opens: Opens, root: Path, tmp_path: Path
) -> None:
    snapshot = snapshotter.prepare("key", needy(root))
    with shown(snapshotter, snapshot, tmp_path) as target:
        change_everything(target)
        written = read_tree(target)
    assert view_of(snapshotter, snapshot, tmp_path) == written
    another = opens(root)
    found = another.find("key")
    assert found is not None
    assert view_of(another, found, tmp_path) == written


@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_needs_a_directory_that_exists(kind: str, snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    snapshot = KINDS[kind](snapshotter, "key", needy(root))
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as caught:
        snapshotter.mount(snapshot, missing)
    assert caught.value.filename == str(missing)
    assert not missing.exists()


def test_what_the_kernel_refuses_is_an_oserror_that_names_the_path(
    snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match="mount") as caught:
        snapshotter.mount(snapshotter.prepare("key", needy(root)), file)
    assert caught.value.filename == str(file)
    assert not is_mounted(file)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_the_right_to_mount_is_told_what_it_needs(
    kind: str, snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    snapshot = KINDS[kind](snapshotter, "key", needy(root))

    def mount() -> None:
        give_up_mounting()
        snapshotter.mount(snapshot, tmp_path)

    # Rights are a thread's own: they end with it.
    with ThreadPoolExecutor(1) as pool, pytest.raises(UnsupportedError, match="CAP_SYS_ADMIN"):
        pool.submit(mount).result(DEADLINE_SECONDS)
    assert not is_mounted(tmp_path)


def test_unmounting_where_nothing_is_mounted_does_nothing(snapshotter: Snapshotter, tmp_path: Path) -> None:
    target = tmp_path / "target"
    snapshotter.unmount(target)
    target.mkdir()
    (target / "file").touch()
    snapshotter.unmount(target)
    snapshotter.unmount(target / "file")
    assert [path.name for path in target.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_through_a_link_is_taken_away_through_it(
    kind: str, snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    snapshotter.mount(KINDS[kind](snapshotter, "key", needy(root)), link)
    assert is_mounted(target)
    snapshotter.unmount(link)
    assert not is_mounted(target)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_that_is_in_use_stays(kind: str, snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    snapshot = KINDS[kind](snapshotter, "key", needy(root))
    with shown(snapshotter, snapshot, tmp_path) as target, (target / "d" / "f").open("rb") as file:
        with pytest.raises(ConflictError) as caught:
            snapshotter.unmount(target)
        assert (caught.value.kind, caught.value.name, caught.value.state) == ("mount", str(target), "in use")
        assert is_mounted(target)
        assert file.read() == b"lower"


@pytest.mark.parametrize("kind", KINDS)
def test_delete_removes_one_snapshot_and_nothing_else(
    kind: str, snapshotter: Snapshotter, root: Path, tmp_path: Path
) -> None:
    layers = needy(root)
    snapshotter.settle(layers)
    others = [snapshotter.prepare("a", layers), snapshotter.view("key-2", layers)]
    with shown(snapshotter, others[0], tmp_path) as target:
        change_everything(target)
    below, trees = bytes_below(root), read_tree(root / "layers")
    views = [view_of(snapshotter, other, tmp_path) for other in others]
    before = states(root)
    with shown(snapshotter, KINDS[kind](snapshotter, "key", layers), tmp_path) as target:
        if kind == "active":
            (target / "large").write_bytes(bytes(MIB))
    snapshotter.delete("key")
    assert snapshotter.find("key") is None
    assert states(root) == before
    assert bytes_below(root) == below
    assert differences(trees, read_tree(root / "layers")) == []
    assert list(snapshotter.walk()) == others
    assert [view_of(snapshotter, other, tmp_path) for other in others] == views
    # The key is free.
    assert snapshotter.find("key") != snapshotter.prepare("key", layers)


def test_deleting_a_snapshot_that_is_not_there_is_no_error(snapshotter: Snapshotter, root: Path) -> None:
    kept = snapshotter.prepare("kept", needy(root))
    before = states(root)
    snapshotter.delete("missing")
    snapshotter.delete("missing")
    assert states(root) == before
    assert list(snapshotter.walk()) == [kept]


@pytest.mark.parametrize("kind", KINDS)
def test_usage_is_what_deletion_frees(kind: str, snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    layers = stack(root, base(), marked("a").file("large", secrets.token_bytes(MIB)))
    snapshotter.settle(layers)
    snapshot = KINDS[kind](snapshotter, "key", layers)
    with shown(snapshotter, snapshot, tmp_path) as target:
        if kind == "active":
            (target / "written").write_bytes(secrets.token_bytes(MIB))
            (target / "written-2").hardlink_to(target / "written")
            change_everything(target)
    before, usage = bytes_below(root), snapshotter.usage("key")
    snapshotter.delete("key")
    assert before - bytes_below(root) == usage


def test_usage_grows_and_shrinks_with_what_is_written(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    snapshot = snapshotter.prepare("key", needy(root))
    with shown(snapshotter, snapshot, tmp_path) as target:
        before = snapshotter.usage("key")
        (target / "new").write_bytes(secrets.token_bytes(MIB))
        (target / "new-2").hardlink_to(target / "new")
        assert MIB <= snapshotter.usage("key") - before < 2 * MIB
        (target / "new").unlink()
        (target / "new-2").unlink()
        assert snapshotter.usage("key") - before < MIB


def test_there_is_no_usage_of_a_snapshot_that_is_not_there(snapshotter: Snapshotter, root: Path) -> None:
    layers = needy(root)
    snapshotter.settle(layers)
    snapshotter.view("key", layers)
    snapshotter.delete("key")
    for key in ("missing", "key", *on_disk(root)):
        with pytest.raises(NotFoundError) as caught:
            snapshotter.usage(key)
        assert (caught.value.kind, caught.value.name) == ("snapshot", key)


def test_collect_removes_what_settle_made_for_stacks_with_a_layer_that_is_not_among_these(
    snapshotter: Snapshotter, root: Path
) -> None:
    stacks = {"kept": needy(root, "a"), "half": needy(root, "b"), "gone": stack(root, Layer(), Layer().file("x"))}
    made: dict[str, set[str]] = {}
    for name, layers in stacks.items():
        before = on_disk(root)
        snapshotter.settle(layers)
        made[name] = on_disk(root) - before
    kept = [layer.diff_id for layer in stacks["kept"]]
    settled = states(root)
    snapshotter.collect({*kept, digest_of(b"a layer of no stack")})
    assert on_disk(root) == made["kept"]
    assert states(root) == {
        path: state for path, state in settled.items() if path.relative_to(root / "snapshots").parts[0] in made["kept"]
    }
    snapshotter.collect([])
    assert on_disk(root) == set()


def test_collect_keeps_snapshots_whatever_it_is_given(snapshotter: Snapshotter, root: Path, tmp_path: Path) -> None:
    layers = needy(root)
    made = [snapshotter.prepare("active", layers), snapshotter.view("view", layers)]
    with shown(snapshotter, made[0], tmp_path) as target:
        change_everything(target)
    before = [view_of(snapshotter, snapshot, tmp_path) for snapshot in made]
    snapshotter.collect([])
    assert list(snapshotter.walk()) == made
    assert on_disk(root) == {"active", "view"}
    # What settle made for them is made again when it is asked for.
    assert [view_of(snapshotter, snapshot, tmp_path) for snapshot in made] == before
