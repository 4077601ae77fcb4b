"""Directories that nobody thought of: steps drawn by hypothesis, done with plain calls."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

# Few, so that they meet; odd, so that nothing takes them for text; none too long to be whited out.
NAMES = (b"a", b"b", b"a-b", b".c", b"caf\xc3\xa9", b"\xff\n\x1b[0m", b"=x", b"n" * 251, b"m" * 200)
KINDS = ("file", "file", "directory", "directory", "symlink", "fifo", "character", "block", "sparse")
MIB = 1 << 20


@dataclass(frozen=True)
class Step:
    """One thing done to a tree."""

    does: str
    path: tuple[bytes, ...]
    other: tuple[bytes, ...] = ()
    kind: str = "file"
    content: bytes = b""
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    mtime_ns: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
times = st.sampled_from(
    (0, 1, -1, -1_500_000_000, 1_600_000_000_123_456_789, 1_700_000_000_000_000_000, 2_000_000_000_100_000_000)
)
xattrs = st.sampled_from(
    (
        (),
        (),
        ((b"user.k", b"v"),),
        ((b"trusted.k", b"\0\xff=\n"), (b"user.a=b%", b"")),
        ((b"trusted.\xff", b"x" * 3000),),
    )
)


def steps(*does: str) -> st.SearchStrategy[list[Step]]:
    """A few steps, each of them doing one of these."""
    return st.lists(
        st.builds(
            Step,
            does=st.sampled_from(does),
            path=paths,
            other=paths,
            kind=st.sampled_from(KINDS),
            content=st.sampled_from((b"", b"x", b"y", b"z" * 5000)),
            mode=st.sampled_from((0o644, 0o755, 0o700, 0o2775, 0o1777, 0o4711, 0)),
            owner=st.sampled_from(((0, 0), (7, 1000), (3_000_000, 4_294_967_294))),
            mtime_ns=times,
            xattrs=xattrs,
        ),
        max_size=12,
    )


makings = steps("make", "make", "make", "link")
changings = steps("make", "remove", "remove", "rename", "link", "write", "attributes", "times")


def do(root: Path, what: Sequence[Step]) -> None:
    """Do the steps, but for those that the kernel refuses: nothing is where they look."""
    for step in what:
        try:
            _DOES[step.does](_below(root, step.path), _below(root, step.other), step)
        except OSError:
            continue


def _below(root: Path, parts: Sequence[bytes]) -> Path:
    return root.joinpath(*map(os.fsdecode, parts))


def _make(path: Path, _other: Path, step: Step) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(path, path, step)
    if step.kind == "directory":
        path.mkdir()
    elif step.kind == "symlink":
        path.symlink_to(os.fsdecode(step.other[0] + b"/" + step.content[:300]))
    elif step.kind in ("file", "sparse"):
        with path.open("xb") as file:
            file.write(step.content)
            if step.kind == "sparse":
                file.seek(MIB)
                file.write(step.content[:1])
                file.truncate(MIB + 10_000)
    else:
        kinds = {"fifo": stat.S_IFIFO, "character": stat.S_IFCHR, "block": stat.S_IFBLK}
        os.mknod(path, kinds[step.kind] | 0o600, os.makedev(1, 3))
    _attributes(path, path, step)


def _attributes(path: Path, _other: Path, step: Step) -> None:
    os.chown(path, *step.owner, follow_symlinks=False)
    kind = stat.S_IFMT(path.lstat().st_mode)
    if kind != stat.S_IFLNK:
        path.chmod(step.mode)
    for name in os.listxattr(path, follow_symlinks=False):
        os.removexattr(path, name, follow_symlinks=False)
    for key, value in step.xattrs:
        if not key.startswith(b"user.") or kind in (stat.S_IFREG, stat.S_IFDIR):
            os.setxattr(path, key, value, follow_symlinks=False)
    _times(path, path, step)


def _times(path: Path, _other: Path, step: Step) -> None:
    os.utime(path, ns=(step.mtime_ns, step.mtime_ns), follow_symlinks=False)


def _remove(path: Path, _other: Path, _step: Step) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _rename(path: Path, other: Path, _step: Step) -> None:
    path.rename(other)


def _link(path: Path, other: Path, _step: Step) -> None:
    os.link(path, other, follow_symlinks=False)


def _write(path: Path, _other: Path, step: Step) -> None:
    found = path.lstat()
    if stat.S_ISREG(found.st_mode):
        with path.open("r+b") as file:
            file.write(step.content)
        # As it was, but for the content: what looks at times alone sees nothing.
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


_DOES: dict[str, Callable[[Path, Path, Step], None]] = {
    "make": _make,
    "attributes": _attributes,
    "times": _times,
    "remove": _remove,
    "rename": _rename,
    "link": _link,
    "write": _write,
}


def copy_tree(source: Path, target: Path) -> Path:
    """A copy with everything: owners, times, xattrs, hard links, holes."""
    subprocess.run(["cp", "-a", "--sparse=auto", f"{source}/.", str(target)], check=True)
    return target
