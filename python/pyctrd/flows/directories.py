"""The root and the state directory: made, or looked at before anything that is in them is believed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from pyctrd import _core
from pyctrd.errors import ConflictError, InvalidError, UnsupportedError
from pyctrd.metadata import DATABASE

PRIVATE_MODE = 0o700
PARENT_MODE = 0o755
# statfs(2)'s numbers of file systems that other hosts write to as well. SQLite's log needs memory that all who use it
# share, and flock must keep all of them out; there is no telling what is behind FUSE's number.
NETWORK_FILE_SYSTEMS = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x0BD00BD0: "Lustre",
    0x786F4256: "vboxsf",
}
# By what is in it a directory is known to be ours: only such a one, and an empty one, is closed without asking.
OURS = {"root": (DATABASE,), "state": ("runtimes", "shims")}


def open_private(what: str, path: Path) -> str:
    """Make a directory that is its owner's alone, or see to it that it is one.

    Args:
        what: "root" or "state".
        path: Where.

    Returns:
        What had to be repaired, "" for nothing.

    Raises:
        ConflictError: It is somebody else's, or open to others and not only pyctrd's.
        InvalidError: The process' umask would keep the owner out too.
        OSError: It cannot be made or entered, or its file system is read-only.
    """
    _check_umask()
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir(mode=PARENT_MODE, exist_ok=True)
    path.mkdir(mode=PRIVATE_MODE, exist_ok=True)
    descriptor = _open(what, path)
    try:
        if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise _refused(what, path, f"belongs to user {found.st_uid}", f"a directory of user {os.geteuid()}")
        mode = stat.S_IMODE(found.st_mode)
        if mode & ~PRIVATE_MODE == 0:
            return ""
        names = os.listdir(descriptor)  # noqa: PTH208 - of what was looked at, whatever its name is by now
        ours = any(name in names for name in OURS[what])
        # A sticky one that has something in it is the host's, as /tmp, also where a store was put into it once.
        if [name for name in names if name != "lost+found"] and (mode & stat.S_ISVTX or not ours):
            raise _refused(what, path, f"is open to others (mode {mode:04o})", "a directory of pyctrd's own, mode 0700")
        os.fchmod(descriptor, PRIVATE_MODE)
        return f"mode was {mode:04o}, is {PRIVATE_MODE:04o}"
    finally:
        os.close(descriptor)


def check_file_system(path: Path) -> None:
    """See that a root's database can work there.

    Raises:
        UnsupportedError: It is on a network file system.
    """
    if (name := network_file_system(_core.file_system(path))) is not None:
        raise UnsupportedError(
            f"root on a network file system: {path}: {name}: expected one of this host alone",
            feature=f"root on {name}",
            needs="a file system of this host",
            hint="choose another --root; the database's log cannot be shared between hosts",
        )


def network_file_system(magic: int) -> str | None:
    """The name of a network file system, by statfs' number; None for one that may be this host's own."""
    return NETWORK_FILE_SYSTEMS.get(magic & 0xFFFFFFFF)


def _open(what: str, path: Path) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR) or not path.is_symlink():
            raise
    # Who administers the host may have put it elsewhere; a link of anybody else leads who knows where.
    if (owner := path.lstat().st_uid) not in (0, os.geteuid()):
        raise _refused(what, path, f"is a symbolic link of user {owner}", "a directory")
    return os.open(path, flags)


def _check_umask() -> None:
    """Directories that their own maker cannot enter help nobody. It is read from /proc: umask(2) would change it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return
    umask = status.partition("\nUmask:")[2].partition("\n")[0].strip()
    if umask and int(umask, 8) & PRIVATE_MODE:
        raise InvalidError(
            f"invalid umask: {umask}: expected one that leaves the owner's rights, as 0077",
            field="umask",
            value=umask,
        )


def _refused(what: str, path: Path, state: str, allowed: str) -> ConflictError:
    return ConflictError(
        f"{what} directory refused: {path}: {state}: expected {allowed}",
        kind="directory",
        name=str(path),
        state=state,
        allowed=allowed,
        hint=f"look at what is in it, then chown and chmod it, or choose another --{what}",
    )


def entries_of(directory: Path) -> list[Path]:
    """What is in a directory; nothing where there is none. Half as long as ``glob`` takes, and it loads nothing."""
    try:
        return [directory / name for name in os.listdir(directory)]  # noqa: PTH208 - iterdir does the same, more slowly
    except (FileNotFoundError, NotADirectoryError):
        return []
