"""Root file systems by overlayfs: each layer a directory, shared by all images that have it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pyctrd import _core
from pyctrd.errors import PyctrdError, UnsupportedError
from pyctrd.snapshots.protocol import Change, Compression, LayerForm, LayerRef, Snapshot
from pyctrd.snapshots.store import (
    PRIVATE_MODE,
    SnapshotStore,
    as_changes,
    directory_bytes,
    make_root,
    read_record,
    write_record,
)

_FIXUP = "fixup-"
_ID_MAP = Path("/proc/self/uid_map")
_ALL_IDS = ["0", "0", "4294967295"]
# Of what is made for a stack: which layers it is of.
MEMBERS = "layers.json"
_NEEDS = "another snapshotter, or to pull its image again"
# They say nothing of this host: another snapshotter would be chosen for what is over in a moment.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR)


class Overlayfs:
    """Stacks layers' directories with overlayfs, and an image's fix-up layer on top of them.

    Args:
        root: The engine's root directory, on a file system that overlayfs takes as its upper one.
    """

    name = "overlayfs"
    form: LayerForm = "tree"
    stacks = True

    def __init__(self, root: Path) -> None:
        self._store = SnapshotStore(root)
        # A user namespace may set no other marks than these.
        self._user_marks = in_user_namespace()

    @classmethod
    def probe(cls, root: Path) -> str | None:
        """None where it works beneath ``root``; else the reason why not. Mounts what it would, and takes it away."""
        store = SnapshotStore(root)
        with store.trial() as trial:
            for name in ("lower", "upper", "work", "merged"):
                (trial / name).mkdir(mode=PRIVATE_MODE)
            try:
                cls._try_in(trial)
            except (PyctrdError, OSError) as error:
                if isinstance(error, OSError) and error.errno in _PASSING:
                    raise
                return str(error)
        return None

    @staticmethod
    def _try_in(trial: Path) -> None:
        mount_trial(trial, trial / "lower", user_marks=in_user_namespace())
        _core.unmount(trial / "merged")

    def settle(self, layers: Sequence[LayerRef]) -> None:
        """As the protocol says."""
        self._settled(layers)

    @contextmanager
    def settling(self, layers: Sequence[LayerRef]) -> Iterator[Callable[[], None]]:
        """As the protocol says."""
        place = self._place(layers)
        if not layers or self._is_made(place):
            yield _do_nothing
            return
        with self._store.trial() as making:
            is_whole = False

            def make() -> None:
                nonlocal is_whole
                write_record(making / MEMBERS, [ref.diff_id for ref in layers], flush=False)
                self._make(layers, making, place.name)
                is_whole = True

            yield make
            if is_whole:
                self._name(making, place)

    def prepare(self, key: str, layers: Sequence[LayerRef], *, frozen: Sequence[str] = ()) -> Snapshot:
        """As the protocol says."""
        top = self._top(layers)
        with self._store.making(key, "active", layers, frozen=frozen) as path:
            self._fill(path, top, frozen)
        return Snapshot(key, "active", tuple(layers), None, tuple(frozen))

    def view(self, key: str, layers: Sequence[LayerRef]) -> Snapshot:
        """As the protocol says."""
        self._top(layers)
        with self._store.making(key, "view", layers) as path:
            for name in ("none", "empty"):
                make_root(path / name)
        return Snapshot(key, "view", tuple(layers), None)

    def find(self, key: str) -> Snapshot | None:
        """As the protocol says."""
        found = self._store.read(key)
        return None if found is None else Snapshot(key, found[0], found[1], None, self._store.frozen(key))

    def walk(self) -> Iterator[Snapshot]:
        """As the protocol says."""
        for key in self._store.walk_keys():
            if (snapshot := self.find(key)) is not None:
                yield snapshot

    def mount(self, snapshot: Snapshot, target: Path, *, ids: int | None = None) -> None:
        """As the protocol says."""
        with self._below(snapshot.layers, target) as (lower, data):
            self._stack(snapshot, [*self._uppers(snapshot.frozen), *lower], target, ids=ids, data=data)

    def unmount(self, target: Path) -> None:
        """As the protocol says."""
        _core.unmount(target.resolve())  # ``mount`` follows a link as well

    def retire(self, target: Path) -> int | None:
        """As the protocol says."""
        return _core.retire_mount(target.resolve())

    def freeze(self, key: str, frozen: str) -> None:
        """As the protocol says."""
        path, place = self._store.path(key), self._store.frozen_path(frozen)
        self._store.get_active(key)
        place.mkdir(mode=PRIVATE_MODE)
        # A directory with nothing in it changes nothing for who lies on it: so first that is said, and then the two
        # change places in one step. Whenever this ends, the snapshot has what it had.
        make_root(place / "upper")
        _core.copy_attributes(path / "upper", place / "upper")
        self._store.set_frozen(key, (*self._store.frozen(key), frozen))
        _core.exchange(path / "upper", place / "upper")
        # It is the kernel's for as long as a mount with it is there, which may be going only now.
        self._store.discard(path / "work")

    def is_unchanged(self, key: str) -> bool:
        """As the protocol says."""
        frozen, upper = self._store.frozen(key), self._store.path(key) / "upper"
        if not frozen or any(upper.iterdir()):
            return False
        now, then = upper.stat(), self._uppers(frozen)[0].stat()
        return all(getattr(now, name) == getattr(then, name) for name in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"))

    def save(self, key: str, frozen: str) -> None:
        """As the protocol says."""
        from pyctrd.snapshots.copies import copy_tree  # no pull needs it

        self._store.get_active(key)
        place = self._store.frozen_path(frozen)
        place.mkdir(mode=PRIVATE_MODE)
        make_root(place / "upper")
        copy_tree(self._store.path(key) / "upper", place / "upper", marks=True)

    def duplicate(self, source: str, key: str) -> Snapshot:
        """As the protocol says."""
        from pyctrd.snapshots.copies import copy_tree

        _, layers = self._store.get(source)
        frozen = self._store.frozen(source)
        with self._store.making(key, "active", layers, frozen=frozen) as path:
            self._fill(path, None, frozen)
            copy_tree(self._store.path(source) / "upper", path / "upper", marks=True)
        return Snapshot(key, "active", layers, None, frozen)

    def reset(self, key: str, frozen: Sequence[str]) -> None:
        """As the protocol says."""
        _, layers = self._store.get(key)
        top = self._top(layers)
        with self._store.replacing(key, frozen) as path:
            self._fill(path, top, frozen)

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
        upper = self._store.path(key) / "upper"
        if self._store.frozen(key):
            with self._merged(key) as merged:
                return as_changes(_core.list_changes(merged, layers, overlay=False))
        return as_changes(_core.list_changes(upper, layers, overlay=True, user_marks=self._user_marks))

    def diff(
        self, key: str, dest: Path, *, compression: Compression = "gzip", clamp_mtime: int | None = None
    ) -> _core.Diffed:
        """As the protocol says."""
        layers = self._store.get_active(key)
        if self._store.frozen(key):
            with self._merged(key) as merged:
                return _core.diff_layers(
                    merged, dest, layers, overlay=False, compression=compression, clamp_mtime=clamp_mtime
                )
        return _core.diff_layers(
            self._store.path(key) / "upper",
            dest,
            layers,
            overlay=True,
            user_marks=self._user_marks,
            compression=compression,
            clamp_mtime=clamp_mtime,
        )

    def collect(self, diff_ids: Collection[str]) -> None:
        """As the protocol says."""
        for path in self._store.directory.glob(f"{_FIXUP}*"):
            if not set(read_record(path / MEMBERS) or ()) <= set(diff_ids):
                self._store.remove(path)

    def _fill(self, path: Path, top: Path | None, frozen: Sequence[str]) -> None:
        """Make what a snapshot that can be written to has in its directory."""
        for name in ("upper", "work", "empty"):
            make_root(path / name)
        # The merged root directory is the upper one's: it must look like what it lies on.
        if frozen:
            top = self._uppers(frozen)[0]
        if top is not None:
            _core.copy_attributes(top, path / "upper")

    def _uppers(self, frozen: Sequence[str]) -> list[Path]:
        """The directories of what was frozen, the uppermost first."""
        return [self._store.frozen_path(one) / "upper" for one in reversed(frozen)]

    def _top(self, layers: Sequence[LayerRef]) -> Path | None:
        """What has the attributes of a stack's root; None of no layers. What the stack needs is made."""
        return self._fixup(layers) or (layers[-1].path / "tree" if layers else None)

    @contextmanager
    def _below(self, layers: Sequence[LayerRef], target: Path) -> Iterator[tuple[list[Path], Sequence[Path]]]:
        """The directories of a stack, the uppermost first, and of contents elsewhere, for a mount on ``target``."""
        del target
        fixup = self._fixup(layers)
        lower = [] if fixup is None else [fixup]
        # The kernel takes no directory twice. Of a layer that an image has twice the upper one counts: it says again
        # all that the lower one says.
        lower += dict.fromkeys(ref.path / "tree" for ref in reversed(layers))
        yield lower, ()

    @contextmanager
    def _merged(self, key: str) -> Iterator[Path]:
        """All that a snapshot has, to be read: what was written to it in several turns can be told only together."""
        snapshot = self.find(key)
        assert snapshot is not None  # noqa: S101 - looked up before
        with self._store.trial() as trial:
            target = trial / "merged"
            target.mkdir(mode=PRIVATE_MODE)
            upper = self._store.path(key) / "upper"
            with self._below(snapshot.layers, target) as (lower, data):
                stacked = [upper, *self._uppers(snapshot.frozen), *lower]
                _core.mount_overlay(stacked, target, data=data, user_marks=self._user_marks)
            try:
                yield target
            finally:
                self.unmount(target)

    def _stack(
        self, snapshot: Snapshot, lower: list[Path], target: Path, *, ids: int | None, data: Sequence[Path] = ()
    ) -> None:
        path = self._store.path(snapshot.key)
        mount = partial(_core.mount_overlay, user_marks=self._user_marks, ids=ids)
        if snapshot.kind == "active":
            if not (path / "work").is_dir():  # it went when it was frozen
                make_root(path / "work")
            mount(lower or [path / "empty"], target, upper=path / "upper", work=path / "work", data=data)
        elif data:
            # Contents elsewhere are followed from the lowest directory alone: nothing may be below it.
            mount(lower, target, data=data)
        else:
            # Without an upper directory overlayfs wants two lower ones at least.
            mount([*lower, path / "empty", *([] if lower else [path / "none"])], target)

    def _settled(self, layers: Sequence[LayerRef]) -> Path | None:
        """The directory of what a stack needs, made when it is first asked for; None of no layers."""
        if not layers:
            return None
        self._check(layers)
        with self.settling(layers) as make:
            make()
        return self._place(layers)

    def _fixup(self, layers: Sequence[LayerRef]) -> Path | None:
        """The tree of a stack's fix-up layer; None where it needs none."""
        settled = self._settled(layers)
        return settled / "tree" if settled is not None and (settled / "tree").exists() else None

    def _check(self, layers: Sequence[LayerRef]) -> None:
        """Refuse layers that are not what this snapshotter takes."""
        for ref in layers:
            if not (ref.path / "tree").exists() and ref.path.exists():
                raise UnsupportedError(
                    f"unsupported: layer not unpacked as a directory: {ref.diff_id}: needs {_NEEDS}",
                    feature="layer not unpacked as a directory",
                    needs=_NEEDS,
                )

    def _place(self, layers: Sequence[LayerRef]) -> Path:
        """Where what a stack needs is, or is going to be."""
        return self._store.directory / f"{_FIXUP}{stack_id(layers)}"

    def _is_made(self, place: Path) -> bool:
        """Whether it is there, whole."""
        return place.exists()

    def _make(self, layers: Sequence[LayerRef], making: Path, identity: str) -> None:
        """Make it in a directory, and flush all that is there."""
        del identity
        (making / "tree").mkdir(mode=0o755)
        if not _core.settle_layers([ref.path for ref in layers], making / "tree"):
            (making / "tree").rmdir()
        _core.flush_tree(making)

    def _name(self, making: Path, place: Path) -> None:
        try:
            making.rename(place)
        except OSError:
            if self._is_made(place):
                return  # another process was as fast
            # What is there has lost what it was made for.
            self._store.remove(place)
            making.rename(place)


def _do_nothing() -> None:
    """There is nothing to make."""


def in_user_namespace() -> bool:
    """Whether this process is root, or not, of a user namespace only (user_namespaces(7))."""
    return _ID_MAP.read_text().split() != _ALL_IDS


def mount_trial(trial: Path, lower: Path, *, user_marks: bool, data: Sequence[Path] = ()) -> None:
    """Mount an overlay of a trial's own directories."""
    upper, work = trial / "upper", trial / "work"
    _core.mount_overlay(
        [lower],
        trial / "merged",
        upper=upper,
        work=work,
        volatile=True,  # else its end would wait until all that this file system has to write is written
        data=data,
        user_marks=user_marks,
    )


def stack_id(layers: Sequence[LayerRef]) -> str:
    """What the directories of a stack are called by."""
    return _core.digest_bytes("\n".join(ref.diff_id for ref in layers).encode()).partition(":")[2]
