"""Starting, watching and ending containers: the OCI runtime below, a shim beside each."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pyctrd import _core
from pyctrd.errors import ConflictError, DeadlineError, NotFoundError, UnsupportedError, naming
from pyctrd.oci.hold import pause, waiting
from pyctrd.runtime import cgroup, life, state
from pyctrd.runtime import terminal as terminals
from pyctrd.runtime.runc import Program, Runc, start_error
from pyctrd.runtime.shim import SHIM, Connection, Kind, Mode, ShimFailedError, Start
from pyctrd.runtime.state import ContainerStatus, ExitStatus
from pyctrd.runtime.streams import copy_streams, forward_signals

if TYPE_CHECKING:
    from pyctrd.runtime.execs import Execs
    from pyctrd.runtime.logs import LogLine

START_SECONDS = 120.0  # a hook, or a host that swaps; a start without them takes milliseconds
FINISH_SECONDS = 60.0  # the shim's own clean-up after the exit: one "runc delete"
# How often it is looked for an exit record that is about to be written.
RECORD_SECONDS = 0.01


class Runtime:
    """Runs bundles. Holds nothing that another process could not rebuild from the two directories.

    Args:
        program: runc, crun, a path to one, or a ``Program``'s text; looked up when first used.
        state: Lost at reboot: holds the runtime's state and the shims' sockets. Made when first used.
    """

    def __init__(self, program: str = "runc", *, state: Path) -> None:
        self.binary, args = Program.parse(program)
        self._state = state.absolute()
        # Runtimes do not read each other's state.
        self._root = self._state / "runtimes" / Path(self.binary).name
        self._runc = Runc(self.binary, root=self._root, args=args)
        self._waiting: dict[str, Connection] = {}

    def program(self) -> tuple[str, str]:
        """The runtime's path and version.

        Raises:
            NotFoundError: It is not there.
            UnsupportedError: It is no OCI runtime that can be used here.
        """
        return self._runc.path, self._runc.version()

    def name(self) -> str:
        """What the runtime calls itself, as "runc"; errors as ``program``."""
        return self._runc.identity()[0]

    def create_bundle(self, directory: Path, spec: Mapping[str, Any], *, transient: bool = False) -> None:
        """Make the directory that the runtime reads, or replace its ``config.json``.

        Args:
            directory: The bundle.
            spec: What ``config.json`` says.
            transient: A power cut may take it: its container is deleted at its end, by which a power cut is one.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.staged_spec(directory, spec, transient=transient) as take:
            take()

    @contextmanager
    def staged_spec(
        self, directory: Path, spec: Mapping[str, Any], *, transient: bool = False
    ) -> Iterator[Callable[[], None]]:
        """Write a ``config.json`` beside the one that is there, which it replaces when its block says so.

        Args:
            directory: The bundle.
            spec: What it says.
            transient: As for ``create_bundle``.
        """
        staged = directory / "config.json.tmp"
        replaces = (directory / "config.json").exists() and not transient
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        taken = False
        with naming(staged), os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps(spec))
            file.flush()
            if replaces:
                os.fsync(file.fileno())  # before it has the name: a power cut must not leave an empty one there

            def take() -> None:
                nonlocal taken
                staged.replace(directory / "config.json")
                taken = True
                if replaces:
                    life.flush_directory(directory)
                elif not transient:
                    # With the file goes its new name. A cut before that may leave an empty one, which counts as none.
                    os.fsync(file.fileno())

            try:
                yield take
            finally:
                if not taken:
                    staged.unlink(missing_ok=True)

    def start(
        self,
        container_id: str,
        bundle: Path,
        *,
        terminal: bool = False,
        stdin: bool = False,
        attached: bool = False,
        transient: bool = False,
        on_exit: Sequence[str] = (),
        restore: tuple[Path, Sequence[str]] | None = None,
    ) -> None:
        """Start a bundle's process; it runs when this returns.

        Interrupted by an exception of any kind, also Ctrl-C, nothing is left running.

        Args:
            container_id: Letters, digits, "_", "-" and ".", unique in the state directory.
            bundle: Holds ``config.json``; receives the log and the exit record.
            terminal: As the spec says; the streams are then one.
            stdin: Input can be sent. Without, the process reads an empty one.
            attached: Hold the start until this object is connected, so that ``attach`` loses no output; the
                container's input then ends with that attachment. ``attach`` must follow.
            transient: The container is deleted at its end: its exit record is not flushed to the disk.
            on_exit: A command that the shim runs when all is over.
            restore: Where ``checkpoint`` wrote its processes, which go on from there, and words for the runtime.

        Raises:
            CommandNotFoundError: The command is not in the root file system.
            CommandNotExecutableError: It is, and cannot be executed.
            RuncError: The runtime refused.
            NotFoundError: There is no runtime.
            UnsupportedError: The runtime cannot use this host's control groups, or there is no shim.
            ConflictError: It runs already.
            DeadlineError: It did not start within two minutes.
        """
        cgroup.check_runtime(self.binary, cgroup.cgroup_form())
        directory = self._prepare(container_id, bundle)
        flags = {"terminal": terminal, "stdin": stdin, "attached": attached, "transient": transient}
        argv = self._argv(container_id, bundle, directory, [name for name, wanted in flags.items() if wanted])
        told = life.read_life(bundle)
        argv += told.words
        if told.health is not None:
            from pyctrd.runtime.health import write_probe

            write_probe(bundle, directory, told.health.command)
        if restore is not None:
            argv += ["--restore", str(restore[0].absolute())]
            argv += [word for one in restore[1] for word in ("--restore-arg", one)]
        words = [*argv, "--", *on_exit] if on_exit else argv
        connection = None
        try:
            with Start([os.fsencode(word) for word in words]) as starting:
                starting.wait_ready(START_SECONDS)
                if attached:
                    connection = Connection.open(directory, Mode.STREAMS)
                starting.wait_started(START_SECONDS)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, ShimFailedError):
                self._runc.version()  # one that cannot be used says so better than by what it said
                raise start_error(argv, error.status, error.text, container_id=container_id) from None
            raise
        if connection is not None:
            self._waiting[container_id] = connection

    def status(self, container_id: str, bundle: Path) -> ContainerStatus:
        """Where the container is in its life, read from files: no program is run."""
        directory = self._directory(container_id)
        ended = state.read_end(bundle, directory)
        if ended is not None:
            running = state.read_running(directory)
            count = 0 if running is None else running.restart_count
            return ContainerStatus("stopped", started_ns=ended.started_ns, exit=ended, restart_count=count)
        # Asked before it is read again: a shim that is gone by then has written all that it ever will.
        held = state.shim_pid(directory)
        running = state.read_running(directory)
        if running is None:
            return ContainerStatus("created")
        if held and running.restarting:
            return ContainerStatus("restarting", 0, running.started_ns, None, running.restart_count)
        if held or running.is_alive():
            frozen = cgroup.is_frozen(running.pid, cgroup.cgroup_form())
            return ContainerStatus(
                "paused" if frozen else "running", running.pid, running.started_ns, None, running.restart_count
            )
        # The shim may have written its record, and ended, since the first look.
        ended = state.read_end(bundle, directory) or state.last_seen(bundle, running)
        return ContainerStatus("stopped", started_ns=ended.started_ns, exit=ended, restart_count=running.restart_count)

    def kill(self, container_id: str, signal: int) -> None:
        """Send a signal to the container's init.

        Raises:
            ConflictError: It does not run.
            NotFoundError: There is no such container.
        """
        self._runc.kill(container_id, signal)

    def pause(self, container_id: str, *, holding: int | None = None) -> None:
        """Freeze the container's processes.

        Args:
            container_id: Which one.
            holding: A descriptor that stays open until the runtime has ended, whatever becomes of this process.
        """
        self._runc.pause(container_id, holding=holding)

    def resume(self, container_id: str) -> None:
        """Let them go on."""
        self._runc.resume(container_id)

    def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Change the limits of a running container.

        Args:
            container_id: Which one.
            resources: As the spec's ``linux.resources``; -1 is no limit.

        Raises:
            ConflictError: It does not run.
            RuncError: The kernel refused, or the runtime.
        """
        self._runc.update(container_id, orjson.dumps(resources))

    def checkpoint(self, container_id: str, images: Path, work: Path, flags: Sequence[str]) -> None:
        """Write a running container's processes to a directory, and CRIU's logs to another; see ``Runc.checkpoint``."""
        self._runc.checkpoint(container_id, ["--image-path", str(images), "--work-path", str(work), *flags])

    def wait(self, container_id: str, bundle: Path, timeout: float | None = None) -> ExitStatus:
        """Wait for the container's end.

        Args:
            container_id: Which one.
            bundle: Where its exit record will be.
            timeout: Seconds; None waits for ever, 0 only looks.

        Raises:
            ConflictError: It was never started.
            DeadlineError: ``timeout`` seconds went by.
        """
        directory = self._directory(container_id)
        ended = state.read_end(bundle, directory)
        if ended is not None:
            return ended
        connection = Connection.open(directory, Mode.CONTROL)
        if connection is not None:
            with connection, waiting(connection.interrupt):
                record = connection.wait_exit(timeout)
            if record is not None:
                return ExitStatus.parse(record)
            self.end_orphan(container_id, bundle)  # the shim was killed meanwhile: nobody else may ever look
        return self._wait_alone(container_id, bundle, timeout)

    def attach(
        self,
        container_id: str,
        bundle: Path,
        *,
        stdin: int | None,
        stdout: int,
        stderr: int,
        terminal: bool = False,
        detach_keys: str = "",
    ) -> ExitStatus:
        """Join descriptors of this process to the container until it ends.

        In the main thread, signals are passed on to the container meanwhile; the third SIGINT or SIGTERM
        raises KeyboardInterrupt instead, and the container runs on.

        Args:
            container_id: Which one.
            bundle: Where its exit record will be.
            stdin: Read from, if the container takes input; None is no input.
            stdout: Receives its output, and with a terminal everything.
            stderr: Receives its error output.
            terminal: Set this process's terminal raw, and keep the sizes alike.
            detach_keys: Typed on it, they end this, and the container runs on; "" is none.

        Raises:
            ConflictError: It does not run.
            DetachedError: The keys were typed.
            InvalidError: They are none.
            OSError: The output cannot be written; the container runs on.
        """
        keys = terminals.parse_keys(detach_keys) if terminal else b""
        directory = self._directory(container_id)
        connection = self._waiting.pop(container_id, None) or Connection.open(directory, Mode.STREAMS)
        if connection is None:
            return self._ended(container_id, bundle)
        control = Connection.open(directory, Mode.CONTROL)
        try:
            ours = next((fd for fd in (stdout, stdin) if fd is not None and os.isatty(fd)), None)
            size_of = ours if terminal else None
            with (
                # First: a signal that ended this process here would leave the terminal raw.
                forward_signals(control, size_of=size_of),
                terminals.raw(stdin if terminal else None),
                waiting(connection.interrupt),
            ):
                record = copy_streams(
                    connection, stdin=stdin, stdout=stdout, stderr=stderr, detach=keys, size_of=size_of
                )
        finally:
            connection.close()
            if control is not None:
                control.close()
        if record is not None:
            return ExitStatus.parse(record)
        self.end_orphan(container_id, bundle)  # the shim was killed: nothing more can come of it
        return self.wait(container_id, bundle)

    def execs(self, container_id: str) -> Execs:
        """The processes that were started in a container beside its init."""
        from pyctrd.runtime.execs import Execs

        directory = self._directory(container_id)
        return Execs(container_id, directory, runtime=self._runc.path, args=self._runc.args, root=self._root)

    def shim_directory(self, container_id: str) -> Path:
        """Where its shim keeps what a reboot ends; it need not be there."""
        return self._directory(container_id)

    def resize(self, container_id: str, *, rows: int, columns: int) -> None:
        """Set the size of the container's terminal; nothing is done where it has ended."""
        connection = Connection.open(self._directory(container_id), Mode.CONTROL)
        if connection is not None:
            with connection:
                connection.request(Kind.RESIZE, terminals.encode_size(rows, columns), terminals.RESIZE_SECONDS)

    def logs(
        self,
        container_id: str,
        bundle: Path,
        *,
        follow: bool = False,
        since_ns: int = 0,
        until_ns: int | None = None,
        tail: int | None = None,
    ) -> Iterator[LogLine]:
        """The container's output so far, and with ``follow`` until it ends; its policy's restarts are no end.

        Args:
            container_id: Which one.
            bundle: Holds the log.
            follow: Wait for more.
            since_ns: Only what was written at this time or later, in nanoseconds since the epoch.
            until_ns: Only what was written before this time; None is all.
            tail: Only so many of the lines already there; None is all.

        Raises:
            UnsupportedError: It was made with the log driver "none".
        """
        from pyctrd.runtime.logs import read_log

        if life.read_life(bundle).log_driver == "none":
            raise UnsupportedError(
                f"container {container_id}: has no log: it was made with the log driver none",
                feature="reading the log",
                needs="the log driver json-file or cri",
            )
        directory = self._directory(container_id)
        return read_log(bundle, directory, follow=follow, since_ns=since_ns, until_ns=until_ns, tail=tail)

    def delete(self, container_id: str, bundle: Path, *, force: bool = False) -> None:
        """Give back all that the container holds outside its bundle. May be called again.

        The bundle itself, and the root file system, are the caller's.

        Args:
            container_id: Which one.
            bundle: Where its exit record is.
            force: Kill it first, if it runs.

        Raises:
            ConflictError: It runs, and ``force`` was not given.
            DeadlineError: The shim did not finish.
        """
        waiting = self._waiting.pop(container_id, None)
        if waiting is not None:
            waiting.close()
        status = self.status(container_id, bundle)
        if status.state in {"running", "paused", "restarting"}:
            if not force:
                raise ConflictError(
                    f"container {container_id}: is {status.state}, must be stopped",
                    kind="container",
                    name=container_id,
                    state=status.state,
                    allowed="created,stopped",
                    hint="stop it first, or force the deletion",
                )
            self.give_up_restarts(container_id, bundle)
            self._runc.delete(container_id)
        directory = self._directory(container_id)
        connection = Connection.open(directory, Mode.CONTROL)
        if connection is not None:
            with connection:
                connection.wait_closed(FINISH_SECONDS)
        self._runc.delete(container_id)
        if (directory / state.EXECS).exists():
            from pyctrd.runtime.execs import end_execs

            end_execs(directory)
        with suppress(FileNotFoundError):
            _core.remove_tree(directory.parent, directory.name)

    def give_up_restarts(self, container_id: str, bundle: Path) -> None:
        """Record that the user wants the container to end, before anything is done about it; no policy starts it again.

        Durable when this returns. One that waits for its next run stays as it was after the last one.
        """
        if life.want_stopped(bundle):
            connection = Connection.open(self._directory(container_id), Mode.CONTROL)
            if connection is not None:
                # No signal at all: it wakes a shim that rests between two runs, and that looks then.
                with connection, suppress(ConnectionError):
                    connection.send(Kind.SIGNAL, b"\0")

    def is_orphan(self, container_id: str, bundle: Path) -> bool:
        """Whether its shim was killed: it started the container in this boot, holds it no more, and recorded no end."""
        if (bundle / state.EXIT_RECORD).exists():
            return False
        directory = self._directory(container_id)
        running = state.read_running(directory)
        if running is None:
            # Killed while it started: the runtime may have been as far as to make a process of it.
            return self._runc.knows(container_id) and not self._is_told(directory, bundle)
        if not running.is_of_this_boot() or state.shim_pid(directory):
            return False
        # Last: a shim lets go after it has written its record.
        return state.read_exit(bundle) is None

    @staticmethod
    def _is_told(directory: Path, bundle: Path) -> bool:
        """Whether a shim holds it, or has written how it ended, or what it started."""
        if state.shim_pid(directory):
            return True
        return state.read_exit(bundle) is not None or state.read_running(directory) is not None

    def end_orphan(self, container_id: str, bundle: Path) -> bool:
        """End a container whose shim was killed, give back what it holds of the runtime, and record its end.

        It cannot be adopted: its output goes to pipes that nobody can open again, and how its process ends is told
        to its parent alone, which is the host's init now. So it is ended, as containerd does.

        Returns:
            Whether there was anything to do. Nothing is done where another process is about it.
        """
        if not self.is_orphan(container_id, bundle):
            return False
        from pyctrd.runtime.orphans import end_orphan

        return end_orphan(self._runc, container_id, bundle, self._directory(container_id))

    def _prepare(self, container_id: str, bundle: Path) -> Path:
        """The shim's directory, with nothing of an earlier run in it or in the bundle."""
        if not SHIM.exists():
            raise UnsupportedError(
                "unsupported: this build has no container shim",
                feature="running containers",
                needs="pyctrd-shim beside the package",
                hint="install pyctrd from a wheel, or with a Rust toolchain",
            )
        if not (bundle / "config.json").is_file():
            raise NotFoundError(f"bundle not found: {bundle}", kind="bundle", name=str(bundle))
        status = self.status(container_id, bundle)
        if status.state in {"running", "paused", "restarting"}:
            raise ConflictError(
                f"container {container_id}: is {status.state} already",
                kind="container",
                name=container_id,
                state=status.state,
                allowed="created,stopped",
            )
        if status.state == "stopped":
            self.delete(container_id, bundle)
        directory = self._directory(container_id)
        if self._runc.knows(container_id) and not state.shim_pid(directory):
            self._runc.delete(container_id)  # of a shim that was killed before it could say what it had started
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (directory.parent, directory):
            path.mkdir(mode=0o700, exist_ok=True)
        records = (parent / state.EXIT_RECORD for parent in (bundle, directory))
        for stale in (*records, directory / state.RUNNING_RECORD, directory / "runtime.log"):
            stale.unlink(missing_ok=True)
        life.forget_runs(bundle)
        return directory

    def _argv(self, container_id: str, bundle: Path, directory: Path, flags: Iterable[str]) -> list[str]:
        options = {
            "--id": container_id,
            "--bundle": str(bundle.absolute()),
            "--state": str(directory),
            "--runtime": self._runc.path,
            "--root": str(self._root),
        }
        words = [word for option in options.items() for word in option]
        words += [word for one in self._runc.args for word in ("--runtime-arg", one)]
        return [str(SHIM), *words, *(f"--{flag}" for flag in flags)]

    def _directory(self, container_id: str) -> Path:
        state.check_id(container_id)
        return self._state / f"shims/{container_id}"

    def _ended(self, container_id: str, bundle: Path) -> ExitStatus:
        """The exit of a container that nobody can attach to."""
        status = self.status(container_id, bundle)
        if status.exit is not None:
            return status.exit
        raise ConflictError(
            f"container {container_id}: cannot attach: " + ("its shim is gone" if status.pid else "it was not started"),
            kind="container",
            name=container_id,
            state=status.state,
            allowed="running",
        )

    def _wait_alone(self, container_id: str, bundle: Path, timeout: float | None) -> ExitStatus:
        """There is no shim (any more): its record, or else the process itself, says when it is over."""
        directory = self._directory(container_id)
        ended = state.read_end(bundle, directory)
        if ended is not None:
            return ended
        running = state.read_running(directory)
        if running is None:
            raise ConflictError(
                f"container {container_id}: was not started",
                kind="container",
                name=container_id,
                state="created",
                allowed="running,paused,stopped",
            )
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            # While its policy waits there is no process: then the shim alone can tell.
            pidfd = -1 if running.restarting else os.pidfd_open(running.pid)
        except ProcessLookupError:
            pidfd = -1
        if pidfd < 0:
            return self._record_of(container_id, bundle, deadline)
        bell = -1
        try:
            bell = os.eventfd(0, os.EFD_CLOEXEC)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.register(bell, select.POLLIN)
            with waiting(partial(os.eventfd_write, bell, 1)):
                # Checked once the descriptor holds the process, so that it is not another one with its number.
                is_over = not running.is_alive() or bool(poll.poll(None if timeout is None else timeout * 1000))
            if not is_over:
                raise _not_ended(container_id, timeout)
        finally:
            if bell >= 0:
                os.close(bell)
            os.close(pidfd)
        return self._record_of(container_id, bundle, deadline)

    def _record_of(self, container_id: str, bundle: Path, deadline: float | None) -> ExitStatus:
        """How a process that is over ended. A shim that did not listen, to one client too many, writes it down soon.

        Where it starts the container again instead, that may be never: then the caller's deadline counts.
        """
        directory = self._directory(container_id)
        finished = time.monotonic() + FINISH_SECONDS
        while (ended := state.read_end(bundle, directory)) is None:
            now = time.monotonic()
            is_final = life.read_policy(bundle) == "no"
            if not state.shim_pid(directory) or (is_final and now > finished):
                running = state.read_running(directory)
                lost = ExitStatus(state.UNKNOWN_EXIT_CODE) if running is None else state.last_seen(bundle, running)
                return state.read_end(bundle, directory) or lost
            if not is_final and deadline is not None and now > deadline:
                raise _not_ended(container_id, None)
            pause(RECORD_SECONDS)
        return ended


def _not_ended(container_id: str, timeout: float | None) -> DeadlineError:
    within = "in time" if timeout is None else f"within {timeout:g} seconds"
    return DeadlineError(
        f"container {container_id}: did not end {within}", operation="exit of the container", timeout_seconds=timeout
    )
