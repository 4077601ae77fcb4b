"""Restart policies after a reboot: the shims that carried them out are gone, and no daemon is there to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyctrd.errors import ConflictError, PyctrdError
from pyctrd.flows.log import logger
from pyctrd.flows.run import bundle_path, container_status, start_container
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord


class RestoredContainers(NamedTuple):
    """What ``containers.restore_policies`` did.

    Attributes:
        started: The names of those that run now.
        failed: Why others do not, by their names.
    """

    started: list[str]
    failed: dict[str, Exception]


def restore_policies(rooms: Rooms) -> RestoredContainers:
    """Start the namespace's containers that their policies want to run.

    The oldest first, since a user who has one wait for another made that one before.
    """
    started: list[str] = []
    failed: dict[str, Exception] = {}
    for record in reversed(rooms.database.containers.list(rooms.namespace)):
        try:
            if _wants(rooms, record):
                terminal, stdin = made_streams(rooms, record)
                start_container(rooms, record, terminal=terminal, stdin=stdin)
                started.append(record.name)
        except ConflictError:
            logger.debug("%s: somebody else has started it", record.name)
        except (PyctrdError, OSError) as error:
            failed[record.name] = error
    return RestoredContainers(started, failed)


def _wants(rooms: Rooms, record: ContainerRecord) -> bool:
    from pyctrd.runtime.life import is_wanted_stopped, read_policy

    bundle = bundle_path(rooms, record)
    policy = read_policy(bundle)
    status = container_status(rooms, record)
    if policy == "no" or status.state not in ("created", "stopped"):
        return False
    told = rooms.database.containers.told(record.namespace, record.id)
    if told is None or not told[0]:
        return False  # it was never started: nobody has asked for it to run yet
    if policy == "always":
        return True
    if is_wanted_stopped(bundle):
        return False
    # Ended by a status of 0, "on-failure" is done; with no record a power cut or a lost shim ended it.
    return policy == "unless-stopped" or status.exit is None or status.exit.error != ""


def made_streams(rooms: Rooms, record: ContainerRecord) -> tuple[bool, bool]:
    """Whether it has a terminal and takes input, as it was made."""
    import orjson

    from pyctrd.runtime.life import read_life

    bundle = bundle_path(rooms, record)
    process = orjson.loads((bundle / "config.json").read_bytes()).get("process") or {}
    return bool(process.get("terminal")), read_life(bundle).stdin
