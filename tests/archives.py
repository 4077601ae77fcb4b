"""Tars built entry by entry, so that a test decides every byte: ``tarfile`` would correct what must be wrong."""

from __future__ import annotations

import gzip
import stat
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Self

BLOCK = 512
# A fixed time, with nanoseconds only where PAX carries them.
MTIME = 1_700_000_000
USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"
V7 = b""
ZSTD_SKIPPABLE = b"\x50\x2a\x4d\x18"


class Tar:
    """A tar under construction. Each method adds one entry and returns the tar itself."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def directory(self, name: str | bytes, *, mode: int = 0o755, **options: Any) -> Self:
        """A directory."""
        return self.add(name, kind=b"5", mode=mode, **options)

    def file(self, name: str | bytes, content: bytes = b"", *, mode: int = 0o644, **options: Any) -> Self:
        """A regular file."""
        return self.add(name, content=content, mode=mode, **options)

    def symlink(self, name: str | bytes, target: str | bytes, **options: Any) -> Self:
        """A symbolic link."""
        return self.add(name, kind=b"2", link=target, mode=0o777, **options)

    def hardlink(self, name: str | bytes, target: str | bytes, **options: Any) -> Self:
        """Another name of an entry before it, or of a lower layer's."""
        return self.add(name, kind=b"1", link=target, mode=0o644, **options)

    def fifo(self, name: str | bytes, **options: Any) -> Self:
        """A named pipe."""
        return self.add(name, kind=b"6", mode=0o600, **options)

    def device(self, name: str | bytes, kind: int, major: int, minor: int, **options: Any) -> Self:
        """A device; ``kind`` is ``stat.S_IFCHR`` or ``stat.S_IFBLK``."""
        return self.add(name, kind=b"3" if kind == stat.S_IFCHR else b"4", mode=0o600, device=(major, minor), **options)

    def whiteout(self, name: str) -> Self:
        """The removal of a lower layer's entry."""
        parent, _, base = name.rpartition("/")
        return self.file(f"{parent}/.wh.{base}" if parent else f".wh.{base}")

    def opaque(self, name: str) -> Self:
        """The removal of everything that lower layers have in a directory."""
        return self.file(f"{name}/.wh..wh..opq")

    def sparse(self, name: str, size: int, pieces: Sequence[tuple[int, bytes]]) -> Self:
        """A sparse file in PAX 1.0 form: the map stands before the data.

        GNU tar gives every piece blocks of its own, others do not: pieces but the last should fill theirs.
        """
        numbers = [len(pieces), *(n for offset, piece in pieces for n in (offset, len(piece)))]
        lines = "".join(f"{n}\n" for n in numbers).encode()
        content = padded(lines) + b"".join(piece for _, piece in pieces)
        pax = {
            "GNU.sparse.major": b"1",
            "GNU.sparse.minor": b"0",
            "GNU.sparse.name": name.encode(),
            "GNU.sparse.realsize": str(size).encode(),
        }
        return self.file(f"GNUSparseFile.0/{name[-80:]}", content, pax=pax)

    def add(
        self,
        name: str | bytes,
        *,
        kind: bytes = b"0",
        content: bytes = b"",
        link: str | bytes = b"",
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        mtime: int = MTIME,
        device: tuple[int, int] = (0, 0),
        pax: Mapping[str, bytes] | None = None,
        xattrs: Mapping[str, bytes] | None = None,
    ) -> Self:
        """Any entry; what does not fit the header goes into PAX records."""
        name_bytes, link_bytes = _bytes(name), _bytes(link)
        records = dict(pax or {})
        records |= {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}
        if len(name_bytes) > 100:
            records.setdefault("path", name_bytes)
        if len(link_bytes) > 100:
            records.setdefault("linkpath", link_bytes)
        if records:
            self._parts.append(pax_header(records))
        self._entry(
            name_bytes[:100],
            kind=kind,
            content=content,
            link=link_bytes[:100],
            mode=mode,
            uid=uid,
            gid=gid,
            mtime=mtime,
            device=device,
        )
        return self

    def raw(self, data: bytes) -> Self:
        """Bytes as they are."""
        self._parts.append(data)
        return self

    def build(self) -> bytes:
        """The archive, ended as the format wants it: two empty blocks, padded to 10 KiB as GNU tar does."""
        body = b"".join(self._parts) + bytes(2 * BLOCK)
        return body + bytes(-len(body) % 10240)

    def _entry(self, name: bytes, *, content: bytes = b"", **fields: Any) -> None:
        self._parts += [header(name, size=len(content), **fields), padded(content)]


def header(
    name: bytes,
    *,
    kind: bytes = b"0",
    size: int | bytes = 0,
    link: bytes = b"",
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = MTIME,
    device: tuple[int, int] = (0, 0),
    magic: bytes = USTAR,
    prefix: bytes = b"",
    fields: Mapping[int, bytes] | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """One header block; its sum is right unless ``checksum`` is given.

    Args:
        name: Up to 100 bytes; more are cut, as a header does.
        size, mode, uid, gid, mtime: Bytes are put down as they are.
        fields: Anything else, by offset.
    """
    block = bytearray(BLOCK)
    numbers = ((mode, 100, 8), (uid, 108, 8), (gid, 116, 8), (size, 124, 12), (mtime, 136, 12))
    coded = [(at, width, value if isinstance(value, bytes) else octal(value, width)) for value, at, width in numbers]
    texts = [(0, 100, name), (148, 8, b" " * 8), (156, 1, kind), (157, 100, link), (257, 8, magic), (345, 155, prefix)]
    # v7 has no fields for device numbers.
    devices = [(at, 8, octal(number, 8)) for at, number in zip((329, 337), device, strict=True) if magic]
    more = [(at, len(value), value) for at, value in (fields or {}).items()]
    for at, width, value in (*texts, *coded, *devices, *more):
        block[at : at + min(width, len(value))] = value[:width]
    block[148:156] = (b"%06o\0 " % sum(block)) if checksum is None else checksum
    return bytes(block)


def pax_header(records: Mapping[str, bytes] | Sequence[tuple[str, bytes]], *, kind: bytes = b"x") -> bytes:
    """An extended header (``x``), or a global one (``g``), with its records."""
    pairs = records.items() if isinstance(records, Mapping) else records
    body = b"".join(record(key.encode(), value) for key, value in pairs)
    return header(b"PaxHeaders/x", kind=kind, size=len(body)) + padded(body)


def gnu_long(kind: bytes, text: bytes) -> bytes:
    """GNU's ``L`` (name) or ``K`` (link target) in front of an entry."""
    return header(b"././@LongLink", kind=kind, size=len(text) + 1, magic=GNU) + padded(text + b"\0")


def compress_gzip(content: bytes) -> bytes:
    """One member, no time in it: the same bytes each time."""
    return gzip.compress(content, 6, mtime=0)


def compress_zstd(content: bytes) -> bytes:
    """One frame with its checksum, by zstd's own program."""
    return subprocess.run(["zstd", "-q", "--check", "-c"], input=content, capture_output=True, check=True).stdout


def zstd_skippable(content: bytes) -> bytes:
    """A frame that readers pass over."""
    return ZSTD_SKIPPABLE + len(content).to_bytes(4, "little") + content


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def padded(content: bytes) -> bytes:
    """Filled up to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def octal(value: int, width: int) -> bytes:
    """Octal digits and a NUL; base-256, as GNU tar writes it, for what does not fit."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return base_256(value, width)


def base_256(value: int, width: int) -> bytes:
    """Two's complement with the top bit set."""
    coded = bytearray(value.to_bytes(width, "big", signed=True))
    coded[0] |= 0x80
    return bytes(coded)


def record(key: bytes, value: bytes) -> bytes:
    """``length key=value\\n``, where the length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest
