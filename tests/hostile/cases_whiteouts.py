"""L4: whiteouts."""

from __future__ import annotations

from tests.archives import Tar
from tests.hostile.canary import Outside
from tests.hostile.table import DIR, Block, link

BLOCK = Block()
accepted, refused = BLOCK.accepted, BLOCK.refused
NOTHING = "whiteout names nothing"


def up() -> Tar:
    return Tar()


def etc() -> Tar:
    return up().directory("etc").file("etc/x", b"x")


refused("L080", lambda _: [etc(), up().file(".wh...")], NOTHING, entry=b".wh...")
refused("L081", lambda _: [etc(), up().file("etc/.wh...")], NOTHING, entry=b"etc/.wh...")
refused("L082", lambda _: [etc(), up().file(".wh..")], NOTHING, entry=b".wh..")
refused("L083", lambda _: [etc(), up().file("etc/.wh..")], NOTHING, entry=b"etc/.wh..")
refused("L084", lambda _: [etc(), up().file(".wh.")], NOTHING, entry=b".wh.")
refused("L084b", lambda _: [etc(), up().file("etc/.wh.")], NOTHING, entry=b"etc/.wh.")
accepted("L085", lambda _: [up().file("a").file("b"), up().file(".wh..wh..opq").file("c", b"c")], {"c": b"c"})
accepted("L086", lambda _: [up().file("x").file("y", b"y"), up().whiteout("x")], {"y": b"y"})
accepted("L087", lambda _: [up().file("y", b"y"), up().whiteout("x")], {"y": b"y"})
# The folder that the marker stands in comes to be, as one that no entry lists.
accepted("L088", lambda _: [up().file("y", b"y"), up().file("d/.wh.x")], {"d": DIR, "y": b"y"})
accepted(
    "L089",
    lambda _: [up().directory("d").file("d/o"), up().opaque("d").file("d/n", b"n")],
    {"d/n": b"n"},
)
accepted(
    "L090",
    lambda _: [up().directory("d/s").file("d/s/o"), up().opaque("d").file("d/s/n", b"n")],
    {"d/s/n": b"n"},
)
accepted("L091", lambda _: [etc().symlink("l", "/etc"), up().whiteout("l")], {"etc/x": b"x"})
accepted("L092", lambda out: [up().symlink("l", f"{out.path}/dir").file("y"), up().whiteout("l")], {"y": b""})
# Markers go through links as other names do.
accepted("L093", lambda _: [etc().symlink("l", "/etc"), up().whiteout("l/x")], {"l": link("/etc"), "etc": DIR})
accepted(
    "L094",
    lambda out: [up().symlink("l", f"{out.path}/dir"), up().whiteout("l/inner")],
    lambda out: {"l": link(f"{out.path}/dir"), f"{out.inside}/dir": DIR},
)
accepted(
    "L094b",
    lambda out: [up().symlink("l", f"{out.path}/dir"), up().opaque("l")],
    lambda out: {"l": link(f"{out.path}/dir"), f"{out.inside}/dir": DIR},
)
accepted(
    "L095",
    lambda _: [etc().symlink("l", "/dne"), up().file("l/.wh.etc")],
    {"l": link("/dne"), "dne": DIR, "etc/x": b"x"},
)
accepted("L096", lambda _: [etc(), up().file(".wh.etc/somefile", b"s")], {".wh.etc/somefile": b"s", "etc/x": b"x"})
accepted("L097", lambda _: [etc().file("y", b"y"), up().file("dne/../.wh.etc")], {"dne": DIR, "y": b"y"})
accepted("L097b", lambda _: [etc(), up().file("../../.wh.etc").file("y", b"y")], {"y": b"y"})
accepted(
    "L098",
    lambda _: [up().file("x"), up().file(".wh.x", b"ten bytes!").file("y", b"y")],
    {"y": b"y"},
)
accepted("L099", lambda _: [up().file("x", b"old"), up().whiteout("x").file("x", b"new")], {"x": b"new"})
accepted("L099b", lambda _: [up().file("x", b"old"), up().file("x", b"new").whiteout("x")], {"x": b"new"})
accepted("L100", lambda _: [up().directory("x").file("x/c"), up().whiteout("x").file("x", b"x")], {"x": b"x"})


def many_markers(_: Outside) -> list[Tar]:
    lower, upper = up().directory("d"), up()
    for number in range(10_000):
        lower.file(f"d/{number}") if number % 10 == 0 else None
        upper.whiteout(f"d/{number}")
    return [lower, upper]


accepted("L102", many_markers, {"d": DIR}, slow=True)
# Names that are reserved make nothing, whatever they are.
accepted(
    "L088b",
    lambda _: [up().file(".wh..wh.plnk").directory(".wh..wh.orph").symlink("d/.wh..wh.x", "/").file("y", b"y")],
    {"d": DIR, "y": b"y"},
)
