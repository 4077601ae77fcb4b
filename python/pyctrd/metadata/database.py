"""The database file: opening, migrations, transactions, errors."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyctrd.errors import (
    ConflictError,
    DeadlineError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
)
from pyctrd.metadata.containers import Containers
from pyctrd.metadata.content import ContentRecords
from pyctrd.metadata.doomed import Doomed
from pyctrd.metadata.events import Events
from pyctrd.metadata.images import Images
from pyctrd.metadata.ingests import Ingests
from pyctrd.metadata.layers import Layers
from pyctrd.metadata.leases import Leases
from pyctrd.metadata.migrations import MIGRATIONS
from pyctrd.metadata.namespaces import Namespaces
from pyctrd.metadata.reserve import Reserve
from pyctrd.metadata.snapshots import Snapshots
from pyctrd.metadata.usage import Usage
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.metadata.reachability import Reachability
    from pyctrd.metadata.repositories import Repositories
    from pyctrd.metadata.uploads import Uploads
    from pyctrd.metadata.volumes import Volumes

# A writer holds the database for a few milliseconds; one that waits longer than this has met a stuck process.
BUSY_TIMEOUT_SECONDS = 30.0
FILE_MODE = 0o600
# Of a log that is left behind: to read as much takes a quarter of a millisecond.
LEFT_LOG_BYTES = 256 << 10
# Of threads that have ended, for those that begin: as many as a pull has by default.
SPARE_CONNECTIONS = 4
REBUILD_HINT = "build it anew from what is on disk: pyctrd check --repair"
# What the migrations make of nothing (`empty.py`).
_EMPTY = Path(__file__).with_name("empty.db")
# The file system has no unnamed files, or (EISDIR) the kernel is older than they are.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR)


class Tables:
    """All records, over one connection."""

    def __init__(self, run: Callable[[str, Sequence[Any]], list[Any]]) -> None:
        self._run_statement = run
        self.events = Events(run)
        self.namespaces = Namespaces(run, self.events)
        self.content = ContentRecords(run)
        self.layers = Layers(run)
        self.images = Images(run, self.events)
        self.ingests = Ingests(run)
        self.snapshots = Snapshots(run)
        self.containers = Containers(run, self.events)
        self.usage = Usage(run)
        self.leases = Leases(run)
        self.doomed = Doomed(run)

    @cached_property
    def reachability(self) -> Reachability:
        """What something needs; a command that only adds to the store does without."""
        from pyctrd.metadata.reachability import Reachability

        return Reachability(self._run_statement)

    @cached_property
    def repositories(self) -> Repositories:
        """What was sent to the store as a registry."""
        from pyctrd.metadata.repositories import Repositories

        return Repositories(self._run_statement)

    @cached_property
    def volumes(self) -> Volumes:
        """Directories that outlive containers."""
        from pyctrd.metadata.volumes import Volumes

        return Volumes(self._run_statement)

    @cached_property
    def uploads(self) -> Uploads:
        """What is being sent to it."""
        from pyctrd.metadata.uploads import Uploads

        return Uploads(self._run_statement)


class _Connection(NamedTuple):
    """One thread's connection, and the lock that is held while SQLite is at work in it."""

    thread: threading.Thread
    lock: threading.RLock  # re-entrant: a signal's handler may close the engine
    sqlite: sqlite3.Connection


class Database(Tables):
    """The records of one root, shared by any number of processes and threads.

    WAL with ``synchronous=FULL``: what ``write()`` committed survives a power cut. Each thread has its own
    connection. The file is opened by SQLite alone: closing another descriptor of it would drop SQLite's
    locks (fcntl locks belong to the process).

    Args:
        path: The database file; made with mode 0600 where it is missing.

    Raises:
        UnsupportedError: A newer pyctrd wrote it.
        IntegrityError: It is damaged, or no database.
        DeadlineError: Another process kept it locked.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(self._run)
        self._path = Path(path)
        self._pid = os.getpid()
        self._local = threading.local()
        self._connections: list[_Connection] = []
        self._guard = threading.Lock()
        self._closed = False
        if self._path.parent.is_dir():  # else the database's own error says what is missing
            Reserve(self._path.parent).prepare()
        _make(self._path)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def write(self) -> Iterator[Tables]:
        """One transaction: all of it is durable after the block, or none of it was.

        It holds the only write lock of the root from its first line on: keep it short. Not to be nested.

        Raises:
            DeadlineError: Another process kept the database locked.
        """
        try:
            self._execute("write", "BEGIN IMMEDIATE")  # Ctrl-C may come right behind it
            yield self
        except BaseException:
            self._roll_back()
            raise
        self._execute("commit", "COMMIT")

    @property
    def log(self) -> Path:
        """SQLite's log beside the file: a flush of it makes durable what was noted. SQLite takes no locks on it."""
        return self._path.with_name(f"{self._path.name}-wal")

    @contextmanager
    def note(self) -> Iterator[Tables]:
        """One transaction that is not flushed: a power cut may take it, with whatever was noted after it.

        For news of what a power cut ends as well, as running containers, and for the steps of what is told later. The
        next ``write()`` of any process flushes it too.

        Raises:
            DeadlineError: Another process kept the database locked.
        """
        self._execute("note", "PRAGMA synchronous=NORMAL")
        try:
            with self.write() as tx:
                yield tx
        finally:
            self._roll_back()  # what Ctrl-C left open on its way here
            self._execute("note", "PRAGMA synchronous=FULL")

    def flush(self) -> None:
        """Make durable what was noted, by whichever process; next to nothing where all of it is."""
        with suppress(FileNotFoundError):  # the last one has moved it all to the file
            descriptor = os.open(self.log, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

    def find_damage(self) -> list[str]:
        """What SQLite finds wrong in its file, reading all of it; empty for a sound one."""
        try:
            rows = [str(row[0]) for row in self._run("PRAGMA integrity_check(10)")]
        except IntegrityError as error:
            return [str(error)]
        return [] if rows == ["ok"] else rows

    def close(self) -> None:
        """Close every thread's connection; idempotent. In a forked child it does nothing: SQLite forbids it there."""
        if os.getpid() != self._pid:
            return
        with self._guard:
            self._closed = True
            connections, self._connections = self._connections, []
        for connection in connections:
            with connection.lock:
                connection.sqlite.close()

    def leave(self) -> None:
        """As ``close``, in a process that ends now: its end closes the connections, which are not to be used again.

        Closing the last one flushes the log, moves it to the file and flushes that. A log that is left is as durable,
        and whoever opens the file next goes on with it; a long one is moved, since all of it would be read then.
        """
        with suppress(OSError):
            if self.log.stat().st_size <= LEFT_LOG_BYTES:
                self._closed = True
                return
        self.close()

    def _run(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._execute(sql.split(None, 1)[0].lower(), sql, values)

    def _execute(self, operation: str, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with _translated(operation, self._path), self._in_use() as connection:
            return connection.execute(sql, values).fetchall()  # damage may show at any row

    def _roll_back(self) -> None:
        with suppress(ConflictError), self._in_use() as connection:  # closing rolls back too
            if connection.in_transaction:  # a full disk has ended it already
                connection.execute("ROLLBACK")

    @contextmanager
    def _in_use(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, which close() leaves alone meanwhile: Python's sqlite3 would crash."""
        connection = self._connection()
        with connection.lock:
            self._refuse_closed()
            yield connection.sqlite

    def _connection(self) -> _Connection:
        if os.getpid() != self._pid:
            raise ConflictError(
                f"database opened by another process: {self._path}: this process was forked from {self._pid}",
                kind="database",
                name=str(self._path),
                state="forked",
                hint="open an engine in each process",
            )
        found: _Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._open()
            self._local.connection = found
        return found

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ConflictError(f"database closed: {self._path}", kind="database", name=str(self._path), state="closed")

    def _open(self) -> _Connection:
        with self._guard:
            self._refuse_closed()
            with _translated("open", self._path):
                sqlite = self._take_over() or self._connect()
            connection = _Connection(threading.current_thread(), threading.RLock(), sqlite)
            self._connections.append(connection)
            return connection

    def _take_over(self) -> sqlite3.Connection | None:
        """The connection of a thread that has ended: to read the schema for another one takes half a millisecond.

        Each pull has threads of its own, and an engine lives long: of those that ended, a few are kept.
        """
        ended = [known for known in self._connections if not known.thread.is_alive()]
        for left in ended[SPARE_CONNECTIONS:]:
            self._connections.remove(left)
            left.sqlite.close()
        if not ended:
            return None
        self._connections.remove(ended[0])
        sqlite = ended[0].sqlite
        try:
            if sqlite.in_transaction:  # it was ended in its middle
                sqlite.execute("ROLLBACK")
            sqlite.execute("PRAGMA synchronous=FULL")
        except BaseException:
            sqlite.close()
            raise
        return sqlite

    def _connect(self) -> sqlite3.Connection:
        # Threads share nothing, but close() may come from another one.
        sqlite = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            sqlite.execute("PRAGMA journal_mode=WAL")
            sqlite.execute("PRAGMA synchronous=FULL")
            sqlite.execute("PRAGMA foreign_keys=ON")
        except BaseException:
            sqlite.close()
            raise
        return sqlite

    def _migrate(self) -> None:
        """Bring the schema up to date; every step is a transaction, so that a crash leaves a whole version."""
        known = len(MIGRATIONS)
        version = self._version()
        while version < known:
            with self.write():
                version = self._version()  # another process may have done it while we waited
                if version < known:
                    for statement in MIGRATIONS[version]:
                        self._run(statement)
                    version += 1
                    self._run(f"PRAGMA user_version={version}")
        if version > known:
            raise UnsupportedError(
                f"database is newer than this pyctrd: {self._path}: has schema {version}, known are 1 to {known}",
                feature=f"schema {version}",
                needs="a newer pyctrd",
                hint="upgrade pyctrd, or choose another --root",
            )

    def _version(self) -> int:
        return int(self._run("PRAGMA user_version")[0][0])


def _make(path: Path) -> None:
    """The file, where there is none: whole and durable when it gets its name, with one flush and not a dozen.

    The name is durable with the first transaction: SQLite flushes the directory when it makes its log there. It opens
    the file afterwards, so that no lock of its is lost when the descriptor here is closed; and the file gets the mode
    that SQLite would not give it.
    """
    if path.exists():
        return
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _link_whole(_EMPTY.read_bytes(), path.name, directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            error.filename, error.filename2 = str(path), None
            raise
        _make_empty(path)


def _link_whole(image: bytes, name: str, directory: int) -> None:
    descriptor = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, FILE_MODE, dir_fd=directory)
    with os.fdopen(descriptor, "wb") as file:
        file.write(image)
        file.flush()
        os.fdatasync(descriptor)
        with suppress(FileExistsError):  # another process was as fast
            # With a directory's descriptor it is linkat(2) that is called: link(2) would link the symbolic link.
            os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=directory, follow_symlinks=True)


def _make_empty(path: Path) -> None:
    """For file systems without unnamed files: mknod opens nothing, and SQLite does the rest step by step."""
    try:
        os.mknod(path, stat.S_IFREG | FILE_MODE)
    except FileExistsError:
        pass
    except OSError as error:
        error.filename = str(path)  # os.mknod leaves it out
        raise


@contextmanager
def _translated(operation: str, path: Path) -> Iterator[None]:
    """SQLite's errors as ours, each with the file's name."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidError(
            f"invalid text: {error.object!r}: expected UTF-8", field="text", value=error.object
        ) from error
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise DeadlineError(
                f"database locked: {path}: {operation} waited {BUSY_TIMEOUT_SECONDS:.0f} seconds",
                operation=operation,
                timeout_seconds=BUSY_TIMEOUT_SECONDS,
                hint="another process holds the store; look for a stuck pyctrd",
            ) from error
        raise OSError(_errno_of(error), f"database: {error}", str(path)) from error
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            # All of them lead to namespaces, and the one that an engine works in may be removed by another.
            raise NotFoundError("namespace not found: it was removed meanwhile", kind="namespace") from error
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
            raise
        raise IntegrityError(
            f"database damaged: {path}: {error}",
            subject=str(path),
            hint=REBUILD_HINT,
        ) from error


def _errno_of(error: sqlite3.Error) -> int:
    whole = getattr(error, "sqlite_errorcode", 0)
    if whole in (sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP):
        return errno.ENOSPC  # the log's index could not be made larger
    return {
        sqlite3.SQLITE_FULL: errno.ENOSPC,
        sqlite3.SQLITE_READONLY: errno.EROFS,
        sqlite3.SQLITE_CANTOPEN: errno.EACCES,
        sqlite3.SQLITE_PERM: errno.EACCES,
    }.get(whole & 0xFF, errno.EIO)
