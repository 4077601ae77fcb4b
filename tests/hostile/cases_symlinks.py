"""L2: symbolic links."""

from __future__ import annotations

from tests.archives import Tar, header, pax_header
from tests.hostile.canary import Outside
from tests.hostile.table import DIR, Block, Holds, Is, directory, link

BLOCK = Block()
accepted, refused = BLOCK.accepted, BLOCK.refused
XATTRS = {"user.base": b"base"}


def up() -> Tar:
    return Tar()


accepted(
    "L030",
    lambda _: [up().symlink("e", "/etc").directory("etc").file("e/x", b"x")],
    {"e": link("/etc"), "etc/x": b"x"},
)


# Where a link's target is not there, it is made, inside: the tree is the whole world.
def led_inside(name: str, target: str, where: str) -> Holds:
    return {name: link(target), where: b"x"}


accepted(
    "L031",
    lambda out: [up().symlink("e", out.path).file("e/victim", b"x")],
    lambda out: led_inside("e", out.path, f"{out.inside}/victim"),
)
accepted(
    "L032",
    lambda _: [up().symlink("e", "../../outside").file("e/victim", b"x")],
    led_inside("e", "../../outside", "outside/victim"),
)
accepted(
    "L033",
    lambda _: [up().symlink("a", "b").symlink("b", "c").symlink("c", "../outside").file("a/victim", b"x")],
    {"a": link("b"), "b": link("c"), "c": link("../outside"), "outside/victim": b"x"},
)


def a_link_and_a_folder_in_turn(out: Outside) -> list[Tar]:
    tmp = f"foo{out.absent}"
    parent = tmp.rpartition("/")[0]
    tar = up().directory("foo").directory(parent).symlink("foo", "/").file(tmp, b"first")
    return [tar.directory("foo").directory(parent).file(tmp, b"last")]


accepted(
    "L034",
    a_link_and_a_folder_in_turn,
    lambda out: {f"foo{out.absent}": b"last", out.absent.removeprefix("/"): b"first"},
)
accepted(
    "L035",
    lambda out: [up().directory("x").file("x/1").symlink("x", out.path).file("x/2", b"2")],
    lambda out: {"x": link(out.path), f"{out.inside}/2": b"2"},
)
accepted(
    "L036",
    lambda out: [up().symlink("x", f"{out.path}/dir").directory("x", mode=0o777)],
    {"x": directory(mode=0o777)},
)
accepted("L037", lambda out: [up().symlink("x", f"{out.path}/victim").file("x", b"x")], {"x": b"x"})
LOOP = "too many levels of symbolic links"
refused("L038", lambda _: [up().symlink("x", "x").file("x/y")], LOOP, entry=b"x/y")
refused("L039", lambda _: [up().symlink("a", "b").symlink("b", "a").file("a/y")], LOOP, entry=b"a/y")
accepted(
    "L040",
    lambda out: [up().symlink("data", out.path), up().file("data/victim", b"x")],
    lambda out: {"data": link(out.path), f"{out.inside}/victim": b"x"},
)
accepted(
    "L041",
    lambda out: [up().symlink("data", f"{out.path}/dir"), up().directory("data", mode=0o777).file("data/n", b"n")],
    {"data": directory(mode=0o777), "data/n": b"n"},
)
accepted(
    "L042",
    lambda _: [up().directory("data").file("data/x", b"x"), up().symlink("data", "/etc")],
    {"data": link("/etc")},
)
accepted(
    "L043",
    lambda _: [up().symlink("d", "/nowhere").file("d/x", b"x")],
    {"d": link("/nowhere"), "nowhere/x": b"x"},
)
refused("L044", lambda _: [up().symlink("s", "")], "without a target", entry=b"s")
refused("L045", lambda _: [up().symlink("s", "t" * 5000)], "longer than 4095", entry=b"s")
# One that fits is never cut.
accepted("L045b", lambda _: [up().symlink("s", "t/" * 2000)], {"s": link("t/" * 2000)})
TARGET = b"\xff\xfe\n"
accepted(
    "L046",
    lambda _: [up().symlink("s", TARGET)],
    {"s": Is("symlink", {"link": TARGET.decode(errors="surrogateescape")})},
)
accepted(
    "L047",
    lambda _: [header(b"s", kind=b"2", link=b"t", size=512) + header(b"f") + bytes(1024)],
    {"s": link("t"), "f": b""},
)
accepted(
    "L048",
    lambda _: [up().symlink("bin", "usr/bin").directory("usr/bin").file("bin/tool", b"tool")],
    {"bin": link("usr/bin"), "usr/bin/tool": b"tool"},
)
accepted(
    "L051",
    lambda _: [up().symlink("bin", "usr/bin").directory("usr/bin"), up().file("bin/tool", b"tool")],
    {"bin": link("usr/bin"), "usr/bin/tool": b"tool"},
)


def parents(mode: int, owner: int) -> Tar:
    return up().directory("tmp", mode=mode).directory("srv", uid=owner, xattrs={"user.base": b"%d" % owner})


def kept(mode: int, owner: int) -> Holds:
    srv = directory(uid=owner, xattrs=(("user.base", b"%d" % owner),))
    return {"tmp": directory(mode=mode), "tmp/x": b"x", "srv": srv, "srv/y": b"y"}


def unlisted(_: Outside) -> Tar:
    return up().file("tmp/x", b"x").file("srv/y", b"y")


accepted("L052", lambda out: [parents(0o1777, 1000), unlisted(out)], kept(0o1777, 1000))
# Names that lead out through nothing but "..", in a link and through PAX.
accepted(
    "L032b",
    lambda out: [
        pax_header({"linkpath": b"../" * 60 + b"outside"}) + header(b"e", kind=b"2") + up().file("e/n", b"n").build()
    ],
    lambda _: {"e": link("../" * 60 + "outside"), "outside/n": b"n"},
)
accepted("L036b", lambda _: [up().symlink("x", "/dev").directory("x").directory("x/shm")], {"x/shm": DIR})
