"""What a container's processes may do: capabilities, hidden paths, and which profiles confine them.

Spec:
    runtime-spec v1.1 config.md, "Process", and config-linux.md; docker-run(1), ``--security-opt``; capabilities(7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

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
UNCONFINED = "unconfined"


class Security(NamedTuple):
    """What ``--security-opt`` can say.

    Attributes:
        seccomp: "" and "default" are the default profile; "unconfined"; else a profile's absolute path on the host.
        apparmor: A profile's name; "" is the runtime's own.
        selinux: A process's label; "" is none.
        unmasked: Paths that are neither hidden nor read-only, with ``*``; "ALL" for all.
        masked: Paths that are hidden too.
    """

    seccomp: str = ""
    apparmor: str = ""
    selinux: str = ""
    unmasked: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()


NO_SECURITY = Security()


def confinement(
    security: Security, *, privileged: bool, default: bool, capabilities: Collection[str]
) -> dict[str, Any]:
    """The spec's ``linux.maskedPaths``, ``readonlyPaths`` and ``seccomp``.

    Args:
        security: What the user says.
        privileged: Nothing is hidden, and no profile applies that the user does not name.
        default: Whether the default seccomp profile applies where none is named.
        capabilities: Of the container's bounding set.

    Raises:
        InvalidError, NotFoundError, UnsupportedError: The profile cannot be used.
    """
    masked: tuple[str, ...] = () if privileged else MASKED_PATHS
    readonly: tuple[str, ...] = () if privileged else READONLY_PATHS
    if security.unmasked:
        from fnmatch import fnmatchcase

        patterns = ("*",) if "ALL" in security.unmasked else security.unmasked
        masked, readonly = (
            tuple(path for path in paths if not any(fnmatchcase(path, pattern) for pattern in patterns))
            for paths in (masked, readonly)
        )
    found: dict[str, Any] = {
        "maskedPaths": list(dict.fromkeys((*masked, *security.masked))),
        "readonlyPaths": list(readonly),
    }
    profile = security.seccomp
    if profile.startswith("/"):
        from pyctrd.runtime.seccomp_profile import load_profile

        found["seccomp"] = load_profile(profile, capabilities)
    elif profile == "default" or (default and not profile and not privileged):
        from pyctrd.runtime.seccomp import default_profile

        found["seccomp"] = default_profile(capabilities)
    return found
