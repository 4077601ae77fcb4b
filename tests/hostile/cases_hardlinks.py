"""L3: hard links."""

from __future__ import annotations

from tests.archives import Tar
from tests.hostile.canary import Outside
from tests.hostile.table import Block, Seen, a_file, directory, link

BLOCK = Block()
accepted, refused = BLOCK.accepted, BLOCK.refused
MISSING = "hard link to what (is not there|no layer below has)"
TO_A_DIRECTORY = "hard link to a directory"


def up() -> Tar:
    return Tar()


def one_inode(*names: str) -> dict[str, object]:
    """Facts of names that are one file."""
    return {"same_as": min(name.encode() for name in names)}


refused("L060", lambda out: [up().hardlink("x", f"{out.path}/victim")], MISSING, entry=b"x")
refused("L061", lambda _: [up().hardlink("x", "../../outside/victim")], MISSING, entry=b"x")
accepted(
    "L062",
    lambda _: [up().file("etc/p", b"p").symlink("e", "/etc").hardlink("x", "e/p")],
    {
        "etc/p": a_file(b"p", **one_inode("etc/p", "x")),
        "e": link("/etc"),
        "x": a_file(b"p", **one_inode("etc/p", "x")),
    },
)
refused("L063", lambda out: [up().symlink("e", out.path).hardlink("x", "e/victim")], MISSING, entry=b"x")
accepted(
    "L064",
    lambda _: [up().file("etc/p", b"p").hardlink("x", "../../../../etc/p")],
    {"etc/p": a_file(b"p", **one_inode("etc/p", "x")), "x": a_file(b"p", **one_inode("etc/p", "x"))},
)
refused("L065", lambda _: [up().hardlink("x", "later").file("later")], MISSING, entry=b"x")
refused("L066", lambda _: [up().hardlink("x", "never")], MISSING, entry=b"x")
refused("L067", lambda _: [up().directory("d").hardlink("x", "d")], TO_A_DIRECTORY, entry=b"x")
refused("L068", lambda _: [up().hardlink("x", "x")], MISSING, entry=b"x")
accepted(
    "L069",
    lambda _: [up().symlink("p", "/etc/passwd").hardlink("q", "p").file("etc/passwd", b"root")],
    {"p": link("/etc/passwd"), "q": link("/etc/passwd"), "etc/passwd": b"root"},
)
accepted(
    "L070",
    lambda out: [up().symlink("a", f"{out.path}/perm400").add("b", kind=b"1", link="a", mode=0o777)],
    lambda out: {"a": link(f"{out.path}/perm400"), "b": link(f"{out.path}/perm400")},
)
accepted(
    "L071",
    lambda _: [up().file("f", b"bytes").hardlink("x", "f"), up().whiteout("f")],
    {"x": a_file(b"bytes")},
)
refused("L072", lambda _: [up().hardlink("x", ".")], TO_A_DIRECTORY, entry=b"x")
refused("L072b", lambda _: [up().hardlink("x", "..")], TO_A_DIRECTORY, entry=b"x")
refused("L072c", lambda _: [up().directory("d").hardlink("x", "d/..")], TO_A_DIRECTORY, entry=b"x")
accepted(
    "L073",
    lambda _: [up().directory("d").file("d/in").file("f", b"f").hardlink("d", "f")],
    {"d": a_file(b"f", **one_inode("d", "f")), "f": a_file(b"f", **one_inode("d", "f"))},
)
# The target goes with the folder.
refused("L073b", lambda _: [up().file("d/f").hardlink("d", "d/f")], "hard link", entry=b"d")
NAMES = [f"n{number:04}" for number in range(1000)]


def a_thousand_names(_: Outside) -> list[Tar]:
    tar = up().file("f", b"f")
    for name in NAMES:
        tar.hardlink(name, "f")
    return [tar]


def one_file(seen: Seen) -> None:
    assert (seen.root / "f").stat().st_nlink == 1 + len(NAMES)


accepted(
    "L074",
    a_thousand_names,
    {name: a_file(b"f", same_as=b"f") for name in (*NAMES, "f")},
    check=one_file,
)
accepted(
    "L075",
    lambda _: [up().file("low", b"low", mode=0o640, uid=7), up().hardlink("x", "low")],
    {
        "low": a_file(b"low", mode=0o640, uid=7, **one_inode("low", "x")),
        "x": a_file(b"low", mode=0o640, uid=7, **one_inode("low", "x")),
    },
)


# What a hard link was, is not written through: an entry replaces the name alone.
accepted(
    "L075b",
    lambda _: [up().file("f", b"lower").hardlink("x", "f"), up().file("x", b"upper")],
    {"f": a_file(b"lower"), "x": a_file(b"upper")},
)
accepted(
    "L075c",
    lambda _: [up().file("low", b"low"), up().hardlink("x", "low").file("x", b"new", mode=0o600).directory("d")],
    {"low": a_file(b"low", mode=0o644), "x": a_file(b"new", mode=0o600), "d": directory()},
)
