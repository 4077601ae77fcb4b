"""Root file systems that are a directory of the user's own: as it is, or beneath a writable layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pyctrd import _core
from pyctrd.errors import UnsupportedError
from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlayfs import Overlayfs
from pyctrd.snapshots.protocol import Change, Compression, LayerRef, Snapshot

# In place of a diff_id: it is no layer, and nobody knows what is in it.
DIRECTORY = "directory"


class Directory(Native):
    """Shows the directory itself. It is never copied, nor removed."""

    name = "directory"

    def prepare(self, key: str, layers: Sequence[LayerRef], *, frozen: Sequence[str] = ()) -> Snapshot:
        """Of one directory, as the only layer."""
        del frozen
        with self._store.making(key, "active", layers):
            pass
        return Snapshot(key, "active", tuple(layers), layers[0].path)

    def find(self, key: str) -> Snapshot | None:
        """As the protocol says."""
        found = self._store.read(key)
        return None if found is None else Snapshot(key, found[0], found[1], found[1][0].path)

    def mount(self, snapshot: Snapshot, target: Path, *, ids: int | None = None) -> None:
        """As the protocol says."""
        _core.mount_bind(snapshot.layers[0].path, target, ids=ids)

    def changes(self, key: str) -> list[Change]:
        """Refused: nobody knows what it was before."""
        _refuse(key, "what was changed")

    def diff(
        self, key: str, dest: Path, *, compression: Compression = "gzip", clamp_mtime: int | None = None
    ) -> _core.Diffed:
        """As ``changes``."""
        del dest, compression, clamp_mtime
        _refuse(key, "what was changed")

    def save(self, key: str, frozen: str) -> None:
        """Refused: it is not ours to copy."""
        del frozen
        _refuse(key, "a copy")

    def duplicate(self, source: str, key: str) -> Snapshot:
        """As ``save``."""
        del key
        _refuse(source, "a copy")

    def reset(self, key: str, frozen: Sequence[str]) -> None:
        """As ``save``."""
        del frozen
        _refuse(key, "a copy")


class DirectoryOverlay(Overlayfs):
    """Puts a writable layer above the directory, which stays as it is; nobody may change it meanwhile."""

    name = "directory-overlay"

    def settle(self, layers: Sequence[LayerRef]) -> None:
        """There is nothing to be made."""
        del layers

    @contextmanager
    def settling(self, layers: Sequence[LayerRef]) -> Iterator[Callable[[], None]]:
        """As ``settle``."""
        del layers
        yield lambda: None

    def changes(self, key: str) -> list[Change]:
        """Refused: what it lies on has no index."""
        _refuse(key, "what was changed")

    def diff(
        self, key: str, dest: Path, *, compression: Compression = "gzip", clamp_mtime: int | None = None
    ) -> _core.Diffed:
        """As ``changes``."""
        del dest, compression, clamp_mtime
        _refuse(key, "what was changed")

    def collect(self, diff_ids: Collection[str]) -> None:
        """Nothing is made for a directory."""

    def _top(self, layers: Sequence[LayerRef]) -> Path | None:
        return layers[0].path

    @contextmanager
    def _below(self, layers: Sequence[LayerRef], target: Path) -> Iterator[tuple[list[Path], Sequence[Path]]]:
        del target
        yield [layers[0].path], ()


def _refuse(key: str, what: str) -> NoReturn:
    feature = f"{what} of a directory that is no image's: {key}"
    needs = "a container of an image"
    raise UnsupportedError(f"unsupported: {feature}: needs {needs}", feature=feature, needs=needs)
