"""What a process that is started in a running container is: as the container's own, but for what the user says.

Spec:
    runtime-spec v1.1 config.md, "Process"; the set of privileges is capabilities(7)'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyctrd.errors import InvalidError
from pyctrd.oci.value import dataclass
from pyctrd.runtime.words import passable

if TYPE_CHECKING:
    from pyctrd.runtime.users import User

# By their numbers, 0 to 40: linux/capability.h.
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
PREFIX = "CAP_"
STATUS = Path("/proc/self/status")
_BOUNDING = re.compile(r"^CapBnd:\s*([0-9a-f]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecOptions:
    """What the user wants other than the container's own process has.

    Attributes:
        command: The program and its arguments.
        env: ``NAME=value``; a later one of the same name wins.
        working_dir: Absolute; "" is the container's.
        terminal: A pseudo-terminal for the process.
        console_size: Rows and columns of it at the start.
        privileged: All capabilities that this host gives, instead of the container's.
        cap_add: Capabilities added; "ALL" for all.
        cap_drop: Capabilities taken away; "ALL" for all but the added ones.
    """

    command: tuple[str, ...]
    env: tuple[str, ...] = ()
    working_dir: str = ""
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()


def exec_spec(config: Mapping[str, Any], options: ExecOptions, user: User | None) -> dict[str, Any]:
    """The ``process`` that the runtime is told to start, as a dictionary for orjson.

    Limits, labels, the OOM score and whether new privileges are allowed are the container's; so is the seccomp
    profile, which the runtime applies.

    Args:
        config: The container's ``config.json``.
        options: Of the user.
        user: Who the process is; None is the container's own.

    Raises:
        InvalidError: An option cannot be used; ``field`` names it.
    """
    if not options.command or not options.command[0]:
        raise InvalidError("command: expected a program", field="command", hint="give a command after the container")
    for word in options.command:
        passable("command", word)
    process: dict[str, Any] = dict(config["process"])
    process["args"] = list(options.command)
    process["terminal"] = options.terminal
    process["env"] = _environment(process.get("env", ()), options, user)
    process.pop("consoleSize", None)
    if options.terminal and options.console_size:
        rows, columns = options.console_size
        process["consoleSize"] = {"height": rows, "width": columns}
    if options.working_dir:
        if not options.working_dir.startswith("/"):
            raise InvalidError(
                f"working directory: {options.working_dir}: expected an absolute path",
                field="working_dir",
                value=options.working_dir,
            )
        passable("working directory", options.working_dir)
        process["cwd"] = options.working_dir
    if user is not None:
        umask = process.get("user", {}).get("umask")
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)}
        if umask is not None:
            process["user"]["umask"] = umask
    if options.privileged or options.cap_add or options.cap_drop:
        process["capabilities"] = _capabilities(process.get("capabilities") or {}, options)
    return process


def _environment(inherited: Sequence[str], options: ExecOptions, user: User | None) -> list[str]:
    values = dict(entry.partition("=")[::2] for entry in inherited)
    if options.terminal:
        values.setdefault("TERM", "xterm")
    if user is not None:
        values["HOME"] = user.home  # the container's belongs to somebody else
    for entry in options.env:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise InvalidError(f"env: {entry!r}: expected NAME=value", field="env", value=entry)
        passable("env", entry)
        values[name] = value
    return [f"{name}={value}" for name, value in values.items()]


def _capabilities(own: Mapping[str, Sequence[str]], options: ExecOptions) -> dict[str, list[str]]:
    """The container's sets, with what is added and taken away; nobody can be given what this process has not."""
    added = {_capability(name) for name in options.cap_add}
    dropped = {_capability(name) for name in options.cap_drop}
    everything = f"{PREFIX}ALL"
    held = set(own.get("bounding", ()))
    if options.privileged or everything in added:
        held = _given_by_host()
    if everything in dropped:
        held = set()
    names = sorted((held | added - {everything}) - dropped)
    return {name: list(names) for name in {*own, "bounding", "effective", "permitted"} if name != "ambient"}


def _given_by_host() -> set[str]:
    found = _BOUNDING.search(STATUS.read_text())
    bits = int(found[1], 16) if found else 0
    return {f"{PREFIX}{name}" for number, name in enumerate(CAPABILITIES) if bits >> number & 1}


def _capability(name: str) -> str:
    upper = name.upper()
    full = upper if upper.startswith(PREFIX) else f"{PREFIX}{upper}"
    if full.removeprefix(PREFIX) not in (*CAPABILITIES, "ALL"):
        raise InvalidError(
            f"invalid capability: {name!r}: expected a name as NET_ADMIN, or ALL", field="capability", value=name
        )
    return full
