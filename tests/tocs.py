"""Layers with tables of contents, written so that a test decides every byte of the table."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyctrd.oci.descriptor import ESTARGZ_DIGEST, ZSTD_CHUNKED_DIGEST
from pyctrd.oci.media_types import layer_media_type
from pyctrd.oci.toc import ZSTD_POSITION, ZSTD_SPLIT_POSITION
from tests.archives import zstd_skippable
from tests.images import Blob, BuiltImage, build_image

Change = Callable[[dict[str, Any]], None]
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# No content size, a window of 2 MiB.
_ZSTD_HEADER = b"\x00\x58"
_ZSTD_BLOCK_BYTES = 1 << 17
_TYPES = {
    tarfile.REGTYPE: "reg",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


@dataclass(frozen=True)
class Tabled:
    """A layer's blob and what its descriptor says of its table."""

    media_type: str
    content: bytes = field(repr=False)
    annotations: Mapping[str, str]


def zstd_chunked(tar: bytes, *, split: bool = True, change: Change | None = None) -> Tabled:
    """As containers/storage writes it, with frames that are not compressed.

    Args:
        tar: The layer.
        split: With a tar-split, as since 2023.
        change: Alters the table before it is digested.
    """
    blob = bytearray()
    table: dict[str, Any] = {"version": 1, "entries": []}
    lines: list[dict[str, Any]] = []
    at = 0
    for member in _members(tar):
        entry = _entry(member)
        if member.isreg() and member.size:
            lines.append({"type": 2, "payload": base64.b64encode(tar[at : member.offset_data]).decode()})
            lines.append({"type": 1, "name": member.name, "size": member.size, "payload": "AAAAAAAAAAA="})
            blob += zstd_frame(tar[at : member.offset_data])
            at = member.offset_data + member.size
            content = tar[member.offset_data : at]
            entry |= {"offset": len(blob), "digest": digest_of(content)}
            blob += zstd_frame(content)
            entry["endOffset"] = len(blob)
        table["entries"].append(entry)
    lines.append({"type": 2, "payload": base64.b64encode(tar[at:]).decode()})
    blob += zstd_frame(tar[at:])
    text = b"".join(json.dumps(line | {"position": n}).encode() + b"\n" for n, line in enumerate(lines))
    packed_split = zstd_frame(text)
    if split:
        table["tarSplitDigest"] = digest_of(packed_split)
    if change is not None:
        change(table)
    packed = zstd_frame(json.dumps(table).encode())
    annotations = {
        ZSTD_CHUNKED_DIGEST: digest_of(packed),
        ZSTD_POSITION: f"{len(blob) + 8}:{len(packed)}:{len(json.dumps(table))}:1",
    }
    blob += zstd_skippable(packed)
    if split:
        annotations[ZSTD_SPLIT_POSITION] = f"{len(blob) + 8}:{len(packed_split)}:{len(text)}"
        blob += zstd_skippable(packed_split)
    blob += zstd_skippable(bytes(56) + b"GNUlInUx")
    return Tabled(layer_media_type("zstd"), bytes(blob), annotations)


def estargz(tar: bytes, *, change: Change | None = None) -> Tabled:
    """As estargz.Build writes it: a member for what stands in front, one for each file and what follows it."""
    blob = bytearray()
    table: dict[str, Any] = {"version": 1, "entries": []}
    members = _members(tar)
    starts = [member.offset_data for member in members if member.isreg() and member.size]
    ends = [*starts[1:], members[-1].offset_data + -(-members[-1].size // 512) * 512]
    blob += gzip_member(tar[: starts[0]])
    bodies = dict(zip(starts, ends, strict=True))
    for member in members:
        entry = _entry(member)
        if member.isreg() and member.size:
            content = tar[member.offset_data : member.offset_data + member.size]
            entry |= {"offset": len(blob), "digest": digest_of(content), "chunkDigest": digest_of(content)}
            blob += gzip_member(tar[member.offset_data : bodies[member.offset_data]])
        table["entries"].append(entry)
    if change is not None:
        change(table)
    text = json.dumps(table, indent="\t").encode()
    start = len(blob)
    blob += gzip_member(go_header("stargz.index.json", len(text)) + text + bytes(-len(text) % 512 + 1024))
    blob += b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0" + b"%016xSTARGZ" % start
    blob += b"\x01\0\0\xff\xff" + bytes(8)
    return Tabled(layer_media_type("gzip"), bytes(blob), {ESTARGZ_DIGEST: digest_of(text)})


def estargz_tar(layer: Tabled) -> bytes:
    """What an eStargz blob comes to: its table is in the tar."""
    out, rest = b"", layer.content
    while rest:
        inflate = zlib.decompressobj(wbits=31)
        out += inflate.decompress(rest)
        rest = inflate.unused_data
    return out


def go_tar(files: Mapping[str, bytes]) -> bytes:
    """A tar of directories and files as Go's archive/tar writes them."""
    out = b""
    for name, content in files.items():
        kind = b"5" if name.endswith("/") else b"0"
        out += go_header(name, len(content), kind=kind) + content + bytes(-len(content) % 512)
    return out + bytes(1024)


def go_header(name: str, size: int, *, kind: bytes = b"0") -> bytes:
    """A header as Go's archive/tar writes it."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108] = b"0000755\0" if kind == b"5" else b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"%011o\0" % 0
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[329:337] = block[337:345] = b"0000000\0"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def tabled_image(layers: Sequence[Tabled], tars: Sequence[bytes]) -> BuiltImage:
    """An image of such layers."""
    plain = build_image(tars)
    config = plain.blobs[0]
    blobs = tuple(Blob(layer.media_type, layer.content) for layer in layers)
    manifest = json.loads(plain.manifest.content)
    described = zip(blobs, layers, strict=True)
    manifest["layers"] = [blob.descriptor | {"annotations": dict(layer.annotations)} for blob, layer in described]
    return BuiltImage(
        Blob(plain.manifest.media_type, json.dumps(manifest).encode()), (config, *blobs), tars=tuple(tars)
    )


def digest_of(content: bytes) -> str:
    """sha256 of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def zstd_frame(content: bytes) -> bytes:
    """A frame of blocks that are not compressed (RFC 8878, section 3.1.1)."""
    blocks = [content[at : at + _ZSTD_BLOCK_BYTES] for at in range(0, len(content), _ZSTD_BLOCK_BYTES)] or [b""]
    made = _ZSTD_MAGIC + _ZSTD_HEADER
    for number, block in enumerate(blocks, 1):
        made += (len(block) << 3 | (number == len(blocks))).to_bytes(3, "little") + block
    return made


def gzip_member(content: bytes) -> bytes:
    """A member of its own."""
    deflate = zlib.compressobj(1, wbits=31)
    return deflate.compress(content) + deflate.flush()


def _members(tar: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getmembers()


def _entry(member: tarfile.TarInfo) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": _TYPES[member.type], "name": member.name, "mode": member.mode}
    if member.isdir():
        entry["name"] += "/"
    if member.size:
        entry["size"] = member.size
    if member.linkname:
        entry["linkName"] = member.linkname
    return entry | {"uid": member.uid, "gid": member.gid}
