"""Restart policies after a reboot: the shims that carried them out are gone, and no daemon is there to."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from pyctrd.errors import ConflictError, PyctrdError
from pyctrd.flows.log import logger
from pyctrd.flows.rooms import Rooms
from pyctrd.flows.run import bundle_path, container_status, start_container
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.metadata.containers import ContainerRecord


class RestoredContainers(NamedTuple):
    """What ``containers.restore_policies`` did.

    Attributes:
        started: The names of those that run now; of other namespaces, with their namespace in front: "other/name".
        failed: Why others do not, by their names.
    """

    started: list[str]
    failed: dict[str, Exception]


def restore_policies(rooms: Rooms, *, all_namespaces: bool = False) -> RestoredContainers:
    """Start the containers that their policies want to run: of the engine's own namespace, or of each.

    The oldest first, since a user who has one wait for another made that one before.
    """
    done = _restore(rooms, "")
    names = [known.name for known in rooms.database.namespaces.list()] if all_namespaces else []
    for name in names:
        if name != rooms.namespace:
            # What a container's options name, as whose network it joins, is looked up in its own namespace.
            with closing(Rooms(replace(rooms.settings, namespace=name))) as theirs:
                found = _restore(theirs, f"{name}/")
            done.started.extend(found.started)
            done.failed.update(found.failed)
    return done


def _restore(rooms: Rooms, prefix: str) -> RestoredContainers:
    started: list[str] = []
    failed: dict[str, Exception] = {}
    for record in reversed(rooms.database.containers.list(rooms.namespace)):
        try:
            if _wants(rooms, record):
                terminal, stdin = made_streams(rooms, record)
                start_container(rooms, record, terminal=terminal, stdin=stdin)
                started.append(f"{prefix}{record.name}")
        except ConflictError:
            logger.debug("%s: somebody else has started it", record.name)
        except (PyctrdError, OSError) as error:
            failed[f"{prefix}{record.name}"] = error
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
    from pyctrd.flows.alter import read_spec
    from pyctrd.runtime.life import read_life

    bundle = bundle_path(rooms, record)
    process = read_spec(record, bundle).get("process") or {}
    return bool(process.get("terminal")), read_life(bundle).stdin
