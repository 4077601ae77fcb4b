"""The directories of snapshots: ``snapshots/<key>/``, each with a record of what it is made of."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from pyctrd import _core
from pyctrd.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError, naming
from pyctrd.snapshots import FROZEN, TRIAL
from pyctrd.snapshots.protocol import Change, LayerRef, SnapshotKind

KEY_MAX_CHARS = 128
_KEY = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")
_RECORD = "snapshot.json"
PRIVATE_MODE = 0o700


class SnapshotStore:
    """Makes, finds and removes the directories.

    Args:
        root: The engine's root directory.
    """

    def __init__(self, root: Path) -> None:
        self.directory = root / "snapshots"
        self._trash = root / "trash"
        for directory in (self.directory, self._trash):
            directory.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """The directory of a key.

        Raises:
            InvalidError: The key is no plain name.
        """
        if not 0 < len(key) <= KEY_MAX_CHARS or key[0] == "-" or not _KEY.issuperset(key):
            raise InvalidError(
                f"invalid snapshot key: {key!r}: expected letters, digits and dashes", field="key", value=key
            )
        return self.directory / key

    def frozen_path(self, frozen: str) -> Path:
        """The directory of what was frozen under an id."""
        return self.directory / f"{FROZEN}{frozen}"

    def frozen(self, key: str) -> tuple[str, ...]:
        """What a snapshot lies on beside its layers, lowest first."""
        record = read_record(self.path(key) / _RECORD)
        return () if record is None else tuple(record.get("frozen", ()))

    def set_frozen(self, key: str, frozen: Sequence[str]) -> None:
        """Change what a snapshot lies on, in one step."""
        kind, layers = self.get(key)
        staged = self.path(key) / f"{_RECORD}.new"
        write_record(staged, _as_record(kind, layers, frozen))
        staged.rename(self.path(key) / _RECORD)

    def walk_frozen(self) -> Iterator[str]:
        """The ids of all that was frozen."""
        for path in sorted(self.directory.glob(f"{FROZEN}*")):
            yield path.name.removeprefix(FROZEN)

    @contextmanager
    def replacing(self, key: str, frozen: Sequence[str]) -> Iterator[Path]:
        """A directory to be filled in the ``with`` block, which takes the place of a snapshot's at its end."""
        kind, layers = self.get(key)
        with self.trial() as trial:
            path = trial / "new"
            path.mkdir(mode=PRIVATE_MODE)
            yield path
            write_record(path / _RECORD, _as_record(kind, layers, frozen))
            _core.exchange(self.path(key), path)
            self.discard(path)

    @contextmanager
    def held(self, key: str, *, shared: bool) -> Iterator[None]:
        """A lock on a snapshot's own directory: shared for whoever mounts it, alone for whoever changes what it is.

        Raises:
            NotFoundError: There is no such snapshot.
        """
        operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        path = self.path(key)
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise _not_found(key) from error
            try:
                with naming(path):
                    fcntl.flock(descriptor, operation)
                # Another directory may have taken its place while this one was waited for.
                if _is_at(descriptor, path):
                    yield
                    return
            finally:
                os.close(descriptor)

    def create(self, key: str, kind: SnapshotKind, layers: Sequence[LayerRef], *, frozen: Sequence[str] = ()) -> Path:
        """Make the directory of a new snapshot.

        Raises:
            AlreadyExistsError: The key is taken.
        """
        path = self.path(key)
        try:
            path.mkdir(mode=PRIVATE_MODE)
        except FileExistsError as error:
            raise AlreadyExistsError(f"snapshot already exists: {key}", kind="snapshot", name=key) from error
        try:
            write_record(path / _RECORD, _as_record(kind, layers, frozen))
        except BaseException:
            self.remove(path)
            raise
        return path

    @contextmanager
    def making(
        self, key: str, kind: SnapshotKind, layers: Sequence[LayerRef], *, frozen: Sequence[str] = ()
    ) -> Iterator[Path]:
        """As ``create``, to be filled in the ``with`` block; where that fails the directory is removed again."""
        path = self.create(key, kind, layers, frozen=frozen)
        try:
            yield path
        except BaseException:
            self.remove(path)
            raise

    def read(self, key: str) -> tuple[SnapshotKind, tuple[LayerRef, ...]] | None:
        """What a snapshot was made of; None where there is none, or a power cut left half of one."""
        record = read_record(self.path(key) / _RECORD)
        if record is None:
            return None
        return record["kind"], tuple(LayerRef(diff_id, Path(path)) for diff_id, path in record["layers"])

    def holds(self, key: str) -> bool:
        """Whether there is a whole snapshot of a key."""
        return self.read(key) is not None

    def get(self, key: str) -> tuple[SnapshotKind, tuple[LayerRef, ...]]:
        """As ``read``.

        Raises:
            NotFoundError: There is none.
        """
        found = self.read(key)
        if found is None:
            raise _not_found(key)
        return found

    def get_active(self, key: str) -> list[Path]:
        """The layers, lowest first, of a snapshot that can be written to.

        Raises:
            NotFoundError: There is none.
            ConflictError: It is a view.
        """
        kind, layers = self.get(key)
        if kind != "active":
            raise ConflictError(
                f"snapshot {key}: is a {kind}, which has no changes, must be active",
                kind="snapshot",
                name=key,
                state=kind,
                allowed="active",
            )
        return [ref.path for ref in layers]

    def walk_keys(self) -> Iterator[str]:
        """All keys, sorted; settled stacks are not among them."""
        for path in sorted(self.directory.iterdir()):
            if (path / _RECORD).exists():
                yield path.name

    @contextmanager
    def trial(self) -> Iterator[Path]:
        """A directory to make something in; what is in it at the end is removed, after a kill by ``sweep``."""
        with self._flocked(fcntl.LOCK_SH):
            path = self.directory / f"{TRIAL}{os.urandom(8).hex()}"
            path.mkdir(mode=PRIVATE_MODE)
            try:
                yield path
            finally:
                _unmount_trial(path)  # an interrupt may have come before who mounted could unmount
                self.remove(path)

    def sweep(self) -> None:
        """Remove the trials of processes that were killed, and what these had mounted in them."""
        # While another process has a trial nothing is touched: the next one that opens the root sweeps.
        with suppress(BlockingIOError), self._flocked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            for path in self.directory.glob(f"{TRIAL}*"):
                if (path / _RECORD).exists():
                    continue  # a snapshot whose key looks like a trial's name
                _unmount_trial(path)
                self.remove(path)

    @contextmanager
    def _flocked(self, operation: int) -> Iterator[None]:
        """A lock on the directory itself: shared while a trial is in it."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with naming(self.directory):
                fcntl.flock(descriptor, operation)
            yield
        finally:
            os.close(descriptor)

    def discard(self, path: Path) -> None:
        """Take a directory away and leave its removal to whoever empties the trash; a missing one is no error."""
        with suppress(FileNotFoundError):
            path.rename(self._trash / os.urandom(16).hex())

    def remove(self, path: Path) -> None:
        """Rename a directory out of the way, then remove it; a missing one is no error."""
        name = os.urandom(16).hex()
        try:
            path.rename(self._trash / name)
        except FileNotFoundError:
            return
        _core.remove_tree(self._trash, name)


def _as_record(kind: SnapshotKind, layers: Sequence[LayerRef], frozen: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": kind, "layers": [[ref.diff_id, os.fspath(ref.path)] for ref in layers]}
    return {**record, "frozen": list(frozen)} if frozen else record


def _not_found(key: str) -> NotFoundError:
    return NotFoundError(f"snapshot not found: {key}", kind="snapshot", name=key)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _unmount_trial(path: Path) -> None:
    for target in (path / "merged", path / "lower"):  # what lies on the other one first
        if target.is_mount():  # asked first: who may not mount may not even ask to unmount
            _core.unmount(target, lazy=True)


def make_root(path: Path) -> None:
    """Make an empty root directory as it is where no layer speaks of it, whatever umask and group are here."""
    path.mkdir(mode=0o755)
    os.chown(path, -1, os.getegid())  # a set-gid directory above would give its own group, and the bit
    path.chmod(0o755)
    with naming(path):
        os.utime(path, ns=(0, 0))


def write_record(path: Path, record: object, *, flush: bool = True) -> None:
    """Write a JSON file, and flush it or leave that to others: after a power cut it is whole, or was never there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with naming(path), os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps(record))
        file.flush()
        if flush:
            os.fdatasync(file.fileno())


def read_record(path: Path) -> Any:
    """What ``write_record`` wrote; None for a file that is missing or was cut off."""
    try:
        return orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None


def as_changes(found: Iterable[tuple[str, bytes]]) -> list[Change]:
    """What the native core lists, with absolute paths."""
    return [Change(cast("Literal['A', 'C', 'D']", kind), "/" + os.fsdecode(path)) for kind, path in found]


def directory_bytes(path: Path) -> int:
    """Bytes on disk of a tree, its own directory among them; a file with several names counts once.

    What goes meanwhile is counted or not.
    """
    seen: set[tuple[int, int]] = set()
    total = path.lstat().st_blocks * 512
    pending = [os.fspath(path)]
    while pending:
        with suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                stat = entry.stat(follow_symlinks=False)
                if (stat.st_dev, stat.st_ino) not in seen:
                    seen.add((stat.st_dev, stat.st_ino))
                    total += stat.st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return total
