"""An image's config and the user's options, joined into a runtime-spec ``config.json``.

Spec:
    runtime-spec v1.1 config.md and config-linux.md; the defaults are containerd's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pyctrd.errors import InvalidError, NotFoundError
from pyctrd.oci.config import ImageConfig
from pyctrd.runtime.cgroup import PARENT, cgroups_path
from pyctrd.runtime.limits import Rlimit, clamp_oom_score_adj, clamp_rlimit
from pyctrd.runtime.seccomp import default_profile
from pyctrd.runtime.users import User

OCI_VERSION = "1.0.2"  # nothing newer is used, and runc 1.1 refuses to promise more
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CPU_PERIOD_US = 100_000
MEMORY_MIN_BYTES = 6 << 20  # below, runc's own init is killed before the container's command starts
HOSTNAME_MAX_BYTES = 64  # the kernel's __NEW_UTS_LEN

DEFAULT_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# What a container in the host's network namespace needs to resolve the host's names.
HOST_NETWORK_FILES = ("/etc/hosts", "/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory or file of the host, seen in the container.

    Attributes:
        source: Absolute, on the host; else a volume's name, "" for one of the container's own.
        destination: Absolute, in the container.
        read_only: Whether writing is refused.
        nocopy: Whether an empty volume stays so, whatever the image has there.
    """

    source: str
    destination: str
    read_only: bool = False
    nocopy: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[SOURCE:]DESTINATION[:ro|rw][,nocopy]``; a source that begins with "." is relative to here.

        One that begins with neither that nor "/" is a volume's name.

        Raises:
            InvalidError: It does not have this form.
        """
        source, colon, rest = text.partition(":")
        destination, _, mode = rest.partition(":") if colon else (source, "", "")
        modes = set(mode.split(",")) if mode else set()
        if not destination.startswith("/") or not modes <= {"ro", "rw", "nocopy"} or {"ro", "rw"} <= modes:
            raise InvalidError(
                f"volume: {text}: expected [SOURCE:]DESTINATION[:ro|rw][,nocopy] with paths, or a volume's name first",
                field="volume",
                value=text,
            )
        if not colon:
            source = ""
        elif source.startswith(("/", ".")):
            source = str(Path.cwd() / source)
        return cls(source, destination, "ro" in modes, "nocopy" in modes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the user wants other than the image says. Every default is "as the image says".

    Attributes:
        command: Words after the entrypoint; () takes the image's, unless ``entrypoint`` is given.
        entrypoint: Replaces the image's; () runs the command alone.
        env: ``NAME=value``; a later one of the same name wins.
        user: ``user[:group]``; looked up by ``find_user``, and here only told apart from the image's.
        working_dir: Absolute; made if missing.
        hostname: "" is the first twelve characters of the container's id.
        terminal: A pseudo-terminal for the process.
        console_size: Rows and columns of it at the start.
        read_only: The root file system cannot be written.
        binds: Parts of the host.
        network: "none": a namespace of its own with loopback; "host"; or a namespace's path.
        capabilities: ``CAP_…`` that the process may use.
        seccomp: Whether the default profile is applied.
        no_new_privileges: Set-user-id programs and file capabilities give nothing.
        memory_bytes: Limit; None is none.
        cpus: Limit in processors' worth of time; None is none.
        pids: Limit of processes and threads; None is none.
        rlimits: Resource limits; clamped to what the host allows.
        oom_score_adj: -1000 to 1000, clamped to what the host allows; None leaves it alone.
        cgroup_parent: Absolute path of the group that the container's own is made in.
    """

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    hostname: str = ""
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    read_only: bool = False
    binds: tuple[Bind, ...] = ()
    network: str = "none"
    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    seccomp: bool = True
    no_new_privileges: bool = True
    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int | None = None
    cgroup_parent: str = PARENT


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
    _passable("hostname", hostname)
    if len(hostname.encode()) > HOSTNAME_MAX_BYTES:
        raise InvalidError(
            f"hostname: expected at most {HOSTNAME_MAX_BYTES} bytes, got {hostname}", field="hostname", value=hostname
        )
    return {
        "ociVersion": OCI_VERSION,
        "process": _process(config, options, user, hostname),
        "root": {"path": str(rootfs), "readonly": options.read_only},
        "hostname": hostname,
        "mounts": [*_default_mounts(), *_network_files(options), *map(_bind, options.binds)],
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
        _passable("command", word)
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
        _passable(field, entry)
        values[name] = value
    return values


def _working_dir(path: str) -> str:
    if not path.startswith("/"):
        raise InvalidError(f"working directory: {path}: expected an absolute path", field="working_dir", value=path)
    _passable("working directory", path)
    return path


def _passable(field: str, text: str) -> None:
    """Refuse what a process, or the JSON that describes it, cannot take."""
    if "\0" in text:
        raise InvalidError(f"{field}: {text!r}: a NUL character cannot be passed", field=field, value=text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidError(f"{field}: {text!r}: expected UTF-8", field=field, value=text) from error


def _default_mounts() -> list[dict[str, Any]]:
    hardened = ("nosuid", "noexec", "nodev")
    shared_memory = (*hardened, "mode=1777", "size=65536k")
    terminals = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    return [
        _mount("/proc", "proc", "proc", hardened),
        _mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        _mount("/dev/pts", "devpts", "devpts", terminals),
        _mount("/dev/shm", "tmpfs", "shm", shared_memory),  # noqa: S108  # a path in the container, mounted anew
        _mount("/dev/mqueue", "mqueue", "mqueue", hardened),
        _mount("/sys", "sysfs", "sysfs", (*hardened, "ro")),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", (*hardened, "relatime", "ro")),
    ]


def _mount(destination: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _network_files(options: RunOptions) -> list[dict[str, Any]]:
    if options.network != "host":
        return []
    taken = {bind.destination for bind in options.binds}
    return [
        _bind(Bind(path, path, read_only=True))
        for path in HOST_NETWORK_FILES
        if path not in taken and Path(path).exists()
    ]


def _bind(bind: Bind) -> dict[str, Any]:
    for path in (bind.source, bind.destination):
        _passable("volume", path)
    if not Path(bind.source).exists():
        raise NotFoundError(
            f"volume: {bind.source}: no such file or directory", kind="file", name=bind.source, hint="create it first"
        )
    return _mount(bind.destination, "bind", bind.source, ("rbind", "rprivate", "ro" if bind.read_only else "rw"))


def _linux(options: RunOptions, container_id: str) -> dict[str, Any]:
    linux: dict[str, Any] = {
        "cgroupsPath": cgroups_path(container_id, parent=options.cgroup_parent),
        "namespaces": _namespaces(options.network),
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
        "resources": _resources(options),
    }
    if options.seccomp:
        linux["seccomp"] = default_profile(options.capabilities)
    return linux


def _namespaces(network: str) -> list[dict[str, str]]:
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    if network == "none":
        namespaces.append({"type": "network"})
    elif network.startswith("/"):
        _passable("network", network)
        namespaces.append({"type": "network", "path": network})
    elif network != "host":
        raise InvalidError(f'network: {network}: expected "none", "host" or a path', field="network", value=network)
    return namespaces


def _resources(options: RunOptions) -> dict[str, Any]:
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
