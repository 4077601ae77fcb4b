"""The rooms of one engine, each opened when it is first needed."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd.errors import ConflictError, IntegrityError
from pyctrd.flows.directories import check_file_system, entries_of, open_private
from pyctrd.flows.stages import StageTotals
from pyctrd.flows.threads import OwnThread
from pyctrd.metadata import DATABASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyctrd._core import FileLock
    from pyctrd.content.blobs import Blobs
    from pyctrd.content.layers import Layers
    from pyctrd.flows.behind import WriteBehind
    from pyctrd.flows.files import OpenImages
    from pyctrd.flows.removal import Removal
    from pyctrd.flows.settings import Settings
    from pyctrd.metadata.database import Database
    from pyctrd.registry.client import Client
    from pyctrd.runtime.runtime import Runtime
    from pyctrd.snapshots.protocol import Snapshotter

PRIVATE_MODE = 0o700
# In the root while a database is built anew: what it has by then is not all that it will have, and nothing may be
# collected by it.
REBUILDING = "rebuilding"


class Rooms:
    """Opens a root and state directory, and each room over them at its first use.

    Thread-safe. Not usable after a fork: the rooms hold locks and threads that do not survive one.

    Args:
        settings: Where and how.

    Raises:
        ConflictError: The root or the state directory is somebody else's, or open to others.
        UnsupportedError: The root is on a network file system.
        InvalidError: The umask takes the owner's own rights.
        OSError: The root or the state directory cannot be made or entered.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stages = StageTotals()
        self._process = os.getpid()
        # The first two may be opened by one thread while another talks to a registry.
        self._opening = threading.RLock()
        self._choosing = threading.RLock()
        self._making = threading.RLock()
        self._database: Database | None = None
        self._is_recovered = False
        self._began_new = False
        self._runtimes: dict[str, Runtime] = {}
        # By name, those that were used: to make one asks the file system.
        self.opened_snapshotters: dict[str, Snapshotter] = {}
        self._locked_kinds: set[str] = set()
        # What had to be repaired of them is told as soon as there is a database to tell it in.
        self._repaired = {
            str(path): done
            for what, path in (("root", settings.root), ("state", settings.state))
            if (done := open_private(what, path))
        }
        check_file_system(settings.root)

    @property
    def root(self) -> Path:
        """The root directory."""
        return self.settings.root

    @property
    def namespace(self) -> str:
        """The namespace that every operation is scoped by."""
        return self.settings.namespace

    @property
    def is_new(self) -> bool:
        """Whether the store is only being made: there is nothing in it that could be looked for."""
        return self._began_new and not self._is_recovered

    @property
    def database(self) -> Database:
        """The metadata database; recovery has run when it is returned."""
        if (opened := self._database) is not None and self._is_recovered:
            return opened
        self._refuse_forked()
        with self._opening:
            # Recovery asks for it itself, in this thread; another one waits here until it is over.
            return self._database or self._open_database()

    def _open_database(self) -> Database:
        from pyctrd.flows.recover import recover
        from pyctrd.metadata.database import Database

        _refuse_lost(self.root)
        self._database = database = Database(self.root / DATABASE)
        try:
            recover(self)
            self._tell_repaired(database)
            if database.namespaces.find(self.namespace) is None:
                with database.note() as tx:  # lost in a power cut, it is made again
                    tx.namespaces.ensure(self.namespace)
        except BaseException:
            self.use_database(None)
            raise
        self._is_recovered = True
        return database

    def _tell_repaired(self, database: Database) -> None:
        from pyctrd.metadata.events import STORE

        if self._repaired:
            with database.write() as tx:
                for path, done in self._repaired.items():
                    tx.events.add(STORE, "store", "repaired", path, {"what": done})
            self._repaired = {}

    def use_database(self, database: Database | None) -> None:
        """Close the database that is open, if one is, and use another, at which nothing was looked: for repairs."""
        before, self._database = self._database, database
        self._is_recovered = database is not None
        if before is not None:
            before.close()

    @cached_property
    def blobs(self) -> Blobs:
        """Blobs by digest."""
        from pyctrd.content.blobs import Blobs

        return Blobs(self.root)

    @cached_property
    def layers(self) -> Layers:
        """Unpacked layers by diff_id."""
        from pyctrd.content.layers import Layers

        return Layers(self.root)

    @property
    def registry(self) -> Client:
        """The registry client, its connections shared by all pulls of this engine."""
        self._refuse_forked()  # a thread that is not here may have locked them
        return self._registry

    @cached_property
    def _registry(self) -> Client:
        from pyctrd.registry.client import Client

        with self._making:
            settings = self.settings
            return Client(
                ca=settings.ca,
                plain_http=settings.plain_http,
                insecure=settings.insecure,
                credentials=settings.credentials,
                hosts=settings.hosts,
            )

    @cached_property
    def open_images(self) -> OpenImages:
        """The images whose files were read last."""
        from pyctrd.flows.files import OpenImages

        with self._making:
            return self.__dict__.setdefault("open_images", OpenImages())  # type: ignore[no-any-return] # as above

    @cached_property
    def write_behind(self) -> WriteBehind:
        """What has the disk write while layers are unpacked."""
        from pyctrd.flows.behind import WriteBehind

        with self._making:
            made = WriteBehind(self.root, partial(self.lock, "store", "behind"))
            return self.__dict__.setdefault("write_behind", made)  # type: ignore[no-any-return] # as above

    @property
    def removal(self) -> Removal:
        """What removes from disk what nothing needs any more."""
        self._refuse_forked()  # its thread is not here, and may have held its lock
        return self._removal

    @cached_property
    def _removal(self) -> Removal:
        from pyctrd.flows.removal import Removal

        with self._making:
            return self.__dict__.setdefault("_removal", Removal(self))  # type: ignore[no-any-return] # as above

    def snapshotter_of(self, key: str) -> Snapshotter | None:
        """The one that made a snapshot, whichever this engine would choose; None where the key is not recorded."""
        from pyctrd.flows.choose import open_snapshotter

        recorded = self.database.snapshots.find(key)
        return None if recorded is None else open_snapshotter(self, recorded.snapshotter)

    def snapshotter_for(self, key: str) -> Snapshotter:
        """As ``snapshotter_of``; this engine's own where the key is not recorded."""
        return self.snapshotter_of(key) or self.snapshotter

    @cached_property
    def snapshotter(self) -> Snapshotter:
        """The snapshotter that was asked for, or the best that this host can do."""
        from pyctrd.flows.choose import choose_snapshotter

        with self._choosing:
            return choose_snapshotter(self)

    @contextmanager
    def opening(self, *, snapshotter: bool) -> Iterator[bool]:
        """Open the database, and the snapshotter if it is wanted, beside what is done in the block.

        What goes wrong there is raised at the block's end. The block is told whether the store had nothing yet.
        """
        if self._is_recovered and (not snapshotter or "snapshotter" in self.__dict__):
            yield False
            return
        is_new = self._began_new = not (self._is_recovered or _has_bytes(self.root / DATABASE))
        # Loaded here: two threads that load modules at once hand the interpreter's lock to and fro, and gain nothing.
        import pyctrd.flows.recover
        import pyctrd.metadata.database

        if snapshotter:
            import pyctrd.content.layers
            import pyctrd.flows.choose  # noqa: F401
        failures: list[Exception] = []

        def open_both() -> None:
            try:
                self.database  # noqa: B018 - opens it
                if snapshotter:
                    self.snapshotter, self.layers  # noqa: B018
            except Exception as error:  # noqa: BLE001 - handed to the thread that waits
                failures.append(error)

        thread = OwnThread(open_both, name="pyctrd-opening")
        try:
            with suppress(RuntimeError):  # no more threads: it is opened later
                thread.start()
            yield is_new
        finally:
            thread.finish()
        if failures:
            raise failures[0]

    def runtime(self, binary: str) -> Runtime:
        """An OCI runtime and its shims: the one that a container was made for."""
        from pyctrd.runtime.runtime import Runtime

        with self._making:
            if (known := self._runtimes.get(binary)) is None:
                known = self._runtimes[binary] = Runtime(binary, state=self.settings.state)
            return known

    def bundle(self, namespace: str, container_id: str) -> Path:
        """A container's directory: bundle, log and exit record."""
        return self.root / f"containers/{namespace}/{container_id}"

    def arrival_lock(self, *, shared: bool) -> FileLock:
        """The lock between those that bring content in (shared) and a repair (exclusive)."""
        return self.lock("store", "arrival", shared=shared)

    def collection_lock(self, *, shared: bool) -> FileLock:
        """The lock between those that use what they have looked up (shared) and its collection (exclusive)."""
        return self.lock("store", "collection", shared=shared)

    def making_lock(self, *, shared: bool) -> FileLock:
        """The lock of those that make a container or a view (shared); who has it alone knows that nobody does."""
        return self.lock("store", "making", shared=shared)

    def lock(self, kind: str, name: str, *, shared: bool = False) -> FileLock:
        """The lock file ``locks/<kind>/<name>``; made once, never removed."""
        from pyctrd._core import FileLock

        directory = self.root / "locks" / kind
        if kind not in self._locked_kinds:
            for path in (directory.parent, directory):
                path.mkdir(mode=PRIVATE_MODE, exist_ok=True)
            self._locked_kinds.add(kind)
        return FileLock(os.fspath(directory / name), shared=shared)

    def _refuse_forked(self) -> None:
        if os.getpid() != self._process:
            raise ConflictError(
                f"engine opened by another process: {self.root}: this process was forked from {self._process}",
                kind="engine",
                name=str(self.root),
                state="forked",
                hint="open an engine in each process",
            )

    def close(self, *, ending: bool = False) -> None:
        """Close what was opened; idempotent. In a forked child it does nothing: all of it is the parent's.

        Args:
            ending: The process ends now, and closes what is not to be closed in any order.
        """
        if os.getpid() != self._process:
            return
        try:
            if (removal := self.__dict__.pop("_removal", None)) is not None:
                removal.close()
        finally:  # Ctrl-C may have come meanwhile
            if ending and self._database is not None:
                self._database.leave()
            else:
                self._close_others()

    def _close_others(self) -> None:
        self.__dict__.pop("open_images", None)
        try:
            if (registry := self.__dict__.pop("_registry", None)) is not None:
                registry.close()
        finally:
            self.use_database(None)


def _refuse_lost(root: Path) -> None:
    """A new database beside content would be a store that has lost everything, and say nothing.

    Raises:
        IntegrityError: The database is missing or empty, and the root is not; or it was not built to its end.
    """
    path = root / DATABASE
    if (root / REBUILDING).exists():
        raise _lost(path, "it is being built anew, or whoever did that was stopped")
    if _has_bytes(path):
        return
    kept = next((name for name in ("content/blobs", "layers", "containers") if _is_used(root / name)), None)
    if kept is not None and not _has_bytes(path):  # another process may have made both meanwhile
        raise _lost(path, f"it is missing or empty, and there is something in {root / kept}")


def _lost(path: Path, why: str) -> IntegrityError:
    from pyctrd.metadata.database import REBUILD_HINT

    return IntegrityError(f"database lost: {path}: {why}", subject=str(path), hint=REBUILD_HINT)


def _is_used(directory: Path) -> bool:
    return any(map(entries_of, entries_of(directory)))


def _has_bytes(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
