"""An image's config and the user's options, joined into a runtime-spec ``config.json``.

Spec:
    runtime-spec v1.1 config.md and config-linux.md; the defaults are containerd's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyctrd.errors import InvalidError
from pyctrd.oci.config import ImageConfig
from pyctrd.runtime.cgroup import cgroups_path
from pyctrd.runtime.limits import clamp_oom_score_adj, clamp_rlimit
from pyctrd.runtime.mounts import Bind, bind_mount, default_mounts, network_files
from pyctrd.runtime.namespaces import namespaces
from pyctrd.runtime.options import RunOptions
from pyctrd.runtime.resources import resources
from pyctrd.runtime.seccomp import default_profile
from pyctrd.runtime.security import DEFAULT_CAPABILITIES, MASKED_PATHS, READONLY_PATHS
from pyctrd.runtime.users import User
from pyctrd.runtime.words import passable

__all__ = ["DEFAULT_CAPABILITIES", "Bind", "RunOptions", "build_spec"]

OCI_VERSION = "1.0.2"  # nothing newer is used, and runc 1.1 refuses to promise more
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME_MAX_BYTES = 64  # the kernel's __NEW_UTS_LEN


def build_spec(
    config: ImageConfig, options: RunOptions, *, container_id: str, rootfs: Path, user: User
) -> dict[str, Any]:
    """The container's ``config.json``, as a dictionary for orjson.

    Args:
        config: Of the image.
        options: Of the user.
        container_id: Names the control group, and the host if no name is given.
        rootfs: Absolute; the mounted root file system.
        user: From ``find_user(rootfs, options.user or config.user)``.

    Raises:
        InvalidError: An option or the image's own value cannot be used; ``field`` names it.
        NotFoundError: The source of a bind is missing.
    """
    hostname = options.hostname or container_id[:12]
    passable("hostname", hostname)
    if len(hostname.encode()) > HOSTNAME_MAX_BYTES:
        raise InvalidError(
            f"hostname: expected at most {HOSTNAME_MAX_BYTES} bytes, got {hostname}", field="hostname", value=hostname
        )
    return {
        "ociVersion": OCI_VERSION,
        "process": _process(config, options, user, hostname),
        "root": {"path": str(rootfs), "readonly": options.read_only},
        "hostname": hostname,
        "mounts": [*default_mounts(), *network_files(options.network, options.binds), *map(bind_mount, options.binds)],
        "linux": _linux(options, container_id),
    }


def _process(config: ImageConfig, options: RunOptions, user: User, hostname: str) -> dict[str, Any]:
    capabilities = sorted(set(options.capabilities))
    process: dict[str, Any] = {
        "terminal": options.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)},
        "args": _arguments(config, options),
        "env": _environment(config, options, user, hostname),
        "cwd": _working_dir(options.working_dir or config.working_dir or "/"),
        # Not inheritable: a file capability would add to what a user other than root holds.
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "noNewPrivileges": options.no_new_privileges,
        "rlimits": [clamp_rlimit(rlimit) for rlimit in options.rlimits],
    }
    if options.terminal and options.console_size:
        rows, columns = options.console_size
        process["consoleSize"] = {"height": rows, "width": columns}
    if options.oom_score_adj is not None:
        process["oomScoreAdj"] = clamp_oom_score_adj(options.oom_score_adj)
    return process


def _arguments(config: ImageConfig, options: RunOptions) -> list[str]:
    """A given entrypoint drops the image's command too: it was written for the other one."""
    if options.entrypoint is None:
        words = [*config.entrypoint, *(options.command or config.cmd)]
    else:
        words = [*options.entrypoint, *options.command]
    if not words or not words[0]:
        raise InvalidError(
            "command: the image names none and none was given", field="command", hint="give a command after the image"
        )
    for word in words:
        passable("command", word)
    return words


def _environment(config: ImageConfig, options: RunOptions, user: User, hostname: str) -> list[str]:
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if options.terminal:
        values["TERM"] = "xterm"
    values |= _pairs(config.env, "config.Env")
    values |= _pairs(options.env, "env")
    if not values.get("HOME"):
        values["HOME"] = user.home
    return [f"{name}={value}" for name, value in values.items()]


def _pairs(entries: Iterable[str], field: str) -> dict[str, str]:
    values = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise InvalidError(f"{field}: {entry!r}: expected NAME=value", field=field, value=entry)
        passable(field, entry)
        values[name] = value
    return values


def _working_dir(path: str) -> str:
    if not path.startswith("/"):
        raise InvalidError(f"working directory: {path}: expected an absolute path", field="working_dir", value=path)
    passable("working directory", path)
    return path


def _linux(options: RunOptions, container_id: str) -> dict[str, Any]:
    linux: dict[str, Any] = {
        "cgroupsPath": cgroups_path(container_id, parent=options.cgroup_parent),
        "namespaces": namespaces(options.network),
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
        "resources": resources(options),
    }
    if options.seccomp:
        linux["seccomp"] = default_profile(options.capabilities)
    return linux
