"""The namespaces that a container gets, and those of others that it joins."""

from __future__ import annotations

from pyctrd.errors import InvalidError
from pyctrd.runtime.words import passable


def namespaces(network: str) -> list[dict[str, str]]:
    """The spec's ``linux.namespaces``."""
    made = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    if network == "none":
        made.append({"type": "network"})
    elif network.startswith("/"):
        passable("network", network)
        made.append({"type": "network", "path": network})
    elif network != "host":
        raise InvalidError(f'network: {network}: expected "none", "host" or a path', field="network", value=network)
    return made
