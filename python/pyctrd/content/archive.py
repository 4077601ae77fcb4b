"""A tar of an image's files: read where they are in it, or, from a stream, from copies."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from typing import Protocol

from pyctrd import _core
from pyctrd.content.limits import Limits
from pyctrd.content.members import EXPECTED, Slice, check_document_size, irregular, missing, shown
from pyctrd.errors import InvalidError, UnsafeArchiveError
from pyctrd.oci.hold import current_hold
from pyctrd.oci.value import dataclass

# What is kept in memory of all members: of an image of a thousand layers it is a twentieth.
LISTING_MAX_BYTES = 16 << 20
# What a member costs beside its name.
MEMBER_BYTES = 512
# Read by their names before anything is known: refused at their headers if they are too large.
DOCUMENTS = ("index.json", "manifest.json", "oci-layout", "repositories")


class Copies(Protocol):
    """Where the members of a stream are kept meanwhile: a directory that is swept should this process die."""

    @property
    def path(self) -> os.PathLike[str]:
        """The directory."""
        ...

    def close(self) -> None:
        """Remove it."""
        ...


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: str
    size: int
    link: str
    start: int
    copy: str | None


class Archive:
    """The files of a tar, plain or compressed by gzip or zstd.

    Of a plain tar in a regular file the headers are read, and members where they are. Anything else comes once: its
    files are copied while it is read.

    Args:
        source: What it is called, for messages.
        fd: Read from where it stands; it is not closed here, and must stay open for as long as the archive is used.
        copies: Makes a directory for copies, where one is needed.
        limits: ``bytes`` for all files together, ``ratio`` and ``header_bytes`` as for a layer.

    Raises:
        UnsafeArchiveError: It is no tar, is cut off, or has more than the limits allow.
        InvalidError: A name stands twice in it or leads out of it; a document is too large.
        OSError: It cannot be read, or its copies not be written.
        CancelledError: It was given up while a pipe had nothing.
    """

    def __init__(self, source: str, fd: int, *, copies: Callable[[], Copies], limits: Limits) -> None:
        self.source = source
        self._fd = fd
        self._limits = limits
        self._members: dict[str, _Entry] = {}
        self._copies: Copies | None = None
        try:
            self._read(copies)
        except UnsafeArchiveError as error:
            self.close()
            raise _of_source(error, source) from error
        except BaseException:
            self.close()
            raise

    def _read(self, copies: Callable[[], Copies]) -> None:
        hold = current_hold()
        reader = _core.ArchiveReader(self._fd, limits=self._limits, check=None if hold is None else hold.check)
        listed = total = 0
        while (member := reader.next()) is not None:
            name = self._name(member)
            listed += len(member.name) + len(member.link) + MEMBER_BYTES
            if listed > LISTING_MAX_BYTES:
                raise InvalidError(
                    f"invalid image archive: {self.source}: {shown(name)}: too many members, or too long names",
                    field="members",
                    value=len(self._members),
                )
            if member.kind == "directory":
                continue
            if name in self._members:
                raise irregular(self.source, name, "stands in the archive twice")
            if name in DOCUMENTS:
                check_document_size(self.source, name, member.size)
            total += member.size
            if total > self._limits.bytes:
                raise self._over_bytes(member)
            self._members[name] = self._keep(reader, member, copies)

    def _keep(self, reader: _core.ArchiveReader, member: _core.Member, copies: Callable[[], Copies]) -> _Entry:
        copy = None
        if member.kind == "file" and not reader.in_place and not member.sparse:
            if self._copies is None:
                self._copies = copies()
            copy = os.path.join(self._copies.path, f"member-{len(self._members)}")  # noqa: PTH118 - one of thousands
            fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                reader.copy(fd)
            finally:
                os.close(fd)
        kind = "sparse file" if member.sparse else member.kind
        start = 0 if copy else member.offset
        return _Entry(kind, member.size, os.fsdecode(member.link), start, copy)

    def _name(self, member: _core.Member) -> str:
        """As it is looked up: without dots. A name that means a place outside is refused, whoever wants it."""
        name = os.fsdecode(member.name)
        parts = name.split("/")
        if name.startswith("/") or ".." in parts:
            raise irregular(self.source, name, "leads out of the archive")
        return "/".join(part for part in parts if part not in ("", "."))

    def _over_bytes(self, member: _core.Member) -> UnsafeArchiveError:
        reason = f"over the limit bytes={self._limits.bytes}: its files have more bytes"
        return UnsafeArchiveError(
            reason,
            entry=member.name,
            offset=member.offset,
            reason=reason,
            limit="bytes",
            hint="if you trust it: limits=Limits(bytes=…), or --limit bytes=…",
        )

    def has(self, name: str) -> bool:
        """Whether there is anything of that name."""
        return name in self._members

    def names(self) -> list[str]:
        """All names, sorted; directories are not kept."""
        return sorted(self._members)

    def open(self, name: str, offset: int = 0) -> Slice:
        """A regular file's bytes from an offset on; see ``Members``."""
        member = self._members.get(name)
        if member is None:
            raise missing(self.source, name)
        if member.kind != "file":
            raise irregular(self.source, name, f"is no regular file but a {member.kind}")
        fd = os.dup(self._fd) if member.copy is None else os.open(member.copy, os.O_RDONLY | os.O_CLOEXEC)
        return Slice(fd, start=member.start, size=member.size, offset=offset)

    def follow(self, name: str) -> str:
        """Where a symbolic link among the members leads, within the archive; the name itself where it is none.

        Docker once saved a layer that two images share as a link to where the other has it.

        Raises:
            InvalidError: It leads out.
        """
        member = self._members.get(name)
        if member is None or member.kind != "symlink":
            return name
        # Another link is not followed from there: a chain of them could have no end.
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.link))
        if target.startswith(("/", "../")) or target == "..":
            raise irregular(self.source, name, f"is a link out of the archive: {shown(member.link)}")
        return target

    def close(self) -> None:
        """Remove the copies; idempotent."""
        copies, self._copies = self._copies, None
        if copies is not None:
            copies.close()


def _of_source(error: UnsafeArchiveError, source: str) -> UnsafeArchiveError:
    """The error with the archive's name, which it does not know; what is wrong from its first byte on is no archive."""
    entry = f"{error.entry!r:.200}: "[1:] if error.entry else ""
    return UnsafeArchiveError(
        f"unsafe archive: {source}: {entry}{error.reason} (at byte {error.offset})",
        entry=error.entry,
        offset=error.offset,
        reason=error.reason,
        limit=error.limit,
        hint=error.hint or (EXPECTED if error.offset == 0 else ""),
    )
