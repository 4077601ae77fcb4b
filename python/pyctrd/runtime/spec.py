"""An image's config and the user's options, joined into a runtime-spec ``config.json``.

Spec:
    runtime-spec v1.1 config.md and config-linux.md; the defaults are containerd's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pyctrd.errors import InvalidError
from pyctrd.oci.config import ImageConfig
from pyctrd.runtime.cgroup import are_usable, cgroups_path
from pyctrd.runtime.limits import clamp_oom_score_adj, clamp_rlimit, is_in_user_namespace
from pyctrd.runtime.mounts import TTY_GROUP, Bind, MappedSystem, container_mounts, rootfs_propagation
from pyctrd.runtime.namespaces import DOMAIN_NAME, namespaces
from pyctrd.runtime.options import RunOptions
from pyctrd.runtime.resources import resources
from pyctrd.runtime.security import DEFAULT_CAPABILITIES, NO_SECURITY, confinement
from pyctrd.runtime.users import User
from pyctrd.runtime.words import passable

__all__ = ["DEFAULT_CAPABILITIES", "Bind", "RunOptions", "build_spec"]

OCI_VERSION = "1.0.2"  # nothing newer is used, and runc 1.1 refuses to promise more
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME_MAX_BYTES = 64  # the kernel's __NEW_UTS_LEN


def build_spec(
    config: ImageConfig,
    options: RunOptions,
    *,
    container_id: str,
    rootfs: Path,
    user: User,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The container's ``config.json``, as a dictionary for orjson.

    Args:
        config: Of the image.
        options: Of the user; the namespaces of containers and volumes are paths by now.
        container_id: Names the control group, and the host if no name is given.
        rootfs: Absolute; the mounted root file system.
        user: From ``find_user(rootfs, options.user or config.user)``.
        files: Files of the host by their path in the container: those that were written for it.

    Raises:
        InvalidError: An option or the image's own value cannot be used; ``field`` names it.
        NotFoundError: The source of a bind, a device or a profile is missing.
        UnsupportedError: This host cannot do it.
    """
    hostname = host_name(options, container_id)
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(config, options, user, hostname),
        "root": {"path": str(rootfs), "readonly": options.read_only},
        "mounts": container_mounts(
            options.mounts,
            network=options.network,
            files=files,
            shm_bytes=None if options.ipc == "none" else options.shm_bytes,
            host_ipc=options.ipc == "host",
            writable_system=options.privileged,
            userns=_userns(options),
        ),
        "linux": _linux(options, container_id),
    }
    if options.uts == "private":
        spec["hostname"] = hostname
    if options.annotations:
        for name, value in options.annotations.items():
            passable("annotation", f"{name}={value}")
        spec["annotations"] = dict(options.annotations)
    if options.devices or options.device_rules or options.privileged:
        _add_devices(spec, options)
    if options.hooks or options.patches:
        return _as_the_caller_says(spec, options)
    return spec


def _userns(options: RunOptions) -> MappedSystem | None:
    """What a user namespace of its own may not mount anew."""
    if options.id_mappings is None:
        if not is_in_user_namespace():
            return None
        return MappedSystem(options.network == "host", options.pid == "host", True)  # noqa: FBT003 - named in the class
    has_tty = options.id_mappings.has_group(TTY_GROUP)
    return MappedSystem(options.network != "none", options.pid != "private", has_tty)


def host_name(options: RunOptions, container_id: str) -> str:
    """What the container's host is called: the host's own name in its namespace; "" in another's.

    Raises:
        InvalidError: It is too long, or given for a namespace that is another's.
    """
    if options.uts != "private":
        if options.hostname or options.domainname:
            raise InvalidError(
                f"hostname: a uts namespace that is shared has a name already: {options.uts}", field="hostname"
            )
        return os.uname().nodename if options.uts == "host" else ""
    hostname = options.hostname or container_id[:12]
    for field, text in (("hostname", hostname), ("domainname", options.domainname)):
        passable(field, text)
        if len(text.encode()) > HOSTNAME_MAX_BYTES:
            raise InvalidError(
                f"{field}: expected at most {HOSTNAME_MAX_BYTES} bytes, got {text}", field=field, value=text
            )
    return hostname


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
    if options.security != NO_SECURITY:
        labels = {"apparmorProfile": options.security.apparmor, "selinuxLabel": options.security.selinux}
        process |= {name: label for name, label in labels.items() if label}
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
    if not options.init:
        return words
    if options.pid != "private":
        raise InvalidError("init: needs a pid namespace of its own: it has to be the first process", field="init")
    from pyctrd.runtime.init import with_init

    return with_init(words, options.mounts)


def _environment(config: ImageConfig, options: RunOptions, user: User, hostname: str) -> list[str]:
    values = {"PATH": DEFAULT_PATH} | ({"HOSTNAME": hostname} if hostname else {})
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
    # The runtime adds the devices that every container has: null, zero, full, random, urandom, tty, ptys.
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    linux: dict[str, Any] = {
        "namespaces": namespaces(options),
        "resources": {"devices": rules, **resources(options.limits)},
        **confinement(
            options.security,
            privileged=options.privileged,
            default=options.seccomp,
            capabilities=options.capabilities,
        ),
    }
    if options.cgroup_manager == "systemd" or are_usable():
        # Where none can be made the runtime has to be told no path: then it does without.
        linux["cgroupsPath"] = _cgroups_path(options, container_id)
    if options.id_mappings is not None:
        linux |= options.id_mappings.spec()
    if propagation := rootfs_propagation(options.mounts):
        linux["rootfsPropagation"] = propagation
    wanted = dict(options.sysctls or {})
    if options.domainname:
        wanted[DOMAIN_NAME] = options.domainname  # the spec's own field is newer than runtimes in use
    if wanted:
        from pyctrd.runtime.namespaces import sysctls

        linux["sysctl"] = sysctls(wanted, options)
    return linux


def _cgroups_path(options: RunOptions, container_id: str) -> str:
    if options.cgroup_manager == "systemd":
        from pyctrd.runtime.systemd import systemd_path

        return systemd_path(container_id, options.cgroup_parent)
    return cgroups_path(container_id, parent=options.cgroup_parent)


def _add_devices(spec: dict[str, Any], options: RunOptions) -> None:
    from pyctrd.runtime.cdi import DIRECTORIES, apply_devices, is_cdi
    from pyctrd.runtime.devices import ALLOW_ALL, device_entries, host_devices, parse_device, parse_rule

    linux = spec["linux"]
    rules = linux["resources"]["devices"]
    entries = host_devices() if options.privileged else []
    named = [name for name in options.devices if is_cdi(name)]
    own, allowed = device_entries(parse_device(text) for text in options.devices if text not in named)
    paths = {entry["path"] for entry in own}
    linux["devices"] = [*(entry for entry in entries if entry["path"] not in paths), *own]
    rules += [*allowed, *map(parse_rule, options.device_rules)]
    if options.privileged:
        rules.append(dict(ALLOW_ALL))
    if named:
        apply_devices(spec, named, options.cdi_directories or DIRECTORIES)


def _as_the_caller_says(spec: dict[str, Any], options: RunOptions) -> dict[str, Any]:
    from pyctrd.runtime.patch import check_hooks, patch_spec

    for name, entries in check_hooks(options.hooks or {}).items():
        spec.setdefault("hooks", {}).setdefault(name, []).extend(entries)
    for patch in options.patches:
        spec = patch_spec(spec, patch)
    return spec
