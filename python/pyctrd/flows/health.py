"""Whether a container does its work: what its shim found out by its health check, waited for and asked for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pyctrd.errors import ConflictError, DeadlineError, NotFoundError
from pyctrd.flows.run import bundle_path, container_status
from pyctrd.flows.runs import notice
from pyctrd.oci.hold import pause
from pyctrd.runtime.life import read_life

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.oci.health import HealthCheck
    from pyctrd.runtime.health import Health, HealthResult
    from pyctrd.runtime.state import ContainerStatus

# A look is three small files; a probe takes longer than this.
LOOK_SECONDS = 0.02
_OUTPUT_CHARS = 200


def container_check(rooms: Rooms, record: ContainerRecord) -> HealthCheck | None:
    """How its health is asked for; None is not at all."""
    return read_life(bundle_path(rooms, record)).health


def container_health(rooms: Rooms, record: ContainerRecord, status: ContainerStatus | None = None) -> Health | None:
    """What is known of its health; None where it has no check.

    Args:
        rooms: The engine's rooms.
        record: The container.
        status: What it is doing, where that was looked at just now.
    """
    if container_check(rooms, record) is None:
        return None
    from pyctrd.runtime.health import read_health

    runtime = rooms.runtime(record.runtime)
    status = status or runtime.status(record.id, bundle_path(rooms, record))
    return read_health(runtime.shim_directory(record.id), status.started_ns)


def wait_healthy(rooms: Rooms, record: ContainerRecord, timeout: float | None) -> Health:
    """See ``Container.wait_healthy``."""
    _require_check(rooms, record)
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        status = container_status(rooms, record)
        if status.state in ("created", "stopped"):
            raise _not_running(record, status, "cannot become healthy")
        # Between two runs, what is known is of the one before.
        health = None if status.state == "restarting" else container_health(rooms, record, status)
        if health is not None and health.status == "healthy":
            notice(rooms, record)
            return health
        if health is not None and health.status == "unhealthy":
            notice(rooms, record)
            raise _unhealthy(record, health)
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineError(
                f"container {record.name}: did not become healthy within {timeout:g} seconds: it is "
                + ("starting" if status.state == "running" else status.state),
                operation="health of the container",
                timeout_seconds=timeout,
            )
        pause(LOOK_SECONDS)


def run_health_check(rooms: Rooms, record: ContainerRecord) -> HealthResult:
    """See ``Container.run_health_check``."""
    from pyctrd.runtime.health import ask_probe, read_health

    _require_check(rooms, record)
    directory = rooms.runtime(record.runtime).shim_directory(record.id)
    status = container_status(rooms, record)
    asked_ns = time.time_ns()
    if status.state == "running":
        ask_probe(directory)
    while status.state == "running":
        health = read_health(directory, status.started_ns)
        if (found := next((one for one in health.results if one.start_ns >= asked_ns), None)) is not None:
            notice(rooms, record)
            return found
        pause(LOOK_SECONDS)
        before, status = status, container_status(rooms, record)
        if status.started_ns != before.started_ns:
            raise _not_running(record, status, "cannot be probed: it was started again meanwhile")
    raise _not_running(record, status, "cannot be probed")


def _require_check(rooms: Rooms, record: ContainerRecord) -> None:
    if container_check(rooms, record) is None:
        raise NotFoundError(
            f"container {record.name}: has no health check",
            kind="health check",
            name=record.name,
            hint="make it with one: --health-cmd",
        )


def _not_running(record: ContainerRecord, status: ContainerStatus, what: str) -> ConflictError:
    ended = "" if status.exit is None else f", with exit code {status.exit.exit_code}"
    return ConflictError(
        f"container {record.name}: {what}: it is {status.state}{ended}",
        kind="container",
        name=record.name,
        state=status.state,
        allowed="running",
    )


def _unhealthy(record: ContainerRecord, health: Health) -> ConflictError:
    last = health.results[-1]
    said = " ".join(last.output.split())[:_OUTPUT_CHARS]
    return ConflictError(
        f"container {record.name}: is unhealthy: {health.failing_streak} failures in a row, the last with exit code "
        f"{last.exit_code}" + (f": {said}" if said else ""),
        kind="container",
        name=record.name,
        state="unhealthy",
        allowed="healthy",
        hint=f"see what its check said: pyctrd inspect {record.name}",
    )
