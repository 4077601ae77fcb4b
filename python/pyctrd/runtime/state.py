"""What can be known of a container without asking anyone: its exit record, its process, its shim's lock."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson

from pyctrd.errors import InvalidError
from pyctrd.oci.value import NamedTuple
from pyctrd.runtime.boot import boot_id
from pyctrd.runtime.life import RUNS, read_bounded

EXIT_RECORD = "exit.json"
RUNNING_RECORD = "shim.json"
EXECS = "exec"  # a directory for each process beside the init
LOCK = "lock"
RECORD_MAX_BYTES = 64 << 10
UNKNOWN_EXIT_CODE = 255
ID_MAX_CHARS = 128
OOM_EXIT_CODE = 137  # 128 and SIGKILL

# struct flock of every 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")

State = Literal["created", "running", "paused", "restarting", "stopped"]


@lru_cache(1024)
def check_id(container_id: str) -> None:
    """Refuse what cannot be a container's directory, nor its name for the runtime.

    Raises:
        InvalidError: It has other characters than letters, digits, "_", "-" and ".", or too many.
    """
    plain = container_id.replace("_", "a").replace("-", "a").replace(".", "a")
    if not (plain.isascii() and plain.isalnum() and container_id[0].isalnum()) or len(container_id) > ID_MAX_CHARS:
        raise InvalidError(
            f'container id: {container_id!r}: expected letters, digits, "_", "-" and "."',
            field="container_id",
            value=container_id,
        )


class ExitStatus(NamedTuple):
    """How a container's init ended.

    Attributes:
        exit_code: Of the process; 128 + n after signal n, 255 where it could not be had.
        signal: That ended it; 0 is none.
        started_ns: Since the epoch; 0 where unknown.
        exited_ns: Since the epoch; 0 where unknown.
        error: What else went wrong, or "".
        oom: The kernel killed one of the container's processes for want of memory; not init, necessarily.
    """

    exit_code: int
    signal: int = 0
    started_ns: int = 0
    exited_ns: int = 0
    error: str = ""
    oom: bool = False

    @property
    def reason(self) -> Literal["exit", "signal", "oom"]:
        """Why it ended: by itself, by a signal, or by the kernel's for want of memory.

        The last is also where a shell passed on that this is how its command ended.
        """
        if self.oom and self.exit_code == OOM_EXIT_CODE:
            return "oom"
        return "signal" if self.signal else "exit"

    @classmethod
    def parse(cls, body: bytes) -> ExitStatus:
        """Read the shim's record.

        Raises:
            InvalidError: It is no such record.
        """
        values = _document(body, EXIT_RECORD)
        try:
            return cls(
                exit_code=int(values["exit_status"]),
                signal=int(values["signal"]),
                started_ns=int(values["started_ns"]),
                exited_ns=int(values["exited_ns"]),
                error=str(values["error"]),
                oom=bool(values.get("oom", False)),  # a shim of before wrote none
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidError(f"{EXIT_RECORD}: {error!r}", field=EXIT_RECORD) from error

    def to_json(self) -> bytes:
        """The record's text, as the shim writes it."""
        values = self._asdict()
        return orjson.dumps({"exit_status": values.pop("exit_code"), **values}) + b"\n"


class ContainerStatus(NamedTuple):
    """Where a container is in its life.

    Attributes:
        state: "created" (never started, or being started), "running", "paused", "restarting" (its restart policy waits
            before the next run) or "stopped".
        pid: Of init on the host; 0 unless it runs.
        started_ns: Since the epoch; 0 where unknown. Of the run before, while it is "restarting".
        exit: Set when stopped.
        restart_count: How often its policy has started it again, since a user did.
    """

    state: State
    pid: int = 0
    started_ns: int = 0
    exit: ExitStatus | None = None
    restart_count: int = 0


class Running(NamedTuple):
    """Which process a shim started.

    Attributes:
        pid: Of the container's init.
        start_ticks: Its start time, so that another process with this pid is not taken for it.
        boot_id: Of the boot that both belong to.
        started_ns: Since the epoch.
        restart_count: How often a policy has started it again.
        restarting: The run has ended, and another one is to come.
    """

    pid: int
    start_ticks: int
    boot_id: str
    started_ns: int
    restart_count: int = 0
    restarting: bool = False

    def is_alive(self) -> bool:
        """Whether this very process still runs; one that has ended and waits to be reaped does not."""
        return process_start_ticks(self.pid) == self.start_ticks and boot_id() == self.boot_id

    def is_of_this_boot(self) -> bool:
        """Whether the machine has been up since."""
        return boot_id() == self.boot_id

    def lost(self) -> ExitStatus:
        """The status of a container whose end nobody saw."""
        return ExitStatus(
            UNKNOWN_EXIT_CODE, started_ns=self.started_ns, error="the shim ended before the container: status unknown"
        )


def read_exit(bundle: Path) -> ExitStatus | None:
    """The exit record; None where the container has not ended."""
    body = read_bounded(bundle / EXIT_RECORD, RECORD_MAX_BYTES)
    return None if body is None else ExitStatus.parse(body)


def read_end(bundle: Path, directory: Path) -> ExitStatus | None:
    """The exit record of a container: of its bundle, or, where that one's disk was full, of its shim's directory."""
    return read_exit(bundle) or read_exit(directory)


def read_runs(bundle: Path) -> list[ExitStatus]:
    """How runs ended that a restart policy let others follow, oldest first; the last sixteen are kept."""
    body = read_bounded(bundle / RUNS, RECORD_MAX_BYTES)
    return [] if body is None else [ExitStatus.parse(line) for line in body.splitlines()]


def last_seen(bundle: Path, running: Running) -> ExitStatus:
    """How a container ended whose shim was killed: as that wrote before, or nobody knows."""
    runs = read_runs(bundle)
    return runs[-1] if runs and runs[-1].started_ns == running.started_ns else running.lost()


def read_running(directory: Path) -> Running | None:
    """What the shim wrote into its directory; None where it has started nothing yet."""
    body = read_bounded(directory / RUNNING_RECORD, RECORD_MAX_BYTES)
    if body is None:
        return None
    values = _document(body, RUNNING_RECORD)
    try:
        return Running(
            pid=int(values["pid"]),
            start_ticks=int(values["start_ticks"]),
            boot_id=str(values["boot_id"]),
            started_ns=int(values["started_ns"]),
            restart_count=int(values.get("restart_count", 0)),
            restarting=bool(values.get("restarting", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidError(f"{RUNNING_RECORD}: {error!r}", field=RUNNING_RECORD) from error


def shim_pid(directory: Path) -> int:
    """The shim that holds the container, 0 where none does. The lock is only asked about, never taken."""
    try:
        fd = os.open(directory / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    finally:
        os.close(fd)
    return 0 if kind == fcntl.F_UNLCK else int(pid)


@contextmanager
def shim_lock(directory: Path) -> Iterator[bool]:
    """Keep a shim from starting for the length of a ``with`` block; False where another process has the lock."""
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def process_start_ticks(pid: int) -> int | None:
    """Field 22 of ``/proc/PID/stat``; None where the process is gone, or has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def _document(body: bytes, name: str) -> dict[str, Any]:
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidError(f"{name}: {error}", field=name) from error
    if not isinstance(values, dict):
        raise InvalidError(f"{name}: expected an object", field=name)
    return values
