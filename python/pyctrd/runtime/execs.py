"""Processes that are started in a running container beside its init: each has a shim and a directory of its own."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pyctrd import _core
from pyctrd.errors import ConflictError, DeadlineError, NotFoundError, RuncError
from pyctrd.oci.hold import pause, waiting
from pyctrd.runtime import state
from pyctrd.runtime import terminal as terminals
from pyctrd.runtime.runc import clean, start_error
from pyctrd.runtime.shim import SHIM, Connection, Kind, Mode, ShimFailedError, Start
from pyctrd.runtime.state import UNKNOWN_EXIT_CODE, ExitStatus
from pyctrd.runtime.streams import copy_streams, forward_signals

if TYPE_CHECKING:
    from pyctrd.runtime.state import Running

SPEC = "process.json"
START_SECONDS = 120.0  # as a container's
# How a record begins of a process that was killed since it took too long; the shim writes it.
TIMED_OUT = "timed out"
# Started at once by this process: each has a runtime of some megabytes beside it until it runs, and more at once are
# not faster.
STARTS_MAX = 32
# Records kept in a container of processes that nobody was joined to; it ends with them, or the oldest go.
KEPT_MAX = 256
# What a client has to take the last output after its container's end, before its shim is ended.
LAST_SECONDS = 5.0
RECORD_SECONDS = 0.01
ID_BYTES = 16

_starting = threading.BoundedSemaphore(STARTS_MAX)
_NOT_RUNNING = (
    r"(?i:in a (stopped|paused) container|(container|does) .*not (running|exist)|is (stopped|paused)|not running"
    r"|pidns.*terminated|No such file or directory: .*cgroup)"
)


class Exec:
    """One such process. It outlives this object.

    Args:
        directory: Its own.
        running: What the shim told of it; None where it was not asked, or is gone.
    """

    def __init__(self, directory: Path, running: Running | None, pid: int = 0) -> None:
        self._directory = directory
        self._running = running
        self._pid = pid

    @property
    def id(self) -> str:
        """32 hex digits."""
        return self._directory.name

    @property
    def pid(self) -> int:
        """On the host, also after its end."""
        return self._pid or (self._running.pid if self._running else 0)

    def exit(self) -> ExitStatus | None:
        """How it ended; None where it has not."""
        ended = state.read_exit(self._directory)
        if ended is not None or state.shim_pid(self._directory) or (self._running and self._running.is_alive()):
            return ended
        return state.read_exit(self._directory) or self._lost()

    def watch(self) -> Connection | None:
        """A connection by which its end is told; None where that was told already."""
        return Connection.open(self._directory, Mode.CONTROL)

    def wait(self, timeout: float | None, connection: Connection | None = None) -> ExitStatus:
        """Wait for its end.

        Args:
            timeout: Seconds; None waits for ever.
            connection: From ``watch``; it is closed.

        Raises:
            DeadlineError: ``timeout`` seconds went by.
        """
        connection = connection or self.watch()
        if connection is not None:
            with connection, waiting(connection.interrupt):
                record = connection.wait_exit(timeout)
            if record is not None:
                return ExitStatus.parse(record)
        deadline = None if timeout is None else time.monotonic() + timeout
        # There is no shim that listens: it writes the record right now, or was killed and the process may run on.
        while (ended := self.exit()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineError(
                    f"process {self.id}: did not end within {timeout:g} seconds",
                    operation="wait",
                    timeout_seconds=timeout,
                )
            pause(RECORD_SECONDS)
        return ended

    def kill(self, number: int) -> None:
        """Send it a signal; nothing is done where it has ended."""
        if self._running is None:
            return
        try:
            pidfd = os.pidfd_open(self._running.pid)
        except ProcessLookupError:
            return
        try:
            # Looked at now that the descriptor holds it, so that it is not another one with its number.
            if self._running.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal; nothing is done where it has ended."""
        connection = Connection.open(self._directory, Mode.CONTROL)
        if connection is not None:
            with connection:
                connection.request(Kind.RESIZE, terminals.encode_size(rows, columns), terminals.RESIZE_SECONDS)

    def join(self, connection: Connection, *, stdin: int | None, terminal: bool, detach_keys: str = "") -> ExitStatus:
        """Join this process's streams and signals to it until it ends, as ``Runtime.attach`` does a container's."""
        keys = terminals.parse_keys(detach_keys) if terminal else b""
        control = Connection.open(self._directory, Mode.CONTROL)
        try:
            ours = next((fd for fd in (1, stdin) if fd is not None and os.isatty(fd)), None)
            size_of = ours if terminal else None
            with (
                # First: a signal that ended this process here would leave the terminal raw.
                forward_signals(control, size_of=size_of),
                terminals.raw(stdin if terminal else None),
                waiting(connection.interrupt),
            ):
                record = copy_streams(connection, stdin=stdin, stdout=1, stderr=2, detach=keys, size_of=size_of)
        finally:
            connection.close()
            if control is not None:
                control.close()
        return self.wait(None) if record is None else ExitStatus.parse(record)

    def _lost(self) -> ExitStatus:
        if self._running is not None:
            return ExitStatus(
                UNKNOWN_EXIT_CODE,
                started_ns=self._running.started_ns,
                error="its shim or its container ended before it: status unknown",
            )
        return ExitStatus(UNKNOWN_EXIT_CODE, error="it ended unseen: status unknown")


class Execs:
    """Those of one container.

    Args:
        container_id: Which one.
        directory: Its shim's own.
        runtime: The runtime's program.
        args: Words of its before all others.
        root: Where that keeps its state.
    """

    def __init__(
        self, container_id: str, directory: Path, *, runtime: str, root: Path, args: Sequence[str] = ()
    ) -> None:
        self._container_id = container_id
        self._container = directory
        self._directory = directory / state.EXECS
        self._runtime = runtime
        self._runtime_args = tuple(args)
        self._root = root

    def start(
        self,
        process: Mapping[str, Any],
        *,
        stdin: bool,
        attached: bool,
        timeout: float | None,
    ) -> tuple[Exec, Connection | None]:
        """Start a process; it runs when this returns. Interrupted by an exception of any kind, none is left.

        Args:
            process: What the runtime is told.
            stdin: Input can be sent. Without, it reads an empty one.
            attached: Also give the connection of its streams; its input ends with that.
            timeout: Seconds until it is killed with all that it started.

        Raises:
            CommandNotFoundError: The command is not in the container.
            CommandNotExecutableError: It is, and cannot be executed.
            RuncError: The runtime refused.
            ConflictError: The container does not run.
            DeadlineError: It did not start within two minutes.
        """
        with self._new_directory() as directory, _starting:
            _write(directory / SPEC, orjson.dumps(process))
            flags = {"terminal": bool(process.get("terminal")), "stdin": stdin, "attached": attached}
            argv = self._argv(directory, [name for name, wanted in flags.items() if wanted], timeout)
            connection = None
            try:
                with Start([os.fsencode(word) for word in argv]) as starting:
                    starting.wait_ready(START_SECONDS)
                    if attached:
                        connection = Connection.open(directory, Mode.STREAMS)
                    pid = starting.wait_started(START_SECONDS)
                (directory / SPEC).unlink(missing_ok=True)  # the environment may hold secrets
                return Exec(directory, _read_running(directory), pid), connection
            except BaseException as error:
                _take_back(directory)
                if connection is not None:
                    connection.close()
                if isinstance(error, ShimFailedError):
                    raise self._refusal(argv, error) from None
                raise

    def get(self, exec_id: str) -> Exec:
        """One that runs, or that ended with nobody joined to it, while its container has not been started again.

        Raises:
            NotFoundError: There is none.
        """
        if len(exec_id) == ID_BYTES * 2 and exec_id.isalnum() and exec_id.isascii():
            found = self._find(exec_id)
            if found is not None:
                return found
        raise NotFoundError(f"process not found: {exec_id}", kind="process", name=exec_id)

    def all(self) -> list[Exec]:
        """All of those, the oldest first."""
        found = [one for name in self._names() if (one := self._find(name)) is not None]
        return sorted(found, key=lambda one: one._running.started_ns if one._running else 0)  # noqa: SLF001 - its own

    def _find(self, name: str) -> Exec | None:
        running = _read_running(self._directory / name)
        return None if running is None else Exec(self._directory / name, running)

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def _new_directory(self) -> Iterator[Path]:
        directory = self._directory / os.urandom(ID_BYTES).hex()
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            directory.mkdir(mode=0o700)
        except FileNotFoundError:
            raise _conflict(self._container_id, "its state is gone") from None
        try:
            yield directory
        except BaseException:
            # The shim takes it away; where there was none, nobody does.
            if not state.shim_pid(directory):
                _remove(directory)
            raise
        if len(names := self._names()) > KEPT_MAX:
            self._forget(names)

    def _forget(self, names: Sequence[str]) -> None:
        """Remove the older half of the records that nobody fetched, and what killed processes left."""
        ended = []
        for path in (self._directory / name for name in names):
            if state.shim_pid(path):
                continue
            running = _read_running(path)
            if running is not None and not running.is_alive():
                ended.append((running.started_ns, path))
            elif running is None and _is_old(path):
                _remove(path)
        for _, path in sorted(ended)[: -(KEPT_MAX // 2)]:
            _remove(path)

    def _argv(self, directory: Path, flags: Sequence[str], timeout: float | None) -> list[str]:
        options = {
            "--id": self._container_id,
            "--bundle": str(directory),
            "--state": str(directory),
            "--runtime": self._runtime,
            "--root": str(self._root),
            "--process": str(directory / SPEC),
        }
        if timeout is not None:
            options["--timeout-ms"] = str(max(1, round(timeout * 1000)))
        words = [word for option in options.items() for word in option]
        words += [word for one in self._runtime_args for word in ("--runtime-arg", one)]
        return [str(SHIM), *words, *(f"--{flag}" for flag in flags)]

    def _refusal(self, argv: Sequence[str], error: ShimFailedError) -> Exception:
        line = clean(error.text)
        found = start_error(argv, error.status, error.text, container_id=self._container_id, verb="exec")
        if type(found) is RuncError and (
            re.search(_NOT_RUNNING, line) or not (self._root / self._container_id).exists()
        ):
            return _conflict(self._container_id, line)
        return found


def end_execs(container: Path) -> None:
    """End the shims of processes whose container is gone; who reads their output has some seconds to do that.

    Args:
        container: The directory of its shim.
    """
    deadline = time.monotonic() + LAST_SECONDS
    with contextlib.suppress(FileNotFoundError):
        for directory in (container / state.EXECS).iterdir():
            _end_shim(directory, deadline)


def _end_shim(directory: Path, deadline: float) -> None:
    pid = state.shim_pid(directory)
    if not pid:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and state.shim_pid(directory) == pid:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll.poll(LAST_SECONDS * 1000)
    finally:
        os.close(pidfd)


def _take_back(directory: Path) -> None:
    """Kill what a start that is given up has started already; before that the shim itself takes it back."""
    connection = Connection.open(directory, Mode.CONTROL)
    if connection is not None:
        with connection, contextlib.suppress(ConnectionError):
            connection.send(Kind.SIGNAL, bytes((signal.SIGKILL,)))


def _conflict(container_id: str, why: str) -> ConflictError:
    return ConflictError(
        f"container {container_id}: cannot exec: {why}",
        kind="container",
        name=container_id,
        state="stopped",
        allowed="running",
    )


def _is_old(directory: Path) -> bool:
    """Whether nobody starts something in it any more."""
    try:
        return time.time() - directory.stat().st_mtime > 2 * START_SECONDS
    except FileNotFoundError:
        return False


def _read_running(directory: Path) -> Running | None:
    try:
        return state.read_running(directory)
    except NotADirectoryError:
        return None


def _write(path: Path, body: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        _core.remove_tree(directory.parent, directory.name)
