"""Directory trees compared entry by entry: everything that a tar can say of a file."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

# Larger files have holes, or no test could read them.
LARGE_BYTES = 1 << 30
DATA_BYTES = 1 << 16


@dataclass(frozen=True)
class Facts:
    """All of one name."""

    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    content: str
    link: str
    device: int
    xattrs: tuple[tuple[str, bytes], ...]
    same_as: bytes


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


def read_tree(root: Path, *, content: bool = True) -> dict[bytes, Facts]:
    """Every name below ``root``, and the root itself as b"."; overlayfs' own marks are left out."""
    found: dict[bytes, Facts] = {}
    names: dict[tuple[int, int], list[bytes]] = {}
    # Through a descriptor: a path below the root may be as long as a path can be, with nothing in front of it.
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        pending = [b"."]
        while pending:
            name = pending.pop()
            path = b"/proc/self/fd/%d/%s" % (descriptor, name)
            found[name] = _facts(path, name, names, content=content)
            if found[name].type == "directory":
                prefix = b"" if name == b"." else name + b"/"
                pending.extend(prefix + child for child in sorted(os.listdir(path), reverse=True))
    finally:
        os.close(descriptor)
    # A link count may tell of names that a mount hides: what counts is what can be seen.
    for group in names.values():
        if len(group) > 1:
            for name in group:
                found[name] = replace(found[name], same_as=min(group))
    return found


def _facts(path: bytes, name: bytes, names: dict[tuple[int, int], list[bytes]], *, content: bool) -> Facts:
    found = os.lstat(path)
    kind = _TYPES[stat.S_IFMT(found.st_mode)]
    if kind != "directory":
        names.setdefault((found.st_dev, found.st_ino), []).append(name)
    return Facts(
        type=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        size=found.st_size if kind in ("file", "symlink") else 0,
        content=_digest(path) if kind == "file" and content else "",
        link=os.fsdecode(os.readlink(path)) if kind == "symlink" else "",
        device=found.st_rdev if kind in ("character", "block") else 0,
        xattrs=tuple(
            sorted(
                (key, os.getxattr(path, key, follow_symlinks=False))
                for key in os.listxattr(path, follow_symlinks=False)
                if ".overlay." not in key
            )
        ),
        same_as=b"",
    )


def _digest(path: bytes) -> str:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > LARGE_BYTES:
            return _digest_of_data(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_data(descriptor: int) -> str:
    """As good as the digest of a file that is nearly all holes: of what is not zero, and where it stands."""
    found = hashlib.sha256()
    size = os.fstat(descriptor).st_size
    at = 0
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole to the end
                break
            raise
        end = os.lseek(descriptor, at, os.SEEK_HOLE)
        at -= at % DATA_BYTES
        while at < end:
            block = os.pread(descriptor, DATA_BYTES, at)
            if block.strip(b"\0"):
                found.update(b"%d:" % at + block)
            at += DATA_BYTES
    return found.hexdigest()


def differences(
    expected: dict[bytes, Facts], actual: dict[bytes, Facts], *, ignore: frozenset[str] = frozenset()
) -> list[str]:
    """What differs, a line for each name; empty for equal trees."""
    lines = []
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            lines.append(f"{os.fsdecode(name)}: is missing")
        elif name not in expected:
            lines.append(f"{os.fsdecode(name)}: should not be there")
        else:
            wanted, got = expected[name], actual[name]
            lines.extend(
                f"{os.fsdecode(name)}: {field}: expected {getattr(wanted, field)!r}, got {getattr(got, field)!r}"
                for field in Facts.__dataclass_fields__
                if field not in ignore and getattr(wanted, field) != getattr(got, field)
            )
    return lines
