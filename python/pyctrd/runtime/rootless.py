"""An ordinary user's own user namespace, in which that user is root: the store's files and containers' are its ids'.

One process holds it, with a mount namespace, from the first command on until it is killed or the machine is: containers
and what is mounted for them outlive the command that made them, and the next one has to be where they are.

Spec:
    user_namespaces(7), mount_namespaces(7), setns(2), newuidmap(1).
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import ConflictError, UnsupportedError
from pyctrd.runtime.boot import boot_id
from pyctrd.runtime.idmaps import find_id_maps, map_ids
from pyctrd.runtime.shim import SHIM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyctrd.runtime.idmaps import IdMaps

FEATURE = "containers without root rights"
_RECORD = "holder"
_LOCK = "holder.lock"
_START_TIME = 19  # of /proc/PID/stat, behind the name: in ticks since the machine was started


def enter(directory: Path) -> None:
    """Move this process, which has one thread, into its user's namespaces; they are made where they are not there.

    Args:
        directory: This user's alone, and the same each time: who holds the namespaces is recorded there.

    Raises:
        ConflictError: This process has threads, which the kernel lets enter no user namespace.
        UnsupportedError: No user namespace can be made, or it gets no ids.
        OSError: The directory cannot be made.
    """
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - names alone
        raise ConflictError(
            "user namespace: cannot be entered: this process has threads",
            kind="process",
            name=str(os.getpid()),
            state="threaded",
            allowed="one thread",
            hint="enter it first, or start the program by pyctrd unshare",
        )
    # Asked first: a user who cannot have them is left nothing behind.
    maps = None if (directory / _RECORD).exists() else find_id_maps(feature=FEATURE)
    where = os.getcwd()  # noqa: PTH109 - it may be gone: then this says so
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory):
        found = _find(directory) or _make(directory, maps or find_id_maps(feature=FEATURE))
    users, mounts = found
    try:
        _core.join_namespace(users)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        _core.join_namespace(mounts)
    finally:
        os.close(users)
        os.close(mounts)
    os.chdir(where)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _find(directory: Path) -> tuple[int, int] | None:
    """Descriptors of the two that are held already; of a holder that was killed its containers' may be left."""
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        boot, pid, began = (directory / _RECORD).read_text().split()
        if boot == boot_id():
            found = _open(int(pid))
            if _start_of(int(pid)) == began:  # looked at once they are open: the number may be another process's
                return found
            for descriptor in found:
                os.close(descriptor)
    return _of_a_shim(directory)


def _of_a_shim(directory: Path) -> tuple[int, int] | None:
    """Those of a container's shim that lives."""
    from pyctrd.runtime.state import shim_pid

    for path in directory.glob("shims/*"):
        with suppress(OSError):
            if pid := shim_pid(path):
                found = _open(pid)
                if shim_pid(path) == pid:
                    _record(directory, pid)
                    return found
                for descriptor in found:
                    os.close(descriptor)
    return None


def _open(pid: int) -> tuple[int, int]:
    users = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return users, os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        os.close(users)
        raise


def _make(directory: Path, maps: IdMaps) -> tuple[int, int]:
    pipe = subprocess.PIPE
    # Not waited for: it stays. No signal of this process's terminal reaches it once it has said so.
    child = subprocess.Popen([str(SHIM), "--as-holder"], stdin=pipe, stdout=pipe)
    assert child.stdin is not None  # noqa: S101 - a pipe
    assert child.stdout is not None  # noqa: S101 - likewise
    try:
        _expect(child.stdout.readline())
        map_ids(child.pid, maps, feature=FEATURE)
        child.stdin.write(b"stay\n")
        child.stdin.flush()
        _expect(child.stdout.readline())
        found = _open(child.pid)
        _record(directory, child.pid)
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        child.stdin.close()
        child.stdout.close()
    child.returncode = 0  # so that nobody is warned of a child that was left
    return found


def _record(directory: Path, pid: int) -> None:
    staged = directory / f"{_RECORD}.tmp"
    staged.write_text(f"{boot_id()} {pid} {_start_of(pid)}\n")
    staged.replace(directory / _RECORD)


def _start_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_START_TIME]


def _expect(said: bytes) -> None:
    text = said.decode(errors="replace").strip()
    if text != "ok":
        needs = f"user namespaces that a user may make ({text or 'its holder ended'})"
        raise UnsupportedError(
            f"unsupported: {FEATURE}: needs {needs}",
            feature=FEATURE,
            needs=needs,
            hint="see sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and "
            "kernel.apparmor_restrict_unprivileged_userns",
        )
