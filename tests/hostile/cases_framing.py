"""L8: framing and compression."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import zipfile
from collections.abc import Callable

from pyctrd.errors import DiffIDMismatchError, IntegrityError, InvalidError, UnsafeArchiveError
from tests.archives import Tar, compress_gzip, compress_zstd, header, padded
from tests.hostile.table import GZIP, PLAIN, ZSTD, Block, Packed

BLOCK = Block()
accepted, refused = BLOCK.accepted, BLOCK.refused
ENTRY = header(b"f", size=4) + padded(b"data")
TAR = ENTRY + bytes(1024)
HOLDS = {"f": b"data"}
NOISE = random.Random(7).randbytes(20_000)
LARGE = Tar().file("f", NOISE * 20).build()


def gzipped(blob: bytes, tar: bytes = TAR) -> list[Packed]:
    return [Packed(blob, tar, GZIP)]


def zstandard(blob: bytes, tar: bytes = TAR) -> list[Packed]:
    return [Packed(blob, tar, ZSTD)]


def changed(blob: bytes, at: int) -> bytes:
    found = bytearray(blob)
    found[at] ^= 1
    return bytes(found)


def frame_of_another_size(tar: bytes) -> bytes:
    """A zstd frame of one raw block whose header claims one byte more."""
    return frame_of_size(len(tar) + 1, tar, ended=True)


def frame_of_size(claimed: int, tar: bytes, *, ended: bool) -> bytes:
    """A zstd frame that claims a size; where its one raw block is not its end, an empty one follows."""
    block = (len(tar) << 3 | ended).to_bytes(3, "little") + tar
    return b"\x28\xb5\x2f\xfd\xa0" + claimed.to_bytes(4, "little") + block + (b"" if ended else b"\x01\0\0")


def zipped() -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as archive:
        archive.writestr("f", NOISE)
    return found.getvalue()


accepted("L200", lambda _: [ENTRY], HOLDS)
accepted("L201", lambda _: [ENTRY + bytes(512)], HOLDS)
accepted("L202", lambda _: [TAR + bytes(10 << 10)], HOLDS)
accepted("L203", lambda _: [TAR + NOISE], HOLDS)
accepted("L204", lambda _: [bytes(1024)], {})
# Nothing at all is an empty layer, as no end blocks after no entries would be.
accepted("L205", lambda _: [b""], {})
CUT = "archive is cut off"
refused("L206", lambda _: [ENTRY + header(b"g")[:300]], CUT)
refused("L207", lambda _: [header(b"f", size=4096) + bytes(1000)], CUT, entry=b"f")
refused("L208", lambda _: gzipped(compress_gzip(LARGE)[: len(NOISE) // 2], LARGE), "gzip stream is cut off")
refused("L209", lambda _: gzipped(compress_gzip(TAR)[:-8]), "gzip stream is cut off")
refused("L210", lambda _: gzipped(changed(compress_gzip(TAR), -8)), "gzip checksum does not match")
refused("L211", lambda _: gzipped(changed(compress_gzip(TAR), -4)), "gzip length does not match")
accepted("L212", lambda _: gzipped(compress_gzip(TAR[:700]) + compress_gzip(TAR[700:])), HOLDS)
accepted("L213", lambda _: gzipped(compress_gzip(TAR) + bytes(1000)), HOLDS)
refused("L214", lambda _: gzipped(compress_gzip(TAR) + b"\x01" + NOISE), "followed by other bytes")
refused("L214b", lambda _: gzipped(compress_gzip(TAR) + b"\x1f" + NOISE), "no gzip header")
refused("L215", lambda _: gzipped(compress_gzip(compress_gzip(TAR)), compress_gzip(TAR)), CUT)
refused("L215b", lambda _: gzipped(gzip.compress(compress_gzip(LARGE)), compress_gzip(LARGE)), "checksum")
# The content decides; the difference is logged.
accepted("L216", lambda _: [Packed(TAR, TAR, GZIP)], HOLDS)
accepted("L216b", lambda _: [Packed(compress_gzip(TAR), TAR, PLAIN)], HOLDS)
accepted("L216c", lambda _: [Packed(compress_zstd(TAR), TAR, GZIP)], HOLDS)
accepted("L217", lambda _: zstandard(compress_zstd(TAR)), HOLDS)
refused("L218", lambda _: zstandard(compress_zstd(LARGE)[: len(NOISE) // 2], LARGE), "zstd stream is cut off")
DAMAGED = "zstd data is damaged"
refused("L219", lambda _: zstandard(changed(compress_zstd(TAR), -1)), DAMAGED)
refused("L220", lambda _: zstandard(frame_of_another_size(TAR)), DAMAGED)
# libzstd does not look at the size of a frame whose last block is empty.
refused("L220b", lambda _: zstandard(frame_of_size(len(TAR) + 1, TAR, ended=False)), DAMAGED)
refused("L220c", lambda _: zstandard(frame_of_size(0, TAR, ended=False)), DAMAGED)
accepted("L220d", lambda _: zstandard(frame_of_size(len(TAR), TAR, ended=False)), HOLDS)
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>\n"
refused("L225", lambda _: [PAGE], CUT)
refused("L225b", lambda _: [PAGE * 40], "checksum")
refused("L225c", lambda _: [zipped()], "checksum")
refused("L225d", lambda _: [b"x"], "too short to be a layer")
refused("L225e", lambda _: [b"070701" + b"0" * 104 + b"TRAILER!!!" + bytes(500)], "checksum")
COMPRESSED = {"bzip2": bz2.compress(LARGE), "xz": lzma.compress(LARGE)}
# A directory is unpacked into with no media type: there the bytes are what is no layer.
NO_LAYER = r"bzip2 is no layer|xz is no layer|checksum"
NO_TYPE = (UnsafeArchiveError, InvalidError)
refused("L226", lambda _: [Packed(COMPRESSED["bzip2"], LARGE, f"{PLAIN}+bzip2")], NO_LAYER, error=NO_TYPE)
refused("L226b", lambda _: [Packed(COMPRESSED["xz"], LARGE, f"{PLAIN}+xz")], NO_LAYER, error=NO_TYPE)
# No tar, and not the one of its diff_id: two stages see it at once, and either may be the first.
EITHER = (UnsafeArchiveError, DiffIDMismatchError)
refused("L226c", lambda _: [Packed(COMPRESSED["bzip2"], LARGE, PLAIN)], "checksum|diff_id mismatch", error=EITHER)
OTHER = f"sha256:{'0' * 64}"
refused("L227", lambda _: [Packed(TAR, diff_id=OTHER)], f"expected {OTHER}", error=DiffIDMismatchError)
refused("L228", lambda _: [Packed(TAR, sent=TAR + b"\0")], "(size|digest) mismatch", error=IntegrityError)
KEPT_ELSEWHERE = {"urls": ["https://127.0.0.1:9/elsewhere"]}
PLAIN_TYPES: dict[str, Callable[[bytes], bytes]] = {
    "application/vnd.oci.image.layer.nondistributable.v1.tar": bytes,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": compress_gzip,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": compress_zstd,
    "application/vnd.docker.image.rootfs.foreign.diff.tar": bytes,
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": compress_gzip,
}


def kept_elsewhere() -> list[Packed]:
    tars = [Tar().file(f"f{number}", b"f").build() for number in range(len(PLAIN_TYPES))]
    return [
        Packed(compress(tar), tar, media_type, extra=KEPT_ELSEWHERE)
        for tar, (media_type, compress) in zip(tars, PLAIN_TYPES.items(), strict=True)
    ]


accepted("L229", lambda _: kept_elsewhere(), {f"f{number}": b"f" for number in range(len(PLAIN_TYPES))})
