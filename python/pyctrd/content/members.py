"""Files of an image that somebody handed over: in a directory, or in an archive. Each is known by its name alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol, Self

from pyctrd import _core
from pyctrd.errors import InvalidError, NotFoundError
from pyctrd.oci.document import DOCUMENT_MAX_BYTES

# Of a name in a message.
NAME_MAX_CHARS = 200
# What can be handed over.
EXPECTED = "expected an OCI layout (directory or tar), or what docker save or podman save wrote"


class Slice:
    """A run of bytes of a file, as a body: ``readinto`` in one thread, ``close`` from any.

    It owns its descriptor, and reads at positions of its own: others may read the same file.

    Args:
        fd: Of the file; closed with the slice.
        start: Where the run begins in it.
        size: Its bytes.
        offset: Which byte of the run comes first.

    Attributes:
        source: What progress says of where it comes from.
    """

    source = "file"

    def __init__(self, fd: int, *, start: int, size: int, offset: int = 0) -> None:
        self._fd = fd
        self._start = start
        self.size = size
        self.offset = offset
        self._at = offset

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; 0 at the end, and where the file ends before it."""
        count = min(len(buffer), self.size - self._at)
        if count <= 0:
            return 0
        with buffer[:count] as front:
            read = os.preadv(self._fd, [front], self._start + self._at)
        self._at += read
        return read

    def read(self) -> bytes:
        """All that is left; for documents, whose size was looked at."""
        content = bytearray(self.size - self._at)
        filled = 0
        with memoryview(content) as view:
            while filled < len(content):
                with view[filled:] as rest:
                    if (count := self.readinto(rest)) == 0:
                        break
                filled += count
        return bytes(content[:filled])

    def close(self) -> None:
        """Close the file; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Members(Protocol):
    """Files by their names.

    Attributes:
        source: Where they come from, for messages.
    """

    source: str

    def has(self, name: str) -> bool:
        """Whether there is anything of that name."""
        ...

    def open(self, name: str, offset: int = 0) -> Slice:
        """A regular file's bytes from an offset on.

        Raises:
            NotFoundError: There is none.
            InvalidError: It is no regular file.
        """
        ...

    def close(self) -> None:
        """Give back what is held; idempotent. Slices that are open stay so."""
        ...


def read_document(members: Members, name: str) -> bytes:
    """A JSON document's bytes; one that is too large is not read.

    Raises:
        InvalidError: More than ``DOCUMENT_MAX_BYTES``.
        NotFoundError: There is none.
    """
    with members.open(name) as file:
        check_document_size(members.source, name, file.size)
        return file.read()


def check_document_size(source: str, name: str, size: int) -> None:
    """Refuse a document by its size alone.

    Raises:
        InvalidError: More than ``DOCUMENT_MAX_BYTES``.
    """
    if size > DOCUMENT_MAX_BYTES:
        raise InvalidError(
            f"invalid document: {source}: {name}: {size} bytes: expected at most {DOCUMENT_MAX_BYTES}",
            field=name,
            value=size,
        )


class Directory:
    """The files below a directory, which is opened once; no link is followed beneath it.

    Args:
        path: The directory.

    Raises:
        OSError: It cannot be entered.
    """

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def has(self, name: str) -> bool:
        """Whether there is anything of that name."""
        try:
            self.open(name).close()
        except NotFoundError:
            return False
        except InvalidError:
            return True  # whoever opens it is told what it is
        return True

    def open(self, name: str, offset: int = 0) -> Slice:
        """A regular file's bytes from an offset on; see ``Members``."""
        try:
            fd = _core.open_beneath(self._fd, name)
        except InvalidError as error:
            raise irregular(self.source, name, "is no regular file") from error
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise missing(self.source, name) from error
            if error.errno == errno.ELOOP:
                raise irregular(self.source, name, "is a symbolic link, or leads through one") from error
            raise
        return Slice(fd, start=0, size=os.fstat(fd).st_size, offset=offset)

    def close(self) -> None:
        """Close the directory; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def missing(source: str, name: str) -> NotFoundError:
    """The error for a file that is not there."""
    return NotFoundError(f"file not found: {source}: {shown(name)}", kind="file", name=name)


def irregular(source: str, name: str, why: str) -> InvalidError:
    """The error for a name that is not a file's."""
    return InvalidError(f"invalid image source: {source}: {shown(name)}: {why}", field=name, value=why)


def shown(name: str) -> str:
    """A name as a message can have it: strangers gave it."""
    return name if name.isprintable() and len(name) <= NAME_MAX_CHARS else f"{name!r:.200}"
