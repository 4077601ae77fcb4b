"""A Python program whose chosen system calls stop at their door until the test lets them in.

With it a process is killed, or the disk refuses, exactly before one step of many, and the order of steps is seen: by
seccomp's user notification, with no hook in what is tested.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE_SECONDS = 60.0
# Those that change a file system or wait for it, by machine.
NUMBERS = {
    "x86_64": {
        "write": 1,
        "pwrite64": 18,
        "fsync": 74,
        "fdatasync": 75,
        "ftruncate": 77,
        "rename": 82,
        "mkdir": 83,
        "rmdir": 84,
        "unlink": 87,
        "flock": 73,
        "openat": 257,
        "mkdirat": 258,
        "mknodat": 259,
        "fchownat": 260,
        "unlinkat": 263,
        "renameat": 264,
        "symlinkat": 266,
        "linkat": 265,
        "utimensat": 280,
        "syncfs": 306,
        "renameat2": 316,
        "umount2": 166,
        "move_mount": 429,
        "seccomp": 317,
        "symlink": 88,
        "link": 86,
        "chmod": 90,
        "fchmod": 91,
        "chown": 92,
        "fchown": 93,
        "fchmodat": 268,
        "setxattr": 188,
        "lsetxattr": 189,
        "fsetxattr": 190,
        "fallocate": 285,
        "copy_file_range": 326,
        "fsmount": 432,
        "openat2": 437,
    },
    "aarch64": {
        "write": 64,
        "pwrite64": 68,
        "fsync": 82,
        "fdatasync": 83,
        "ftruncate": 46,
        "flock": 32,
        "openat": 56,
        "mkdirat": 34,
        "mknodat": 33,
        "fchownat": 54,
        "unlinkat": 35,
        "renameat": 38,
        "symlinkat": 36,
        "linkat": 37,
        "utimensat": 88,
        "syncfs": 267,
        "renameat2": 276,
        "umount2": 39,
        "move_mount": 429,
        "seccomp": 277,
        "fchmod": 52,
        "fchown": 55,
        "fchmodat": 53,
        "setxattr": 5,
        "lsetxattr": 6,
        "fsetxattr": 7,
        "fallocate": 47,
        "copy_file_range": 285,
        "fsmount": 432,
        "openat2": 437,
    },
}
# After each of these the disk, or what is mounted, is another than before.
CHANGES = tuple(sorted(set(NUMBERS["x86_64"]) - {"flock", "openat", "openat2", "seccomp"}))
_OF_A_FILE = (
    *("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "flock", "syncfs", "fchmod", "fchown", "fsetxattr"),
    *("fallocate", "copy_file_range", "fsmount"),
)
_OF_A_PATH = ("mkdir", "rmdir", "unlink", "umount2", "chmod", "chown", "setxattr", "lsetxattr")
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_NOTIFICATION_BYTES = 80
_GO_ON = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE

# The child's beginning: it sets the filter, hands its listener over, and becomes the program.
_BOOTSTRAP = """
import array, ctypes, os, socket, struct, sys
fd, seccomp, numbers, code = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4]
sys.argv = ["-c", *sys.argv[5:]]
steps = [(0x20, 0, 0, 0)]
for number in numbers:
    steps += [(0x15, 0, 1, int(number)), (0x06, 0, 0, 0x7FC00000)]
steps.append((0x06, 0, 0, 0x7FFF0000))
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
if os.geteuid() != 0:
    libc.prctl(38, 1, 0, 0, 0)
channel = socket.socket(fileno=fd)
listener = libc.syscall(seccomp, 1, 8, header)
if listener < 0:
    os._exit(99)
socket.send_fds(channel, [b"x"], [listener])
os.close(listener)
channel.close()
exec(compile(code, "<watched>", "exec"), {"__name__": "__main__"})
"""


@dataclass(frozen=True)
class Call:
    """One call that waits at the door.

    Attributes:
        name: Its name.
        thread: Who makes it.
        arguments: Six numbers.
    """

    name: str
    thread: int
    arguments: tuple[int, ...]
    _watched: Watched = field(repr=False)
    _id: int = field(repr=False)

    def allow(self) -> None:
        """Let it in."""
        self._watched._answer(self._id, 0, _GO_ON)

    def fail(self, errno: int) -> None:
        """Refuse it."""
        self._watched._answer(self._id, -errno, 0)

    @property
    def text(self) -> str:
        """What is to be written, of ``write``."""
        with Path(f"/proc/{self.thread}/mem").open("rb", buffering=0) as memory:
            memory.seek(self.arguments[1])
            return memory.read(self.arguments[2]).decode(errors="replace")

    @property
    def path(self) -> str:
        """What it is done to: the last path among its arguments, or the file of its descriptor."""
        if self.name in _OF_A_FILE:
            return self._link(f"fd/{self.arguments[2 if self.name == 'copy_file_range' else 0]}")
        if self.name in _OF_A_PATH:
            return self._text(self.arguments[0])
        if self.name in ("rename", "link", "symlink"):
            return self._text(self.arguments[1])
        at = 3 if self.name in ("renameat", "renameat2", "linkat", "move_mount") else 1 + (self.name == "symlinkat")
        directory = ctypes.c_int(self.arguments[at - 1] & 0xFFFFFFFF).value
        where = "cwd" if directory < 0 else f"fd/{directory}"
        if self.arguments[at] == 0:
            return self._link(where)  # futimens(): the file itself
        name = self._text(self.arguments[at])
        return name if name.startswith("/") else f"{self._link(where)}/{name}"

    def _link(self, name: str) -> str:
        return str(Path(f"/proc/{self.thread}/{name}").readlink())

    def _text(self, address: int) -> str:
        with Path(f"/proc/{self.thread}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return os.fsdecode(memory.read(4096).partition(b"\0")[0])


class Watched:
    """The program, for the length of a ``with`` block; iterating gives its calls until it ends.

    Args:
        code: The program; its arguments are in ``sys.argv[1:]``.
        arguments: Those.
        calls: Names of the system calls that stop.
    """

    def __init__(self, code: str, *arguments: str | os.PathLike[str], calls: Sequence[str]) -> None:
        numbers = NUMBERS[platform.machine()]
        self._names = {numbers[name]: name for name in calls if name in numbers}
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(DEADLINE_SECONDS)
            words = [str(theirs.fileno()), str(numbers["seccomp"]), ",".join(map(str, self._names)), code]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, *words, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            theirs.close()
            descriptors = socket.recv_fds(ours, 1, 1)[1]
        if not descriptors:
            self._process.wait()
            raise OSError("no seccomp listener")
        self._listener = descriptors[0]

    def __iter__(self) -> Iterator[Call]:
        """Each call, to be answered before the next is asked for."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while True:
            ready = poll.poll(DEADLINE_SECONDS * 1000)
            if not ready:
                raise TimeoutError(f"process {self._process.pid}: no call in {DEADLINE_SECONDS:.0f} seconds")
            if not ready[0][1] & select.POLLIN:
                return  # nobody is left who could call
            taken = bytearray(_NOTIFICATION_BYTES)
            try:
                fcntl.ioctl(self._listener, _RECEIVE, taken)
            except FileNotFoundError:
                continue  # it was killed while it stood there
            identity, thread, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", taken)
            yield Call(self._names[number], thread, tuple(arguments), self, identity)

    def kill(self) -> None:
        """SIGKILL: nothing more of it happens."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def interrupt(self) -> None:
        """SIGINT, as by Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def said(self) -> str:
        """What it wrote until it was killed."""
        assert self._process.stdout is not None
        return self._process.stdout.read().decode(errors="replace")

    def finish(self) -> tuple[int, str]:
        """Let the rest in; exit status and what it wrote."""
        for call in self:
            call.allow()
        out, _ = self._process.communicate(timeout=DEADLINE_SECONDS)
        return self._process.returncode, out.decode(errors="replace")

    def _answer(self, identity: int, error: int, flags: int) -> None:
        try:
            fcntl.ioctl(self._listener, _ANSWER, struct.pack("QqiI", identity, 0, error, flags))
        except FileNotFoundError:
            return  # it was killed while it stood there

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        os.close(self._listener)
        if self._process.stdout is not None:
            self._process.stdout.close()


def why_not() -> str:
    """Why calls cannot be watched here, "" where they can."""
    if platform.machine() not in NUMBERS:
        return f"system call numbers of {platform.machine()} are not known"
    try:
        with Watched("", calls=["mkdir"]) as watched:
            watched.finish()
    except OSError as error:
        return f"seccomp notification: {error}"
    return ""
