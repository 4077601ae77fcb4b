"""Running the OCI runtime's own program, and saying what it said in one line."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from pyctrd.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    ConflictError,
    NotFoundError,
    PyctrdError,
    RuncError,
    UnsupportedError,
)
from pyctrd.oci.value import NamedTuple

STDERR_LINES = 5
SYSTEMD_CGROUP = "--systemd-cgroup"
CHECKPOINT_SECONDS = 3600.0  # all memory of a container goes to the disk
RUN_SECONDS = 60.0  # runc itself answers within milliseconds; a frozen host must not hold the caller for ever

# Of errors alone: compiled where one is read.
_NOISE = (
    r"^(runc (run|create|start) failed: |exec failed: |unable to start container process: |container_linux\.go:\d+: )+"
)
_LOGRUS = r'^time="[^"]*" level=(\w+) msg="(.*)"$'
# youki's, and what it adds for those who build it.
_BACKTRACE = r"(?s:\s*Stack backtrace:.*)"
_MESSAGE = r'"(?:msg|message)" ?: ?"((?:[^"\\]|\\.)*)'
_YOUKI = (
    r"^(error in executing command: |failed to create container: |exec process failed with error |Error: |\d+: |"
    r"error in executing process : )+"
)
_MISSING = r"executable (file|').* not found|exec: \"[^\"]*\": (stat .*: )?no such file or directory"
_NOT_EXECUTABLE = (
    r"(?i:exec: \"[^\"]*\": (permission denied|is a directory)|does not have correct permissions|"
    r"exec format error|exec(utable|\b.*): Permission denied)"
)
# With version 1's cgroups runc gives up after some tries, and thaws: on a busy host nothing had its turn to stop in.
_UNFROZEN = "unable to freeze"
FREEZE_SECONDS = 10.0
_GONE = r"(?i:does not exist|container .* not found|No such file or directory)"
_NOT_RUNNING = (
    r"(?i:not running|already finished|No such process|cannot (pause|resume)|not paused|incompatible container status)"
)


class Program(NamedTuple):
    """A runtime.

    Attributes:
        binary: Name or path.
        args: Words before all others.
    """

    binary: str
    args: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Program:
        """Read what a container has recorded: the program alone, or a JSON list of all words."""
        if not text.startswith("["):
            return cls(text)
        import orjson

        binary, *args = orjson.loads(text)
        return cls(binary, tuple(args))

    @property
    def text(self) -> str:
        """For a container's record."""
        if not self.args:
            return self.binary
        import orjson

        return orjson.dumps([self.binary, *self.args]).decode()

    @property
    def uses_systemd(self) -> bool:
        """Whether control groups are made by systemd."""
        return SYSTEMD_CGROUP in self.args


def find_binary(binary: str) -> str:
    """The runtime's program as an absolute path.

    Raises:
        NotFoundError: It is not there; ``kind`` is "runtime".
        UnsupportedError: It is there, and may not be executed.
    """
    places = [binary] if "/" in binary else [f"{directory}/{binary}" for directory in os.get_exec_path()]
    files = [place for place in places if Path(place).is_file()]
    if (found := next((place for place in files if os.access(place, os.X_OK)), None)) is not None:
        return str(Path(found).absolute())
    if files:
        raise UnsupportedError(
            f"runtime cannot be executed: {files[0]}: permission denied",
            feature=f"the runtime {binary}",
            needs="a program that may be executed",
            hint=f"chmod +x {files[0]}",
        )
    name = Path(binary).name
    raise NotFoundError(
        f"runtime not found: {binary}: no such program",
        kind="runtime",
        name=binary,
        hint=f"install it (Debian: apt-get install {name}), or choose another one",
    )


class Runc:
    """One runtime program with its state directory.

    Args:
        binary: Name or path.
        root: Where it keeps its state.
        args: Words before all others.
    """

    def __init__(self, binary: str, *, root: Path, args: Sequence[str] = ()) -> None:
        self._binary = binary
        self.args = tuple(args)
        self._root = root
        self._path = ""
        self._identity: tuple[str, str] | None = None

    @property
    def path(self) -> str:
        """The program's absolute path, looked up once.

        Raises:
            NotFoundError: It is not there.
            UnsupportedError: It is there, and may not be executed.
        """
        if not self._path:
            self._path = find_binary(self._binary)
        return self._path

    def knows(self, container_id: str) -> bool:
        """Whether the runtime holds state for the container."""
        return (self._root / container_id).exists()

    def kill(self, container_id: str, signal: int) -> None:
        """Send a signal to the container's init.

        Raises:
            ConflictError: It does not run.
            NotFoundError: There is no such container.
            RuncError: Anything else.
        """
        self._run("kill", container_id, str(signal))

    def pause(self, container_id: str, *, holding: int | None = None) -> None:
        """Freeze every process of the container; the runtime keeps ``holding`` open.

        Raises:
            ConflictError: It does not run.
            RuncError: Anything else.
        """
        deadline = time.monotonic() + FREEZE_SECONDS
        while True:
            try:
                return self._run("pause", container_id, holding=holding)
            except RuncError as error:
                if _UNFROZEN not in str(error) or time.monotonic() > deadline:
                    raise

    def resume(self, container_id: str) -> None:
        """Let them go on."""
        self._run("resume", container_id)

    def update(self, container_id: str, resources: bytes) -> None:
        """Change the limits of a running container: JSON as the spec's ``linux.resources``.

        Raises:
            ConflictError: It does not run.
            RuncError: Anything else.
        """
        self._run("update", "--resources", "-", container_id, given=resources)

    def checkpoint(self, container_id: str, words: Sequence[str]) -> None:
        """Write a running container's processes to files, as these words say.

        Raises:
            ConflictError: It does not run.
            RuncError: CRIU refused, or anything else.
        """
        self._run("checkpoint", *words, container_id, timeout=CHECKPOINT_SECONDS)

    def version(self) -> str:
        """The program's own version, as "1.1.5", asked for once.

        Raises:
            NotFoundError: It is not there.
            UnsupportedError: It is no OCI runtime that can be used here.
        """
        return self.identity()[1]

    def identity(self) -> tuple[str, str]:
        """What the program calls itself, as "runc", and its version; as ``version``."""
        if self._identity is None:
            from pyctrd.runtime.program import read_version

            self._identity = read_version(self.path)
        return self._identity

    def delete(self, container_id: str) -> None:
        """Kill what still runs, and forget the container; nothing is done where there is none."""
        if self.knows(container_id):
            try:
                self._run("delete", "--force", container_id)
            except PyctrdError:
                if self.knows(container_id):  # else the shim was as fast, which sees the end that this brings
                    raise

    def _run(
        self,
        verb: str,
        *words: str,
        holding: int | None = None,
        given: bytes | None = None,
        timeout: float = RUN_SECONDS,
    ) -> None:
        import subprocess  # a run that ends by itself needs none

        argv = [self.path, *self.args, "--root", str(self._root), verb, *words]
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL if given is None else None,
            input=given,
            capture_output=True,
            check=False,
            timeout=timeout,
            close_fds=True,
            pass_fds=() if holding is None else (holding,),
        )
        if done.returncode:
            text = done.stderr.decode("utf-8", "replace")
            raise _refusal(
                argv, done.returncode, text, verb=verb, container_id=words[-2] if verb == "kill" else words[-1]
            )


def _refusal(argv: Sequence[str], status: int, text: str, *, verb: str, container_id: str) -> Exception:
    line = clean(text)
    if re.search(_NOT_RUNNING, line):
        return ConflictError(
            f"container {container_id}: cannot {verb}: {line}", kind="container", name=container_id, state="stopped",
            allowed="paused" if verb == "resume" else "running",
        )  # fmt: skip
    if re.search(_GONE, line):
        return NotFoundError(f"container not found: {container_id}", kind="container", name=container_id)
    return RuncError(
        f"container {container_id}: cannot {verb}: {line}", argv=argv, exit_status=status, stderr=last_lines(text)
    )


def start_error(argv: Sequence[str], status: int, text: str, *, container_id: str, verb: str = "start") -> RuncError:
    """Why a container, or a process in it, did not start, as the error that a caller would tell apart."""
    line = clean(text)
    kind: type[RuncError] = RuncError
    hint = ""
    if re.search(_MISSING, line):
        kind, hint = CommandNotFoundError, "the image has no such command: check its name and the image's PATH"
    elif re.search(_NOT_EXECUTABLE, line):
        kind, hint = CommandNotExecutableError, "the file is there, and cannot be run: check its mode and platform"
    return kind(
        f"container {container_id}: cannot {verb}: {line}",
        argv=argv,
        exit_status=status,
        stderr=last_lines(text),
        hint=hint,
    )


def clean(text: str) -> str:
    """The one line of a runtime's words that says what was wrong."""
    lines = [line.strip() for line in re.sub(_BACKTRACE, "", text).splitlines() if line.strip()]
    lines = [
        _told(line) if line.startswith("{") else re.sub(_LOGRUS, r"\2", line).replace('\\"', '"') for line in lines
    ]
    if not lines:
        return "the runtime gave no reason"
    return re.sub(_YOUKI, "", re.sub(_NOISE, "", lines[-1])).removesuffix(": unknown")


def _told(line: str) -> str:
    """The message in a line of JSON, as runtimes log; the line itself where it is none. Its end may be cut off."""
    found = re.search(_MESSAGE, line)
    if found is None:
        return line
    text = found[1].replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")
    return re.sub(_BACKTRACE, "", text).strip().replace("\n", ": ")


def last_lines(text: str) -> str:
    """The end of what was said."""
    return "\n".join(text.splitlines()[-STDERR_LINES:])
