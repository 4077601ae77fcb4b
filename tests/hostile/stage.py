"""Where a case is played: an unpack target and a store with canaries around them, and the ways into both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from stat import S_IFREG
from typing import Literal

import pyctrd
from pyctrd.errors import UnsupportedError
from pyctrd.snapshots.composefs import Composefs
from pyctrd.snapshots.overlayfs import Overlayfs
from pyctrd.snapshots.protocol import LayerRef
from tests.archives import Tar
from tests.content.stores import files_below
from tests.hostile.canary import Outside
from tests.hostile.table import Made, Packed, Seen
from tests.images import Blob, BuiltImage, build_image
from tests.layers.ways import digest_of
from tests.registry_faults import Answer, FaultyRegistry
from tests.trees import Facts, differences, read_tree

# "recorded": by a user without rights, and then by root from the layer that is made of that. "mapped": in a user
# namespace that has every id as it is, so that what comes of a layer is what root makes of it.
MAPPED = ["mapped"] if shutil.which("newuidmap") else []
WAYS = ("unpack", "recorded", *MAPPED, "overlayfs", "native", "composefs", "erofs", "load")
# Ways that go through the store, and what each mounts the image with.
IN_STORE = {name: name for name in ("overlayfs", "native", "composefs", "erofs")} | {"load": "overlayfs"}
NOBODY = 65534
ID_MAX = 2**32 - 2
REPOSITORY = "hostile/image"
GOOD = {b"etc/good": b"good\n"}


class Stage:
    """The directories of one test.

    Args:
        top: The test's own.
        registry: Serves the images.
    """

    def __init__(self, top: Path, registry: FaultyRegistry) -> None:
        # A few levels, so that there are parents to get out into.
        place = top / "one" / "two"
        place.mkdir(parents=True)
        self.target, self.store, self.view, self.other, self._files, self._state, self._theirs = (
            place / name for name in ("target", "store", "view", "other", "files", "state", "theirs")
        )
        # All of them from the start: whatever appears beside them later was not meant to.
        for path in (self.target, self.store, self.view, self.other, self._files, self._state, self._theirs):
            path.mkdir(mode=0o700)
        top.chmod(0o711)
        self._files.chmod(0o755)
        os.chown(self._theirs, NOBODY, NOBODY)
        self._top = top / "one"
        self.outside = Outside(place, top=top)
        self._registry = registry

    def close(self) -> None:
        """Remove everything: some trees are deeper than Python's own removal can recurse."""
        self.outside.remove()
        subprocess.run(["rm", "-rf", "--one-file-system", str(self._top)], check=True)

    @contextmanager
    def unpacked(self, way: str, layers: Made) -> Iterator[Seen]:
        """A tree of layers made in one of the ways, for the length of a ``with`` block."""
        packed = [_packed(layer) for layer in layers]
        if way in ("unpack", "mapped"):
            self.unpack(packed, self.target, ownership="mapped" if way == "mapped" else "keep")
            yield self._seen(self.target)
            return
        if way == "recorded":
            self._unpack_recorded(packed)
            yield self._seen(self.target)
            return
        with self.engine(way) as engine, self._bring(engine, way, packed).mounted(self.view):
            yield self._seen(self.view)

    def unpack(
        self, layers: Sequence[Packed], target: Path, *, ownership: Literal["keep", "mapped", "recorded"] = "keep"
    ) -> None:
        """Apply layers one by one, each from a file."""
        for number, layer in enumerate(layers):
            blob = self._files / f"layer-{number}"
            blob.write_bytes(layer.blob if layer.sent is None else layer.sent)
            with _rights_for(ownership, self._files):
                pyctrd.unpack(blob, target, diff_id=layer.claimed, digest=digest_of(layer.blob), ownership=ownership)
            blob.unlink()

    def empty(self) -> None:
        """Begin anew with the directories that layers are unpacked into."""
        for path in (self.target, self._theirs):
            subprocess.run(["find", str(path), "-mindepth", "1", "-delete"], check=True)

    def _unpack_recorded(self, layers: Sequence[Packed]) -> None:
        self.unpack(layers, self._theirs, ownership="recorded")
        blob = self._files / "made"
        try:
            pyctrd.diff(self._theirs, blob, compression="none", ownership="recorded")
        except UnsupportedError as error:
            # L096: a directory that is named like a whiteout, which no layer can list, is looked at as it is.
            assert error.feature == "name in a layer: .wh.etc"  # noqa: PT017 - one case's, not what is tested
            subprocess.run(["cp", "-a", f"{self._theirs}/.", str(self.target)], check=True)
            return
        pyctrd.unpack(blob, self.target)
        blob.unlink()

    def serve(self, layers: Sequence[Packed]) -> str:
        """Put an image of layers into the registry, in place of the one before; returns its reference."""
        image = _image(layers)
        reference = self._registry.add(image, REPOSITORY)
        for layer, blob in zip(layers, image.layers, strict=True):
            if layer.sent is not None:
                self._registry.lie(f"/blobs/{blob.digest}", Answer(body=layer.sent))
        return reference

    def save(self, layers: Sequence[Packed]) -> Path:
        """Write an image of layers as a tar of an OCI layout, in place of the one before."""
        image = _image(layers)
        sent = [layer.blob if layer.sent is None else layer.sent for layer in layers]
        contents = {blob.digest: blob.content for blob in (image.manifest, *image.blobs)}
        contents |= {blob.digest: content for blob, content in zip(image.layers, sent, strict=True)}
        index = {"schemaVersion": 2, "manifests": [image.manifest.descriptor]}
        tar = Tar().file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}').file("index.json", json.dumps(index).encode())
        for digest, content in contents.items():
            tar.file(f"blobs/{digest.replace(':', '/')}", content)
        archive = self._files / "image.tar"
        archive.write_bytes(tar.build())
        return archive

    def engine(self, way: str) -> pyctrd.Engine:
        """An engine over the store; what survives a power cut is not the subject here."""
        snapshotter = IN_STORE[way]
        return pyctrd.Engine(root=self.store, state=self._state, snapshotter=snapshotter, durability="none")

    def _bring(self, engine: pyctrd.Engine, way: str, layers: Sequence[Packed]) -> pyctrd.Image:
        if way != "load":
            return engine.images.pull(self.serve(layers))
        archive = self.save(layers)
        try:
            return engine.images.load(archive, name=REPOSITORY)[0]
        finally:
            archive.unlink()

    def differences_of_directory(self, layers: Made) -> list[str]:
        """What composefs shows of the layers in the store by a directory differently than by an image."""
        image = read_tree(self.view)
        return differences(image, self._seen_by(Composefs(self.store, self._state, directories=True), layers))

    def _seen_by(self, snapshotter: Overlayfs, layers: Made) -> dict[bytes, Facts]:
        claimed = [_packed(layer).claimed for layer in layers]
        refs = [LayerRef(diff_id, self.store / "layers" / diff_id.replace(":", "/")) for diff_id in claimed]
        snapshot = snapshotter.view("other", refs)
        snapshotter.mount(snapshot, self.other)
        try:
            return read_tree(self.other)
        finally:
            snapshotter.unmount(self.other)
            snapshotter.delete(snapshot.key)

    def differences_between_ways(self, layers: Made) -> list[str]:
        """What overlayfs shows of the layers in the store, and ``unpack`` makes, differently than ``native`` did."""
        packed = [_packed(layer) for layer in layers]
        native = read_tree(self.view)
        found = differences(native, self._seen_by(Overlayfs(self.store), layers))
        self.unpack(packed, self.target)
        merged = read_tree(self.target)
        if b"." in merged and merged[b"."].mode == 0o700:
            merged[b"."] = native[b"."]
        return found + differences(native, merged)

    def nothing_is_left(self, engine: pyctrd.Engine) -> None:
        """Fail where a refused image has left anything that can be seen (rule R13)."""
        assert engine.images.list() == []
        assert engine.content.list() == []
        assert engine.check() == []
        assert files_below(self.store / "content") == []
        for where in ("content/ingest/*", "layers/*/*", "objects/*/*", "snapshots/*", "trash/*"):
            assert list(self.store.glob(where)) == []

    def layers_are_plain(self) -> None:
        """Fail where a layer's directory holds more than its files and its index, or an object is no plain file."""
        for layer in (self.store / "layers").glob("*/*"):
            assert {path.name for path in layer.iterdir()} - {"lost", "tree", "pack", "blocks"} == {"frame", "index"}
            assert any((layer / part).exists() for part in ("tree", "pack", "blocks"))
        for path in (self.store / "objects").glob("*/*"):
            stat = path.lstat()
            assert (stat.st_mode, stat.st_uid, stat.st_nlink) == (S_IFREG | 0o444, os.geteuid(), 1)

    def bring_good(self, engine: pyctrd.Engine, way: str) -> None:
        """Fail where a good image, under the name of the bad one, does not come in (rule R13)."""
        image = self._bring(engine, way, [_packed(Tar().file("etc/good", b"good\n"))])
        assert image.read_file("/etc/good") == b"good\n"
        with image.mounted(self.view):
            assert sorted(os.listdir(self.view)) == ["etc"]  # noqa: PTH208 - names, as everywhere here
        assert engine.check(digests=True) == []

    def _seen(self, root: Path) -> Seen:
        return Seen(root, read_tree(root), self.outside)


@contextmanager
def _rights_for(ownership: str, directory: Path) -> Iterator[None]:
    """What a way of unpacking is to be tried with, for the length of a ``with`` block."""
    if ownership == "recorded":
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
    elif ownership == "mapped":
        ranges = directory / "ranges"
        ranges.write_text(f"root:1:{ID_MAX}\n")
        for file in ("/etc/subuid", "/etc/subgid"):
            subprocess.run(["mount", "--bind", str(ranges), file], check=True)
        try:
            yield
        finally:
            for file in ("/etc/subuid", "/etc/subgid"):
                subprocess.run(["umount", file], check=True)
            ranges.unlink()
    else:
        yield


def _packed(layer: Tar | bytes | Packed) -> Packed:
    if isinstance(layer, Packed):
        return layer
    return Packed(layer.build() if isinstance(layer, Tar) else layer)


def _image(layers: Sequence[Packed]) -> BuiltImage:
    described = [Blob(layer.media_type, layer.blob) for layer in layers]
    plain = build_image([b""] * len(layers), compression="none")
    image = plain.with_diff_ids([layer.claimed for layer in layers], layers=described)
    if not any(layer.extra for layer in layers):
        return image
    manifest = json.loads(image.manifest.content)
    for entry, layer in zip(manifest["layers"], layers, strict=True):
        entry.update(layer.extra)
    return replace(image, manifest=Blob(image.manifest.media_type, json.dumps(manifest).encode()))
