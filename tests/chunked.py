"""zstd:chunked read as its readers do: the table of contents, single files, and the tar put together again."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

PREFIX = "io.github.containers.zstd-chunked."
# As Podman and skopeo up to 4.3 and 1.10 call them.
OLD_PREFIX = "io.containers.zstd-chunked."
_FOOTER_BYTES = 72


class Table(NamedTuple):
    """What a layer says of itself.

    Attributes:
        entries: Of files, links and all else, in the archive's order, with the chunks behind their files.
        record: tar-split's lines; none where the layer has no such record.
    """

    entries: list[dict[str, Any]]
    record: list[dict[str, Any]]


def decompress_zstd(content: bytes) -> bytes:
    """By the program made for it: skippable frames come to nothing."""
    return subprocess.run(["zstd", "-dcq"], input=content, check=True, capture_output=True).stdout


def read_table(blob: bytes, annotations: Mapping[str, str]) -> Table:
    """The table of contents and tar-split's record, each held against its digest."""
    prefix = PREFIX if f"{PREFIX}manifest-position" in annotations else OLD_PREFIX
    offset, length, size, kind = map(int, annotations[f"{prefix}manifest-position"].split(":"))
    packed = blob[offset : offset + length]
    assert sha256(packed) == annotations[f"{prefix}manifest-checksum"]
    assert kind == 1
    # The frame that a decoder skips: its magic and its length stand in front.
    assert blob[offset - 8 : offset] == b"\x50\x2a\x4d\x18" + length.to_bytes(4, "little")
    text = decompress_zstd(packed)
    assert len(text) == size
    table = json.loads(text)
    assert table["version"] == 1
    record: list[dict[str, Any]] = []
    if "tarSplitDigest" in table:
        at, count, full = map(int, annotations[f"{prefix}tarsplit-position"].split(":"))
        split = blob[at : at + count]
        assert sha256(split) == table["tarSplitDigest"]
        lines = decompress_zstd(split)
        assert len(lines) == full
        record = [json.loads(line) for line in lines.splitlines()]
        assert [line["position"] for line in record] == list(range(len(record)))
        footer = [int.from_bytes(blob[-_FOOTER_BYTES + 8 + 8 * n :][:8], "little") for n in range(7)]
        assert footer == [offset, length, size, kind, at, count, full]
        assert blob.endswith(b"GNUlInUx")
    return Table(table["entries"], record)


def read_files(blob: bytes, table: Table) -> dict[str, bytes]:
    """Each file's content, from its own frames alone; digests of chunks and files are checked."""
    found = {}
    for entry, chunks in _files(table.entries):
        pieces: list[bytes] = []
        ends = [*(chunk["offset"] for chunk in chunks[1:]), entry["endOffset"]]
        assert chunks[-1].get("endOffset", entry["endOffset"]) == entry["endOffset"]
        for chunk, end in zip(chunks, ends, strict=True):
            piece = decompress_zstd(blob[chunk["offset"] : end])
            if len(chunks) > 1:
                assert len(piece) == chunk["chunkSize"]
                assert sha256(piece) == chunk["chunkDigest"]
                assert chunk.get("chunkOffset", 0) == len(b"".join(pieces))
                assert (chunk.get("chunkType") == "zeros") <= (not piece.strip(b"\0"))
            pieces.append(piece)
        content = b"".join(pieces)
        assert len(content) == entry["size"]
        assert sha256(content) == entry["digest"]
        found[entry["name"]] = content
    return found


def rebuild(table: Table, files: Mapping[str, bytes]) -> bytes:
    """The tar, from tar-split's record and the files."""
    pieces = []
    for line in table.record:
        if line["type"] == 2:
            pieces.append(base64.b64decode(line["payload"]))
        elif line.get("size"):
            content = files[line["name"]]
            assert len(content) == line["size"]
            assert len(base64.b64decode(line["payload"])) == 8
            pieces.append(content)
    return b"".join(pieces)


def without_places(table: Table) -> list[dict[str, Any]]:
    """The entries, but for where in the blob their content is: that depends on the compressor."""
    return [{key: entry[key] for key in entry if key not in ("offset", "endOffset")} for entry in table.entries]


def sha256(content: bytes) -> str:
    """The digest of bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _files(entries: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each file that has content, with its chunks, of which it is the first itself."""
    for at, entry in enumerate(entries):
        if entry["type"] != "reg" or not entry.get("size"):
            continue
        chunks = [entry]
        for following in entries[at + 1 :]:
            if following["type"] != "chunk":
                break
            assert following["name"] == entry["name"]
            chunks.append(following)
        yield entry, chunks
