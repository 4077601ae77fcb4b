"""Stacks of layers, snapshots of them, and what is to be seen of these."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyctrd.snapshots.protocol import LayerForm, LayerRef, Snapshot, Snapshotter
from tests.layers.model import SECOND_NS, Layer
from tests.layers.ways import ingest
from tests.trees import Facts, read_tree

Makes = Callable[[Snapshotter, str, Sequence[LayerRef]], Snapshot]


XATTRS = {"user.note": b"lower \0\xff", "trusted.t": b"\0"}
KINDS: dict[str, Makes] = {
    "active": lambda snapshotter, key, layers: snapshotter.prepare(key, layers),
    "view": lambda snapshotter, key, layers: snapshotter.view(key, layers),
}


def base() -> Layer:
    """Something of each kind, with attributes that show whose they are."""
    layer = Layer().directory("./", mode=0o711, uid=8, gid=9, mtime_ns=8 * SECOND_NS + 7)
    layer.directory("d", mode=0o1770, uid=1, gid=2, mtime_ns=3 * SECOND_NS, xattrs=XATTRS)
    layer.file("d/f", b"lower", mode=0o640, uid=3, mtime_ns=4 * SECOND_NS, xattrs=XATTRS)
    layer.directory("d/sub", mode=0o700).file("d/sub/g", b"g").symlink("l", "d").file("f", b"f", mode=0o4755, gid=5)
    return layer.hardlink("f2", "f").fifo("p").device("c", 0o020000, 1, 3)


def marked(mark: str) -> Layer:
    """A layer that needs its base: an implied parent, and a link to a lower file."""
    return Layer().file(f"d/{mark}", mark.encode()).hardlink(f"link-{mark}", "f")


STACKS: dict[str, Callable[[], list[Layer]]] = {
    "no-layers": list,
    "one-layer": lambda: [base()],
    "an-empty-layer": lambda: [Layer()],
    "whiteouts": lambda: [base(), Layer().whiteout("d/f").whiteout("f").whiteout("l").whiteout("none")],
    "a-whiteout-and-its-replacement": lambda: [base(), Layer().whiteout("d").file("d/n", b"new")],
    "an-opaque-directory": lambda: [base(), Layer().opaque("d").file("d/n"), Layer().file("d/m")],
    "an-opaque-root": lambda: [base(), Layer().file("n").opaque(".")],
    "implied-parents": lambda: [base(), Layer().file("d/n").file("d/sub/n").file("new/parent/n")],
    "implied-parents-twice": lambda: [base(), Layer().file("d/n"), Layer().file("d/sub/m")],
    "links-to-lower-files": lambda: [base(), Layer().hardlink("d/h", "f").hardlink("h", "l/f").hardlink("i", "h")],
    "a-link-to-a-lower-file-that-goes": lambda: [base(), Layer().hardlink("h", "f").whiteout("f").whiteout("f2")],
    "attributes-of-an-upper-layer": lambda: [
        base(),
        Layer().directory("d", mode=0o755, uid=6, mtime_ns=1, xattrs={"user.note": b"upper"}).file("f", mode=0o600),
    ],
    "the-root-of-an-upper-layer": lambda: [base(), Layer().directory("./", mode=0o1777, uid=4, gid=5, mtime_ns=9)],
    "the-root-of-the-lowest-layer": lambda: [base(), Layer().file("n"), Layer().file("m")],
    "no-layer-lists-the-root": lambda: [Layer().file("a/n"), Layer().file("m")],
    "one-kind-over-another": lambda: [base(), Layer().file("d").directory("f").symlink("c", "p").fifo("l")],
    "one-layer-twice": lambda: [base(), base()],
    "one-layer-twice-around-another": lambda: [base(), marked("a"), Layer().whiteout("d").file("f", b"2"), base()],
    "a-layer-twice-that-needs-its-base": lambda: [base(), marked("a"), Layer().file("f", b"2"), marked("a")],
    "120-layers": lambda: [base(), *(marked(f"{number}") for number in range(119))],
}

REFUSED: dict[str, Callable[[], Layer]] = {
    "a-link-to-a-lower-file-that-is-not-there": lambda: Layer().hardlink("h", "none"),
    "a-link-to-a-lower-directory": lambda: Layer().hardlink("h", "d"),
    "a-parent-that-is-a-lower-file": lambda: Layer().file("f/x"),
}


def stack(root: Path, *layers: Layer, form: LayerForm | None = None) -> list[LayerRef]:
    """Layers, brought into the store as a pull does."""
    return [ingest(root, layer.build(), form=form) for layer in layers]


def needy(root: Path, mark: str = "a") -> list[LayerRef]:
    """A stack for which overlayfs needs more than the layers' own directories."""
    return stack(root, base(), marked(mark))


@contextmanager
def shown(snapshotter: Snapshotter, snapshot: Snapshot, directory: Path) -> Iterator[Path]:
    """A snapshot, mounted on a directory of its own for the length of a ``with`` block."""
    target = directory / f"shown-{secrets.token_hex(4)}"
    target.mkdir()
    snapshotter.mount(snapshot, target)
    try:
        yield target
    finally:
        snapshotter.unmount(target)
    target.rmdir()


def view_of(snapshotter: Snapshotter, snapshot: Snapshot, directory: Path) -> dict[bytes, Facts]:
    """All that a snapshot shows."""
    with shown(snapshotter, snapshot, directory) as target:
        return read_tree(target)


def keys(snapshotter: Snapshotter) -> list[str]:
    return [snapshot.key for snapshot in snapshotter.walk()]


def on_disk(root: Path) -> set[str]:
    """What is in the directory of snapshots. What is on the way out is never left."""
    assert list((root / "trash").iterdir()) == []
    return {path.name for path in (root / "snapshots").iterdir()}


def states(root: Path) -> dict[Path, tuple[int, int, int]]:
    """Every name below the directory of snapshots, with what any change of it would change."""
    found = {path: path.lstat() for path in (root / "snapshots").rglob("*")}
    return {path: (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in found.items()}


def bytes_below(directory: Path) -> int:
    found = {(stat.st_dev, stat.st_ino): stat.st_blocks * 512 for stat in map(Path.lstat, directory.rglob("*"))}
    return sum(found.values())


def is_mounted(target: Path) -> bool:
    with Path("/proc/self/mounts").open() as file:
        return any(line.split()[1] == str(target) for line in file)


def change_everything(target: Path) -> None:
    """Change a stack's files in every way there is to change one."""
    with (target / "d" / "f").open("ab") as file:
        file.write(b" and more")
    os.truncate(target / "d" / "a", 0)
    (target / "new-name").hardlink_to(target / "f")
    (target / "new-name").write_bytes(b"through a link to a lower file")
    (target / "f2").chmod(0o600)
    os.chown(target / "f2", 77, 88)
    os.utime(target / "f2", ns=(1, 2))
    os.setxattr(target / "d" / "f", "user.note", b"changed")
    os.removexattr(target / "d" / "f", "trusted.t")
    (target / "d").chmod(0o755)
    shutil.rmtree(target / "d" / "sub")
    (target / "d" / "sub").mkdir()
    (target / "l").unlink()
    (target / "p").rename(target / "q")
    (target / "c").unlink()
    (target / "c").write_bytes(b"was a device")
    target.chmod(0o755)
    os.utime(target, ns=(3, 4))
