"""Every form in which a tar can say something, with what it says."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence

from tests.archives import BLOCK, GNU, V7, base_256, gnu_long, header, octal, padded, pax_header
from tests.images import CAPABILITY
from tests.layers.model import SECOND_NS, Entry, Layer, expand

LONG = b"/".join([b"part-" + b"x" * 40] * 6) + b"/file"
TIME_NS = 1_600_000_000_123_456_789
PIECES = [(1024 * n, bytes([65 + n]) * 512) for n in range(30)]
FORMS: dict[str, Callable[[], Layer]] = {}


def form(make: Callable[[], Layer]) -> Callable[[], Layer]:
    FORMS[make.__name__.replace("_", "-")] = make
    return make


def one(data: bytes, *entries: Entry) -> Layer:
    """A layer of given bytes; its root is listed, so that all of it can be compared."""
    layer = Layer()
    layer.directory("./", mode=0o751, uid=3, gid=4)
    layer.raw(data)
    return layer.say(*entries)


@form
def v7() -> Layer:
    return one(
        header(b"d/", kind=b"\0", mode=0o40755, magic=V7)
        + header(b"d/f", kind=b"\0", size=3, mode=0o100640, uid=5, gid=6, magic=V7)
        + padded(b"abc")
        + header(b"d/h", kind=b"1", link=b"d/f", magic=V7)
        + header(b"d/s", kind=b"2", link=b"f", magic=V7),
        Entry(b"d", "directory", mode=0o755),
        Entry(b"d/f", content=b"abc", mode=0o640, uid=5, gid=6),
        Entry(b"d/h", "hardlink", link=b"d/f"),
        Entry(b"d/s", "symlink", link=b"f"),
    )


@form
def ustar_prefix() -> Layer:
    prefix, _, name = LONG.rpartition(b"/")
    return one(header(name, size=2, prefix=prefix[:155]) + padded(b"ab"), Entry(prefix[:155] + b"/file", content=b"ab"))


@form
def ustar_fields_filled_to_the_last_byte() -> Layer:
    name, link = b"n" * 100, b"l" * 100
    return one(header(name) + header(b"s", kind=b"2", link=link), Entry(name), Entry(b"s", "symlink", link=link))


@form
def gnu_header_with_times_where_ustar_has_its_prefix() -> Layer:
    return one(header(b"f", magic=GNU, fields={345: b"14524770000\0", 357: b"14524770000\0"}), Entry(b"f"))


@form
def numbers_in_spaces_and_without_ends() -> Layer:
    return one(
        header(b"f", mode=b"   644 \0", uid=b"     7 \0", gid=b"0000010 ", size=b"          3 ", mtime=b"14524770000 ")
        + padded(b"abc"),
        Entry(b"f", content=b"abc", uid=7, gid=8, mtime_ns=0o14524770000 * SECOND_NS),
    )


@form
def sums_of_signed_bytes() -> Layer:
    name = b"\xff\xfe-old"
    block = header(name)
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    return one(header(name, checksum=b"%06o\0 " % signed), Entry(name))


@form
def types_nul_and_contiguous() -> Layer:
    return one(
        header(b"nul", kind=b"\0", size=1) + padded(b"a") + header(b"contiguous", kind=b"7", size=1) + padded(b"b"),
        Entry(b"nul", content=b"a"),
        Entry(b"contiguous", content=b"b"),
    )


@form
def sizes_on_entries_that_have_no_data() -> Layer:
    kinds = ((b"d", b"5"), (b"s", b"2"), (b"h", b"1"), (b"p", b"6"), (b"c", b"3"), (b"b", b"4"))
    blocks = (header(name, kind=kind, size=512, link=b"f", device=(1, 3)) for name, kind in kinds)
    return one(
        header(b"f", size=1) + padded(b"x") + b"".join(blocks) + header(b"after"),
        Entry(b"f", content=b"x"),
        Entry(b"d", "directory"),
        Entry(b"s", "symlink", link=b"f"),
        Entry(b"h", "hardlink", link=b"f"),
        Entry(b"p", "fifo"),
        Entry(b"c", "character", device=(1, 3)),
        Entry(b"b", "block", device=(1, 3)),
        Entry(b"after"),
    )


@form
def base_256_numbers() -> Layer:
    uid, gid, size = 4_000_000_000, 4_294_967_294, 700
    return one(
        header(b"f", uid=base_256(uid, 8), gid=base_256(gid, 8), size=base_256(size, 12), mtime=base_256(-5, 12))
        + padded(b"z" * size)
        + header(b"dev", kind=b"3", fields={329: base_256(4095, 8), 337: base_256((1 << 20) - 1, 8)}),
        Entry(b"f", content=b"z" * size, uid=uid, gid=gid, mtime_ns=-5 * SECOND_NS),
        Entry(b"dev", "character", device=(4095, (1 << 20) - 1)),
    )


@form
def gnu_long_name_and_link() -> Layer:
    link = b"../" * 90 + b"target"
    data = gnu_long(b"L", LONG) + header(LONG[:100], magic=GNU, size=1) + padded(b"1")
    both = ((b"L", LONG + b"-1"), (b"K", link))
    data += b"".join(gnu_long(kind, text) for kind, text in both) + header(b"x", kind=b"2", link=b"y", magic=GNU)
    both = ((b"K", link), (b"L", LONG + b"-2"))
    data += b"".join(gnu_long(kind, text) for kind, text in both) + header(b"x", kind=b"2", link=b"y", magic=GNU)
    data += gnu_long(b"K", LONG) + header(b"hard", kind=b"1", link=b"y", magic=GNU)
    return one(
        data,
        Entry(LONG, content=b"1"),
        Entry(LONG + b"-1", "symlink", link=link),
        Entry(LONG + b"-2", "symlink", link=link),
        Entry(b"hard", "hardlink", link=LONG),
    )


@form
def gnu_long_name_twice_and_pax_over_it() -> Layer:
    return one(
        gnu_long(b"L", b"first" * 30)
        + gnu_long(b"L", b"second" * 30)
        + header(b"x", magic=GNU)
        + gnu_long(b"L", b"gnu" * 40)
        + pax_header({"path": b"pax" * 40})
        + header(b"x"),
        Entry(b"second" * 30),
        Entry(b"pax" * 40),
    )


@form
def pax_path_and_linkpath() -> Layer:
    target = b"t" * 200
    return one(
        pax_header({"path": LONG})
        + header(b"x")
        + pax_header({"linkpath": target})
        + header(b"s", kind=b"2", link=b"y"),
        Entry(LONG),
        Entry(b"s", "symlink", link=target),
    )


@form
def pax_numbers_and_times() -> Layer:
    records = {"size": b"600", "uid": b"3000000", "gid": b"4294967294", "mtime": b"1600000000.123456789"}
    return one(
        pax_header(records)
        + header(b"f", size=0, uid=1, gid=2, mtime=3)
        + padded(b"q" * 600)
        + pax_header({"mtime": b"-1.25", "atime": b"1.5", "ctime": b"2.5"})
        + header(b"before")
        + pax_header({"mtime": b"1600000000.1234567891234"})
        + header(b"finer")
        + pax_header({"mtime": b"8589934592"})
        + header(b"late"),
        Entry(b"f", content=b"q" * 600, uid=3_000_000, gid=4_294_967_294, mtime_ns=TIME_NS),
        Entry(b"before", mtime_ns=-1_250_000_000),
        Entry(b"finer", mtime_ns=TIME_NS),
        Entry(b"late", mtime_ns=8_589_934_592 * SECOND_NS),
    )


@form
def pax_headers_in_a_row_later_records_and_empty_values() -> Layer:
    return one(
        pax_header({"path": b"one", "uid": b"1"})
        + pax_header({"path": b"two"})
        + header(b"x")
        + pax_header([("path", b"a"), ("uid", b"9"), ("path", b"b"), ("uid", b"")])
        + header(b"x", uid=5)
        + pax_header({"comment": b"of no concern", "VENDOR.key": b"\xff\n=", "hdrcharset": b"BINARY"})
        + header(b"\xff\xfe"),
        Entry(b"two", uid=1),
        Entry(b"b", uid=5),
        Entry(b"\xff\xfe"),
    )


@form
def pax_global_headers_change_nothing() -> Layer:
    records = {"comment": b"c" * 40, "path": b"wrong", "linkpath": b"wrong", "size": b"1", "uid": b"9", "mtime": b"1"}
    return one(
        pax_header(records, kind=b"g")
        + header(b"f", size=2)
        + padded(b"ab")
        + pax_header({"path": b"kept"})
        + pax_header(records, kind=b"g")
        + header(b"x"),
        Entry(b"f", content=b"ab"),
        Entry(b"kept"),
    )


@form
def pax_size_over_the_headers_hides_no_entry() -> Layer:
    inner = header(b"forged") + header(b"forged-too")
    return one(
        pax_header({"size": b"1024"}) + header(b"f") + inner + header(b"after"),
        Entry(b"f", content=inner),
        Entry(b"after"),
    )


@form
def xattrs_of_star_and_libarchive() -> Layer:
    named = struct.pack("<I", 2) + bytes(range(8))
    xattrs = {"user.name": b"value \0\xff=\n", "user.empty": b"", "trusted.t": named, "security.capability": CAPABILITY}
    records = {f"SCHILY.xattr.{name}": value for name, value in xattrs.items()}
    coded = base64.b64encode(b"from libarchive").rstrip(b"=")
    return one(
        pax_header(records)
        + header(b"f", size=1, uid=7)
        + padded(b"x")
        + pax_header({"SCHILY.xattr.user.d": b"on a directory"})
        + header(b"d", kind=b"5")
        + pax_header({"LIBARCHIVE.xattr.user.a%3Db": coded})
        + header(b"l")
        + pax_header({"SCHILY.xattr.trusted.s": b"1", "SCHILY.xattr.user.s": b"not for links"})
        + header(b"s", kind=b"2", link=b"f")
        + pax_header({"SCHILY.xattr.trusted.overlay.opaque": b"y", "SCHILY.xattr.user.overlay.redirect": b"/f"})
        + header(b"o", kind=b"5"),
        Entry(b"f", content=b"x", uid=7, xattrs=xattrs),
        Entry(b"d", "directory", xattrs={"user.d": b"on a directory"}),
        Entry(b"l", xattrs={"user.a=b": b"from libarchive"}),
        Entry(b"s", "symlink", link=b"f", xattrs={"trusted.s": b"1"}),
        Entry(b"o", "directory"),
    )


def old_sparse(name: bytes, size: int, pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """GNU's old form: four pairs in the header, then 21 in each block that follows."""
    pairs = [octal(offset, 12) + octal(len(piece), 12) for offset, piece in pieces]
    more = pairs[4:]
    fields = {386: b"".join(pairs[:4]), 482: b"\1" if more else b"\0", 483: octal(size, 12)}
    stored = b"".join(piece for _, piece in pieces)
    data = header(name, kind=b"S", size=len(stored), magic=GNU, fields=fields)
    while more:
        block, more = b"".join(more[:21]).ljust(504, b"\0"), more[21:]
        data += block + (b"\1" if more else b"\0") + bytes(7)
    return data + padded(stored)


@form
def sparse_in_gnus_old_form() -> Layer:
    few, size = PIECES[:3], 1 << 20
    return one(
        old_sparse(b"few", size, few)
        + old_sparse(b"many", size, PIECES)
        + old_sparse(b"hole", size, [])
        + old_sparse(b"ends-in-data", 3072 + 5, [(3072, b"tail!")])
        + header(b"after"),
        Entry(b"few", content=expand(size, few)),
        Entry(b"many", content=expand(size, PIECES)),
        Entry(b"hole", content=bytes(size)),
        Entry(b"ends-in-data", content=expand(3077, [(3072, b"tail!")])),
        Entry(b"after"),
    )


def _numbers(pieces: Sequence[tuple[int, bytes]]) -> list[int]:
    return [number for offset, piece in pieces for number in (offset, len(piece))]


@form
def sparse_in_pax_form_0_0() -> Layer:
    records = [("GNU.sparse.size", b"%d" % (1 << 20)), ("GNU.sparse.numblocks", b"%d" % len(PIECES))]
    for offset, piece in PIECES:
        records += [("GNU.sparse.offset", b"%d" % offset), ("GNU.sparse.numbytes", b"%d" % len(piece))]
    stored = b"".join(piece for _, piece in PIECES)
    return one(
        pax_header(records) + header(b"f", size=len(stored)) + padded(stored) + header(b"after"),
        Entry(b"f", content=expand(1 << 20, PIECES)),
        Entry(b"after"),
    )


@form
def sparse_in_pax_form_0_1() -> Layer:
    numbers = ",".join(map(str, _numbers(PIECES))).encode()
    records = {
        "GNU.sparse.size": b"%d" % (1 << 20),
        "GNU.sparse.numblocks": b"%d" % len(PIECES),
        "GNU.sparse.map": numbers,
        "GNU.sparse.name": b"real-name",
    }
    stored = b"".join(piece for _, piece in PIECES)
    return one(
        pax_header(records) + header(b"GNUSparseFile.1/f", size=len(stored)) + padded(stored) + header(b"after"),
        Entry(b"real-name", content=expand(1 << 20, PIECES)),
        Entry(b"after"),
    )


@form
def sparse_in_pax_form_1_0() -> Layer:
    # More pairs than one block of the map holds, and one whose map fills its block to the last byte.
    many = [(1024 * n, bytes([n % 251 + 1]) * 512) for n in range(200)]
    layer = one(b"").sparse("many", 1 << 20, many).sparse("hole", 1 << 20, []).sparse("last", 3077, [(3072, b"tail!")])
    text = "".join(f"{n}\n" for n in (1, 0, 512))
    exact = f"{'0' * (BLOCK - len(text))}{text}".encode()
    records = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"600"}
    layer.raw(pax_header(records) + header(b"exact", size=1024) + exact + b"e" * 512)
    return layer.say(Entry(b"exact", content=b"e" * 512 + bytes(88))).file("after")


@form
def names_of_any_bytes() -> Layer:
    layer = one(b"")
    for name in (
        b"\xff\xfe\x80",
        b"new\nline\ttab\x1b[31m",
        b"n" * 255,
        "\u00fc\u4e16".encode(),
        b" ",
        b"-rf",
        b"a\\b",
    ):
        layer.file(name, name)
    layer.symlink("s", b"\xff\n target")
    return layer.file(b"/".join([b"d" * 249] * 16)[:4000], b"deep").file("./x//y/./z", b"dots")


@form
def everything_of_an_entry() -> Layer:
    layer = one(b"")
    layer.directory("d", mode=0o2750, uid=1, gid=2, mtime_ns=TIME_NS)
    layer.directory("d/sticky", mode=0o1777, mtime_ns=0)
    layer.file("d/set-id", b"x", mode=0o6755, uid=1000, gid=1001, mtime_ns=TIME_NS + 1)
    layer.file("d/none", b"", mode=0)
    layer.symlink("d/link", "/absolute/../path", uid=5, gid=6, mtime_ns=-1)
    layer.hardlink("d/again", "d/set-id").hardlink("above", "/d/set-id").hardlink("to-link", "d/link")
    layer.fifo("d/fifo", uid=7, mtime_ns=TIME_NS)
    layer.device("d/null", 0o020000, 1, 3, mtime_ns=TIME_NS).device("d/block", 0o060000, 259, 70_000)
    return layer.file("capable", b"x", mode=0o4755, uid=9, xattrs={"security.capability": CAPABILITY})


@form
def the_same_path_again() -> Layer:
    layer = one(b"").file("f", b"first", mode=0o600).file("f", b"second, longer", mode=0o644)
    layer.file("d", b"").directory("d").file("d/x", b"1").symlink("d", "f").file("d", b"at last")
    layer.directory("e", mode=0o700, xattrs={"user.a": b"1"}).file("e/x").directory("e", mode=0o755)
    layer.file("l", b"linked").hardlink("m", "l").file("l", b"other").hardlink("m", "l")
    return layer


@form
def times_of_directories_that_get_children_later() -> Layer:
    layer = one(b"").directory("d", mtime_ns=TIME_NS).directory("d/e", mtime_ns=5).file("d/f")
    layer.file("d/e/g").directory("other", mtime_ns=7).file("d/h").symlink("other/s", "x").whiteout("d/i")
    return layer.hardlink("d/e/link", "d/f")


ENDS = {
    "none": b"",
    "one-block": bytes(512),
    "two-blocks": bytes(1024),
    "padding": bytes(10240),
    "other-bytes-after-the-end": bytes(1024) + b"not a header" * 100,
}
