"""Root file systems by overlayfs over images: files' contents are shared by all layers of all images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyctrd import _core
from pyctrd.snapshots.imaged import IMAGE, PROBE_BYTES, TREE, Imaged, compose_image, look_through
from pyctrd.snapshots.overlayfs import in_user_namespace
from pyctrd.snapshots.protocol import LayerForm, LayerRef
from pyctrd.snapshots.store import make_root

_OBJECTS = "objects"


class Composefs(Imaged):
    """Images that name objects of the store: a content is there once for all layers of all images.

    A user namespace may mount no image: there a directory takes its place, in which files are holes that name objects.

    Args:
        root: The engine's root directory, on a file system that overlayfs takes as its upper one.
        state: The engine's state directory: images are mounted there.
        directories: Make directories and no images; None where this process is in a user namespace.
    """

    name = "composefs"
    form: LayerForm = "objects"

    def __init__(self, root: Path, state: Path, *, directories: bool | None = None) -> None:
        super().__init__(root, state)
        if directories is not None:
            self._user_marks = directories
        self.data = [root / _OBJECTS]
        # A directory that is mounted is read in place, and lost to who has it if removed.
        self.suffix = "-tree" if self._user_marks else ""

    @staticmethod
    def _try_in(trial: Path) -> None:
        # Linux 6.5 for the overlay, 6.12 or loop devices for images; in a user namespace 6.16 or so.
        data = [trial / _OBJECTS]
        if in_user_namespace():
            _core.compose_sample(trial, bytes(PROBE_BYTES), "directory")
            look_through(trial, trial / TREE, user_marks=True, data=data)
            return
        _core.compose_sample(trial, bytes(PROBE_BYTES), "image")
        _core.mount_erofs(trial / IMAGE, trial / "lower")
        try:
            look_through(trial, trial / "lower", user_marks=False, data=data)
        finally:
            _core.unmount(trial / "lower", lazy=True)

    @contextmanager
    def _below(self, layers: Sequence[LayerRef], target: Path) -> Iterator[tuple[list[Path], Sequence[Path]]]:
        if not self._user_marks:
            with super()._below(layers, target) as found:
                yield found
            return
        tree = self._image(layers)
        yield ([], ()) if tree is None else ([tree], self.data)

    @property
    def _made(self) -> str:
        return TREE if self._user_marks else IMAGE

    def _looks(self, image: Path) -> Path:
        return image if self._user_marks else super()._looks(image)

    def _make(self, layers: Sequence[LayerRef], making: Path, identity: str) -> None:
        if not self._user_marks:
            compose_image(layers, making, identity, blocks=False)
            return
        make_root(making / TREE)
        _core.compose_directory([ref.path for ref in layers], making / TREE)
