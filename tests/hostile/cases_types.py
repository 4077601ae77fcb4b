"""L5: types, owners, devices, xattrs, times."""

from __future__ import annotations

import os
import stat

from tests.archives import MTIME, Tar, base_256, header, padded
from tests.hostile.canary import Outside
from tests.hostile.table import DIR, Block, Is, Seen, a_file, directory, link
from tests.images import CAPABILITY

BLOCK = Block()
accepted, refused = BLOCK.accepted, BLOCK.refused
SECOND_NS = 1_000_000_000
END = bytes(1024)


def up() -> Tar:
    return Tar()


accepted("L110", lambda _: [up().file("a", b"1").directory("a").symlink("a", "b").file("a", b"2")], {"a": b"2"})


def a_full_directory(_: Outside) -> list[Tar]:
    lower = up().directory("a")
    for number in range(1000):
        lower.file(f"a/{number}")
    return [lower, up().file("a", b"a")]


accepted("L111", a_full_directory, {"a": b"a"})
accepted("L112", lambda _: [up().file("a", b"a"), up().directory("a", mode=0o700)], {"a": directory(mode=0o700)})
accepted(
    "L113",
    lambda _: [
        up().directory("a", mode=0o700, uid=1).file("a/x", b"x"),
        up().directory("a", mode=0o1755, uid=5, gid=6, mtime=7).file("a/y", b"y"),
    ],
    {"a": directory(mode=0o1755, uid=5, gid=6, mtime_ns=7 * SECOND_NS), "a/x": b"x", "a/y": b"y"},
)
accepted(
    "L114",
    lambda _: [up().directory("a").file("a/x").file("a").directory("a")],
    {"a": DIR},
)
accepted(
    "L115",
    lambda _: [up().device("c", stat.S_IFCHR, 1, 3).device("b", stat.S_IFBLK, 7, 0).fifo("p")],
    {
        "c": Is("character", {"device": os.makedev(1, 3)}),
        "b": Is("block", {"device": os.makedev(7, 0)}),
        "p": Is("fifo"),
    },
)
refused(
    "L116",
    lambda _: [up().file("f", b"lower"), up().device("f", stat.S_IFCHR, 0, 0)],
    "0:0 is overlayfs' whiteout",
    entry=b"f",
)
BEYOND = "does not fit the kernel's"
refused("L117", lambda _: [header(b"c", kind=b"3", fields={329: base_256(1 << 32, 8)}) + END], BEYOND, entry=b"c")
refused("L117b", lambda _: [header(b"b", kind=b"4", fields={337: base_256(1 << 20, 8)}) + END], BEYOND, entry=b"b")
refused("L118", lambda _: [up().add("z", kind=b"Z")], "unknown entry type 'Z'", entry=b"z")
accepted(
    "L119",
    lambda _: [header(b"7", kind=b"7", size=1) + padded(b"a") + header(b"0", kind=b"\0", size=1) + padded(b"b") + END],
    {"7": b"a", "0": b"b"},
)
accepted("L120", lambda _: [up().file("f", b"f", mode=0o6755)], {"f": a_file(b"f", mode=0o6755, uid=0, gid=0)})
refused("L121", lambda _: [header(b"f", uid=base_256(-2, 8)) + END], "uid is out of range", entry=b"f")
refused("L121b", lambda _: [header(b"f", gid=base_256(0xFFFFFFFF, 8)) + END], "gid is out of range", entry=b"f")
accepted(
    "L122",
    lambda _: [up().file("f", b"f", uid=7, xattrs={"security.capability": CAPABILITY})],
    {"f": a_file(b"f", uid=7, xattrs=(("security.capability", CAPABILITY),))},
)


def no_marks(seen: Seen) -> None:
    for path in (seen.root, *seen.root.rglob("*")):
        assert [name for name in os.listxattr(path, follow_symlinks=False) if ".overlay." in name] == []


def no_records(seen: Seen) -> None:
    for path in (seen.root, *seen.root.rglob("*")):
        assert [name for name in os.listxattr(path, follow_symlinks=False) if "override_" in name] == []


def marked(marks: dict[str, bytes]) -> list[Tar]:
    lower = up().directory("d").file("d/low", b"low").directory("x").file("x/secret", b"secret").file("f", b"f")
    return [lower, up().directory("d", xattrs=marks).file("g", b"g", xattrs=marks)]


ALL = {"d/low": b"low", "x/secret": b"secret", "f": b"f", "g": b"g"}
accepted("L123", lambda _: marked({"trusted.overlay.opaque": b"y"}), ALL, check=no_marks)
accepted("L123b", lambda _: marked({"user.overlay.opaque": b"y"}), ALL, check=no_marks)
accepted(
    "L123c", lambda _: marked({"trusted.overlay.opaque": b"x", "trusted.overlay.whiteout": b""}), ALL, check=no_marks
)
accepted("L124", lambda _: marked({"trusted.overlay.redirect": b"/x"}), ALL, check=no_marks)
accepted(
    "L124b", lambda _: marked({"trusted.overlay.redirect": b"/f", "trusted.overlay.metacopy": b""}), ALL, check=no_marks
)
RECORD = b"7:7:4777:file"
accepted("L123d", lambda _: marked({"user.containers.override_stat": RECORD}), ALL, check=no_records)
accepted("L123e", lambda _: marked({"user.fuseoverlayfs.override_stat": RECORD}), ALL, check=no_records)
accepted("L123f", lambda _: marked({"security.fuseoverlayfs.override_stat": RECORD}), ALL, check=no_records)
accepted(
    "L123g",
    lambda _: marked({"user.containers.override_security.capability": CAPABILITY}),
    ALL,
    check=no_records,
)
accepted(
    "L125",
    lambda _: [
        up()
        .file("f", b"f", xattrs={"user.k": b"v"})
        .symlink("s", "f", xattrs={"user.k": b"v"})
        .fifo("p", xattrs={"user.k": b"v"})
    ],
    {
        "f": a_file(b"f", xattrs=(("user.k", b"v"),)),
        "s": Is("symlink", {"link": "f", "xattrs": ()}),
        "p": Is("fifo", {"xattrs": ()}),
    },
)
refused(
    "L127",
    lambda _: [up().file("f", xattrs={"user.k": bytes((1 << 16) + 1)})],
    "xattr value has 65537 bytes, over 65536: user.k",
    entry=b"f",
)
refused("L127b", lambda _: [up().file("f", xattrs={"user." + "k" * 251: b""})], "xattr name has 256 bytes", entry=b"f")
accepted(
    "L128",
    lambda _: [up().directory("d").file("d/a").directory("d/b").file("d/b/c").symlink("d/s", "b").file("d/s/e")],
    {
        "d": directory(mtime_ns=MTIME * SECOND_NS),
        "d/a": b"",
        "d/b": directory(mtime_ns=MTIME * SECOND_NS),
        "d/b/c": b"",
        "d/b/e": b"",
        "d/s": link("b"),
    },
)
accepted(
    "L129",
    lambda _: [up().file("zero", mtime=0).file("before", mtime=-5).file("far", mtime=1 << 33)],
    {
        "zero": a_file(mtime_ns=0),
        "before": a_file(mtime_ns=-5 * SECOND_NS),
        "far": a_file(mtime_ns=(1 << 33) * SECOND_NS),
    },
)
# Past what any disk keeps: the kernel takes the nearest time that it can.
accepted(
    "L129b", lambda _: [up().file("never", mtime=(1 << 62)).directory("d", mtime=-(1 << 62))], {"never": b"", "d": DIR}
)
