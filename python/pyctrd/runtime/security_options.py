"""Capabilities and ``--security-opt`` as users write them, checked against what this host has.

Spec:
    docker-run(1), "--cap-add", "--security-opt"; podman-run(1), "mask", "unmask"; capabilities(7).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.runtime.security import DEFAULT_CAPABILITIES, UNCONFINED, Security

STATUS = Path("/proc/self/status")
APPARMOR = Path("/sys/module/apparmor/parameters/enabled")
SELINUX = Path("/sys/fs/selinux/enforce")
SELINUX_LABEL = ("system_u", "system_r", "container_t", "s0")
# In the kernel's order: the place is the bit.
_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE"
    " NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT"
    " SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL"
    " SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
CAPABILITIES = tuple(f"CAP_{name}" for name in _CAPABILITIES.split())
_KEYS = ("seccomp", "no-new-privileges", "apparmor", "label", "systempaths", "mask", "unmask")


def host_capabilities(status: str | None = None) -> tuple[str, ...]:
    """What this process may give: its bounding set.

    Args:
        status: Text as in ``/proc/self/status``; None reads it.
    """
    text = STATUS.read_text() if status is None else status
    bits = next((int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapBnd:")), 0)
    return tuple(name for place, name in enumerate(CAPABILITIES) if bits >> place & 1)


def choose_capabilities(
    add: Iterable[str], drop: Iterable[str], *, privileged: bool = False, host: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The default ones, with some added and others taken away; "ALL" is all that the host has.

    Args:
        add: Names, with or without ``CAP_``; they count after ``drop``.
        drop: Likewise.
        privileged: Start with all.
        host: What the host has; None looks.

    Raises:
        InvalidError: There is no such capability.
        UnsupportedError: The host does not have one that is added.
    """
    added, dropped = [_capability(name) for name in add], {_capability(name) for name in drop}
    have = host_capabilities() if host is None else host
    start = have if privileged or "CAP_ALL" in added else DEFAULT_CAPABILITIES
    kept = [] if "CAP_ALL" in dropped else [name for name in start if name not in dropped]
    if "CAP_ALL" in added and "CAP_ALL" in dropped:
        raise InvalidError("cap_add: ALL is added and dropped", field="cap_add", value="ALL")
    named = [name for name in added if name != "CAP_ALL"]
    for name in named:
        if name not in have:
            raise UnsupportedError(
                f"unsupported: capability {name}: this process does not have it itself", feature=name, needs=name
            )
    return tuple(dict.fromkeys([*kept, *named]))


def read_security(words: Iterable[str]) -> tuple[Security, bool | None]:
    """What ``--security-opt`` says, and whether programs may gain privileges (None where nothing is said).

    Raises:
        InvalidError: It cannot be read.
        UnsupportedError: The host has no AppArmor or SELinux, and it names a profile or label.
    """
    found = Security()
    gain_nothing: bool | None = None
    labels: list[str] = []
    for word in words:
        at = min((place for place in (word.find("="), word.find(":")) if place > 0), default=len(word))
        key, value = word[:at], word[at + 1 :]
        if key == "seccomp":
            named = value in ("default", UNCONFINED)
            found = found._replace(seccomp=value if named else str(Path.cwd() / _named(word, value)))
        elif key == "no-new-privileges":
            gain_nothing = _switch(word, value)
        elif key == "apparmor":
            found = found._replace(apparmor=_apparmor(_named(word, value)))
        elif key == "label":
            labels.append(_named(word, value))
        elif key == "systempaths" and value == UNCONFINED:
            found = found._replace(unmasked=("ALL",))
        elif key in ("mask", "unmask"):
            found = _with_paths(found, key, word, _named(word, value))
        else:
            close = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close and close[0] != key else ""
            raise _wrong(word, f"expected one of {', '.join(_KEYS)}", hint)
    return (found._replace(selinux=_label(labels)) if labels else found), gain_nothing


def _with_paths(found: Security, key: str, word: str, value: str) -> Security:
    paths = tuple(value.split(":"))
    if not all(path.startswith("/") or (path == "ALL" and key == "unmask") for path in paths):
        raise _wrong(word, "expected absolute paths, joined by colons")
    if key == "mask":
        return found._replace(masked=(*found.masked, *paths))
    return found._replace(unmasked=(*found.unmasked, *paths))


def _capability(name: str) -> str:
    upper = name.upper()
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in CAPABILITIES and full != "CAP_ALL":
        close = difflib.get_close_matches(full, CAPABILITIES, n=2, cutoff=0.7)
        hint = f"did you mean {' or '.join(word.removeprefix('CAP_') for word in close)}?" if close else ""
        raise InvalidError(f"capability: {name}: there is none of this name", field="capability", value=name, hint=hint)
    return full


def _apparmor(profile: str) -> str:
    if profile == UNCONFINED:
        return profile if _has_apparmor() else ""
    if not _has_apparmor():
        raise UnsupportedError(
            f"unsupported: apparmor profile {profile}: this host has no AppArmor", feature="apparmor", needs="AppArmor"
        )
    return profile


def _has_apparmor() -> bool:
    try:
        return APPARMOR.read_text().startswith("Y")
    except OSError:
        return False


def _label(words: Sequence[str]) -> str:
    if list(words) == ["disable"]:
        return ""
    if not SELINUX.exists():
        raise UnsupportedError(
            f"unsupported: label {words[0]}: this host has no SELinux", feature="selinux", needs="SELinux"
        )
    parts = dict(zip(("user", "role", "type", "level"), SELINUX_LABEL, strict=True))
    for word in words:
        key, _, value = word.partition(":")
        if key not in parts or not value:
            raise _wrong(f"label={word}", "expected disable, or user:, role:, type:, level: with a value")
        parts[key] = value
    return ":".join(parts.values())


def _named(word: str, value: str) -> str:
    if not value or "\0" in value:
        raise _wrong(word, "expected a value")
    return value


def _switch(word: str, value: str) -> bool:
    if value not in ("", "true", "1", "false", "0"):
        raise _wrong(word, "expected true or false")
    return value in ("", "true", "1")


def _wrong(word: str, why: str, hint: str = "") -> InvalidError:
    return InvalidError(f"security_opt: {word}: {why}", field="security_opt", value=word, hint=hint)
