"""A process beside a running container's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyctrd.errors import ConflictError
from pyctrd.flows.alter import read_spec
from pyctrd.flows.freeze import thaw
from pyctrd.flows.run import bundle_path, mount_rootfs
from pyctrd.runtime.exec_spec import ExecOptions, exec_spec
from pyctrd.runtime.users import find_user

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.runtime.execs import Exec, Execs
    from pyctrd.runtime.runtime import Runtime
    from pyctrd.runtime.shim import Connection

_HINTS = {"paused": "let it go on: pyctrd unpause", "created": "start it: pyctrd start"}


def exec_process(
    rooms: Rooms,
    record: ContainerRecord,
    options: ExecOptions,
    *,
    user: str,
    stdin: bool,
    attached: bool,
    timeout: float | None,
) -> tuple[Exec, Connection | None]:
    """Start a process in a container that runs.

    Args:
        rooms: The engine's rooms.
        record: The container.
        options: What the user wants other than the container's own process has.
        user: ``user[:group]``, looked up in the container's files; "" is the container's own.
        stdin: Input can be sent to it.
        attached: Also give the connection of its streams.
        timeout: Seconds until it is killed with what it started.

    Raises:
        ConflictError: The container does not run, or is paused.
        InvalidError, NotFoundError: An option, or what it names, cannot be used.
        RuncError: It could not be started.
        UnsupportedError: The runtime would start it outside the container's user namespace.
    """
    thaw(rooms, record)
    runtime = rooms.runtime(record.runtime)
    bundle = bundle_path(rooms, record)
    status = runtime.status(record.id, bundle)
    if status.state != "running":
        raise ConflictError(
            f"container {record.name}: is {status.state}, must be running",
            kind="container",
            name=record.name,
            state=status.state,
            allowed="running",
            hint=_HINTS.get(status.state, "start it again: pyctrd start"),
        )
    config = read_spec(record, bundle)
    check_exec(runtime, config)
    found = find_user(mount_rootfs(rooms, record), user) if user else None
    process = exec_spec(config, options, found)
    return runtime.execs(record.id).start(process, stdin=stdin, attached=attached, timeout=timeout)


def check_exec(runtime: Runtime, spec: Mapping[str, Any]) -> None:
    """Refuse to start processes beside the own one of a container where they would not be in its user namespace.

    Args:
        runtime: Whose ``exec`` starts them.
        spec: The container's.

    Raises:
        UnsupportedError: They would be root of the host.
    """
    if any(one["type"] == "user" for one in spec.get("linux", {}).get("namespaces") or ()):
        from pyctrd.runtime.program import refuse_exec_outside

        refuse_exec_outside(runtime.name())


def container_execs(rooms: Rooms, record: ContainerRecord) -> Execs:
    """The processes that were started so in a container."""
    return rooms.runtime(record.runtime).execs(record.id)
