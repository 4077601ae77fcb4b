"""Things that an archive can have in it, one by one, each under a name of its own: right, odd and wrong ones."""

from __future__ import annotations

import base64
from collections.abc import Callable
from random import Random

from tests.archives import GNU, USTAR, V7, base_256, gnu_long, header, octal, padded, pax_header
from tests.layers.forms import old_sparse

Feature = Callable[[bytes, Random], bytes]
FEATURES: dict[str, Feature] = {}
MAGICS = (USTAR, GNU, V7)
SPARSE_BYTES = 1 << 16


def feature(make: Feature) -> Feature:
    FEATURES[make.__name__.replace("_", "-").strip("-")] = make
    return make


def some(random: Random) -> bytes:
    """Content of a length that fills its blocks, or does not."""
    return random.randbytes(random.choice((0, 1, 511, 512, 513, 1500)))


def file(name: bytes, content: bytes = b"", **fields: object) -> bytes:
    return header(name, size=len(content), **fields) + padded(content)  # type: ignore[arg-type] # fields of a header


@feature
def plain_file(name: bytes, random: Random) -> bytes:
    mode, uid, gid = random.randrange(0o10000), random.randrange(1 << 21), random.randrange(1 << 21)
    magic = random.choice(MAGICS)
    return file(name, some(random), mode=mode, uid=uid, gid=gid, mtime=random.randrange(1, 1 << 31), magic=magic)


@feature
def directory(name: bytes, random: Random) -> bytes:
    slash = random.choice((b"", b"/"))
    return header(name + slash, kind=b"5", mode=random.randrange(0o10000)) + file(name + b"/f", some(random))


@feature
def v7_directory(name: bytes, random: Random) -> bytes:
    return header(name + b"/", kind=b"\0", mode=0o700, magic=V7) + file(name + b"/f", some(random), magic=V7)


@feature
def other_kinds_of_file(name: bytes, random: Random) -> bytes:
    return file(name + b"0", b"nul", kind=b"\0") + file(name + b"7", b"contiguous", kind=b"7")


@feature
def data_of_what_its_name_makes_a_directory(name: bytes, random: Random) -> bytes:
    forged = header(name + b"forged")
    return header(name + b"/", kind=random.choice((b"0", b"\0")), size=len(forged)) + forged + file(name + b"after")


@feature
def symlink(name: bytes, random: Random) -> bytes:
    return header(name, kind=b"2", link=random.choice((b"a", b"l" * 100, b"\xfe/\xff")), mtime=9)


@feature
def hard_links(name: bytes, random: Random) -> bytes:
    link = header(name + b"s", kind=b"2", link=b"nowhere") + header(name + b"t", kind=b"1", link=name + b"s")
    return file(name, b"linked") + header(name + b"h", kind=b"1", link=name) + link


@feature
def hard_link_to_nothing(name: bytes, random: Random) -> bytes:
    return header(name, kind=b"1", link=name + b"-none")


@feature
def hard_link_with_a_size(name: bytes, random: Random) -> bytes:
    return file(name, b"x") + header(name + b"h", kind=b"1", link=name, size=512) + file(name + b"after")


@feature
def devices(name: bytes, random: Random) -> bytes:
    device = (random.randrange(1, 4096), random.randrange(1 << 20))
    return header(name + b"c", kind=b"3", device=device) + header(name + b"b", kind=b"4", device=device)


@feature
def pipe(name: bytes, random: Random) -> bytes:
    return header(name, kind=b"6", mode=0o620)


@feature
def odd_bytes(name: bytes, random: Random) -> bytes:
    odd = bytes(random.choice(b"\x01\n\x1b \x7f\x80\xfe\xff\"'*?") for _ in range(random.randrange(1, 20)))
    return file(name + odd + b".", b"odd")


@feature
def dots_and_slashes(name: bytes, random: Random) -> bytes:
    return file(b"./" + name, b"1") + file(b".//./" + name + b"2", b"2")


@feature
def absolute_name(name: bytes, random: Random) -> bytes:
    return file(b"/" + name, b"inside")


@feature
def a_name_that_leads_up(name: bytes, random: Random) -> bytes:
    return file(b"../../" + name, b"inside")


@feature
def prefix(name: bytes, random: Random) -> bytes:
    return header(name, kind=b"5") + file(b"f" * 100, some(random), prefix=name)


@feature
def gnu_fields_where_the_prefix_is(name: bytes, random: Random) -> bytes:
    return file(name, magic=GNU, fields={345: b"14524770000\0", 357: b"14524770000\0"})


@feature
def long_name(name: bytes, random: Random) -> bytes:
    return gnu_long(b"L", name + b"n" * 150) + file(name, some(random), magic=GNU)


@feature
def long_link(name: bytes, random: Random) -> bytes:
    return gnu_long(b"K", b"t" * 150) + header(name, kind=b"2", link=b"t", magic=GNU)


@feature
def pax_names(name: bytes, random: Random) -> bytes:
    link = pax_header({"linkpath": b"t" * 200, "path": name + b"s"}) + header(b"x", kind=b"2", link=b"t")
    return pax_header({"path": name + b"p" * 150}) + file(b"x", some(random)) + link


@feature
def pax_numbers(name: bytes, random: Random) -> bytes:
    owner = {"uid": b"%d" % random.randrange(1 << 31), "gid": b"%d" % random.randrange(1 << 31)}
    time = {"mtime": b"%d.%09d" % (random.randrange(1 << 31), random.randrange(10**9))}
    content = some(random)
    return pax_header(owner | time | {"size": b"%d" % len(content)}) + header(name) + padded(content)


@feature
def pax_xattr(name: bytes, random: Random) -> bytes:
    return pax_header({"SCHILY.xattr.user.k": b"value"}) + file(name)


@feature
def libarchive_xattr(name: bytes, random: Random) -> bytes:
    return pax_header({"LIBARCHIVE.xattr.user.k": base64.b64encode(b"value").rstrip(b"=")}) + file(name)


@feature
def pax_unknown(name: bytes, random: Random) -> bytes:
    return pax_header({"comment": b"x", "VENDOR.k": b"y", "atime": b"1.5", "uname": b"daemon"}) + file(name)


@feature
def pax_empty_value(name: bytes, random: Random) -> bytes:
    return pax_header({"path": b"", "uid": b""}) + file(name, uid=5)


@feature
def pax_global_comment(name: bytes, random: Random) -> bytes:
    return pax_header({"comment": b"c" * 40}, kind=b"g") + file(name)


@feature
def pax_global_values(name: bytes, random: Random) -> bytes:
    return pax_header({"mtime": b"5"}, kind=b"g") + file(name)


@feature
def pax_bad_length(name: bytes, random: Random) -> bytes:
    body = random.choice((b"99 path=a\n", b"8 path=a\n", b"0 path=a\n", b"path=a\n"))
    return header(b"x", kind=b"x", size=len(body)) + padded(body) + file(name)


@feature
def pax_bad_number(name: bytes, random: Random) -> bytes:
    return pax_header({"uid": random.choice((b"-1", b"1e3", b"x"))}) + file(name)


@feature
def pax_bad_time(name: bytes, random: Random) -> bytes:
    return pax_header({"mtime": b"soon"}) + file(name)


@feature
def pax_nul_in_a_name(name: bytes, random: Random) -> bytes:
    return pax_header({"path": name + b"\0b"}) + file(name)


@feature
def base_256_numbers(name: bytes, random: Random) -> bytes:
    content, owner = some(random), random.randrange(1 << 21, 1 << 31)
    time = random.randrange(1 << 33, 1 << 33 | 0xFFFF)
    fields = {"uid": base_256(owner, 8), "gid": base_256(owner, 8), "mtime": base_256(time, 12)}
    return header(name, size=base_256(len(content), 12), magic=GNU, **fields) + padded(content)  # type: ignore[arg-type] # as above


@feature
def time_before_1970(name: bytes, random: Random) -> bytes:
    return file(name, mtime=base_256(-random.randrange(1, 1 << 30), 12), magic=GNU)


@feature
def numbers_in_spaces(name: bytes, random: Random) -> bytes:
    return header(name, mode=b"   644 \0", uid=b"     7 \0", gid=b"0000010 ", size=b"          3 ") + padded(b"abc")


@feature
def numbers_that_are_empty(name: bytes, random: Random) -> bytes:
    return header(name, uid=bytes(8), gid=b" " * 8, mode=b"0000600\0")


@feature
def owner_out_of_range(name: bytes, random: Random) -> bytes:
    return file(name, uid=base_256(random.choice((-2, 1 << 32, (1 << 32) - 1)), 8), magic=GNU)


@feature
def size_that_is_no_number(name: bytes, random: Random) -> bytes:
    return header(name, size=random.choice((b"00000000xyz\0", b"0000000-005\0"))) + file(name + b"after")


@feature
def size_that_is_negative(name: bytes, random: Random) -> bytes:
    return header(name, size=base_256(-512, 12), magic=GNU) + file(name + b"after")


@feature
def mode_that_is_no_number(name: bytes, random: Random) -> bytes:
    return header(name, mode=b"rw-r--r\0")


@feature
def sum_that_is_wrong(name: bytes, random: Random) -> bytes:
    return file(name + b"before") + header(name, checksum=b"%06o\0 " % random.randrange(100)) + file(name + b"after")


@feature
def sum_of_signed_bytes(name: bytes, random: Random) -> bytes:
    block = header(name + b"\xff")
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    return header(name + b"\xff", checksum=b"%06o\0 " % signed)


@feature
def unknown_type(name: bytes, random: Random) -> bytes:
    return file(name + b"before") + file(name, b"data", kind=b"Z") + file(name + b"after")


@feature
def part_of_a_volume(name: bytes, random: Random) -> bytes:
    return file(name, b"data", kind=b"M", magic=GNU)


@feature
def volume_header(name: bytes, random: Random) -> bytes:
    return header(name, kind=b"V", magic=GNU) + file(name + b"after")


@feature
def dump_of_a_directory(name: bytes, random: Random) -> bytes:
    return file(name, b"Yfile\0\0", kind=b"D", magic=GNU) + file(name + b"after")


@feature
def the_same_name_again(name: bytes, random: Random) -> bytes:
    return file(name, b"first, longer") + file(name, b"second", mode=0o600)


@feature
def another_kind_under_the_same_name(name: bytes, random: Random) -> bytes:
    return file(name, b"first") + header(name, kind=b"2", link=b"a") + file(name, b"third")


@feature
def a_directory_instead_of_a_file(name: bytes, random: Random) -> bytes:
    return file(name, b"first") + header(name, kind=b"5") + file(name + b"/f")


@feature
def a_file_instead_of_a_directory(name: bytes, random: Random) -> bytes:
    return header(name, kind=b"5") + file(name + b"/f", b"x") + file(name, b"last")


@feature
def a_file_beneath_a_file(name: bytes, random: Random) -> bytes:
    return file(name, b"first") + file(name + b"/f")


@feature
def a_file_through_a_link(name: bytes, random: Random) -> bytes:
    return header(name, kind=b"5") + header(name + b"l", kind=b"2", link=name) + file(name + b"l/f", b"through")


@feature
def whiteout(name: bytes, random: Random) -> bytes:
    return file(b".wh." + name)


def pieces(random: Random) -> list[tuple[int, bytes]]:
    count = random.choice((0, 1, 4, 5, 26))
    return [(1024 * n, bytes([n + 1]) * 512) for n in range(count)]


@feature
def sparse_of_old_gnu(name: bytes, random: Random) -> bytes:
    return old_sparse(name, SPARSE_BYTES, pieces(random))


@feature
def sparse_0_0(name: bytes, random: Random) -> bytes:
    parts = pieces(random) or [(0, b"z" * 512)]
    records = [("GNU.sparse.size", b"%d" % SPARSE_BYTES), ("GNU.sparse.numblocks", b"%d" % len(parts))]
    for offset, piece in parts:
        records += [("GNU.sparse.offset", b"%d" % offset), ("GNU.sparse.numbytes", b"%d" % len(piece))]
    return pax_header(records) + file(name, b"".join(piece for _, piece in parts))


@feature
def sparse_0_1(name: bytes, random: Random) -> bytes:
    parts = pieces(random) or [(0, b"z" * 512)]
    text = b",".join(b"%d,%d" % (offset, len(piece)) for offset, piece in parts)
    records = {"GNU.sparse.size": b"%d" % SPARSE_BYTES, "GNU.sparse.numblocks": b"%d" % len(parts)}
    records |= {"GNU.sparse.map": text, "GNU.sparse.name": name}
    return pax_header(records) + file(b"GNUSparseFile.1/x", b"".join(piece for _, piece in parts))


@feature
def sparse_1_0(name: bytes, random: Random) -> bytes:
    parts = pieces(random)
    lines = b"%d\n" % len(parts) + b"".join(b"%d\n%d\n" % (offset, len(piece)) for offset, piece in parts)
    records = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.name": name}
    content = padded(lines) + b"".join(piece for _, piece in parts)
    return pax_header(records | {"GNU.sparse.realsize": b"%d" % SPARSE_BYTES}) + file(b"GNUSparseFile.1/x", content)


@feature
def sparse_pieces_that_overlap(name: bytes, random: Random) -> bytes:
    fields = {386: octal(0, 12) + octal(512, 12) + octal(256, 12) + octal(512, 12), 483: octal(4096, 12)}
    return header(name, kind=b"S", size=1024, magic=GNU, fields=fields) + bytes(1024)


@feature
def sparse_piece_past_the_end(name: bytes, random: Random) -> bytes:
    fields = {386: octal(8192, 12) + octal(512, 12), 483: octal(4096, 12)}
    return header(name, kind=b"S", size=512, magic=GNU, fields=fields) + bytes(512)


@feature
def one_empty_block_in_the_middle(name: bytes, random: Random) -> bytes:
    return file(name) + bytes(512) + file(name + b"after")


@feature
def the_end_in_the_middle(name: bytes, random: Random) -> bytes:
    return file(name) + bytes(1024) + file(name + b"after")
