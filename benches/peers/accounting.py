"""What a command costs: wall time, CPU seconds of all its processes and daemons, peak memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_POLL_SECONDS = 0.015
_TIMEOUT_SECONDS = 600.0
_END_SECONDS = 10.0
_MIB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """One run.

    Attributes:
        status: The exit status of the command.
        wall_seconds: From its start to its end.
        cpu_seconds: Of everything in the group, daemons too, user and system.
        peak_bytes: Highest sum of the resident sets' high-water marks of processes alive at once.
        output: What it printed.
    """

    status: int
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


class Group:
    """A cgroup of its own for one tool: version 1's cpuacct, or version 2.

    Args:
        name: Unique on this machine.
    """

    def __init__(self, name: str) -> None:
        v1 = _CGROUPS / "cpuacct"
        self._v1 = v1.is_dir()
        self._directory = (v1 if self._v1 else _CGROUPS) / name
        self._directory.mkdir()

    def popen(
        self, argv: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in the group; it writes to ``log``."""
        # The shell enters the group and becomes the program: nothing of it runs outside.
        enter = ["sh", "-c", f'echo 0 >"{self._directory}/cgroup.procs" && exec "$@"', "sh", *argv]
        with log.open("wb") as file:
            return subprocess.Popen(
                enter,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )

    def run(self, argv: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None) -> Cost:
        """Run a command to its end and say what it, and its daemon meanwhile, cost."""
        for pid in self.pids():  # a daemon's high-water mark begins anew
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        peak = 0
        over = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.wait(_POLL_SECONDS):
                peak = max(peak, self._resident_bytes())

        watcher = threading.Thread(target=watch)
        cpu = self.cpu_seconds()
        watcher.start()
        start = time.monotonic()
        process = self.popen(argv, log=log, environment=environment)
        # A plain wait: one with a timeout polls, and its steps would be measured.
        killer = threading.Timer(_TIMEOUT_SECONDS, process.kill)
        killer.start()
        try:
            status = process.wait()
            wall = time.monotonic() - start
        except BaseException:  # the comparison is stopped: what it measures must not go on alone
            process.kill()
            process.wait()
            raise
        finally:
            killer.cancel()
            over.set()
            watcher.join()
        output = log.read_text(errors="replace")
        return Cost(status, wall, self.cpu_seconds() - cpu, peak, output)

    def cpu_seconds(self) -> float:
        """Of all that ever ran in the group."""
        if self._v1:
            return int((self._directory / "cpuacct.usage").read_text()) / 1e9
        for line in (self._directory / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
        raise RuntimeError(f"no usage_usec in {self._directory}/cpu.stat")

    def pids(self) -> list[int]:
        """What is alive in it."""
        return [int(pid) for pid in (self._directory / "cgroup.procs").read_text().split()]

    def close(self) -> None:
        """End what is still in it, and remove it; idempotent."""
        if not self._directory.exists():
            return
        deadline = time.monotonic() + _END_SECONDS
        while True:
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self._directory.rmdir()
            except OSError as error:  # busy until their parents have waited for them
                if time.monotonic() > deadline:
                    error.add_note(f"what does not end: {self.pids()}")
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _resident_bytes(self) -> int:
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        total += int(line.split()[1]) << 10
        return total


def mib(count: int) -> str:
    """Bytes, for a table."""
    return f"{count / _MIB:.0f}"
