"""One container: what can be done with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.container_health import ContainerHealth

if TYPE_CHECKING:
    from pyctrd.runtime.runtime import Runtime

STATS_SECONDS = 1.0


class Container(ContainerHealth):
    """One container. It outlives this object, the engine and the process."""

    @property
    def _runtime(self) -> Runtime:
        """The one that it was made for, whatever this engine's is."""
        return self._rooms.runtime(self._record.runtime)

    @property
    def id(self) -> str:
        """64 hex digits."""
        return self._record.id

    @property
    def name(self) -> str:
        """Its name in the namespace."""
        return self._record.name

    @property
    def image_name(self) -> str:
        """The reference that it was made from."""
        return self._record.image_name

    @property
    def command(self) -> tuple[str, ...]:
        """What runs in it."""
        return self._record.command

    @property
    def labels(self) -> Mapping[str, str]:
        """The caller's own."""
        return self._record.labels

    @property
    def created_ns(self) -> int:
        """When it was made, in nanoseconds since 1970."""
        return self._record.created_ns

    @property
    def restart_policy(self) -> str:
        """What its shim does when it has ended: "no", "always", "unless-stopped", "on-failure" or "on-failure:N"."""
        from pyctrd.flows.run import bundle_path
        from pyctrd.runtime.life import read_policy

        return read_policy(bundle_path(self._rooms, self._record))

    @property
    def status(self) -> pyctrd.ContainerStatus:
        """What it is doing now: ``pid``, ``exit``, ``restart_count`` and ``state``.

        That is "created", "running", "paused", "restarting" (its policy waits before the next run) or "stopped".
        """
        from pyctrd.flows.run import container_status

        return container_status(self._rooms, self._record)

    def start(self, *, terminal: bool | None = None, stdin: bool | None = None) -> None:
        """Start it, detached.

        Args:
            terminal: It has one; None is as it was made, and so as Docker's ``start``.
            stdin: Input can be sent to it by ``attach``; None is as it was made.

        Raises:
            ConflictError: It runs.
            CommandNotFoundError, CommandNotExecutableError, RuncError: It could not be started.
            NotFoundError: There is no OCI runtime.
        """
        from pyctrd.flows.run import start_container

        terminal, stdin = self._streams(terminal=terminal, stdin=stdin)
        start_container(self._rooms, self._record, terminal=terminal, stdin=stdin)

    def start_attached(
        self, *, terminal: bool | None = None, stdin: bool | None = None, detach_keys: str = "ctrl-p,ctrl-q"
    ) -> pyctrd.ExitStatus:
        """Start it joined to this process: standard input, output and error, signals in the main thread.

        No output is lost, and with ``auto_remove`` it is deleted afterwards.

        Args:
            terminal: It has one; None is as it was made.
            stdin: This process's input is its; None is as it was made.
            detach_keys: Typed on a terminal, they end this, and it runs on; "" is none. None are taken with
                ``auto_remove``: nobody would be left to delete it.

        Returns:
            How it ended.

        Raises:
            DetachedError: The keys were typed.
            InvalidError: They are none.
            As ``start``.
        """
        from pyctrd.flows.run import bundle_path, delete_container, start_container
        from pyctrd.flows.runs import notice
        from pyctrd.runtime.terminal import parse_keys

        parse_keys(detach_keys)  # wrong ones are told before anything runs
        terminal, stdin = self._streams(terminal=terminal, stdin=stdin)
        try:
            start_container(self._rooms, self._record, terminal=terminal, stdin=stdin, attached=True)
            sys.stdout.flush()
            ended = self._runtime.attach(
                self._record.id,
                bundle_path(self._rooms, self._record),
                stdin=0 if stdin else None,
                stdout=1,
                stderr=2,
                terminal=terminal,
                detach_keys="" if self._record.auto_remove else detach_keys,
            )
            notice(self._rooms, self._record)
            return ended
        finally:
            if self._record.auto_remove:
                delete_container(self._rooms, self._record, force=True)

    def attach(
        self, *, terminal: bool | None = False, stdin: bool | None = False, detach_keys: str = "ctrl-p,ctrl-q"
    ) -> pyctrd.ExitStatus:
        """Join a running container to this process until it ends; restarts by its policy are no end.

        Args:
            terminal: It has one, and this process's is to be like it; None is as it was made.
            stdin: This process's input is its; None is as it was made.
            detach_keys: Typed on a terminal, they end this, and it runs on; "" is none.

        Raises:
            ConflictError: It was never started.
            DetachedError: The keys were typed.
            InvalidError: They are none.
        """
        from pyctrd.flows.run import bundle_path

        terminal, stdin = self._streams(terminal=terminal, stdin=stdin)
        sys.stdout.flush()
        return self._runtime.attach(
            self._record.id,
            bundle_path(self._rooms, self._record),
            stdin=0 if stdin else None,
            stdout=1,
            stderr=2,
            terminal=terminal,
            detach_keys=detach_keys,
        )

    def _streams(self, *, terminal: bool | None, stdin: bool | None) -> tuple[bool, bool]:
        """What was said of its terminal and its input, and where nothing was, what it was made with."""
        if terminal is None or stdin is None:
            from pyctrd.flows.policies import made_streams

            has_terminal, takes_input = made_streams(self._rooms, self._record)
            terminal = has_terminal if terminal is None else terminal
            stdin = takes_input if stdin is None else stdin
        return terminal, stdin

    def exec(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | Sequence[str] = (),
        user: str = "",
        working_dir: str = "",
        terminal: bool = False,
        stdin: bool = False,
        privileged: bool = False,
        cap_add: Sequence[str] = (),
        cap_drop: Sequence[str] = (),
        detach: bool = False,
        timeout: float | None = None,
    ) -> pyctrd.Process:
        """Start another process in it: as its own, but for what is said here.

        Args:
            command: The program and its arguments.
            env: Variables, added to the container's.
            user: ``user[:group]``, names of the image or numbers; ``HOME`` is theirs then.
            working_dir: Absolute.
            terminal: It gets a pseudo-terminal: its outputs are one.
            stdin: Input can be sent to it; else it reads an empty one.
            privileged: It has all capabilities that this process may give; the seccomp profile stays.
            cap_add: Capabilities added to the container's.
            cap_drop: Capabilities taken away; "ALL" for all but the added ones.
            detach: Join none of its streams: it reads nothing, and what it writes is dropped.
            timeout: Seconds until it is killed, with its descendants and all of its session. Not found is what has
                left both, as a daemon does; that ends with the container.

        Returns:
            The process. It runs.

        Raises:
            ConflictError: The container does not run, or is paused; ``state`` says which.
            CommandNotFoundError, CommandNotExecutableError, RuncError: It could not be started.
            InvalidError: An option cannot be used.
            NotFoundError: The image has no such user or group.
        """
        from pyctrd.process import exec_options, start_process

        options = exec_options(
            command,
            env=env,
            working_dir=working_dir,
            terminal=terminal,
            privileged=privileged,
            cap_add=cap_add,
            cap_drop=cap_drop,
        )
        return start_process(self._rooms, self._record, options, user=user, stdin=stdin, detach=detach, timeout=timeout)

    def exec_output(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | Sequence[str] = (),
        user: str = "",
        working_dir: str = "",
        privileged: bool = False,
        input: bytes | None = None,  # noqa: A002 - as subprocess.run's
        timeout: float | None = None,
    ) -> pyctrd.ExecOutput:
        """Run another process in it to its end: its exit code, and what it wrote.

        Args:
            command: The program and its arguments.
            env: Variables, added to the container's.
            user: ``user[:group]``, names of the image or numbers.
            working_dir: Absolute.
            privileged: It has all capabilities that this process may give.
            input: For its standard input; None is an empty one.
            timeout: Seconds until it is killed, as in ``exec``.

        Raises:
            DeadlineError: It was killed since the time-out went by.
            ConflictError, CommandNotFoundError, CommandNotExecutableError, RuncError, InvalidError, NotFoundError: As
                ``exec``.
        """
        from pyctrd.process import ExecOutput

        with self.exec(
            command,
            env=env,
            user=user,
            working_dir=working_dir,
            privileged=privileged,
            stdin=input is not None,
            timeout=timeout,
        ) as process:
            stdout, stderr = process.communicate(input)
            return ExecOutput(process.wait().exit_code, stdout, stderr)

    def get_exec(self, exec_id: str) -> pyctrd.Process:
        """A process that ``exec`` started, whoever called it: to wait for it and end it. It has no streams here.

        One that was started detached is known after its end, too, until the container is started again or deleted, or
        256 later ones have ended.

        Raises:
            NotFoundError: There is none with that id.
        """
        from pyctrd.flows.exec import container_execs
        from pyctrd.process import Process

        return Process(container_execs(self._rooms, self._record).get(exec_id))

    def execs(self) -> list[pyctrd.Process]:
        """The processes that ``get_exec`` finds, the oldest first."""
        from pyctrd.flows.exec import container_execs
        from pyctrd.process import Process

        return [Process(found) for found in container_execs(self._rooms, self._record).all()]

    def wait(self, timeout: float | None = None) -> pyctrd.ExitStatus:
        """Wait for its end: the last one, where a restart policy starts it again, as Docker's ``wait`` does.

        Args:
            timeout: Seconds; None waits for ever.

        Returns:
            ``exit_code`` (128 + n after signal n), ``signal``, ``started_ns``, ``exited_ns``, ``error``.

        Raises:
            ConflictError: It was never started.
            DeadlineError: ``timeout`` seconds went by.
        """
        from pyctrd.flows.run import wait_container

        return wait_container(self._rooms, self._record, timeout)

    def logs(self, *, stream: Literal["stdout", "stderr", "both"] = "both", tail: int | None = None) -> str:
        """What it wrote so far, as text; bytes that are no UTF-8 are replaced.

        Args:
            stream: Which of its outputs.
            tail: Only so many of the last lines.
        """
        lines = self.log_lines(tail=tail)
        return "".join(line.text for line in lines if stream in ("both", line.stream))

    def log_lines(
        self,
        *,
        follow: bool = False,
        since_ns: int = 0,
        until_ns: int | None = None,
        tail: int | None = None,
    ) -> Iterator[pyctrd.LogLine]:
        """What it wrote, line by line with time and stream, as far back as the log's files are kept.

        Args:
            follow: Go on until it ends; restarts by its policy are no end.
            since_ns: Only what was written at this time or later, in nanoseconds since 1970.
            until_ns: Only what was written before this time; following ends then.
            tail: Only so many of the lines that are there already.

        Raises:
            UnsupportedError: It was made with the log driver "none".
        """
        from pyctrd.flows.run import bundle_path

        bundle = bundle_path(self._rooms, self._record)
        return self._runtime.logs(
            self._record.id, bundle, follow=follow, since_ns=since_ns, until_ns=until_ns, tail=tail
        )

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to its first process; SIGKILL and its stop signal are as ``stop`` to its policy.

        Raises:
            ConflictError: It does not run.
            InvalidError: There is no such signal.
        """
        from pyctrd.flows.run import kill_container
        from pyctrd.runtime.signals import signal_number

        kill_container(self._rooms, self._record, signal_number(str(signal)))

    def restart(self, timeout: float | None = None, *, stdin: bool | None = None) -> None:
        """Stop it as ``stop`` does, if it runs, and start it again, detached; with a terminal if it was made with one.

        Args:
            timeout: Seconds before SIGKILL; None is as it was made with, 10 by default.
            stdin: As for ``start``.

        Raises:
            ConflictError: It is deleted when it ends.
            RuncError: It could not be started.
        """
        from pyctrd.flows.alter import restart_container

        restart_container(self._rooms, self._record, timeout=timeout, stdin=stdin)

    def rename(self, name: str) -> None:
        """Give it another name; its host name stays. Told as the event "renamed".

        Raises:
            AlreadyExistsError: Another one of the namespace has it.
            InvalidError: It is no name: letters, digits, "_", "." and "-", 128 at most.
            NotFoundError: The container was deleted.
        """
        from pyctrd.flows.alter import rename_container

        self._record = rename_container(self._rooms, self._record, name)

    def stop(self, timeout: float | None = None) -> pyctrd.ExitStatus:
        """Send its stop signal, and SIGKILL where it has not ended after ``timeout`` seconds.

        None is the ``stop_timeout`` that it was made with, 10 by default.
        One that is paused goes on, so that it can end by itself.
        Its restart policy is over with that, until it is started again: the wish is durable before the signal.

        Raises:
            ConflictError: It was never started.
        """
        from pyctrd.flows.run import stop_container

        return stop_container(self._rooms, self._record, timeout=timeout)

    def pause(self) -> None:
        """Freeze its processes.

        Raises:
            ConflictError: It does not run.
        """
        from pyctrd.flows.run import pause_container

        pause_container(self._rooms, self._record)

    def resume(self) -> None:
        """Let them go on.

        Raises:
            ConflictError: It is not paused.
        """
        from pyctrd.flows.run import resume_container

        resume_container(self._rooms, self._record)

    def checkpoint(
        self,
        *,
        leave_running: bool = False,
        tcp_established: bool = False,
        file_locks: bool = False,
        keep: bool = False,
    ) -> None:
        """Write its processes to disk, beside its files, and end it; ``restore`` lets it go on. Needs CRIU.

        Args:
            leave_running: Let it run on.
            tcp_established: Also with TCP connections that are established.
            file_locks: Also with locks of files.
            keep: Keep CRIU's logs, in ``criu`` of its bundle.

        Raises:
            ConflictError: It does not run, or would be deleted at its end.
            RuncError: CRIU refused.
            UnsupportedError: CRIU is not here, or this kernel cannot do it.
        """
        from pyctrd.flows.checkpoint import checkpoint_container

        checkpoint_container(
            self._rooms,
            self._record,
            leave_running=leave_running,
            tcp_established=tcp_established,
            file_locks=file_locks,
            keep=keep,
        )

    def restore(self, *, tcp_established: bool = False, file_locks: bool = False, keep: bool = False) -> None:
        """Let it go on from where ``checkpoint`` wrote it; that is removed then, unless ``keep`` is set.

        Raises:
            ConflictError: It runs.
            NotFoundError: It has no checkpoint.
            RuncError: CRIU refused; the checkpoint stays.
            UnsupportedError: As ``checkpoint``.
        """
        from pyctrd.flows.checkpoint import restore_container

        restore_container(self._rooms, self._record, tcp_established=tcp_established, file_locks=file_locks, keep=keep)

    def update(
        self,
        *,
        memory_bytes: int | None = None,
        memory_swap_bytes: int | None = None,
        memory_reservation_bytes: int | None = None,
        cpus: float | None = None,
        cpu_shares: int | None = None,
        cpuset_cpus: str | None = None,
        cpuset_mems: str | None = None,
        pids: int | None = None,
    ) -> None:
        """Change its limits, at once if it runs, and for every later start. Told as the event "updated".

        None leaves a limit as it is; 0 and -1 take it away. All or none of it is done.

        Args:
            memory_bytes: Memory; at least 6 MiB. Without a limit on memory there is none on swap either.
            memory_swap_bytes: Memory and swap together, as Docker counts.
            memory_reservation_bytes: What it is reclaimed down to where the host is short of memory.
            cpus: In processors' worth of time.
            cpu_shares: Weight among others, 2 to 262144; 0 and -1 are 1024.
            cpuset_cpus: Processors that it may use, as "0-2,4".
            cpuset_mems: Memory nodes, likewise.
            pids: Processes and threads.

        Raises:
            InvalidError: A limit cannot be used.
            ConflictError: It uses more memory than it would be allowed (told so under cgroup v2).
            RuncError: The kernel refused a limit, as below what is used under v1.

        Spec:
            runtime-spec v1.1 config-linux.md, "Memory", "CPU", "PIDs".
        """
        from pyctrd.flows.alter import update_container
        from pyctrd.runtime.update import Changes

        changes = Changes(
            memory_bytes=memory_bytes,
            memory_swap_bytes=memory_swap_bytes,
            memory_reservation_bytes=memory_reservation_bytes,
            cpus=cpus,
            cpu_shares=cpu_shares,
            cpuset_cpus=cpuset_cpus,
            cpuset_mems=cpuset_mems,
            pids=pids,
        )
        update_container(self._rooms, self._record, changes)

    def stats(self) -> pyctrd.ContainerStats:
        """What it uses now, read from files: processor, memory, block devices, processes, network.

        Of a container that was paused as well. What this host's kernel does not count is None.

        Raises:
            ConflictError: It does not run.
            UnsupportedError: No control group of it can be read here.
        """
        from pyctrd.flows.observe import container_stats

        return container_stats(self._rooms, self._record)

    def stats_stream(self, interval: float = STATS_SECONDS) -> Iterator[pyctrd.ContainerStats]:
        """The same now and at each interval, until it ends: ``sample.cpu_percent(before)`` of two is its load.

        Args:
            interval: Seconds, at least 0.01.

        Raises:
            ConflictError: It does not run.
            InvalidError: The interval is too short.
            UnsupportedError: No control group of it can be read here.
        """
        from pyctrd.flows.observe import follow_stats

        return follow_stats(self._rooms, self._record, interval)

    def top(self) -> list[pyctrd.ProcessInfo]:
        """Its processes, by their ids on the host, read from files: nothing is run in it.

        Raises:
            ConflictError: It does not run.
        """
        from pyctrd.flows.observe import container_processes

        return container_processes(self._rooms, self._record)

    def inspect(self) -> dict[str, Any]:
        """All that is known of it, as JSON has it; docs/inspect.md says what the keys mean, and they stay.

        Raises:
            NotFoundError: It is being made or deleted.
        """
        from pyctrd.flows.inspect import inspect_container

        return inspect_container(self._rooms, self._record)

    def delete(self, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it: process, mounts, files and record. Again is a no-op.

        Args:
            force: Kill it first, if it runs.
            volumes: Remove the volumes that were made for it alone, too; of one with ``auto_remove`` they go anyway.

        Raises:
            ConflictError: It runs.
        """
        from pyctrd.flows.run import delete_container

        delete_container(self._rooms, self._record, force=force, volumes=volumes)

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.id[:12]}>"
