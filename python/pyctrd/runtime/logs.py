"""Reading a container's log: JSON lines, as Docker's json-file driver writes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import orjson

from pyctrd.oci.hold import waiting
from pyctrd.oci.value import NamedTuple
from pyctrd.runtime.shim import Connection, Kind, Mode

LOG = "log"


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
    bundle: Path, directory: Path, *, follow: bool, since_ns: int = 0, tail: int | None = None
) -> Iterator[LogLine]:
    """The lines of a log, oldest first.

    Args:
        bundle: Holds the log.
        directory: The shim's, where it says that the log has grown.
        follow: Go on until the container ends.
        since_ns: Only lines written at this time or later, in nanoseconds since the epoch.
        tail: Only so many of the lines that are there already; None is all.
    """
    # Connected before the first read: what is written between the two is told.
    connection = Connection.open(directory, Mode.LOG) if follow else None
    since = _rfc3339(since_ns)
    try:
        with (bundle / LOG).open("rb") as file:
            present = (line for line in _whole_lines(file) if line.time >= since)
            yield from present if tail is None else deque(present, maxlen=tail)
            while connection is not None:
                more = _grown(connection)
                yield from (line for line in _whole_lines(file) if line.time >= since)
                if not more:
                    return
    except FileNotFoundError:
        return  # it never ran
    finally:
        if connection is not None:
            connection.close()


def _grown(connection: Connection) -> bool:
    """Wait until there is more to read; False where this was the last of it."""
    with waiting(connection.interrupt):
        more = connection.receive()
    if not more:
        return False
    return all(kind != Kind.EXIT for kind, _ in connection.frames())


def _whole_lines(file: BinaryIO) -> Iterator[LogLine]:
    """The lines from here on; the file stands before the first one that is not whole yet."""
    while line := file.readline():
        if not line.endswith(b"\n"):
            file.seek(-len(line), 1)
            return
        try:
            values = orjson.loads(line)
            yield LogLine(text=values["log"], stream=values["stream"], time=values["time"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            # A shim that was killed while it wrote; its successor ended the line.
            import logging

            logging.getLogger("pyctrd.runtime").debug("%s: torn line left out: %s", file.name, error)


def _rfc3339(ns: int) -> str:
    seconds, nanos = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"
