"""Root file systems by overlayfs over one image for each stack of layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyctrd import _core
from pyctrd.errors import NotFoundError
from pyctrd.snapshots.images import ImageMounts
from pyctrd.snapshots.overlayfs import MEMBERS, Overlayfs, mount_trial, stack_id
from pyctrd.snapshots.protocol import LayerRef
from pyctrd.snapshots.store import SnapshotStore, read_record, write_record

IMAGE = "image.erofs"
TREE = "tree"
STACK = "stack-"
# More than stands in an image itself.
PROBE_BYTES = 1 << 16
# Beside an image: its digest, and the layers whose blocks it is mounted with.
_DIGEST = "digest.json"
_DEVICES = "devices.json"
_ROOT = "root"


class Stacks:
    """What all snapshotters over images have made for stacks of layers, whichever of them did.

    Args:
        root: The engine's root directory.
    """

    def __init__(self, root: Path) -> None:
        self._store = SnapshotStore(root)

    def exist(self) -> bool:
        """Whether there is anything."""
        return any(self._store.directory.glob(f"{STACK}*"))

    def keep(self, stacks: Collection[tuple[str, ...]]) -> None:
        """Remove what was made for other stacks than these, each of diff_ids with the lowest first."""
        for path in self._store.directory.glob(f"{STACK}*"):
            members = read_record(path / MEMBERS)
            if members is not None and tuple(members) not in stacks:
                self._store.remove(path)

    def walk_images(self) -> Iterator[tuple[Path, str]]:
        """The image of each stack that has one, with its digest as it was when it was made; "" where that is lost."""
        for path in sorted(self._store.directory.glob(f"{STACK}*")):
            if (path / MEMBERS).exists() and not (path / TREE).exists():
                yield path / IMAGE, read_record(path / _DIGEST) or ""

    def drop_image(self, image: Path) -> None:
        """Remove a stack's image: it is made anew when it is asked for. Who has it mounted keeps it until then."""
        self._store.remove(image.parent)


class Imaged(Overlayfs, ABC):
    """As ``Overlayfs``, over one EROFS image for each stack of layers.

    The image is all that the layers come to, so a stack needs no fix-up layer, and overlayfs merges nothing. It is
    mounted once, for as long as an overlay needs it.

    Args:
        root: The engine's root directory, on a file system that overlayfs takes as its upper one.
        state: The engine's state directory: images are mounted there.
    """

    # Behind the name of a stack's directory: each form has its own place.
    suffix = ""
    # Contents that overlayfs finds for itself.
    data: Sequence[Path] = ()

    def __init__(self, root: Path, state: Path) -> None:
        super().__init__(root)
        self._images = ImageMounts(state, root)

    def unmount(self, target: Path) -> None:
        """As the protocol says."""
        super().unmount(target)
        self._images.release(target.resolve())

    def retire(self, target: Path) -> int | None:
        """As the protocol says."""
        held = super().retire(target)
        self._images.release(target.resolve())
        return held

    def collect(self, diff_ids: Collection[str]) -> None:
        """As the protocol says."""
        super().collect(diff_ids)
        for path in self._store.directory.glob(f"{STACK}*"):
            if not set(read_record(path / MEMBERS) or ()) <= set(diff_ids):
                self._store.remove(path)
        self._images.collect()

    def _top(self, layers: Sequence[LayerRef]) -> Path | None:
        image = self._image(layers)
        return None if image is None else self._looks(image)

    @contextmanager
    def _below(self, layers: Sequence[LayerRef], target: Path) -> Iterator[tuple[list[Path], Sequence[Path]]]:
        image = self._image(layers)
        if image is None:
            yield [], ()
            return
        with self._images.held(image, target.resolve(), devices=_devices(image, layers)) as mounted:
            yield [mounted], self.data

    def _image(self, layers: Sequence[LayerRef]) -> Path | None:
        """The image of a stack, or what takes its place; None of no layers."""
        settled = self._settled(layers)
        return None if settled is None else settled / self._made

    def _check(self, layers: Sequence[LayerRef]) -> None:
        for ref in layers:
            if not ref.path.is_dir():  # the image alone says nothing of what was changed
                raise NotFoundError(f"layer not found: {ref.diff_id}", kind="layer", name=ref.diff_id)

    def _place(self, layers: Sequence[LayerRef]) -> Path:
        return self._store.directory / f"{STACK}{stack_id(layers)}{self.suffix}"

    def _is_made(self, place: Path) -> bool:
        return (place / self._made).exists()

    @property
    def _made(self) -> str:
        """What a stack's directory has in it."""
        return IMAGE

    def _looks(self, image: Path) -> Path:
        """What has the attributes of an image's root."""
        return image.parent / _ROOT

    @abstractmethod
    def _make(self, layers: Sequence[LayerRef], making: Path, identity: str) -> None:
        """Make an image in a directory, write down what it needs, and flush all that is there."""


def compose_image(layers: Sequence[LayerRef], making: Path, identity: str, *, blocks: bool) -> None:
    """Make the image itself, over objects or over layers' blocks, and flush all that is in the directory."""
    devices = _core.compose_layers([ref.path for ref in layers], making, identity, blocks=blocks)
    if blocks:
        write_record(making / _DEVICES, [layers[position].diff_id for position in devices], flush=False)
    write_record(making / _DIGEST, _core.digest_file(making / IMAGE), flush=False)
    _core.flush_tree(making)


def _devices(image: Path, layers: Sequence[LayerRef]) -> list[Path]:
    paths = {ref.diff_id: ref.path for ref in layers}
    return [paths[diff_id] / "blocks" for diff_id in read_record(image.parent / _DEVICES) or ()]


def look_through(trial: Path, lower: Path, *, user_marks: bool, data: Sequence[Path] = ()) -> None:
    """Read a sample's file through an overlay over it."""
    merged = trial / "merged"
    mount_trial(trial, lower, user_marks=user_marks, data=data)
    try:
        (merged / "file").read_bytes()
    finally:
        _core.unmount(merged)
