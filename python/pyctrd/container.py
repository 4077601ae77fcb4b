"""One container: what can be done with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Literal

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.runtime.runtime import Runtime

STOP_TIMEOUT_SECONDS = 10.0
STATS_SECONDS = 1.0


class Container:
    """One container. It outlives this object, the engine and the process."""

    def __init__(self, rooms: Rooms, record: ContainerRecord) -> None:
        self._rooms = rooms
        self._record = record

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
    def status(self) -> pyctrd.ContainerStatus:
        """What it is doing now: ``state`` ("created", "running", "paused", "stopped"), ``pid``, ``exit``."""
        from pyctrd.flows.run import container_status

        return container_status(self._rooms, self._record)

    def start(self, *, terminal: bool = False, stdin: bool = False) -> None:
        """Start it, detached.

        Args:
            terminal: As it was made.
            stdin: Input can be sent to it by ``attach``.

        Raises:
            ConflictError: It runs.
            CommandNotFoundError, CommandNotExecutableError, RuncError: It could not be started.
            NotFoundError: There is no OCI runtime.
        """
        from pyctrd.flows.run import start_container

        start_container(self._rooms, self._record, terminal=terminal, stdin=stdin)

    def start_attached(self, *, terminal: bool = False, stdin: bool = False) -> pyctrd.ExitStatus:
        """Start it joined to this process: standard input, output and error, signals in the main thread.

        No output is lost, and with ``auto_remove`` it is deleted afterwards.

        Returns:
            How it ended.

        Raises:
            As ``start``.
        """
        from pyctrd.flows.run import bundle_path, delete_container, start_container
        from pyctrd.flows.runs import notice

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
            )
            notice(self._rooms, self._record)
            return ended
        finally:
            if self._record.auto_remove:
                delete_container(self._rooms, self._record, force=True)

    def attach(self, *, terminal: bool = False, stdin: bool = False) -> pyctrd.ExitStatus:
        """Join a running container to this process until it ends.

        Raises:
            ConflictError: It was never started.
        """
        from pyctrd.flows.run import bundle_path

        sys.stdout.flush()
        return self._runtime.attach(
            self._record.id,
            bundle_path(self._rooms, self._record),
            stdin=0 if stdin else None,
            stdout=1,
            stderr=2,
            terminal=terminal,
        )

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
        """Wait for its end.

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
        self, *, follow: bool = False, since_ns: int = 0, tail: int | None = None
    ) -> Iterator[pyctrd.LogLine]:
        """What it wrote, line by line with time and stream.

        Args:
            follow: Go on until it ends.
            since_ns: Only what was written at this time or later, in nanoseconds since 1970.
            tail: Only so many of the lines that are there already.
        """
        from pyctrd.flows.run import bundle_path

        bundle = bundle_path(self._rooms, self._record)
        return self._runtime.logs(self._record.id, bundle, follow=follow, since_ns=since_ns, tail=tail)

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to its first process.

        Raises:
            ConflictError: It does not run.
            InvalidError: There is no such signal.
        """
        from pyctrd.flows.run import kill_container
        from pyctrd.runtime.signals import signal_number

        kill_container(self._rooms, self._record, signal_number(str(signal)))

    def restart(self, timeout: float = STOP_TIMEOUT_SECONDS, *, stdin: bool = False) -> None:
        """Stop it as ``stop`` does, if it runs, and start it again, detached; with a terminal if it was made with one.

        Args:
            timeout: Seconds before SIGKILL.
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

    def stop(self, timeout: float = STOP_TIMEOUT_SECONDS) -> pyctrd.ExitStatus:
        """Send its stop signal, and SIGKILL where it has not ended after ``timeout`` seconds.

        One that is paused goes on, so that it can end by itself.

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

    def diff(self) -> list[pyctrd.Change]:
        """What it added ("A"), changed ("C") and deleted ("D") of its image, sorted by path, parents first.

        A directory is listed also for what is in it. Sockets are not.

        Raises:
            UnsupportedError: Something that no layer can say, as a name that begins with ``.wh.``.
            ConflictError: It works on its files meanwhile.
        """
        from pyctrd.flows.commit import list_changes

        return list_changes(self._rooms, self._record)

    def commit(
        self,
        reference: str,
        *,
        author: str = "",
        message: str = "",
        changes: pyctrd.ConfigChanges | Sequence[str] = (),
        compression: Literal["gzip", "zstd", "none"] = "gzip",
        pause: bool = True,
        clamp_mtime: int | None = None,
    ) -> pyctrd.Image:
        """Make an image of it: its image's layers, and one with what it changed. Binds are not among that.

        Args:
            reference: The new image's name, with a tag.
            author: Who made it.
            message: What for; goes into the image's history.
            changes: What its config says otherwise, also as lines of a Dockerfile: ``CMD ["a"]``, ``ENV A=b``.
            compression: Of the new layer.
            pause: Freeze its processes while its files are read, if it runs. Another commit of it waits meanwhile.
                Where this process is killed then, the next engine that opens the root or looks at it lets it go on.
            clamp_mtime: Seconds since 1970 that no time in the image is after, ``created`` among them: the same
                changes give the same image then.

        Returns:
            The image, unpacked; it survives a power cut from here on (see ``durability``).

        Raises:
            InvalidError: The reference has a digest, or a change cannot be read.
            NotFoundError: Blobs of its image were removed: a new image would lack them.
            UnsupportedError: Something that no layer can say, as a name that begins with ``.wh.``.
            ConflictError: It works on its files meanwhile: it was not paused.
            QuotaError: The namespace may not have so much; nothing is left.
            OSError: The disk; nothing half-made is left.

        Spec:
            image-spec v1.1 layer.md, "Creating Changesets"; config.md; manifest.md.
        """
        from pyctrd.flows.commit import commit_container
        from pyctrd.image import Image
        from pyctrd.oci.changes import ConfigChanges
        from pyctrd.oci.reference import Reference

        if isinstance(changes, str):
            raise InvalidError(
                f"invalid changes: {changes!r}: expected a sequence of lines", field="changes", value=changes
            )
        record = commit_container(
            self._rooms,
            self._record,
            Reference.parse(reference),
            author=author,
            message=message,
            changes=changes if isinstance(changes, ConfigChanges) else ConfigChanges.parse(changes),
            compression=compression,
            pause=pause,
            clamp_mtime=clamp_mtime,
        )
        return Image(self._rooms, record)

    def copy_to(self, path: str, data: bytes | IO[bytes], *, archive: bool = False) -> None:
        """Unpack a tar, compressed or not, into one of its directories, whether it runs or not.

        Files are replaced, directories are put together and keep their own attributes. Its links lead where they lead
        in it, never out. An archive that is refused changes nothing. What is mounted in it is seen while it runs.

        Args:
            path: Of a directory, in the container.
            data: The archive, or a file that it is read from.
            archive: Keep the archive's owners; else everything becomes the container's user's.

        Raises:
            NotFoundError, InvalidError: The path is none of a directory.
            UnsafeArchiveError: The archive leaves its directory, or cannot be trusted otherwise, as a layer.
            ConflictError: A directory would take the place of something else, or the other way round.
            OSError: The disk; what was copied by then stays.
        """
        from pyctrd.flows.container_files import copy_archive_in

        copy_archive_in(self._rooms, self._record, path, data, archive=archive)

    def copy_from(self, path: str) -> Iterator[bytes]:
        """What is at one of its paths, as a tar in pieces: the file, or the directory with all that is in it.

        A link at the path's end is not followed; of a path that ends with "/" or "/." the archive has the content only.
        What is wrong is raised by the first piece.

        Args:
            path: In the container.

        Raises:
            NotFoundError: There is nothing.
            ConflictError: A file changes while it is read.
        """
        from pyctrd.flows.container_files import copy_archive_out

        return copy_archive_out(self._rooms, self._record, path)

    def copy_file_to(self, source: str | os.PathLike[str], path: str, *, archive: bool = False) -> None:
        """Copy a file or directory of the host into it, as ``docker cp`` does.

        Args:
            source: On the host; with "/." at its end a directory's content. A link is copied as a link.
            path: A directory to copy into, or the new name in one.
            archive: Keep the owners; else everything becomes the container's user's.

        Raises:
            As ``copy_to``.
        """
        from pyctrd.flows.container_files import copy_in

        copy_in(self._rooms, self._record, source, path, archive=archive)

    def copy_file_from(self, path: str, target: str | os.PathLike[str], *, archive: bool = False) -> None:
        """Copy one of its files or directories to the host, as ``docker cp`` does; links are copied as links.

        Args:
            path: In the container; with "/." at its end a directory's content.
            target: A directory of the host to copy into, or the new name in one.
            archive: Keep the owners; else everything becomes this process' user's.

        Raises:
            As ``copy_to``.
        """
        from pyctrd.flows.container_files import copy_out

        copy_out(self._rooms, self._record, path, target, archive=archive)

    def export(self, target: str | os.PathLike[str] | IO[bytes], *, pause: bool = True) -> None:
        """Write its whole root file system as a tar: sorted by name, without mounts and sockets.

        Args:
            target: A file, which is replaced, or an open one.
            pause: Freeze its processes meanwhile, if it runs.

        Raises:
            ConflictError: A file changes while it is read.
            OSError: The disk.
        """
        from pyctrd.flows.container_files import export_container

        export_container(self._rooms, self._record, target, pause=pause)

    def fork(self, *, name: str = "") -> Container:
        """Make a container, not yet running, that begins with what this one has written.

        It has the same image, command, options and labels, and goes its own way: neither sees what the other one does
        from here on, and each may be deleted. What this one wrote while it was stopped is not copied: both lie on it.
        Where it runs, its processes are frozen while it is copied, with extents shared where the file system can.
        Volumes and binds are the same ones.

        Args:
            name: Unique in the namespace; the beginning of its id by default.

        Raises:
            AlreadyExistsError: The name is taken.
            ConflictError: Somebody else writes to its mounted root file system.
            UnsupportedError: It lies on a hundred others already.
        """
        from pyctrd.flows.fork import fork_container

        return Container(self._rooms, fork_container(self._rooms, self._record, name=name))

    def snapshot(self, name: str = "") -> str:
        """Keep its files as they are now, to be set back to them by ``rollback``; as ``fork`` if it runs.

        They outlive no container: they go with it. They are as durable as what it wrote itself.

        Args:
            name: Unique among its snapshots; some letters and digits by default.

        Returns:
            The name.

        Raises:
            AlreadyExistsError: The name is taken.
            InvalidError: It has other characters than letters, digits, dots, dashes and underscores.
            ConflictError, UnsupportedError: As ``fork``.
        """
        from pyctrd.flows.fork import snapshot_container

        return snapshot_container(self._rooms, self._record, name=name)

    def snapshots(self) -> list[pyctrd.ContainerSnapshot]:
        """What it can be set back to, the oldest first: ``name``, ``created_ns``."""
        from pyctrd.flows.fork import list_snapshots

        return list_snapshots(self._rooms, self._record)

    def rollback(self, name: str, *, restart: bool = False) -> None:
        """Set its files back to a snapshot, in one step; the snapshot stays. What was written since is lost.

        Args:
            name: Of the snapshot.
            restart: Kill it first, if it runs, and start it again, with no input.

        Raises:
            NotFoundError: It has no such snapshot.
            ConflictError: It runs, and ``restart`` is not set.
        """
        from pyctrd.flows.fork import rollback_container

        rollback_container(self._rooms, self._record, name, restart=restart)

    def delete_snapshot(self, name: str) -> None:
        """Forget a snapshot, and free what only it needed; again is a no-op."""
        from pyctrd.flows.fork import delete_snapshot

        delete_snapshot(self._rooms, self._record, name)

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
