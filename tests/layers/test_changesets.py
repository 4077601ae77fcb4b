"""Layers over layers: what is removed, replaced, merged, and left to the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyctrd.errors import UnsafeArchiveError
from tests.layers.model import SECOND_NS, Layer
from tests.layers.ways import WAYS, check, compare, expected_tree, unpacked
from tests.trees import read_tree

pytestmark = pytest.mark.root

SNAPSHOTTERS = ("overlayfs", "native", "composefs", "erofs")
XATTRS = {"user.note": b"lower", "trusted.t": b"\0"}


def base() -> Layer:
    """Something of each kind, with attributes that show whose they are."""
    layer = Layer().directory("./", mode=0o711, uid=8, gid=9, mtime_ns=8 * SECOND_NS)
    layer.directory("d", mode=0o1770, uid=1, gid=2, mtime_ns=3 * SECOND_NS, xattrs=XATTRS)
    layer.file("d/f", b"lower", uid=3, mtime_ns=4 * SECOND_NS).directory("d/sub", mode=0o700, xattrs=XATTRS)
    layer.file("d/sub/g", b"g").symlink("l", "d").symlink("out", "/d/sub").file("f", b"f", mode=0o4755)
    return layer.hardlink("f2", "f").fifo("p").device("c", 0o020000, 1, 3)


def up() -> Layer:
    return Layer()


# A name, the layers above `base`, and the paths that must be left.
Case = tuple[Callable[[], list[Layer]], str]
ALL = "c d d/f d/sub d/sub/g f f2 l out p"
LIKE_A_WHITEOUT = "a-directory-that-looks-like-a-whiteout"  # of which no layer can be made again
CASES: dict[str, Case] = {
    "nothing": (lambda: [up()], ALL),
    "whiteout-of-a-file": (lambda: [up().whiteout("d/f")], "c d d/sub d/sub/g f f2 l out p"),
    "whiteout-of-a-directory": (lambda: [up().whiteout("d")], "c f f2 l out p"),
    "whiteout-of-each-kind": (
        lambda: [up().whiteout("l").whiteout("p").whiteout("c").whiteout("f")],
        "d d/f d/sub d/sub/g f2 out",
    ),
    "whiteout-of-nothing": (lambda: [up().whiteout("none").whiteout("d/none")], ALL),
    "whiteout-in-nothing": (lambda: [up().whiteout("n/e/w")], f"{ALL} n n/e"),
    "whiteout-before-its-replacement": (lambda: [up().whiteout("d").file("d", b"now")], "c d f f2 l out p"),
    "whiteout-after-its-replacement": (lambda: [up().file("d", b"now").whiteout("d")], "c d f f2 l out p"),
    "whiteout-before-a-new-directory": (
        lambda: [up().whiteout("d").directory("d").file("d/n")],
        "c d d/n f f2 l out p",
    ),
    "whiteout-after-a-new-directory": (lambda: [up().directory("d").file("d/n").whiteout("d")], "c d d/n f f2 l out p"),
    "whiteout-before-an-unlisted-directory": (lambda: [up().whiteout("d").file("d/n")], "c d d/n f f2 l out p"),
    "whiteout-after-an-unlisted-directory": (lambda: [up().file("d/n").whiteout("d")], "c d d/n f f2 l out p"),
    "whiteout-between-two-children": (lambda: [up().file("d/n").whiteout("d").file("d/m")], "c d d/m d/n f f2 l out p"),
    "whiteout-then-the-same-file-above": (lambda: [up().whiteout("d/f"), up().file("d/f", b"3")], ALL),
    "whiteout-of-a-directory-then-another-above": (
        lambda: [up().whiteout("d"), up().file("d/sub/n")],
        "c d d/sub d/sub/n f f2 l out p",
    ),
    "whiteout-of-one-name-of-two": (lambda: [up().whiteout("f")], "c d d/f d/sub d/sub/g f2 l out p"),
    "opaque-before-what-it-keeps": (lambda: [up().opaque("d").file("d/n")], "c d d/n f f2 l out p"),
    "opaque-after-what-it-keeps": (lambda: [up().file("d/n").opaque("d")], "c d d/n f f2 l out p"),
    "opaque-over-a-nested-directory": (lambda: [up().file("d/sub/n").opaque("d")], "c d d/sub d/sub/n f f2 l out p"),
    "opaque-before-a-nested-directory": (lambda: [up().opaque("d").file("d/sub/n")], "c d d/sub d/sub/n f f2 l out p"),
    "opaque-and-listed": (lambda: [up().directory("d", mode=0o755).opaque("d")], "c d f f2 l out p"),
    "opaque-root": (lambda: [up().file("n").opaque(".")], "n"),
    "opaque-root-first-with-a-directory-below": (lambda: [up().opaque(".").file("d/n")], "d d/n"),
    "opaque-through-a-link": (lambda: [up().opaque("l").file("l/n")], "c d d/n f f2 l out p"),
    "opaque-then-more-above": (lambda: [up().opaque("d"), up().file("d/n")], "c d d/n f f2 l out p"),
    "whiteouts-in-an-opaque-directory": (
        lambda: [up().opaque("d").whiteout("d/f").file("d/n")],
        "c d d/n f f2 l out p",
    ),
    "whiteouts-where-no-lower-directory-is": (
        lambda: [up().directory("n").whiteout("n/x").whiteout("n/y").file("n/z")],
        f"{ALL} n n/z",
    ),
    "reserved-names-make-nothing": (lambda: [up().file(".wh..wh.plnk").file("d/.wh..wh.aufs", b"x")], ALL),
    "whiteout-with-data": (
        lambda: [up().file("d/.wh.f", b"of no concern" * 100).file("n")],
        "c d d/sub d/sub/g f f2 l n out p",
    ),
    LIKE_A_WHITEOUT: (lambda: [up().file(".wh.d/f", b"x")], f".wh.d .wh.d/f {ALL}"),
    "unlisted-parents-keep-what-they-are": (lambda: [up().file("d/n").file("d/sub/n")], f"{ALL} d/n d/sub/n"),
    "unlisted-parents-that-are-missing": (lambda: [up().file("x/y/z")], f"{ALL} x x/y x/y/z"),
    "unlisted-parents-through-links": (lambda: [up().file("l/n").file("out/m")], f"{ALL} d/n d/sub/m"),
    "a-link-to-a-missing-directory": (lambda: [up().symlink("to", "/n/o").file("to/f")], f"{ALL} n n/o n/o/f to"),
    "a-lower-link-to-a-missing-directory": (
        lambda: [up().symlink("to", "n/o"), up().file("to/f")],
        f"{ALL} n n/o n/o/f to",
    ),
    "a-directory-over-a-link": (lambda: [up().directory("l").file("l/n")], f"{ALL} l/n"),
    "a-link-over-a-directory": (lambda: [up().symlink("d", "f")], "c d f f2 l out p"),
    "a-file-over-a-directory": (lambda: [up().file("d", b"now")], "c d f f2 l out p"),
    "a-directory-over-a-file": (lambda: [up().directory("f").file("f/n")], f"{ALL} f/n"),
    "every-kind-over-another": (
        lambda: [
            up().fifo("d").directory("p").symlink("c", "f").device("l", 0o060000, 7, 1).file("out").hardlink("f", "out")
        ],
        "c d f f2 l out p",
    ),
    "a-directory-over-a-directory": (lambda: [up().directory("d", mode=0o700, uid=5, mtime_ns=1)], ALL),
    "a-directory-that-was-something-else-between": (
        lambda: [up().file("d").directory("d").file("d/n")],
        "c d d/n f f2 l out p",
    ),
    "a-directory-after-a-file-above": (
        lambda: [up().file("d"), up().directory("d").file("d/n")],
        "c d d/n f f2 l out p",
    ),
    "the-root-again": (lambda: [up().directory("./", mode=0o700, uid=4, mtime_ns=9)], ALL),
    "links-to-lower-files": (
        lambda: [up().hardlink("d/h", "f").hardlink("i", "d/h").hardlink("j", "/l/f")],
        f"{ALL} d/h i j",
    ),
    "a-link-to-a-lower-link": (lambda: [up().hardlink("h", "l")], f"{ALL} h"),
    "a-link-to-a-lower-file-that-then-goes": (
        lambda: [up().hardlink("h", "f").whiteout("f").whiteout("f2")],
        "c d d/f d/sub d/sub/g h l out p",
    ),
    "a-link-to-a-lower-file-that-is-then-replaced": (lambda: [up().hardlink("h", "f").file("f", b"other")], f"{ALL} h"),
    "a-link-to-what-replaced-a-lower-file": (lambda: [up().file("f", b"other").hardlink("h", "f")], f"{ALL} h"),
    "a-link-over-its-own-other-name": (lambda: [up().hardlink("f2", "f")], ALL),
    "a-link-two-layers-up": (
        lambda: [up().hardlink("h", "f"), up().hardlink("i", "h").whiteout("f")],
        "c d d/f d/sub d/sub/g f2 h i l out p",
    ),
    "one-layer-twice": (lambda: [up().file("d/n"), up().whiteout("d"), up().file("d/n")], "c d d/n f f2 l out p"),
    "many-layers-over-one-directory": (
        lambda: [up().file(f"d/{n}") for n in range(8)],
        f"{ALL} " + " ".join(f"d/{n}" for n in range(8)),
    ),
}


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name in CASES for way in WAYS if (name, way) != (LIKE_A_WHITEOUT, "recorded")],
)
def test_a_changeset_does_what_the_spec_says(name: str, way: str, tmp_path: Path) -> None:
    make, left = CASES[name]
    layers = [base(), *make()]
    tree = expected_tree(layers)
    with unpacked(way, [layer.build() for layer in layers], tmp_path) as target:
        actual = read_tree(target)
        assert compare(way, tree, actual) == []
    # Not the model's word alone.
    assert sorted(actual) == sorted([b".", *(path.encode() for path in left.split())])


def over_another_base(mode: int, owner: int) -> Layer:
    return Layer().directory("tmp", mode=mode).directory("srv", uid=owner, xattrs={"user.base": b"%d" % owner})


@pytest.mark.parametrize("way", WAYS)
def test_one_layer_over_two_bases_leaves_each_as_it_is(way: str, tmp_path: Path) -> None:
    upper = Layer().file("tmp/x").file("srv/y")
    for mode, owner in ((0o1777, 1000), (0o700, 7)):
        check(way, [over_another_base(mode, owner), upper], tmp_path)


REFUSED: dict[str, Callable[[], Layer]] = {
    "a-parent-that-is-a-lower-file": lambda: up().file("f/x"),
    "a-parent-that-is-a-lower-device": lambda: up().file("c/x/y"),
    "a-parent-through-a-link-to-itself": lambda: up().symlink("a", "b").symlink("b", "a").file("a/x"),
    "a-link-to-a-missing-file": lambda: up().hardlink("h", "none"),
    "a-link-to-a-lower-directory": lambda: up().hardlink("h", "d"),
    "a-link-to-the-root": lambda: up().hardlink("h", "."),
    "a-link-to-what-comes-later": lambda: up().hardlink("h", "later").file("later"),
    "a-link-to-itself": lambda: up().hardlink("h", "h"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_changeset_that_does_not_fit_its_base_is_refused(name: str, way: str, tmp_path: Path) -> None:
    tars = [base().build(), REFUSED[name]().build()]
    with pytest.raises(UnsafeArchiveError), unpacked(way, tars, tmp_path):
        pass


@pytest.mark.parametrize("way", SNAPSHOTTERS)
def test_a_snapshot_changes_no_layer(way: str, tmp_path: Path) -> None:
    layers = [base(), Layer().hardlink("h", "f").file("d/n"), Layer().whiteout("d")]
    tars = [layer.build() for layer in layers]
    with unpacked(way, tars, tmp_path):
        pass
    trees = sorted((tmp_path / f"store-{way}" / "layers" / "sha256").iterdir())
    before = [read_tree(tree) for tree in trees]
    with unpacked(way, tars, tmp_path):
        assert [read_tree(tree) for tree in trees] == before
    assert [read_tree(tree) for tree in trees] == before
