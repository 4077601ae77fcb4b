"""L1: names."""

from __future__ import annotations

from tests.archives import Tar, header, padded, pax_header
from tests.hostile.canary import Outside
from tests.hostile.table import DIR, Block, directory

BLOCK = Block()
accepted, refused = BLOCK.accepted, BLOCK.refused

# Names that go up are read as if the root were "/": they end in it.
accepted("L001", lambda _: [Tar().file("../outside/victim", b"x")], {"outside/victim": b"x"})
accepted(
    "L002",
    lambda out: [Tar().file("../" * 40 + out.absent.removeprefix("/"), b"x")],
    lambda out: {out.absent.removeprefix("/"): b"x"},
)
accepted("L003", lambda out: [Tar().file(f"{out.path}/victim", b"x")], lambda out: {f"{out.inside}/victim": b"x"})
accepted(
    "L004",
    lambda _: [Tar().file("a/b/../../../outside/victim", b"x")],
    {"a/b": DIR, "outside/victim": b"x"},
)
accepted(
    "L005",
    lambda _: [Tar().file("./a", b"1").file("././b", b"2").file(".//c", b"3")],
    {"a": b"1", "b": b"2", "c": b"3"},
)
accepted(
    "L006",
    lambda _: [Tar().directory("./", mode=0o755).file("x", b"x")],
    {".": directory(mode=0o755), "x": b"x"},
)
IS_A_DIRECTORY = "comes down to a directory that is there"
refused("L007", lambda _: [Tar().file("", b"x")], IS_A_DIRECTORY, entry=b"")
refused("L008", lambda _: [Tar().symlink("", "/etc/")], IS_A_DIRECTORY, entry=b"")
refused("L009", lambda out: [Tar().symlink(".", out.path), Tar().file("x", b"x")], "its name comes down", entry=b".")
refused(
    "L010",
    lambda out: [Tar().symlink("..", out.path).hardlink("p", "etc/passwd")],
    "its name comes down",
    entry=b"..",
)
NAME_100 = b"n" * 100
accepted("L011", lambda _: [header(NAME_100, size=1) + padded(b"x") + bytes(1024)], {NAME_100: b"x"})
accepted("L012", lambda _: [Tar().file("n" * 255, b"x")], {"n" * 255: b"x"})
refused("L013", lambda _: [Tar().file("d/" + "n" * 256, b"x")], "component longer than 255", entry=b"d/" + b"n" * 256)
LONG = "/".join([chr(ord("a") + number) * 249 for number in range(16)])
accepted("L014", lambda _: [Tar().file(LONG, b"x")], {LONG: b"x"})
refused("L014b", lambda _: [Tar().file("a/" * 2048 + "x")], "over the limit name_bytes")
accepted("L015", lambda _: [Tar().file(b"\xff\xfe", b"x")], {b"\xff\xfe": b"x"})
CONTROLS = b"a\nb\tc\x1b[31md"
accepted("L016", lambda _: [Tar().file(CONTROLS, b"x")], {CONTROLS: b"x"})
# A refusal that names such an entry escapes it.
refused("L016b", lambda _: [Tar().add(CONTROLS, kind=b"Z")], "unknown entry type", entry=CONTROLS)
refused("L017", lambda _: [pax_header({"path": b"a\0b"}) + header(b"x") + bytes(1024)], "path has a NUL")
# v7 meant a folder by the slash: it has no data, and what stands in its place is no header.
refused("L018", lambda _: [Tar().file("dir/", b"abc")], "a directory by its name")
accepted("L018b", lambda _: [Tar().file("dir/")], {"dir": DIR})
accepted(
    "L019",
    lambda _: [Tar().file("x/y/z", b"z")],
    {"x": directory(mode=0o755, uid=0, gid=0), "x/y": directory(mode=0o755, uid=0, gid=0), "x/y/z": b"z"},
)
refused("L020", lambda _: [Tar().file("a", b"a").file("a/b", b"b")], "parent of its name is no directory", entry=b"a/b")
refused("L021", lambda _: [Tar().file("a", b"a"), Tar().file("a/b", b"b")], "parent of its .* no directory")
DEEP = "/".join(["d"] * 1000)
accepted("L022", lambda _: [Tar().file(f"{DEEP}/f", b"x")], {f"{DEEP}/f": b"x"})
accepted("L023", lambda _: [Tar().file("Name", b"1").file("name", b"2")], {"Name": b"1", "name": b"2"})
accepted(
    "L024",
    lambda _: [Tar().file("proc/self/exe", b"e").file("dev/null", b"n").file("sys/x", b"s")],
    {"proc/self/exe": b"e", "dev/null": b"n", "sys/x": b"s"},
)
accepted(
    "L025",
    lambda out: [pax_header({"path": f"{out.path}/victim".encode()}) + header(b"harmless", size=1) + padded(b"x")],
    lambda out: {f"{out.inside}/victim": b"x"},
)
SHORT = [bytes([byte]) for byte in range(1, 256) if byte not in b"./"]


def many_entries(_: Outside) -> list[bytes]:
    blocks = [header(b"d/" + name) for name in SHORT]
    return [b"".join(blocks[number % len(blocks)] for number in range(200_000))]


accepted("L026", many_entries, {b"d/" + name: b"" for name in SHORT}, slow=True)


# Not in the table: links that lead to the depth of another link make a tree deeper than any path can say.
def deeper_than_a_path(_: Outside) -> list[Tar]:
    way = "/".join(["d"] * 1500)
    return [Tar().symlink("a", way).symlink("b", f"a/{way}").symlink("c", f"b/{way}").file("c/f", b"x")]


refused("L022b", deeper_than_a_path, "over the limit depth", entry=b"c/f")


def deeper_layer_by_layer(_: Outside) -> list[Tar]:
    way = "/".join(["d"] * 1500)
    return [Tar().symlink("a", way), Tar().file("a/f").symlink("b", f"a/{way}"), Tar().file("b/f", b"x")]


refused("L022c", deeper_layer_by_layer, "over the limit depth|longer than 4095 bytes")
