"""The database file: opening, migrations, transactions, errors."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyctrd.errors import ConflictError, DeadlineError, IntegrityError, UnsupportedError
from pyctrd.metadata.containers import Containers
from pyctrd.metadata.content import ContentRecords
from pyctrd.metadata.images import Images
from pyctrd.metadata.ingests import Ingests
from pyctrd.metadata.layers import Layers
from pyctrd.metadata.migrations import MIGRATIONS
from pyctrd.metadata.namespaces import Namespaces
from pyctrd.metadata.snapshots import Snapshots

# A writer holds the database for a few milliseconds; one that waits longer than this has met a stuck process.
BUSY_TIMEOUT_SECONDS = 30.0
FILE_MODE = 0o600


class Tables:
    """All records, over one connection."""

    def __init__(self, run: Callable[[str, Sequence[Any]], sqlite3.Cursor]) -> None:
        self.namespaces = Namespaces(run)
        self.content = ContentRecords(run)
        self.layers = Layers(run)
        self.images = Images(run)
        self.ingests = Ingests(run)
        self.snapshots = Snapshots(run)
        self.containers = Containers(run)


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
        self._connections: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._closed = False
        self._migrate()

    @contextmanager
    def write(self) -> Iterator[Tables]:
        """One transaction: all of it is durable after the block, or none of it was.

        It holds the only write lock of the root from its first line on: keep it short. Not to be nested.

        Raises:
            DeadlineError: Another process kept the database locked.
        """
        connection = self._connection()
        with _translated("write", self._path):
            connection.execute("BEGIN IMMEDIATE")
        try:
            yield self
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        with _translated("commit", self._path):
            connection.execute("COMMIT")

    def close(self) -> None:
        """Close every thread's connection; idempotent. In a forked child it does nothing: SQLite forbids it there."""
        if os.getpid() != self._pid:
            return
        with self._guard:
            self._closed = True
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    def _run(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        with _translated(sql.split(None, 1)[0].lower(), self._path):
            return self._connection().execute(sql, values)

    def _connection(self) -> sqlite3.Connection:
        if os.getpid() != self._pid:
            raise ConflictError(
                f"database opened by another process: {self._path}: this process was forked from {self._pid}",
                kind="database",
                name=str(self._path),
                state="forked",
                hint="open an engine in each process",
            )
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._open()
            self._local.connection = found
        return found

    def _open(self) -> sqlite3.Connection:
        with self._guard:
            if self._closed:
                raise ConflictError(
                    f"database closed: {self._path}", kind="database", name=str(self._path), state="closed"
                )
            with _translated("open", self._path):
                # Threads share nothing, but close() may come from another one.
                connection = sqlite3.connect(
                    self._path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
                )
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA synchronous=FULL")
                    connection.execute("PRAGMA foreign_keys=ON")
                except BaseException:
                    connection.close()
                    raise
            self._connections.append(connection)
            return connection

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
            self.close()
            raise UnsupportedError(
                f"database is newer than this pyctrd: {self._path}: has schema {version}, known are 1 to {known}",
                feature=f"schema {version}",
                needs="a newer pyctrd",
                hint="upgrade pyctrd, or choose another --root",
            )

    def _version(self) -> int:
        return int(self._run("PRAGMA user_version").fetchone()[0])


@contextmanager
def _translated(operation: str, path: Path) -> Iterator[None]:
    """SQLite's errors as ours, each with the file's name."""
    try:
        yield
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise DeadlineError(
                f"database locked: {path}: {operation} waited {BUSY_TIMEOUT_SECONDS:.0f} seconds",
                operation=operation,
                timeout_seconds=BUSY_TIMEOUT_SECONDS,
                hint="another process holds the store; look for a stuck pyctrd",
            ) from error
        raise OSError(_errno_of(code), f"database: {error}", str(path)) from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError):
            raise
        raise IntegrityError(
            f"database damaged: {path}: {error}",
            subject=str(path),
            hint="restore it from a backup, or move it away and pull the images again",
        ) from error


def _errno_of(code: int) -> int:
    import errno

    return {
        sqlite3.SQLITE_FULL: errno.ENOSPC,
        sqlite3.SQLITE_READONLY: errno.EROFS,
        sqlite3.SQLITE_CANTOPEN: errno.EACCES,
        sqlite3.SQLITE_PERM: errno.EACCES,
    }.get(code, errno.EIO)
