"""L6: numbers, PAX, GNU."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.archives import GNU, MTIME, Tar, base_256, gnu_long, header, padded, pax_header, record
from tests.hostile.canary import Outside
from tests.hostile.table import Block, Seen, a_file, link
from tests.layers.forms import old_sparse

BLOCK = Block()
accepted, refused = BLOCK.accepted, BLOCK.refused
END = bytes(1024)
SECOND_NS = 1_000_000_000
GIB = 1 << 30
# What a file that is nearly all holes may take, whatever the file system's block is.
DISK_MAX_BYTES = 8 << 20


def wrong_sum(name: bytes) -> bytes:
    block = bytearray(header(name))
    block[0] += 1
    return bytes(block)


def with_size(size: bytes) -> list[bytes]:
    return [header(b"f", size=size) + END]


def extended(body: bytes) -> list[bytes]:
    """An ``x`` header with this body, a file that it is about, and the end."""
    return [header(b"PaxHeaders/x", kind=b"x", size=len(body)) + padded(body) + header(b"f") + END]


SUM = "checksum does not match"
refused("L140", lambda _: [wrong_sum(b"f") + END], rf"{SUM} \(at byte 0\)")
HUNDREDTH = b"".join(header(b"f%d" % number) for number in range(99)) + wrong_sum(b"f") + END
refused("L141", lambda _: [HUNDREDTH], rf"{SUM} \(at byte {99 * 512}\)")
refused("L142", lambda _: with_size(b"00000000xyz\0"), "size is no octal number", entry=b"f")
refused("L143", lambda _: with_size(b"0000000-005\0"), "size is no octal number", entry=b"f")
refused("L144", lambda _: with_size(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), "size is too large", entry=b"f")
refused("L144b", lambda _: with_size(base_256((1 << 63) - 1, 12)), "over the limit bytes", entry=b"f")
refused("L145", lambda _: with_size(base_256(-512, 12)), "size is negative", entry=b"f")


def has_holes(size: int) -> Callable[[Seen], None]:
    def check(seen: Seen) -> None:
        assert (seen.root / "f").stat().st_size == size
        # What `stat` counts is no measure: EROFS counts holes as well, and tells of them in 8,192 pieces at least.
        assert _data_bytes(seen.root / "f") < max(DISK_MAX_BYTES, size >> 12)

    return check


def _data_bytes(path: Path) -> int:
    total = at = 0
    with path.open("rb") as file, suppress(OSError):  # a hole to the end
        while True:
            data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            at = os.lseek(file.fileno(), data, os.SEEK_HOLE)
            total += at - data
    return total


def nine_gib(_: Outside) -> list[bytes]:
    return [old_sparse(b"f", 9 * GIB, [(8 * GIB + 512, b"data" * 128)]) + header(b"after") + END]


accepted("L146", nine_gib, {"f": a_file(size=9 * GIB), "after": b""}, check=has_holes(9 * GIB))
accepted("L146b", lambda _: [header(b"f", size=base_256(3, 12)) + padded(b"abc") + END], {"f": b"abc"})
FORGED = header(b"forged") + header(b"forged-too")
accepted("L147", lambda _: [pax_header({"size": b"1024"}) + header(b"f") + FORGED + END], {"f": FORGED})
INNER = Tar().file("inner", b"inner").symlink("out", "/").build()
accepted(
    "L148",
    lambda _: [pax_header({"size": b"%d" % len(INNER)}) + header(b"f") + padded(INNER) + header(b"after") + END],
    {"f": INNER, "after": b""},
)
refused("L149", lambda _: extended(b"99 path=a\n"), "pax record length is wrong")
refused("L150", lambda _: extended(b"6 path=abc\n"), "does not end with a newline")
refused("L151", lambda _: extended(b"12 path=abcd"), "does not end with a newline")
refused("L152", lambda _: extended(b"0 path=abc\n"), "pax record length is wrong")
refused("L153", lambda _: extended(b"9 pathab\n"), "pax record without =")
refused("L154", lambda _: extended(b"5 =v\n"), "pax record has no key")
refused("L155", lambda _: extended(b"11 size=-1\n"), "size is no number")
refused("L155b", lambda _: extended(b"12 size=1e3\n"), "size is no number")
refused("L155c", lambda _: extended(b"29 size=99999999999999999999\n"), "size is too large")
RECORDS = {
    "path": b"named/by/pax",
    "mtime": b"1600000000.123456789",
    "uid": b"3000000",
    "gid": b"4000000",
    "uname": b"somebody",
}
accepted(
    "L156",
    lambda _: [
        pax_header(RECORDS)
        + header(b"f", size=1, uid=1, gid=2)
        + padded(b"x")
        + pax_header({"linkpath": b"named/by/pax"})
        + header(b"s", kind=b"2", link=b"wrong")
        + END
    ],
    {
        "named/by/pax": a_file(b"x", uid=3_000_000, gid=4_000_000, mtime_ns=1_600_000_000_123_456_789),
        "s": link("named/by/pax"),
    },
)
UNKNOWN = {"comment": b"none", "VENDOR.key": b"\xff\n=", "hdrcharset": b"BINARY", "": b""}
accepted(
    "L157",
    lambda _: [pax_header({key: value for key, value in UNKNOWN.items() if key}) + header(b"f") + END],
    {"f": b""},
)
accepted("L158", lambda _: [pax_header({"comment": b"c" * 40}, kind=b"g") + header(b"f") + END], {"f": b""})
# Global records are passed over, all of them.
accepted(
    "L159",
    lambda _: [pax_header({"mtime": b"1"}, kind=b"g") + header(b"f") + END],
    {"f": a_file(mtime_ns=MTIME * SECOND_NS)},
)
accepted(
    "L159b",
    lambda out: [
        pax_header({"path": f"{out.path}/victim".encode(), "size": b"1024"}, kind=b"g")
        + header(b"f")
        + header(b"g")
        + END
    ],
    {"f": b"", "g": b""},
)
refused("L160", lambda _: [header(b"f") + pax_header({"path": b"p"}) + END], "ends after an extended header")
LONG = "/".join(["n" * 99] * 3)
accepted(
    "L162",
    lambda _: [gnu_long(b"L", LONG.encode()) + header(LONG[:100].encode(), magic=GNU, size=1) + padded(b"x") + END],
    {LONG: b"x"},
)
accepted(
    "L163",
    lambda _: [gnu_long(b"K", LONG.encode()) + header(b"s", kind=b"2", link=b"y", magic=GNU) + END],
    {"s": link(LONG)},
)


def both(first: bytes, second: bytes) -> list[bytes]:
    return [
        gnu_long(first, LONG.encode())
        + gnu_long(second, LONG.encode())
        + header(b"s", kind=b"2", link=b"y", magic=GNU)
        + END
    ]


accepted("L164", lambda _: both(b"L", b"K"), {LONG: link(LONG)})
accepted("L164b", lambda _: both(b"K", b"L"), {LONG: link(LONG)})
# The last of two counts.
accepted(
    "L165",
    lambda _: [gnu_long(b"L", b"first" * 30) + gnu_long(b"L", b"second" * 30) + header(b"x", magic=GNU) + END],
    {"second" * 30: b""},
)
refused(
    "L166",
    lambda _: [header(b"././@LongLink", kind=b"L", size=GIB, magic=GNU) + b"n" * 512],
    "over the limit header_bytes",
)
refused("L167", lambda _: [header(b"f") + gnu_long(b"L", LONG.encode()) + END], "ends after an extended header")
accepted(
    "L168",
    lambda _: [gnu_long(b"L", b"gnu" * 40) + pax_header({"path": b"pax"}) + header(b"x", magic=GNU) + END],
    {"pax": b""},
)
refused("L169", lambda _: extended(b"13 mtime=abc\n"), "mtime is no number")
refused("L169b", lambda _: extended(record(b"mtime", b"9" * 20)), "mtime is too large")
