"""Root file systems by copying: no overlayfs, and to use them in place no mount and no root rights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pyctrd import _core
from pyctrd.snapshots.protocol import Change, Compression, LayerForm, LayerRef, Snapshot, SnapshotKind
from pyctrd.snapshots.store import SnapshotStore, as_changes, directory_bytes, make_root


class Native:
    """Writes each snapshot's merged view out, sharing extents where the file system can.

    Args:
        root: The engine's root directory.
    """

    name = "native"
    form: LayerForm = "tree"

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

    def prepare(self, key: str, layers: Sequence[LayerRef]) -> Snapshot:
        """As the protocol says."""
        return self._make(key, "active", layers)

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
        return self._store.path(key) / "rootfs"
