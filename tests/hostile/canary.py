"""What no archive may touch: folders around every root, watched to the last inode."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OWNER, GROUP = 1212, 3434
LONG_AGO_NS = 1_000_000_000_123_456_789
FILES = {"victim": 0o640, "perm400": 0o400, "dir/inner": 0o604}


class Outside:
    """A folder ``outside`` beside a root and beside each of its parents, and one more at a path of its own.

    Args:
        place: Where roots are made.
        top: The highest parent that is the test's own.

    Attributes:
        path: The absolute path of the last one, which an archive can name.
        inside: The same as a name in an archive, so that it leads to somewhere in the root.
        absent: An absolute path that must never come to be.
    """

    def __init__(self, place: Path, *, top: Path) -> None:
        self._parents = [place, *(parent for parent in place.parents if parent.is_relative_to(top))]
        # On the roots' own disk, where a hard link could be made.
        self._absolute = Path(tempfile.mkdtemp(prefix="pyctrd-outside-", dir=top.parent))
        self.path = str(self._absolute)
        self.inside = self.path.removeprefix("/")
        self.absent = f"{top.parent}/pyctrd-absent-{secrets.token_hex(8)}"
        self._folders = [self._absolute, *(parent / "outside" for parent in self._parents)]
        for folder in self._folders:
            _fill(folder)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Fail where anything of it changes in a ``with`` block, however that ends."""
        before = self._look()
        try:
            yield
        finally:
            changes = _changes(before, self._look())
            assert not changes, f"canary changed: {changes}"

    def remove(self) -> None:
        """Take away the one that is not below the test's own directory."""
        shutil.rmtree(self._absolute)

    def _look(self) -> dict[str, object]:
        found: dict[str, object] = {
            str(parent): sorted(path.name for path in parent.iterdir()) for parent in self._parents
        }
        found[self.absent] = os.path.lexists(self.absent)
        for folder in self._folders:
            for path in (folder, *folder.rglob("*")):
                found[f"{path} itself"] = _state(path)
        return found


@dataclass(frozen=True)
class State:
    """Of one name: all but the time of its last reading."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    links: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]


def _state(path: Path) -> State:
    found = path.lstat()
    return State(
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        inode=found.st_ino,
        links=found.st_nlink,
        content=hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(found.st_mode) else "",
        xattrs=tuple(
            sorted(
                (name, os.getxattr(path, name, follow_symlinks=False))
                for name in os.listxattr(path, follow_symlinks=False)
            )
        ),
    )


def _fill(folder: Path) -> None:
    (folder / "dir").mkdir(parents=True, exist_ok=True)
    (folder / "dir").chmod(0o750)
    for name, mode in FILES.items():
        path = folder / name
        path.write_bytes(f"{name} outside\n".encode())
        path.chmod(mode)
    for name in (*FILES, "dir", "."):
        path = folder / name
        os.chown(path, OWNER, GROUP)
        os.setxattr(path, "user.canary", b"outside")
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def _changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [
        f"{name}: {before.get(name)} became {after.get(name)}" for name in names if before.get(name) != after.get(name)
    ]
