"""Layers that nobody thought of: whatever they say, every way gives what the model gives, or refuses where it does."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pyctrd.errors import UnsafeArchiveError
from tests.layers.model import Layer, RefusedError, Tree
from tests.layers.ways import WAYS, compare, unpacked
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root

EXAMPLES = int(os.environ.get("PYCTRD_TEST_EXAMPLES", "60"))
NAMES = ("a", "b", "c")

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
targets = st.one_of(paths, paths.map("/{}".format), paths.map("../{}".format))
modes = st.sampled_from((0o644, 0o755, 0o700, 0o2775, 0o1777, 0o4711))
owners = st.sampled_from((0, 7, 1000))
times = st.sampled_from((0, 1_600_000_000_123_456_789, 1_700_000_000_000_000_000))
xattrs = st.sampled_from(({}, {}, {"user.k": b"v"}, {"trusted.k": b"\0\xff", "user.n": b""}))


KINDS = ("file", "file", "directory", "directory", "symlink", "hardlink", "white", "opaque")


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """A layer of a few entries about few names, so that they meet."""
    layer = Layer()
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(KINDS))
        path = draw(paths)
        if kind == "white":
            layer.whiteout(path)
        elif kind == "opaque":
            layer.opaque(draw(st.sampled_from((path, "."))))
        elif kind == "symlink":
            layer.symlink(path, draw(targets), uid=draw(owners))
        elif kind == "hardlink":
            layer.hardlink(path, draw(paths))
        else:
            layer.add(
                path,
                kind=b"0" if kind == "file" else b"5",
                content=draw(st.sampled_from((b"", b"x", b"yy"))) if kind == "file" else b"",
                mode=draw(modes),
                uid=draw(owners),
                gid=draw(owners),
                mtime_ns=draw(times),
                xattrs=draw(xattrs),
            )
    return layer


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(stack=st.lists(layers(), min_size=1, max_size=4))
def test_any_layers_give_what_they_say(stack: list[Layer]) -> None:
    try:
        tree = Tree.of([layer.entries for layer in stack])
    except RefusedError:
        tree = None
    assume(tree is None or not tree.is_doubtful)
    tars = [layer.build() for layer in stack]
    directory = Path(tempfile.mkdtemp(prefix="pyctrd-random-"))
    try:
        if tree is None:
            refused(tars, directory)
        else:
            for way in WAYS:
                with unpacked(way, tars, directory) as target:
                    assert compare(way, tree, read_tree(target)) == [], way
    finally:
        shutil.rmtree(directory)


def refused(tars: list[bytes], directory: Path) -> None:
    """What goes wrong in the middle of a layer may be mended by its end: both snapshotters see the end alone."""
    with pytest.raises(UnsafeArchiveError), unpacked("merge", tars, directory):
        pass
    found = []
    for way in ("overlayfs", "native"):
        try:
            with unpacked(way, tars, directory) as target:
                found.append(read_tree(target))
        except UnsafeArchiveError:
            found.append({})
    assert differences(*found) == []
