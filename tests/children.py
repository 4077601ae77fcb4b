"""Python programs in processes of their own, spoken to a line at a time; and waiting for what others do."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

DEADLINE_SECONDS = 60.0


def until(what: Callable[[], bool]) -> None:
    """Wait for something that no descriptor tells."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Child:
    """A Python program for the length of a ``with`` block; it is killed at the end, if it is there still.

    Args:
        code: The program; its arguments are in ``sys.argv[1:]``.
        arguments: Those.
    """

    def __init__(self, code: str, *arguments: str | os.PathLike[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def say(self, line: str = "") -> None:
        """Write a line to its input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def hear(self) -> str:
        """The next line of its output, "" at its end.

        Raises:
            TimeoutError: None came in time.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + DEADLINE_SECONDS
        line = b""
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError(f"process {self.pid}: no line in {DEADLINE_SECONDS:.0f} seconds, only {line!r}")
            part = os.read(self._process.stdout.fileno(), 1)
            if not part:
                break
            line += part
        return line.decode().rstrip("\n")

    def has_spoken(self) -> bool:
        """Whether something of its output can be heard without waiting."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def wait(self) -> int:
        """Close its input and wait: its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(DEADLINE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
