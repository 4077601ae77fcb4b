"""Where a layer's blob has a table of contents, as its descriptor's annotations say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pyctrd.oci.descriptor import ESTARGZ_DIGEST, OLD_ZSTD_CHUNKED_DIGEST, ZSTD_CHUNKED_DIGEST
from pyctrd.oci.value import dataclass

if TYPE_CHECKING:
    from pyctrd.oci.descriptor import Descriptor

ZSTD_POSITION = "io.github.containers.zstd-chunked.manifest-position"
ZSTD_SPLIT_POSITION = "io.github.containers.zstd-chunked.tarsplit-position"
_OLD_ZSTD_POSITION = "io.containers.zstd-chunked.manifest-position"
# What the table of fifty thousand files takes, compressed. Each layer that comes may have one in memory; what is larger
# is a layer of small files, which come sooner all at once.
TABLE_MAX_BYTES = 4 << 20
# In front of a frame that decoders skip stand its magic and its length (RFC 8878, section 3.1.2).
_FRAME_HEADER_BYTES = 8
# The only type of a table that there is.
_ZSTD_TYPE = "1"
_DIGITS_MAX = 15


@dataclass(frozen=True, slots=True)
class Table:
    """A table of contents, by where it is.

    Attributes:
        kind: "zstd:chunked" or "estargz".
        digest: Of the table: as it stands in the blob, or of eStargz what it comes to.
        place: Its first byte in the blob and the one behind its last; None where the blob's end tells.
        split: The same of a tar-split; None where there is none.
        end: Where what comes to the tar ends; None where the blob's end tells.
    """

    kind: Literal["zstd:chunked", "estargz"]
    digest: str
    place: tuple[int, int] | None = None
    split: tuple[int, int] | None = None
    end: int | None = None


def find_table(descriptor: Descriptor) -> Table | None:
    """The table that a layer's descriptor tells of; None where it tells of none, or in a way that is not known.

    That the annotations are the image's is known from the manifest's digest; that a table is the one that they mean,
    from its own.

    Spec:
        containers/storage, docs/containers-storage-zstd-chunked.md; containerd/stargz-snapshotter, docs/estargz.md.
    """
    notes = descriptor.annotations
    if (digest := notes.get(ZSTD_CHUNKED_DIGEST, notes.get(OLD_ZSTD_CHUNKED_DIGEST))) is not None:
        text = notes.get(ZSTD_POSITION, notes.get(_OLD_ZSTD_POSITION, ""))
        place = _place(text, fields=4, size=descriptor.size)
        if place is None or not text.endswith(f":{_ZSTD_TYPE}"):
            return None
        split = _place(notes.get(ZSTD_SPLIT_POSITION, ""), fields=3, size=descriptor.size)
        if split is None and ZSTD_SPLIT_POSITION in notes:
            return None
        first = min(place[0], split[0]) if split is not None else place[0]
        return Table("zstd:chunked", digest, place, split, first - _FRAME_HEADER_BYTES)
    if (digest := notes.get(ESTARGZ_DIGEST)) is not None:
        return Table("estargz", digest)
    return None


def _place(text: str, *, fields: int, size: int) -> tuple[int, int] | None:
    """Offset and length, the first of some numbers with colons between them, if it is inside the blob."""
    parts = text.split(":")
    if len(parts) != fields or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    if any(len(part) > _DIGITS_MAX for part in parts):
        return None
    start, length = int(parts[0]), int(parts[1])
    if start < _FRAME_HEADER_BYTES or not 0 < length <= TABLE_MAX_BYTES or start + length > size:
        return None
    return start, start + length
