"""What a snapshotter does: root file systems made of unpacked layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

from pyctrd import _core
from pyctrd.oci.value import NamedTuple

SnapshotKind = Literal["active", "view"]
LayerForm = Literal["tree", "objects", "blocks"]
Compression = Literal["gzip", "zstd", "none"]


class LayerRef(NamedTuple):
    """An unpacked layer, as the content room keeps it.

    Attributes:
        diff_id: Digest of its tar.
        path: The directory that holds its ``index``, and its ``tree``, ``pack`` or ``blocks``.
    """

    diff_id: str
    path: Path


class Snapshot(NamedTuple):
    """A root file system.

    Attributes:
        key: Names it, and its directory.
        kind: "active" can be written to, "view" cannot.
        layers: What it is made of, lowest first.
        path: The directory that is the root file system already; None where it has to be mounted.
        frozen: What lies between its layers and what can be written to, lowest first, by id.
    """

    key: str
    kind: SnapshotKind
    layers: tuple[LayerRef, ...]
    path: Path | None
    frozen: tuple[str, ...] = ()


class Change(NamedTuple):
    """One name that is not as the layers have it.

    Attributes:
        kind: "A" for added, "C" for changed, "D" for deleted; a directory is also changed by what is in it.
        path: Absolute; bytes that are no UTF-8 as ``os.fsdecode`` has them.
    """

    kind: Literal["A", "C", "D"]
    path: str


class Snapshotter(Protocol):
    """Makes root file systems. The merged view is the same whichever makes it (rule R19).

    Layers are given lowest first. Keys are letters, digits and dashes. Snapshots survive the process; mounts
    survive it too, but no reboot.
    """

    name: str
    # What layers are to be unpacked as.
    form: LayerForm
    # Whether what is frozen lies beneath what goes on from it; if not, each id is a whole of its own.
    stacks: bool

    def settle(self, layers: Sequence[LayerRef]) -> None:
        """Make what a stack of layers needs beside them, so that ``prepare`` finds it; again is a no-op.

        Raises:
            UnsafeArchiveError: A layer cannot be applied to those below it.
        """
        ...

    def settling(self, layers: Sequence[LayerRef]) -> AbstractContextManager[Callable[[], None]]:
        """As ``settle``, for layers that are still to get their names.

        What the ``with`` block is given it may call once, in any thread, while the layers are where they are said to
        be. What that made gets its own name at the block's end, when the layers must have theirs: not where it was not
        called, or raised, or the block did.
        """
        ...

    def prepare(self, key: str, layers: Sequence[LayerRef], *, frozen: Sequence[str] = ()) -> Snapshot:
        """Make a snapshot that can be written to.

        Args:
            key: Names it.
            layers: What it is made of.
            frozen: What it begins with beside these, lowest first: ids of ``freeze`` or ``save``, over the same layers.

        Raises:
            AlreadyExistsError: The key is taken.
            UnsafeArchiveError: As ``settle``.
        """
        ...

    def view(self, key: str, layers: Sequence[LayerRef]) -> Snapshot:
        """Make a snapshot that cannot be written to.

        Raises:
            AlreadyExistsError: The key is taken.
        """
        ...

    def find(self, key: str) -> Snapshot | None:
        """The snapshot of a key; None where there is none."""
        ...

    def walk(self) -> Iterator[Snapshot]:
        """All snapshots, by key."""
        ...

    def mount(self, snapshot: Snapshot, target: Path, *, ids: int | None = None) -> None:
        """Show it on an existing directory, until ``unmount``.

        Args:
            snapshot: What to show.
            target: Where.
            ids: A user namespace's descriptor: owners are seen, and set, as those that it maps theirs to.

        Raises:
            UnsupportedError: The kernel, or this process' rights, do not allow it.
            OSError: The kernel refused.
        """
        ...

    def unmount(self, target: Path) -> None:
        """Take the mount away; where nothing is mounted it does nothing.

        Raises:
            ConflictError: It is in use.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a snapshot that is not mounted; a missing one is no error."""
        ...

    def freeze(self, key: str, frozen: str) -> None:
        """Let a snapshot go on over what it has now, which is kept under an id: no file is copied.

        It is not mounted, or its mount was retired. Only of one that ``stacks``. Stopped at any point, the snapshot
        has what it had.

        Raises:
            NotFoundError: There is no such snapshot.
        """
        ...

    def is_unchanged(self, key: str) -> bool:
        """Whether nothing was written to a snapshot since it was frozen, or made from what was."""
        ...

    def save(self, key: str, frozen: str) -> None:
        """Keep a copy of what was written to a snapshot under an id; nobody writes to it meanwhile.

        Raises:
            NotFoundError: There is no such snapshot.
        """
        ...

    def duplicate(self, source: str, key: str) -> Snapshot:
        """Make a snapshot with a copy of what was written to another; nobody writes to that one meanwhile.

        Raises:
            AlreadyExistsError: The key is taken.
            NotFoundError: There is no such source.
        """
        ...

    def reset(self, key: str, frozen: Sequence[str]) -> None:
        """Set a snapshot, not mounted, back to what was frozen, in one step; what it had goes to the trash.

        Raises:
            NotFoundError: There is no such snapshot.
        """
        ...

    def retire(self, target: Path) -> int | None:
        """As ``unmount``, without waiting for what that writes: closing the descriptor waits. None for no mount.

        Raises:
            ConflictError: Somebody writes to a file of it.
        """
        ...

    def usage(self, key: str) -> int:
        """Bytes on disk that its deletion would free.

        Raises:
            NotFoundError: There is no such snapshot.
        """
        ...

    def changes(self, key: str) -> list[Change]:
        """How a snapshot differs from its layers, parents first, sorted; the root itself is not among them.

        Raises:
            NotFoundError: There is no such snapshot.
            UnsupportedError, ConflictError: As ``diff``.
        """
        ...

    def diff(
        self, key: str, dest: Path, *, compression: Compression = "gzip", clamp_mtime: int | None = None
    ) -> _core.Diffed:
        """Write how a snapshot differs from its layers, as one more layer, to a file.

        The entries are those of ``changes``, and those of the directories that these are in.

        Args:
            key: Of the snapshot, mounted or not.
            dest: The file; not flushed.
            compression: Of the file.
            clamp_mtime: Seconds since 1970 that no file's time is after.

        Raises:
            NotFoundError: There is no such snapshot.
            UnsupportedError: Something that no layer can say, as a name that begins with ``.wh.``.
            ConflictError: It is a view, which has no changes; or somebody changes it meanwhile.
        """
        ...

    def collect(self, diff_ids: Collection[str]) -> None:
        """Remove what was made by ``settle`` for stacks with a layer that is not among these."""
        ...
