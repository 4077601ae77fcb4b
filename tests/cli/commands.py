"""The command line as a process of its own: as its user, as nobody, on pipes and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

DEADLINE_SECONDS = 120.0
NOBODY = 65534
# The interpreter may be beneath a directory that only root enters: what is above it is covered by one that everybody
# may enter, in a mount namespace of the command's own.
_AS_NOBODY = """
set -e
hold=$1 base=$2 shut=$3; shift 3
if [ -n "$shut" ]; then
    mount --bind "$base" "$hold"
    mount -t tmpfs -o mode=0755 tmpfs "$shut"
    mkdir -p "$base"
    mount --move "$hold" "$base"
fi
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """Its output as JSON, a document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def command(*words: str) -> list[str]:
    """The words that run pyctrd in a process of its own; the root comes from the environment."""
    return [sys.executable, "-P", "-m", "pyctrd", *words]


def environment(**changes: str) -> dict[str, str]:
    """This process' variables, output buffered as a user has it, with changes."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | changes


def run(*words: str, text: str = "", env: dict[str, str] | None = None) -> Done:
    """Run the command line to its end."""
    done = subprocess.run(
        command(*words),
        input=text,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        env=env or environment(),
    )
    return Done(done.returncode, done.stdout, done.stderr)


def shell(script: str, *words: str) -> Done:
    """Run a line of bash in which ``"$@"`` is the command."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}", "bash", *command(*words)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        env=environment(),
    )
    return Done(done.returncode, done.stdout, done.stderr)


def is_one_error(text: str) -> bool:
    """Whether it is one line that says what was wrong, and at most one more that says what to do."""
    return re.fullmatch(r"pyctrd: [^\n\x00-\x1f]+\n(hint: [^\n\x00-\x1f]+\n)?", text) is not None


def spoiled(content: bytes) -> bytes:
    """Other bytes, of which only the digest tells: in a gzip's time, which its own checks leave out."""
    return content[:4] + bytes([content[4] ^ 1]) + content[5:]


class Terminal:
    """A command on a terminal of its own; it is killed at the end of the ``with`` block, if it is there still."""

    def __init__(self, *words: str, env: dict[str, str] | None = None) -> None:
        self.ours, theirs = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            command(*words),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env or environment(TERM="xterm", COLUMNS="100", LINES="30"),
        )
        os.close(theirs)

    def read_until(self, wanted: str) -> None:
        """Read until something was written."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while wanted not in self.seen:
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{wanted!r} was not written, only {self.seen!r}")

    def finish(self) -> int:
        """Read to the end: the exit status."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(DEADLINE_SECONDS)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.ours], [], [], max(0.0, seconds))[0]:
            raise TimeoutError(f"the command is silent: {self.seen!r}")
        try:
            part = os.read(self.ours, 65536)
        except OSError:  # EIO: nobody holds the other side any more
            return False
        self.seen += part.decode()
        return bool(part)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)


class Nobody:
    """Runs the command line without any rights, over a root of that user's own.

    Attributes:
        home: A directory that is theirs.
    """

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.home.mkdir()
        os.chown(self.home, NOBODY, NOBODY)
        self._hold = directory / "hold"
        self._hold.mkdir()
        base = Path(sys.base_prefix)
        shut = [parent for parent in (base, *base.parents) if not parent.stat().st_mode & 0o001]
        self._prefix = [str(self._hold), str(base), str(shut[-1]) if shut else ""]

    def run(self, *words: str, env: dict[str, str] | None = None) -> Done:
        """Run the command line to its end."""
        return self.execute(*command(*words), env=env)

    def execute(self, *words: str, env: dict[str, str] | None = None) -> Done:
        """Run any program to its end."""
        done = subprocess.run(
            self.words(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
            cwd=self.home,
            env=self.environment() if env is None else env,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def words(self, *words: str) -> list[str]:
        """The words that run a program without rights, as the process that they start."""
        return ["unshare", "-m", "sh", "-c", _AS_NOBODY, "sh", *self._prefix, *words]

    def environment(self, **changes: str) -> dict[str, str]:
        """Their variables, with changes."""
        own = {"HOME": str(self.home), "PYCTRD_ROOT": str(self.home / "root"), "PYCTRD_STATE": str(self.home / "state")}
        own |= {"DOCKER_CONFIG": str(self.home / "docker"), "REGISTRY_AUTH_FILE": str(self.home / "auth.json")}
        return environment(**own) | changes

    def files(self) -> list[str]:
        """All that is beneath their directory."""
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*"))


@contextmanager
def as_nobody() -> Iterator[Nobody]:
    """For the length of a ``with`` block, in a directory that others may enter (pytest's may not)."""
    directory = Path(tempfile.mkdtemp(prefix="pyctrd-"))
    directory.chmod(0o755)
    try:
        yield Nobody(directory)
    finally:
        shutil.rmtree(directory)
