"""Outputs: where the bytes of an archive go, one after the other, and the tar that is made of them."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pyctrd.oci.hold import current_hold, pause

_BLOCK_BYTES = 512
# Two empty blocks end a tar; readers and writers of tapes took twenty at once, and GNU tar fills them still.
_RECORD_BYTES = 20 * _BLOCK_BYTES
# What the kernel is asked to pass on at once: Ctrl-C is heard in between.
SEND_BYTES = 8 << 20
# What of a file the kernel does not pass on between two descriptors; then it is read and written.
_NOT_PASSED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EBADF})
# How often somebody who waits for a pipe's other end looks whether that was given up.
_LOOK_MS = 100
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755
_LINK_MODE = 0o777


class Output:
    """A binary file that is written from where it stands, and never sought in.

    Args:
        file: Open for writing: a file, a pipe, a socket's, or one in memory.
        called: What it is called, for errors.
    """

    def __init__(self, file: IO[bytes], called: str) -> None:
        self._file = file
        self.called = called
        self._fd = _descriptor_of(file)

    def write(self, content: bytes | memoryview) -> None:
        """Write all of it.

        Raises:
            OSError: Whoever reads is gone, the disk is full; with the output's name.
            CancelledError: It was given up while it waited for room in a pipe.
        """
        left = memoryview(content)
        try:
            while left:
                try:
                    written = self._file.write(left)
                except BlockingIOError as error:  # of a buffer that is full, before a pipe that is
                    left = left[error.characters_written :]
                    written = None
                if written is None:  # it does not block, and has no room
                    self._wait()
                else:
                    left = left[written:]
        except OSError as error:
            raise self._named(error) from error

    def send(self, source: int, size: int) -> None:
        """Pass on the first bytes of a file that was verified, by the kernel where it can.

        Args:
            source: A descriptor of a regular file.
            size: How many bytes.

        Raises:
            OSError: As ``write``; the file ends before.
        """
        offset = 0
        if self._fd is not None:
            self._flush()
            offset = self._pass_on(self._fd, source, size)
        while offset < size:
            content = os.pread(source, min(size - offset, 1 << 20), offset)
            if not content:
                raise OSError(errno.EIO, "a file became shorter while it was read", self.called)
            self.write(content)
            offset += len(content)

    def _pass_on(self, target: int, source: int, size: int) -> int:
        offset = 0
        while offset < size:
            try:
                sent = os.sendfile(target, source, offset, min(size - offset, SEND_BYTES))
            except BlockingIOError:
                self._wait()
                continue
            except OSError as error:
                if error.errno in _NOT_PASSED:
                    return offset
                raise self._named(error) from error
            if not sent:
                return offset
            offset += sent
        return offset

    def _flush(self) -> None:
        while True:
            try:
                return self._file.flush()
            except BlockingIOError:  # what did not fit stays in the buffer
                self._wait()
            except OSError as error:
                raise self._named(error) from error

    def _wait(self) -> None:
        """Until there is room in a pipe, or nobody reads any more."""
        room = select.poll()  # and not select(), which refuses descriptors over 1,023
        room.register(self._file, select.POLLOUT)
        hold = current_hold()
        while not room.poll(_LOOK_MS if hold is not None else None):
            if hold is not None:
                hold.check()

    def finish(self) -> None:
        """Hand over what a buffer holds.

        Raises:
            OSError: As ``write``.
        """
        self._flush()

    def _named(self, error: OSError) -> OSError:
        if error.filename is None and error.errno is not None:
            error.filename = self.called
        return error


def _descriptor_of(file: IO[bytes]) -> int | None:
    """What the kernel may write to: of a file object of which we know that it has nothing of its own in between."""
    if not isinstance(file, io.FileIO | io.BufferedWriter):
        return None
    try:
        return file.fileno()
    except (OSError, io.UnsupportedOperation):
        return None


@contextmanager
def special_output(path: Path) -> Iterator[Output]:
    """Something that is there and is no file: a device, or a named pipe, whose reader is waited for.

    Raises:
        CancelledError: It was given up.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC
    # Opened so that it waits for nobody, and left so: whoever is slow, or is not there, is waited for here.
    is_pipe = current_hold() is not None and stat.S_ISFIFO(path.stat().st_mode)
    while True:
        try:
            fd = os.open(path, flags | (os.O_NONBLOCK if is_pipe else 0))
            break
        except OSError as error:
            if not is_pipe or error.errno != errno.ENXIO:  # nobody reads it yet
                raise
        pause(_LOOK_MS / 1000)
    with os.fdopen(fd, "wb", buffering=0) as file:
        yield Output(file, str(path))


class TarOutput:
    """A tar on its way out. Entries have no times and are root's: the same files give the same bytes.

    Args:
        output: Where it goes.

    Spec:
        POSIX.1-2001 pax: ustar headers, and extended ones for what these cannot hold: 8 GiB and more, long names.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._written = 0
        self._left = 0

    def directory(self, name: str) -> None:
        """Add a directory."""
        self._header(name, tarfile.DIRTYPE, _DIRECTORY_MODE)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._header(name, tarfile.SYMTYPE, _LINK_MODE, link=target)

    def file(self, name: str, content: bytes) -> None:
        """Add a file."""
        self.begin(name, len(content))
        self.write(content)
        self.end()

    def begin(self, name: str, size: int) -> None:
        """Begin a file of so many bytes; they follow."""
        self._header(name, tarfile.REGTYPE, _FILE_MODE, size=size)
        self._left = size

    def write(self, content: bytes | memoryview) -> None:
        """Add bytes to the file that was begun."""
        self._count(len(content))
        self._output.write(content)

    def send(self, source: int, size: int) -> None:
        """Add the first bytes of a file to the one that was begun."""
        self._count(size)
        self._output.send(source, size)

    def end(self) -> None:
        """End the file that was begun.

        Raises:
            ValueError: It has not all of its bytes.
        """
        if self._left:
            raise ValueError(f"{self._left} bytes are missing")
        self._write(bytes(-self._written % _BLOCK_BYTES))

    def finish(self) -> None:
        """End the archive."""
        self._write(bytes(2 * _BLOCK_BYTES))
        self._write(bytes(-self._written % _RECORD_BYTES))
        self._output.finish()

    def _count(self, size: int) -> None:
        if size > self._left:
            raise ValueError(f"{size - self._left} bytes too many")
        self._left -= size
        self._written += size

    def _header(self, name: str, kind: bytes, mode: int, *, size: int = 0, link: str = "") -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.size, info.linkname = kind, mode, size, link
        self._write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))

    def _write(self, content: bytes) -> None:
        self._written += len(content)
        self._output.write(content)
