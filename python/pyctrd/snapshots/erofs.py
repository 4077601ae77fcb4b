"""Root file systems by overlayfs over images whose files are in layers' blocks: no file is made for a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyctrd import _core
from pyctrd.errors import UnsupportedError
from pyctrd.snapshots.imaged import IMAGE, PROBE_BYTES, Imaged, compose_image, look_through
from pyctrd.snapshots.overlayfs import in_user_namespace
from pyctrd.snapshots.protocol import LayerForm, LayerRef

_NEEDS = 'to be outside of one; snapshotter "composefs", "overlayfs" or "native" works there'


class Erofs(Imaged):
    """Images over layers' blocks: a layer's contents are one file, written as they come, and mounted with the image.

    What is shared is the layer. Of a stack the image has names and metadata, and short files.
    """

    name = "erofs"
    form: LayerForm = "blocks"
    suffix = "-blocks"

    @staticmethod
    def _try_in(trial: Path) -> None:
        # Linux 6.12, or 5.16 with loop devices.
        if in_user_namespace():
            raise UnsupportedError(
                f"unsupported: mounting an image in a user namespace: needs {_NEEDS}",
                feature="mounting an image in a user namespace",
                needs=_NEEDS,
            )
        _core.compose_sample(trial, bytes(PROBE_BYTES), "blocks")
        _core.mount_erofs(trial / IMAGE, trial / "lower", devices=[trial / "blocks"])
        try:
            look_through(trial, trial / "lower", user_marks=False)
        finally:
            _core.unmount(trial / "lower", lazy=True)

    def _make(self, layers: Sequence[LayerRef], making: Path, identity: str) -> None:
        compose_image(layers, making, identity, blocks=True)
