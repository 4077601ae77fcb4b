"""Root file systems by copying: no overlayfs, and to use them in place no mount and no root rights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pyctrd import _core
from pyctrd.snapshots.protocol import Change, Compression, LayerForm, LayerRef, Snapshot, SnapshotKind
from pyctrd.snapshots.store import PRIVATE_MODE, SnapshotStore, as_changes, directory_bytes, make_root

_ROOTFS = "rootfs"


class Native:
    """Writes each snapshot's merged view out, sharing extents where the file system can.

    Args:
        root: The engine's root directory.
    """

    name = "native"
    form: LayerForm = "tree"
    stacks = False

    def __init__(self, root: Path) -> None:
        self._store = SnapshotStore(root)

    @classmethod
    def probe(cls, root: Path) -> str | None:
        """None: it works wherever files can be written."""
        del root
        return None

    def settle(self, layers: Sequence[LayerRef]) -> None:
        """Check that the layers fit one another; nothing is made."""
        _core.ImageView([ref.path for ref in layers]).find(b"/")

    @contextmanager
    def settling(self, layers: Sequence[LayerRef]) -> Iterator[Callable[[], None]]:
        """As the protocol says."""
        yield partial(self.settle, layers)

    def prepare(self, key: str, layers: Sequence[LayerRef], *, frozen: Sequence[str] = ()) -> Snapshot:
        """As the protocol says."""
        if not frozen:
            return self._make(key, "active", layers)
        with self._store.making(key, "active", layers) as path:
            _copy(self._store.frozen_path(frozen[-1]), path)
        return Snapshot(key, "active", tuple(layers), self._rootfs(key))

    def view(self, key: str, layers: Sequence[LayerRef]) -> Snapshot:
        """As the protocol says."""
        return self._make(key, "view", layers)

    def find(self, key: str) -> Snapshot | None:
        """As the protocol says."""
        found = self._store.read(key)
        return None if found is None else Snapshot(key, found[0], found[1], self._rootfs(key))

    def walk(self) -> Iterator[Snapshot]:
        """As the protocol says."""
        for key in self._store.walk_keys():
            if (snapshot := self.find(key)) is not None:
                yield snapshot

    def mount(self, snapshot: Snapshot, target: Path, *, ids: int | None = None) -> None:
        """As the protocol says."""
        _core.mount_bind(self._rootfs(snapshot.key), target, readonly=snapshot.kind == "view", ids=ids)

    def unmount(self, target: Path) -> None:
        """As the protocol says."""
        _core.unmount(target.resolve())  # ``mount`` follows a link as well

    def retire(self, target: Path) -> int | None:
        """As the protocol says."""
        return _core.retire_mount(target.resolve())

    def freeze(self, key: str, frozen: str) -> None:
        """As ``save``: nothing lies on anything here."""
        self.save(key, frozen)

    def is_unchanged(self, key: str) -> bool:
        """As the protocol says: what was written is not told from the rest."""
        del key
        return False

    def save(self, key: str, frozen: str) -> None:
        """As the protocol says."""
        self._store.get_active(key)
        place = self._store.frozen_path(frozen)
        place.mkdir(mode=PRIVATE_MODE)
        _copy(self._store.path(key), place)

    def duplicate(self, source: str, key: str) -> Snapshot:
        """As the protocol says."""
        _, layers = self._store.get(source)
        with self._store.making(key, "active", layers) as path:
            _copy(self._store.path(source), path)
        return Snapshot(key, "active", layers, self._rootfs(key))

    def reset(self, key: str, frozen: Sequence[str]) -> None:
        """As the protocol says."""
        _, layers = self._store.get(key)
        with self._store.replacing(key, ()) as path:
            if frozen:
                _copy(self._store.frozen_path(frozen[-1]), path)
            else:
                make_root(path / _ROOTFS)
                _core.flatten_layers([ref.path for ref in layers], path / _ROOTFS)

    def delete(self, key: str) -> None:
        """As the protocol says."""
        self._store.remove(self._store.path(key))

    def usage(self, key: str) -> int:
        """As the protocol says."""
        self._store.get(key)
        return directory_bytes(self._store.path(key))

    def changes(self, key: str) -> list[Change]:
        """As the protocol says."""
        layers = self._store.get_active(key)
        return as_changes(_core.list_changes(self._rootfs(key), layers, overlay=False))

    def diff(
        self, key: str, dest: Path, *, compression: Compression = "gzip", clamp_mtime: int | None = None
    ) -> _core.Diffed:
        """As the protocol says."""
        layers = self._store.get_active(key)
        return _core.diff_layers(
            self._rootfs(key),
            dest,
            layers,
            overlay=False,
            compression=compression,
            clamp_mtime=clamp_mtime,
        )

    def collect(self, diff_ids: Collection[str]) -> None:
        """Nothing is shared between snapshots."""

    def _make(self, key: str, kind: SnapshotKind, layers: Sequence[LayerRef]) -> Snapshot:
        rootfs = self._rootfs(key)
        with self._store.making(key, kind, layers):
            make_root(rootfs)
            _core.flatten_layers([ref.path for ref in layers], rootfs)
        return Snapshot(key, kind, tuple(layers), rootfs)

    def _rootfs(self, key: str) -> Path:
        return self._store.path(key) / _ROOTFS


def _copy(source: Path, target: Path) -> None:
    """Copy the root file system of one directory of the store into another."""
    from pyctrd.snapshots.copies import copy_tree  # no pull needs it

    make_root(target / _ROOTFS)
    copy_tree(source / _ROOTFS, target / _ROOTFS, marks=True)
