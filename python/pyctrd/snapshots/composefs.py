"""Root file systems by overlayfs over images: files' contents are shared by all layers of all images."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pyctrd import _core
from pyctrd.errors import PyctrdError
from pyctrd.snapshots.images import IMAGE, ImageMounts
from pyctrd.snapshots.overlayfs import Overlayfs
from pyctrd.snapshots.protocol import LayerForm, LayerRef, Snapshot
from pyctrd.snapshots.store import PRIVATE_MODE, SnapshotStore

_OBJECTS = "objects"
# More than stands in an image itself.
_PROBE_BYTES = 1 << 16


class Composefs(Overlayfs):
    """As ``Overlayfs``, with each layer an EROFS image that names objects, or a directory where it was unpacked so.

    Args:
        root: The engine's root directory, on a file system that overlayfs takes as its upper one.
        state: The engine's state directory: images are mounted there.
    """

    name = "composefs"
    form: LayerForm = "image"

    def __init__(self, root: Path, state: Path) -> None:
        super().__init__(root)
        self._objects = root / _OBJECTS
        self._images = ImageMounts(state, root)

    @classmethod
    def probe(cls, root: Path) -> str | None:
        """None where it works beneath ``root``; else the reason why not. Makes a layer, and reads a file through it."""
        store = SnapshotStore(root)
        with store.trial() as trial:
            for name in ("files", "lower", "upper", "work", "merged"):
                (trial / name).mkdir(mode=PRIVATE_MODE)
            try:
                layer = _make_layer(trial)
                _core.mount_image(layer.path / IMAGE, trial / "lower")
                try:
                    _look_through(trial)
                finally:
                    _core.unmount(trial / "lower", lazy=True)
            except (PyctrdError, OSError) as error:
                return str(error)
        return None

    def unmount(self, target: Path) -> None:
        """As the protocol says."""
        super().unmount(target)
        self._images.release(target.resolve())

    def collect(self, diff_ids: Collection[str]) -> None:
        """As the protocol says."""
        super().collect(diff_ids)
        self._images.collect()

    def _mount_overlay(self, snapshot: Snapshot, fixup: list[Path], target: Path) -> None:
        # An image that overlayfs would be given twice counts once, as a directory does.
        layers = list(dict.fromkeys(reversed(snapshot.layers)))
        images = [ref for ref in layers if (ref.path / IMAGE).exists()]
        mounted = dict(zip(images, self._images.hold(target.resolve(), images), strict=True))
        lower = [*fixup, *(mounted.get(ref) or ref.path / "tree" for ref in layers)]
        self._stack(snapshot, lower, target, data=[self._objects] if images else [])


def _make_layer(trial: Path) -> LayerRef:
    (trial / "files" / "file").write_bytes(bytes(_PROBE_BYTES))
    made = _core.diff(trial / "files", trial / "layer", compression="none")
    ingest = _core.Ingest(
        trial, "probe", digest=made.digest, diff_id=made.diff_id, unpack=True, form="image", keep_blob=False
    )
    ingest.write((trial / "layer").read_bytes())
    ingest.finish()
    _core.publish(trial, [ingest], durability="none")
    return LayerRef(made.diff_id, trial / "layers" / made.diff_id.replace(":", "/"))


def _look_through(trial: Path) -> None:
    merged = trial / "merged"
    _core.mount_overlay(
        [trial / "lower"], merged, upper=trial / "upper", work=trial / "work", data=[trial / _OBJECTS]
    )
    try:
        (merged / "file").read_bytes()
    finally:
        _core.unmount(merged)
