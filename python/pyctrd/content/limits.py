"""How much of a layer is too much: the values; the native core holds archives against them."""

from __future__ import annotations

from dataclasses import fields

from pyctrd.errors import InvalidError
from pyctrd.oci.value import dataclass

# Each is rust/src/tar/limits.rs' own, with the reason for it there; a test compares them.
DEFAULT_ENTRIES = 10_000_000
DEFAULT_BYTES = 1 << 44
DEFAULT_RATIO = 2000
DEFAULT_NAME_BYTES = 4095
DEFAULT_DEPTH = 1024
DEFAULT_XATTR_BYTES = 256 << 10
DEFAULT_HEADER_BYTES = 1 << 20

# Numbers of files and bytes are 63 bits wide in archives and in the kernel.
_VALUE_MAX = 2**63 - 1
# What cannot be raised further: PATH_MAX, above which no program opens a path; and what is held in memory.
_MOST = {"name_bytes": 4095, "header_bytes": 64 << 20}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a layer may have. One that has more is refused with ``UnsafeArchiveError``, and nothing of it is left.

    All are held against what was really read, while it is read. Two more limits are fixed: a component of a path
    has at most 255 bytes, and a zstd frame may ask for a window of at most 128 MiB (its decoder needs as much
    memory; over 8 MiB that is on top of the 150 MiB that a process needs otherwise).

    Attributes:
        entries: Entries of one layer's archive, whiteouts and directories that no entry lists included.
        bytes: Bytes of all files of one layer, holes included, although they take no disk.
        ratio: Bytes of tar for each compressed byte, once 64 MiB came out. Deflate cannot exceed 1032.
        name_bytes: Bytes of an entry's whole path; at most 4095.
        depth: Components of an entry's path.
        xattr_bytes: Bytes of the names and values of one entry's xattrs.
        header_bytes: Bytes in front of one entry: PAX headers, GNU long names, sparse maps. They are held in
            memory, up to five times; at most 64 MiB.

    Raises:
        InvalidError: A value is no positive number, or more than can be; ``.field`` names it.
    """

    entries: int = DEFAULT_ENTRIES
    bytes: int = DEFAULT_BYTES
    ratio: int = DEFAULT_RATIO
    name_bytes: int = DEFAULT_NAME_BYTES
    depth: int = DEFAULT_DEPTH
    xattr_bytes: int = DEFAULT_XATTR_BYTES
    header_bytes: int = DEFAULT_HEADER_BYTES

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value, most = getattr(self, name), _MOST.get(name, _VALUE_MAX)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise InvalidError(
                    f"invalid limit: {name}: {value!r}: expected a number from 1 to {most}", field=name, value=value
                )
