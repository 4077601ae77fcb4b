"""What this engine is and what the host can do."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from pyctrd import _core
from pyctrd.errors import UnsupportedError
from pyctrd.flows.choose import why_not
from pyctrd.flows.runtimes import describe_runtime
from pyctrd.oci.platform import Platform

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms


def gather(rooms: Rooms) -> dict[str, Any]:
    """Paths, versions, counts, and the snapshotter with the reasons against the others."""
    database = rooms.database
    try:
        snapshotter = rooms.snapshotter.name
    except UnsupportedError as error:
        snapshotter = f"none ({error})"
    return {
        "version": _core.__version__,
        "root": str(rooms.root),
        "state": str(rooms.settings.state),
        "namespace": rooms.namespace,
        "durability": rooms.settings.durability,
        "content_digests": rooms.settings.content_digests,
        "platform": str(Platform.host()),
        "kernel": platform.release(),
        "inflate": _core.INFLATE,
        "snapshotter": snapshotter,
        "snapshotters_not_usable": why_not(rooms),
        **describe_runtime(rooms.settings),
        "images": len(list(database.images.list(rooms.namespace))),
        "containers": len(list(database.containers.list(rooms.namespace))),
    }
