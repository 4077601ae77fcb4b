"""L7: sparse files."""

from __future__ import annotations

from collections.abc import Sequence

from tests.archives import GNU, Tar, base_256, header, octal, padded, pax_header
from tests.hostile.cases_numbers import END, GIB, has_holes
from tests.hostile.table import Block, a_file
from tests.layers.forms import old_sparse
from tests.layers.model import expand

BLOCK = Block()
accepted, refused = BLOCK.accepted, BLOCK.refused
PIECES = [(0, b"head" * 128), (2048, b"tail!")]


def pax_sparse(text: bytes, data: bytes, *, size: int) -> list[bytes]:
    """PAX form 1.0 with a map as it is given."""
    records = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"%d" % size}
    stored = padded(text) + data
    return [pax_header(records) + header(b"f", size=len(stored)) + padded(stored) + END]


def pairs(*numbers: int) -> bytes:
    return b"".join(b"%d\n" % number for number in (len(numbers) // 2, *numbers))


def old_map(fields: Sequence[bytes], data: bytes) -> list[bytes]:
    """GNU's old form with a map as it is given."""
    known = {386: b"".join(fields), 483: octal(4096, 12)}
    return [header(b"f", kind=b"S", size=len(data), magic=GNU, fields=known) + padded(data) + END]


accepted("L180", lambda _: [Tar().sparse("s", 2053, PIECES).file("after")], {"s": expand(2053, PIECES), "after": b""})
accepted(
    "L181",
    lambda _: [old_sparse(b"s", 2053, PIECES) + header(b"after") + END],
    {"s": expand(2053, PIECES), "after": b""},
)
OVERLAP, PAST, UNFIT = "sparse map overlaps", "sparse map goes past", "does not fit the stored bytes"
refused("L182", lambda _: pax_sparse(pairs(0, 512, 256, 512), bytes(1024), size=4096), OVERLAP, entry=b"f")
refused("L182b", lambda _: pax_sparse(pairs(1024, 512, 0, 512), bytes(1024), size=4096), OVERLAP, entry=b"f")
refused("L183", lambda _: pax_sparse(pairs(4096, 512), bytes(512), size=4096), PAST, entry=b"f")
BIG = (1 << 63) - 1
refused("L183b", lambda _: pax_sparse(pairs(BIG, BIG), bytes(512), size=4096), PAST, entry=b"f")
refused("L184", lambda _: pax_sparse(b"1\n-5\n512\n", bytes(512), size=4096), "sparse map is no number", entry=b"f")
refused("L184b", lambda _: pax_sparse(b"1\n0\n-512\n", bytes(512), size=4096), "sparse map is no number", entry=b"f")
refused("L184c", lambda _: old_map([base_256(-512, 12), octal(512, 12)], bytes(512)), "is negative", entry=b"f")
refused("L185", lambda _: pax_sparse(pairs(0, 512), bytes(512), size=4), PAST, entry=b"f")
refused("L185b", lambda _: pax_sparse(pairs(0, 256), bytes(512), size=4096), UNFIT, entry=b"f")
refused(
    "L186",
    lambda _: pax_sparse(b"1\n" + b"1" * (10 << 20), bytes(512), size=4096),
    "over the limit header_bytes",
    entry=b"f",
)
refused("L186b", lambda _: pax_sparse(b"1" * (10 << 20), bytes(512), size=4096), "sparse map has no count", entry=b"f")
refused("L186c", lambda _: pax_sparse(b"99999999\n", bytes(512), size=4096), "over the limit header_bytes", entry=b"f")
HUNDRED = 100 * GIB
accepted(
    "L187",
    lambda _: [Tar().sparse("f", HUNDRED, [(50 * GIB, b"data" * 1024)])],
    {"f": a_file(size=HUNDRED)},
    check=has_holes(HUNDRED),
)
accepted(
    "L187b", lambda _: [old_sparse(b"f", HUNDRED, []) + END], {"f": a_file(size=HUNDRED)}, check=has_holes(HUNDRED)
)
