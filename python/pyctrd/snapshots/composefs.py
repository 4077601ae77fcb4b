"""Root file systems by overlayfs over images: files' contents are shared by all layers of all images."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pyctrd import _core
from pyctrd.errors import NotFoundError, naming
from pyctrd.snapshots.images import ImageMounts
from pyctrd.snapshots.overlayfs import MEMBERS, Overlayfs, in_user_namespace, mount_trial, stack_id
from pyctrd.snapshots.protocol import LayerForm, LayerRef, Snapshot
from pyctrd.snapshots.store import make_root, read_record, write_record

IMAGE = "image.erofs"
TREE = "tree"
_STACK = "stack-"
_AS_TREE = "-tree"
# Beside an image: its digest.
_DIGEST = "digest.json"
_ROOT = "root"
_OBJECTS = "objects"
# More than stands in an image itself.
_PROBE_BYTES = 1 << 16


class Composefs(Overlayfs):
    """As ``Overlayfs``, over one EROFS image for each stack of layers, which names objects of the store.

    The image is all that the layers come to, so a stack needs no fix-up layer, and overlayfs has nothing to merge. A
    user namespace may mount no image: there a directory takes its place, in which files are holes that name objects.

    Args:
        root: The engine's root directory, on a file system that overlayfs takes as its upper one.
        state: The engine's state directory: images are mounted there.
        directories: Make directories and no images; None where this process is in a user namespace.
    """

    name = "composefs"
    form: LayerForm = "objects"

    def __init__(self, root: Path, state: Path, *, directories: bool | None = None) -> None:
        super().__init__(root)
        if directories is not None:
            self._user_marks = directories
        self._objects = root / _OBJECTS
        self._images = ImageMounts(state, root)

    @staticmethod
    def _try_in(trial: Path) -> None:
        # Linux 6.5 for the overlay, 6.12 or loop devices for images; in a user namespace 6.16 or so.
        if in_user_namespace():
            _core.compose_sample(trial, bytes(_PROBE_BYTES), True)  # noqa: FBT003 - as the module has it
            _look_through(trial, trial / TREE, user_marks=True)
            return
        _core.compose_sample(trial, bytes(_PROBE_BYTES), False)  # noqa: FBT003 - likewise
        _core.mount_erofs(trial / IMAGE, trial / "lower")
        try:
            _look_through(trial, trial / "lower", user_marks=False)
        finally:
            _core.unmount(trial / "lower", lazy=True)

    def settle(self, layers: Sequence[LayerRef]) -> None:
        """As the protocol says."""
        self._image(layers)

    def prepare(self, key: str, layers: Sequence[LayerRef]) -> Snapshot:
        """As the protocol says."""
        image = self._image(layers)
        with self._store.making(key, "active", layers) as path:
            for name in ("upper", "work", "empty"):
                make_root(path / name)
            # The merged root directory is the upper one's: it must look like the image's.
            if image is not None:
                _core.copy_attributes(image if self._user_marks else image.parent / _ROOT, path / "upper")
        return Snapshot(key, "active", tuple(layers), None)

    def view(self, key: str, layers: Sequence[LayerRef]) -> Snapshot:
        """As the protocol says."""
        self._image(layers)
        with self._store.making(key, "view", layers) as path:
            for name in ("none", "empty"):
                make_root(path / name)
        return Snapshot(key, "view", tuple(layers), None)

    def mount(self, snapshot: Snapshot, target: Path, *, ids: int | None = None) -> None:
        """As the protocol says."""
        image = self._image(snapshot.layers)
        if image is None:
            self._stack(snapshot, [], target, ids=ids)
            return
        if self._user_marks:
            self._stack(snapshot, [image], target, ids=ids, data=[self._objects])
            return
        with self._images.held(image, target.resolve()) as mounted:
            self._stack(snapshot, [mounted], target, ids=ids, data=[self._objects])

    def unmount(self, target: Path) -> None:
        """As the protocol says."""
        super().unmount(target)
        self._images.release(target.resolve())

    def collect(self, diff_ids: Collection[str]) -> None:
        """As the protocol says."""
        super().collect(diff_ids)
        for path in self._store.directory.glob(f"{_STACK}*"):
            if not set(read_record(path / MEMBERS) or ()) <= set(diff_ids):
                self._store.remove(path)
        self._images.collect()

    def keep_stacks(self, stacks: Collection[tuple[str, ...]]) -> None:
        """Remove the images of all other stacks than these, each of diff_ids with the lowest first."""
        for path in self._store.directory.glob(f"{_STACK}*"):
            members = read_record(path / MEMBERS)
            if members is not None and tuple(members) not in stacks:
                self._store.remove(path)

    def walk_images(self) -> Iterator[tuple[Path, str]]:
        """The image of each stack that has one, with its digest as it was when it was made; "" where that is lost."""
        for path in sorted(self._store.directory.glob(f"{_STACK}*")):
            if (path / MEMBERS).exists() and not (path / TREE).exists():
                yield path / IMAGE, read_record(path / _DIGEST) or ""

    def drop_image(self, image: Path) -> None:
        """Remove a stack's image: it is made anew when it is asked for. Who has it mounted keeps it until then."""
        self._store.remove(image.parent)

    def _image(self, layers: Sequence[LayerRef]) -> Path | None:
        """The image of a stack, or the directory in its place, made when it is first asked for; None of no layers."""
        if not layers:
            return None
        for ref in layers:
            if not ref.path.is_dir():  # the image alone says nothing of what was changed
                raise NotFoundError(f"layer not found: {ref.diff_id}", kind="layer", name=ref.diff_id)
        # Each form has its own place: a directory that is mounted is read in place, and lost to who has it if removed.
        path = self._store.directory / f"{_STACK}{stack_id(layers)}{_AS_TREE if self._user_marks else ''}"
        found = path / (TREE if self._user_marks else IMAGE)
        if not found.exists():
            self._make_image(path, found, layers)
        return found

    def _make_image(self, path: Path, found: Path, layers: Sequence[LayerRef]) -> None:
        with self._store.trial() as making:
            write_record(making / MEMBERS, [ref.diff_id for ref in layers])
            paths = [ref.path for ref in layers]
            if self._user_marks:
                make_root(making / TREE)
                _core.compose_directory(paths, making / TREE)
            else:
                _core.compose_layers(paths, making, path.name)
                with naming(making / IMAGE), (making / IMAGE).open("rb") as file:
                    os.fdatasync(file.fileno())
                write_record(making / _DIGEST, _core.digest_file(making / IMAGE))
            try:
                making.rename(path)
            except OSError:
                if found.exists():
                    return  # another process was as fast
                # What is there has lost what it was made for.
                self._store.remove(path)
                making.rename(path)


def _look_through(trial: Path, lower: Path, *, user_marks: bool) -> None:
    merged = trial / "merged"
    mount_trial(trial, lower, user_marks=user_marks, data=[trial / _OBJECTS])
    try:
        (merged / "file").read_bytes()
    finally:
        _core.unmount(merged)
