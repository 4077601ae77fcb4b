"""The product's ways to make a tree of layers."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyctrd
from pyctrd import _core
from pyctrd.snapshots.composefs import Composefs
from pyctrd.snapshots.erofs import Erofs
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlayfs import Overlayfs
from pyctrd.snapshots.protocol import LayerForm, LayerRef, Snapshotter
from tests.layers.model import Layer, Tree
from tests.trees import Facts, differences, read_tree

# "recorded": what a layer becomes that is made of a tree whose ownership is recorded.
# As in a user namespace, which may mount no image.
DIRECTORIES = "composefs-directories"
WAYS = ("merge", "overlayfs", "native", "composefs", "erofs", DIRECTORIES, "recorded")
# What layers are unpacked as where nothing else is said: tests of one snapshotter set what that one wants.
DEFAULT_FORM: LayerForm = "tree"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def ingest(root: Path, blob: bytes, *, tar: bytes | None = None, form: LayerForm | None = None) -> LayerRef:
    """Bring a layer into a store, unpacked, as a pull does.

    Args:
        root: The store's.
        blob: As a registry has it.
        tar: The same uncompressed, where that is something else.
        form: What it is unpacked as.
    """
    diff_id = digest_of(blob if tar is None else tar)
    path = root / "layers" / "sha256" / diff_id.removeprefix("sha256:")
    if not path.exists():
        one = _core.Ingest(
            root,
            secrets.token_hex(8),
            digest=digest_of(blob),
            size=len(blob),
            diff_id=diff_id,
            unpack=True,
            form=form or DEFAULT_FORM,
        )
        one.write(blob)
        one.finish()
        _core.publish(root, [one], durability="none")  # what survives a crash is not the subject here
    return LayerRef(diff_id, path)


@contextmanager
def unpacked(way: str, tars: Sequence[bytes], directory: Path) -> Iterator[Path]:
    """A tree of layers, lowest first, made in one of the ways, for the length of a ``with`` block."""
    target = directory / f"{way}-{secrets.token_hex(4)}"
    if way == "merge":
        target.mkdir()
        blob = directory / "layer.tar"
        for tar in tars:
            blob.write_bytes(tar)
            pyctrd.unpack(blob, target, diff_id=digest_of(tar), digest=digest_of(tar))
        yield target
        return
    if way == "recorded":
        blob, tree = directory / "layer.tar", directory / f"tree-{target.name}"
        tree.mkdir()
        for tar in tars:
            blob.write_bytes(tar)
            pyctrd.unpack(blob, tree, diff_id=digest_of(tar), digest=digest_of(tar), ownership="recorded")
        pyctrd.diff(tree, blob, compression="none", ownership="recorded")
        subprocess.run(["rm", "-rf", str(tree)], check=True)
        pyctrd.unpack(blob, target)
        yield target
        return
    root = directory / f"store-{way}"
    root.mkdir(exist_ok=True)
    snapshotter = open_snapshotter(way, root)
    layers = [ingest(root, tar, form=snapshotter.form) for tar in tars]
    snapshot = snapshotter.view(f"view-{target.name}", layers)
    target.mkdir()
    snapshotter.mount(snapshot, target)
    try:
        yield target
    finally:
        snapshotter.unmount(target)
        snapshotter.delete(snapshot.key)


def open_snapshotter(name: str, root: Path) -> Snapshotter:
    """One of the snapshotters over a root; its state is beside that."""
    if name in ("composefs", DIRECTORIES):
        return Composefs(root, root.with_name("state"), directories=name == DIRECTORIES)
    if name == "erofs":
        return Erofs(root, root.with_name("state"))
    return Overlayfs(root) if name == "overlayfs" else Native(root)


def expected_tree(layers: Sequence[Layer]) -> Tree:
    return Tree.of([layer.entries for layer in layers])


def compare(way: str, tree: Tree, actual: dict[bytes, Facts]) -> list[str]:
    """What differs between the model's tree and one made in a way."""
    expected = tree.facts()
    if way == "recorded":
        expected = without_owners_of_links(expected)
    if way in ("merge", "recorded") and not tree.root_is_listed:
        # The directory was there before, with attributes of its own.
        actual = actual | {b".": expected[b"."]}
    return differences(expected, actual)


def without_owners_of_links(tree: dict[bytes, Facts]) -> dict[bytes, Facts]:
    """A tree as it is recorded: symbolic links hold no record, and are root's without attributes then."""
    return {
        name: replace(facts, uid=0, gid=0, xattrs=()) if facts.type == "symlink" else facts
        for name, facts in tree.items()
    }


def check(way: str, layers: Sequence[Layer], directory: Path) -> None:
    """Fail where layers, unpacked in a way, are anything else than what they say."""
    tree = expected_tree(layers)
    with unpacked(way, [layer.build() for layer in layers], directory) as target:
        assert compare(way, tree, read_tree(target)) == []
