"""Reading a container's log over rotations: JSON lines, as Docker's driver has them, or the kubelet's form."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self

import orjson

from pyctrd.errors import DeadlineError
from pyctrd.oci.hold import waiting
from pyctrd.oci.value import NamedTuple
from pyctrd.runtime.shim import Connection, Kind, Mode, wait_readable

LOG = "log"
# Where a rotation is under way one name is missing for a moment; two say that there are no older files.
_MISSING_MAX = 2
_TAIL_BLOCK_BYTES = 64 << 10


class LogLine(NamedTuple):
    """A line, or a part of 16 KiB of a longer one.

    Attributes:
        text: With its newline, if it ended with one.
        stream: "stdout" or "stderr".
        time: RFC 3339 in UTC with nine digits, so that texts order as times do.
    """

    text: str
    stream: str
    time: str


def read_log(
    bundle: Path,
    directory: Path,
    *,
    follow: bool,
    since_ns: int = 0,
    until_ns: int | None = None,
    tail: int | None = None,
) -> Iterator[LogLine]:
    """The lines of a log, oldest first, from the oldest file that is kept.

    Args:
        bundle: Holds the log.
        directory: The shim's, where it says that the log has grown.
        follow: Go on until the container ends; restarts by its policy are no end.
        since_ns: Only lines written at this time or later, in nanoseconds since the epoch.
        until_ns: Only lines written before this time; following ends then. None is all.
        tail: Only so many of the lines that are there already; None is all.
    """
    # Connected before the first read: what is written between the two is told.
    connection = Connection.open(directory, Mode.LOG) if follow else None
    since, until = rfc3339(since_ns), None if until_ns is None else rfc3339(until_ns)

    def wanted(line: LogLine) -> bool:
        return line.time >= since and (until is None or line.time < until)

    try:
        with _Files(bundle / LOG) as files:
            if tail is not None and until is None:
                files.start_near_end(tail)
            present = (line for line in files.lines() if wanted(line))
            yield from present if tail is None else deque(present, maxlen=tail)
            while connection is not None:
                more = _grown(connection, until_ns)
                yield from (line for line in files.lines() if wanted(line))
                if not more:
                    return
    finally:
        if connection is not None:
            connection.close()


def _grown(connection: Connection, until_ns: int | None) -> bool:
    """Wait until there is more to read; False where this was the last of it."""
    left = None if until_ns is None else max(0.0, (until_ns - time.time_ns()) / 1e9)
    try:
        with waiting(connection.interrupt):
            if left is not None:
                wait_readable(connection.fileno(), time.monotonic() + left, left, "more of the log")
            more = connection.receive()
    except DeadlineError:
        return False
    if not more:
        return False
    return all(kind != Kind.EXIT for kind, _ in connection.frames())


class _Files:
    """The files of a log as one that grows. Which is next is told by what is open, since names move on meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def lines(self) -> Iterator[LogLine]:
        """The whole lines from here to the end of the newest file."""
        if self._file is None:
            self._file = self._newer_than(None)
        while self._file is not None:
            yield from _whole_lines(self._file)
            newer = self._newer_than(self._file)
            if newer is None:
                return
            # It was written until it was renamed: after that it is read to its end.
            yield from _whole_lines(self._file)
            self._file.close()
            self._file = newer

    def start_near_end(self, count: int) -> None:
        """Begin where at least so many lines follow, or at the oldest file."""
        for file in self._from_newest():
            if self._file is not None:
                self._file.close()
            self._file = file
            count = _seek_lines(file, count)
            if count <= 0:
                return

    def _newer_than(self, file: BinaryIO | None) -> BinaryIO | None:
        """The next newer file; the oldest for None."""
        last: BinaryIO | None = None
        for found in self._from_newest():
            if file is not None and _is_same(found, file):
                found.close()
                return last
            if last is not None:
                last.close()
            last = found
        # The one that was read is gone already: the oldest that is left is the next one after it.
        return last

    def _from_newest(self) -> Iterator[BinaryIO]:
        """The files, each once and none left out: they move towards the old, as this does."""
        number = missing = 0
        last: os.stat_result | None = None
        while missing < _MISSING_MAX:
            found = self._open(number)
            number += 1
            if found is None:
                missing += 1
                continue
            missing = 0
            facts = os.fstat(found.fileno())
            if last is not None and os.path.samestat(facts, last):
                found.close()
                continue
            last = facts
            yield found

    def _open(self, number: int) -> BinaryIO | None:
        try:
            return self._path.with_name(f"{self._path.name}.{number}" if number else self._path.name).open("rb")
        except FileNotFoundError:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _is_same(one: BinaryIO, other: BinaryIO) -> bool:
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))


def _seek_lines(file: BinaryIO, count: int) -> int:
    """Stand before the last ``count`` lines, or at the beginning; how many lines are missing then."""
    end = position = file.seek(0, os.SEEK_END)
    found = 0
    while position > 0 and count > 0:
        length = min(_TAIL_BLOCK_BYTES, position)
        position -= length
        file.seek(position)
        block = file.read(length)
        if position + length == end:
            block = block.removesuffix(b"\n")  # it ends the last line, and begins none
        at = len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            found += 1
            if found == count:
                file.seek(position + at + 1)
                return 0
    if count > 0:
        file.seek(0)
    return count - found - (end > 0) if count > 0 else 0


def _whole_lines(file: BinaryIO) -> Iterator[LogLine]:
    """The lines from here on; the file stands before the first one that is not whole yet."""
    while line := file.readline():
        if not line.endswith(b"\n"):
            file.seek(-len(line), 1)
            return
        try:
            yield _parse_json(line) if line.startswith(b"{") else _parse_cri(line)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            # A shim that was killed while it wrote; its successor ended the line.
            import logging

            logging.getLogger("pyctrd.runtime").debug("%s: torn line left out: %s", file.name, error)


def _parse_json(line: bytes) -> LogLine:
    values = orjson.loads(line)
    return LogLine(text=values["log"], stream=values["stream"], time=values["time"])


def _parse_cri(line: bytes) -> LogLine:
    """``2016-10-06T00:17:09.669794202Z stdout F text``; "P" is a part of a line, whose newline is not its own.

    Spec:
        Kubernetes' CRI: design proposal "CRI: Log management for container stdout/stderr streams".
    """
    when, stream, tag, text = line.decode("utf-8", "replace").split(" ", 3)
    if stream not in ("stdout", "stderr"):
        raise ValueError(stream)
    return LogLine(text=text if tag.split(":", 1)[0] == "F" else text[:-1], stream=stream, time=when)


def rfc3339(ns: int) -> str:
    """A time in UTC with nine digits."""
    seconds, nanos = divmod(max(0, ns), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"
