"""One container: what can be done with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.runtime.runtime import Runtime

STOP_TIMEOUT_SECONDS = 10.0


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

    def start_attached(
        self, *, terminal: bool = False, stdin: bool = False, detach_keys: str = "ctrl-p,ctrl-q"
    ) -> pyctrd.ExitStatus:
        """Start it joined to this process: standard input, output and error, signals in the main thread.

        No output is lost, and with ``auto_remove`` it is deleted afterwards.

        Args:
            terminal: As it was made.
            stdin: This process's input is its.
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

        if terminal is None or stdin is None:
            from pyctrd.flows.policies import made_streams

            has_terminal, takes_input = made_streams(self._rooms, self._record)
            terminal = has_terminal if terminal is None else terminal
            stdin = takes_input if stdin is None else stdin

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

    def stop(self, timeout: float = STOP_TIMEOUT_SECONDS) -> pyctrd.ExitStatus:
        """Send its stop signal, and SIGKILL where it has not ended after ``timeout`` seconds.

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

    def delete(self, *, force: bool = False) -> None:
        """Remove it: process, mounts, files and record. Again is a no-op.

        Args:
            force: Kill it first, if it runs.

        Raises:
            ConflictError: It runs.
        """
        from pyctrd.flows.run import delete_container

        delete_container(self._rooms, self._record, force=force)

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.id[:12]}>"
