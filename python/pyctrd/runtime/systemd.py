"""Control groups that systemd makes: whether it can here, and how they are named.

Spec:
    systemd.slice(5), systemd.scope(5), sd_booted(3); runtime-spec v1.1 config-linux.md, "Cgroups Path"; runc,
    docs/systemd.md.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pyctrd.errors import InvalidError, UnsupportedError

# Scopes are called "pyctrd-<container's id>.scope".
PREFIX = "pyctrd"
# As runc's: dashes are levels, so none may be empty.
_SLICE = re.compile(r"(?:[A-Za-z0-9:_.\\]+(?:-[A-Za-z0-9:_.\\]+)*)\.slice")
_BUSES = ("run/dbus/system_bus_socket", "run/systemd/private")


def check_systemd(host: Path = Path("/")) -> None:
    """Refuse where systemd cannot be asked for control groups.

    Args:
        host: Where the host's /proc and /run are.

    Raises:
        UnsupportedError: It is not process 1, or its bus cannot be reached.
    """
    try:
        first = (host / "proc/1/comm").read_text().strip()
    except OSError:
        first = "not to be seen"
    if first != "systemd" or not (host / "run/systemd/system").is_dir():
        raise _missing(f"process 1 is {first}", "a host that was booted with systemd")
    if os.geteuid() != 0:
        if (
            not os.environ.get("DBUS_SESSION_BUS_ADDRESS")
            and not (host / f"run/user/{os.geteuid()}/systemd/private").exists()
        ):
            raise _missing("systemd's bus of this user is missing", "a session of systemd's: loginctl enable-linger")
    elif not any((host / bus).is_socket() for bus in _BUSES):
        raise _missing(f"no bus of systemd's at {' or '.join(f'/{bus}' for bus in _BUSES)}", "D-Bus")


def systemd_path(container_id: str, parent: str) -> str:
    """The spec's ``linux.cgroupsPath`` for a runtime that asks systemd: ``slice:prefix:name``.

    Args:
        container_id: Names the scope.
        parent: The slice; "" is the system's, or of an ordinary user the user's.

    Raises:
        InvalidError: It is no slice.
    """
    parent = parent or ("system.slice" if os.geteuid() == 0 else "user.slice")
    if not _SLICE.fullmatch(parent):
        raise InvalidError(
            f"cgroup_parent: {parent}: expected a slice of systemd, as machine.slice",
            field="cgroup_parent",
            value=parent,
            hint="or use cgroup_manager cgroupfs, whose parents are paths",
        )
    return f"{parent}:{PREFIX}:{container_id}"


def _missing(why: str, needs: str) -> UnsupportedError:
    return UnsupportedError(
        f"unsupported: cgroup_manager systemd: {why}",
        feature="control groups by systemd",
        needs=needs,
        hint="use cgroup_manager cgroupfs, the default",
    )
