"""Limits, as the spec's ``linux.resources``."""

from __future__ import annotations

import os
from typing import Any

from pyctrd.errors import InvalidError
from pyctrd.runtime.options import RunOptions

CPU_PERIOD_US = 100_000
MEMORY_MIN_BYTES = 6 << 20  # below, runc's own init is killed before the container's command starts


def resources(options: RunOptions) -> dict[str, Any]:
    """The spec's ``linux.resources``."""
    # The runtime adds the devices that every container has: null, zero, full, random, urandom, tty, ptys.
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if options.memory_bytes is not None:
        if options.memory_bytes < MEMORY_MIN_BYTES:
            raise InvalidError(
                f"memory: expected at least {MEMORY_MIN_BYTES} bytes, got {options.memory_bytes}",
                field="memory",
                value=options.memory_bytes,
            )
        resources["memory"] = {"limit": options.memory_bytes}
    if options.cpus is not None:
        if not 0.01 <= options.cpus <= (os.cpu_count() or 1):
            raise InvalidError(
                f"cpus: expected 0.01 to {os.cpu_count()}, got {options.cpus}", field="cpus", value=options.cpus
            )
        resources["cpu"] = {"period": CPU_PERIOD_US, "quota": round(options.cpus * CPU_PERIOD_US)}
    if options.pids is not None:
        resources["pids"] = {"limit": options.pids}
    return resources
