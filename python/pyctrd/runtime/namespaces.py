"""The namespaces that a container gets, and those of others that it joins.

Spec:
    runtime-spec v1.1 config-linux.md, "Namespaces"; namespaces(7).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.runtime.words import passable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyctrd.runtime.options import RunOptions

JOINED = "container:"
# Field of the options → the spec's type, which is a path's last part too (``/proc/1/ns/net``).
KINDS = {"pid": "pid", "ipc": "ipc", "uts": "uts", "cgroupns": "cgroup", "network": "network", "userns": "user"}
# What a namespace of its own is called: Docker says "none" for a network with loopback alone.
_OWN = {"network": ("none",), "ipc": ("private", "none", "shareable")}
_PRIVATE = ("private",)
_OF_USERS = ("slirp4netns", "pasta")
# What only a namespace of the container's own may have set, as Docker allows.
_IPC_SYSCTLS = (
    *("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax"),
    *("kernel.shmmni", "kernel.shm_rmid_forced"),
)
_NET = "net."
_MQUEUE = "fs.mqueue."
DOMAIN_NAME = "kernel.domainname"


def namespaces(options: RunOptions) -> list[dict[str, str]]:
    """The spec's ``linux.namespaces``: the container's own, or others' by path.

    Raises:
        InvalidError: A field says neither; or names a container, which a flow has to replace by its namespace's path.
    """
    made = [{"type": "mount"}]
    for field, kind in KINDS.items():
        mode: str = getattr(options, field)
        if mode in _OWN.get(field, _PRIVATE):
            made.append({"type": kind})
        elif mode.startswith("/"):
            passable(field, mode)
            made.append({"type": kind, "path": mode})
        elif mode != "host":
            own = _OWN.get(field, _PRIVATE)[0]
            raise InvalidError(f'{field}: {mode}: expected "{own}", "host" or a path', field=field, value=mode)
    return made


def read_mode(field: str, text: str) -> str:
    """A user's word for a namespace in the form of ``RunOptions``: ``ns:/path`` is the path.

    Raises:
        InvalidError: It is none of those that there are.
        UnsupportedError: It is a network of a user's that is not used yet.
    """
    mode = text.removeprefix("ns:") if text.startswith("ns:/") else text
    own = _OWN.get(field, _PRIVATE)
    if mode in (*own, "host") or mode.startswith("/") or (mode.startswith(JOINED) and mode != JOINED):
        if field == "cgroupns" and mode.startswith(JOINED):
            raise InvalidError(f"{field}: {text}: expected private, host or a path", field=field, value=text)
        return mode
    if field == "network" and text.partition(":")[0] in _OF_USERS:
        raise UnsupportedError(
            f"unsupported: network: {text}",
            feature=f"network {text}",
            needs="none, host, container:NAME or a network namespace's path",
            hint="make a network namespace with it, and give its path: ns:PATH",
        )
    words = f"{', '.join(own)}, host, container:NAME, or a namespace's absolute path"
    raise InvalidError(f"invalid {field}: {text!r}: expected {words}", field=field, value=text)


def joined(options: RunOptions) -> dict[str, str]:
    """Containers whose namespaces are to be joined, by the options' field."""
    modes = {field: str(getattr(options, field)) for field in KINDS}
    return {field: mode.removeprefix(JOINED) for field, mode in modes.items() if mode.startswith(JOINED)}


def namespace_path(field: str, pid: int) -> str:
    """Where a process's namespace is."""
    return f"/proc/{pid}/ns/{'net' if field == 'network' else KINDS[field]}"


def sysctls(values: Mapping[str, str], options: RunOptions) -> dict[str, str]:
    """The spec's ``linux.sysctl``.

    Raises:
        InvalidError: One that is the whole host's, or of a namespace that is not the container's own.
    """
    made = {}
    for name, value in values.items():
        passable("sysctl", f"{name}={value}")
        field = _sysctl_namespace(name)
        if not field:
            raise InvalidError(
                f"sysctl: {name}: not of a namespace: it would change the whole host", field="sysctl", value=name
            )
        if getattr(options, field) not in _OWN.get(field, _PRIVATE):
            raise InvalidError(
                f"sysctl: {name}: needs a {KINDS[field]} namespace of its own, and it has {getattr(options, field)}",
                field="sysctl",
                value=name,
            )
        made[name] = value
    return made


def _sysctl_namespace(name: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_]+(\.[a-zA-Z0-9_/-]+)+", name):
        raise InvalidError(f"sysctl: {name}: expected a name with dots: net.core.somaxconn", field="sysctl", value=name)
    if name in _IPC_SYSCTLS or name.startswith(_MQUEUE):
        return "ipc"
    if name.startswith(_NET):
        return "network"
    return "uts" if name == DOMAIN_NAME else ""
