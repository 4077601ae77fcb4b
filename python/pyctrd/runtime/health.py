"""A container's health: what its shim found out, and what the shim is told to ask with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import orjson

from pyctrd.errors import InvalidError
from pyctrd.oci.value import NamedTuple
from pyctrd.runtime.life import HEALTH, read_bounded

RECORD = "health.json"
# What the runtime starts as a probe, in the shim's directory.
PROCESS = "health-process.json"
# How an output begins of a probe that took too long; the shim writes it.
TIMED_OUT = "health check exceeded timeout"
# Five outputs of 4 KiB, each byte of which may be written as six.
_RECORD_MAX_BYTES = 256 << 10

HealthStatus = Literal["starting", "healthy", "unhealthy"]
STATUSES: tuple[HealthStatus, ...] = ("starting", "healthy", "unhealthy")


class HealthResult(NamedTuple):
    """How one probe ended.

    Attributes:
        start_ns: When it began, in nanoseconds since 1970.
        end_ns: When it ended.
        exit_code: Of its process, 0 is healthy; -1 where it was ended since it took too long, or could not be started.
        output: The end of what it wrote, 4 KiB at most, bytes that are no UTF-8 replaced; or why there is none.
    """

    start_ns: int
    end_ns: int
    exit_code: int
    output: str


class Health(NamedTuple):
    """What is known of a container's health, of its last run.

    Attributes:
        status: "starting" (also before the first run), "healthy" or "unhealthy".
        failing_streak: Failures since the last success; those of the start period do not count.
        results: The last five, the oldest first.
    """

    status: HealthStatus = "starting"
    failing_streak: int = 0
    results: tuple[HealthResult, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Whether its last probes say that it does its work."""
        return self.status == "healthy"


class HealthChange(NamedTuple):
    """That the status has become another one.

    Attributes:
        status: Which.
        time_ns: When; each change has a later one than that before.
    """

    status: HealthStatus
    time_ns: int


def read_health(directory: Path, started_ns: int) -> Health:
    """What the shim wrote of a run; where it has not yet, that it is starting.

    Args:
        directory: The shim's own.
        started_ns: When the run began: what is of another one is not told.

    Raises:
        InvalidError: Somebody else wrote it.
    """
    body = read_bounded(directory / RECORD, _RECORD_MAX_BYTES)
    if body is None:
        return Health()
    try:
        values: dict[str, Any] = orjson.loads(body)
        if int(values["started_ns"]) != started_ns:
            return Health()
        results = tuple(_result(found) for found in values["results"])
        return Health(_status(values["status"]), int(values["failing_streak"]), results)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InvalidError(f"{RECORD}: {error!r}", field=RECORD) from error


def read_changes(bundle: Path) -> list[HealthChange]:
    """How the status has changed since the last start by a user, oldest first; the last sixteen are kept.

    Raises:
        InvalidError: Somebody else wrote it.
    """
    body = read_bounded(bundle / HEALTH, _RECORD_MAX_BYTES)
    if body is None:
        return []
    try:
        lines: list[dict[str, Any]] = [orjson.loads(line) for line in body.splitlines()]
        return [HealthChange(_status(line["status"]), int(line["time_ns"])) for line in lines]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InvalidError(f"{HEALTH}: {error!r}", field=HEALTH) from error


def write_probe(bundle: Path, directory: Path, command: Sequence[str]) -> None:
    """Write what the runtime is to start as a probe: the container's process, with another command.

    Args:
        bundle: Holds ``config.json``.
        directory: The shim's own.
        command: The program and its arguments.
    """
    process: dict[str, Any] = dict(orjson.loads((bundle / "config.json").read_bytes())["process"])
    process |= {"args": list(command), "terminal": False}
    process.pop("consoleSize", None)
    # The environment may hold secrets, as the bundle's file does.
    descriptor = os.open(directory / PROCESS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps(process))


def ask_probe(directory: Path) -> None:
    """Have a shim begin a probe now; nothing is done where its container has ended."""
    from pyctrd.runtime.shim import Connection, Kind, Mode

    connection = Connection.open(directory, Mode.CONTROL)
    if connection is not None:
        with connection, contextlib.suppress(ConnectionError):
            connection.send(Kind.PROBE)


def _result(values: dict[str, Any]) -> HealthResult:
    exit_code, output = int(values["exit_code"]), str(values["output"])
    if exit_code < 0:
        output = _reason(output)
    return HealthResult(int(values["start_ns"]), int(values["end_ns"]), exit_code, output)


def _reason(text: str) -> str:
    """Why a probe has no exit code: of the runtime's words, which may be JSON, the line that says it."""
    if text.startswith(TIMED_OUT):
        return text
    from pyctrd.runtime.runc import clean

    line = text.strip().rpartition("\n")[2]
    if line.startswith("{"):
        try:
            return clean(str(orjson.loads(line)["msg"]))
        except (orjson.JSONDecodeError, KeyError):
            pass  # it was cut off
    return clean(text)


def _status(text: Any) -> HealthStatus:
    for known in STATUSES:
        if text == known:
            return known
    raise ValueError(text)
