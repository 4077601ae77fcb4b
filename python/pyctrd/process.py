"""One process that was started in a running container: as ``subprocess.Popen``, but that it runs there."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Self, cast

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.errors import ConflictError, DeadlineError, InvalidError
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from types import TracebackType

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.runtime.exec_spec import ExecOptions
    from pyctrd.runtime.execs import Exec
    from pyctrd.runtime.joined import Input, Joined
    from pyctrd.runtime.shim import Connection

TIMEOUT_MAX_SECONDS = 10 * 366 * 86_400  # longer than any process runs
KILL_SECONDS = 30.0  # after SIGKILL only the kernel is waited for, and the shim


class ExecOutput(NamedTuple):
    """What a process that has ended wrote.

    Attributes:
        exit_code: Of the process; 128 + n after signal n, 255 where it could not be had.
        stdout: All of its output; with a terminal everything.
        stderr: All of its error output.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes


class Process:
    """One process in a container; for any number of threads.

    It belongs to the container, with which it ends at the latest. It outlives this object and this process, as one of
    Popen's does: its input ends then, its outputs are closed pipes, and a terminal is hung up.

    Whoever waits for one of its streams takes what comes for the other meanwhile, so no order of reading is a deadlock;
    what nobody reads stays in memory until that stream is closed.

    """

    def __init__(
        self,
        found: Exec,
        connection: Connection | None = None,
        *,
        terminal: bool = False,
        stdin: bool = False,
    ) -> None:
        self._exec = found
        self._ended: pyctrd.ExitStatus | None = None
        self._terminal = terminal
        self._connection = connection
        self._joined: Joined | None = None
        self._stdin: Input | None = None
        self._stdout: io.BufferedReader | None = None
        self._stderr: io.BufferedReader | None = None
        if connection is not None:
            from pyctrd.runtime.joined import Input, Joined, Output
            from pyctrd.runtime.shim import Kind

            self._joined = joined = Joined(connection)
            self._stdin = Input(joined) if stdin else None
            self._stdout = io.BufferedReader(Output(joined, Kind.STDOUT))
            self._stderr = None if terminal else io.BufferedReader(Output(joined, Kind.STDERR))

    @property
    def id(self) -> str:
        """32 hex digits; ``Container.get_exec`` finds it by that."""
        return self._exec.id

    @property
    def pid(self) -> int:
        """Its process id on the host."""
        return self._exec.pid

    @property
    def stdin(self) -> BinaryIO | None:
        """To be written to, at once and whole; None where no input was asked for. ``close`` ends the input."""
        return cast("BinaryIO | None", self._stdin)

    @property
    def stdout(self) -> BinaryIO | None:
        """To be read; with a terminal everything comes here. None where it was started detached."""
        return self._stdout

    @property
    def stderr(self) -> BinaryIO | None:
        """To be read; None with a terminal, and where it was started detached."""
        return self._stderr

    def wait(self, timeout: float | None = None) -> pyctrd.ExitStatus:
        """Wait for its end.

        Args:
            timeout: Seconds; None waits for ever.

        Returns:
            ``exit_code`` (128 + n after signal n), ``signal``, ``started_ns``, ``exited_ns``, ``error``.

        Raises:
            DeadlineError: It was killed because the time-out that it was started with went by (``operation`` is
                "exec"); or ``timeout`` seconds went by here ("wait"), and it runs on.
        """
        if self._ended is None:
            self._ended = self._wait(timeout)
        return _refuse_timed_out(self._ended)

    def poll(self) -> pyctrd.ExitStatus | None:
        """How it ended, also by a time-out; None where it has not."""
        if self._ended is None:
            if self._joined is None:
                self._ended = self._exec.exit()
            elif self._joined.look():
                self._ended = self._told() or self._exec.exit()
        return self._ended

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:  # noqa: A002 - as Popen's
        """Send input and its end, and read all output until the process has ended.

        Args:
            input: For its standard input.
            timeout: Seconds; None waits for ever. Nothing is lost where they go by: it may be called again, without
                input then.

        Returns:
            What it wrote to standard output, and to standard error; with a terminal all is in the first.

        Raises:
            InvalidError: There is input, and none was asked for by ``stdin=True``.
            ConflictError: It was started detached: there are no streams.
            DeadlineError: As ``wait``.
        """
        if self._joined is None or self._stdout is None:
            raise ConflictError(
                f"process {self.id}: has no streams here", kind="process", name=self.id, state="detached",
                allowed="joined",
            )  # fmt: skip
        if input and self._stdin is None:
            raise InvalidError("input: the process was started without", field="input", hint="start it with stdin=True")
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if self._stdin is not None:
                self._stdin.finish(input or b"", deadline)
            self._joined.wait(deadline, is_bounded=False)
        except DeadlineError as error:
            raise _late(self.id, timeout) from error
        self.wait()
        return self._stdout.read(), b"" if self._stderr is None else self._stderr.read()

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send it a signal, and it alone; nothing is done where it has ended.

        Raises:
            InvalidError: There is no such signal.
        """
        from pyctrd.runtime.signals import signal_number

        self._exec.kill(signal_number(str(signal)))

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal; nothing is done where it has ended, or has none."""
        self._exec.resize(rows, columns)

    def attach(self, *, detach_keys: str = "ctrl-p,ctrl-q") -> pyctrd.ExitStatus:
        """Join it to this process until it ends: standard input, output and error, the terminal's size, signals.

        Instead of reading and writing its streams, and before anything else is done with it.

        Args:
            detach_keys: Typed on its terminal, they end this, and it runs on, with nobody who hears what it says; "" is
                none.

        Returns:
            How it ended.

        Raises:
            ConflictError: It was started detached, or its streams are in use.
            DetachedError: The keys were typed.
            InvalidError: They are none.
            DeadlineError: It was killed because the time-out that it was started with went by.
        """
        import sys

        from pyctrd.runtime.terminal import parse_keys

        parse_keys(detach_keys)  # wrong ones are told while it can still be read from
        connection, self._connection = self._connection, None
        if connection is None:
            raise ConflictError(
                f"process {self.id}: has no streams here", kind="process", name=self.id, state="detached",
                allowed="joined",
            )  # fmt: skip
        stdin = None if self._stdin is None else 0
        if self._stdin is not None:
            self._stdin.let_go()
        self._joined = self._stdin = self._stdout = self._stderr = None
        sys.stdout.flush()
        self._ended = self._exec.join(connection, stdin=stdin, terminal=self._terminal, detach_keys=detach_keys)
        return _refuse_timed_out(self._ended)

    def close(self) -> None:
        """Let go of its streams: its input ends, its outputs are closed, a terminal is hung up. Idempotent.

        It may not be told afterwards how it ended, where nobody waited; ``with`` does.
        """
        if self._joined is not None:
            self._joined.close()
        for stream in (self._stdin, self._stdout, self._stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of its streams and wait for its end; where the block is left by an error, it is killed."""
        watch = self._exec.watch()  # first, or nobody may be told
        try:
            if kind is not None:
                self.kill()
            if watch is None and self._joined is not None:
                self._joined.wait(None, is_bounded=False)  # its end is told already
            self.poll()
        finally:
            self.close()
            if self._ended is None:
                self._ended = self._exec.wait(None if kind is None else KILL_SECONDS, watch)
            elif watch is not None:
                watch.close()

    def __repr__(self) -> str:
        return f"<Process {self.id[:12]}>"

    def _wait(self, timeout: float | None) -> pyctrd.ExitStatus:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if self._joined is None or self._joined.wait(deadline):
                found = self._told()
                return self._exec.wait(timeout) if found is None else found
            # So much is unread that the process has to wait, and with it what would be said last on this connection.
            return self._exec.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except DeadlineError as error:
            raise _late(self.id, timeout) from error

    def _told(self) -> pyctrd.ExitStatus | None:
        from pyctrd.runtime.state import ExitStatus

        record = None if self._joined is None else self._joined.record
        return None if record is None else ExitStatus.parse(record)


def start_process(
    rooms: Rooms,
    record: ContainerRecord,
    options: ExecOptions,
    *,
    user: str,
    stdin: bool,
    detach: bool,
    timeout: float | None,
) -> Process:
    """As ``Container.exec``."""
    from pyctrd.flows.exec import exec_process

    if timeout is not None and not 0 < timeout <= TIMEOUT_MAX_SECONDS:
        raise InvalidError(
            f"timeout: {timeout:g}: expected seconds above 0, and at most {TIMEOUT_MAX_SECONDS}",
            field="timeout",
            value=timeout,
        )
    found, connection = exec_process(
        rooms, record, options, user=user, stdin=stdin and not detach, attached=not detach, timeout=timeout
    )
    return Process(found, connection, terminal=options.terminal, stdin=stdin and not detach)


def exec_options(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | Sequence[str] = (),
    working_dir: str = "",
    terminal: bool = False,
    privileged: bool = False,
    cap_add: Sequence[str] = (),
    cap_drop: Sequence[str] = (),
) -> ExecOptions:
    """The runtime's form of a caller's options.

    Raises:
        InvalidError: The command is one string.
    """
    from pyctrd.runtime.exec_spec import ExecOptions
    from pyctrd.runtime.terminal import own_size

    for field, value in (("command", command), ("cap_add", cap_add), ("cap_drop", cap_drop)):
        if isinstance(value, str):
            raise InvalidError(f"invalid {field}: {value!r}: expected a sequence of words", field=field, value=value)
    return ExecOptions(
        command=tuple(command),
        env=tuple(f"{key}={value}" for key, value in env.items()) if isinstance(env, Mapping) else tuple(env),
        working_dir=working_dir,
        terminal=terminal,
        console_size=own_size() if terminal else None,
        privileged=privileged,
        cap_add=tuple(cap_add),
        cap_drop=tuple(cap_drop),
    )


def _refuse_timed_out(ended: pyctrd.ExitStatus) -> pyctrd.ExitStatus:
    from pyctrd.runtime.execs import TIMED_OUT

    if ended.error.startswith(TIMED_OUT):
        seconds = float(ended.error.rpartition(" seconds")[0].rpartition(" ")[2])
        raise DeadlineError(f"process {ended.error}", operation="exec", timeout_seconds=seconds)
    return ended


def _late(exec_id: str, timeout: float | None) -> DeadlineError:
    return DeadlineError(
        f"process {exec_id[:12]}: did not end within {timeout:g} seconds", operation="wait", timeout_seconds=timeout
    )
