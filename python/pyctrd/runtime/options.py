"""What a user wants of a container, other than its image says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyctrd.oci.value import dataclass
from pyctrd.runtime.limits import Rlimit
from pyctrd.runtime.mounts import SHM_BYTES, Mount
from pyctrd.runtime.resources import NO_LIMITS, ResourceLimits
from pyctrd.runtime.security import DEFAULT_CAPABILITIES, NO_SECURITY, Security

if TYPE_CHECKING:
    from pyctrd.runtime.userns import IdMappings, UsernsRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the user wants other than the image says. Every default is "as the image says".

    Attributes:
        command: Words after the entrypoint; () takes the image's, unless ``entrypoint`` is given.
        entrypoint: Replaces the image's; () runs the command alone.
        env: ``NAME=value``; a later one of the same name wins.
        user: ``user[:group]``; looked up by ``find_user``, and here only told apart from the image's.
        groups: Further groups of the process, names or numbers; looked up by ``find_groups``.
        working_dir: Absolute; made if missing.
        hostname: "" is the first twelve characters of the container's id.
        domainname: NIS domain name; "" leaves it alone.
        terminal: A pseudo-terminal for the process.
        console_size: Rows and columns of it at the start.
        init: A reaper, bound from the host, that runs the command.
        read_only: The root file system cannot be written.
        mounts: Parts of the host, volumes, images and memory, in any order.
        shm_bytes: Size of /dev/shm.
        network: "none": a namespace of its own with loopback; "host"; a namespace's path; or ``container:NAME``, as the
            next four: a flow puts a path in its place.
        pid: "private", "host" or a path.
        ipc: Likewise; and "none", without /dev/shm, and "shareable", which is "private".
        uts: Likewise.
        cgroupns: Likewise, without containers.
        userns: "host", "private" with ``id_mappings``, or a path with those that it has.
        userns_request: What the user wants of it: a flow puts the two others in its place.
        id_mappings: What the ids of its user namespace are on the host; None where it has none of its own.
        privileged: Nothing of the host is hidden or read-only, and every device of it may be used.
        capabilities: ``CAP_…`` that the process may use.
        seccomp: Whether the default profile is applied.
        security: Which profiles, labels and paths are others than usual.
        no_new_privileges: Set-user-id programs and file capabilities give nothing.
        devices: Of the host, as ``HOST[:CONTAINER][:rwm]``, or CDI's.
        device_rules: ``c 10:229 rwm``: what may be used, also if it is made in the container.
        cdi_directories: Where CDI's descriptions are; () is the usual.
        limits: Of its control group.
        rlimits: Resource limits; clamped to what the host allows.
        oom_score_adj: -1000 to 1000, clamped to what the host allows; None leaves it alone.
        cgroup_manager: Who makes its control group: "cgroupfs" or "systemd".
        cgroup_parent: Absolute path of the group that the container's own is made in; of systemd's a slice. "" is the
            usual.
        sysctls: Kernel parameters of its namespaces.
        add_hosts: ``NAME:ADDRESS`` for its /etc/hosts.
        dns: Name servers for its /etc/resolv.conf.
        dns_search: Domains that are searched; "." for none.
        dns_options: As resolv.conf(5).
        annotations: For the runtime, and for who reads ``config.json``.
        hooks: The spec's.
        hooks_directories: Where the host's are; the flow that makes the container puts those for it in ``hooks``.
        patches: Merge patches for the spec, or whole ones, applied last.
    """

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    user: str = ""
    groups: tuple[str, ...] = ()
    working_dir: str = ""
    hostname: str = ""
    domainname: str = ""
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    init: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    shm_bytes: int = SHM_BYTES
    network: str = "none"
    pid: str = "private"
    ipc: str = "private"
    uts: str = "private"
    cgroupns: str = "private"
    userns: str = "host"
    userns_request: UsernsRequest | None = None
    id_mappings: IdMappings | None = None
    privileged: bool = False
    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    seccomp: bool = True
    security: Security = NO_SECURITY
    no_new_privileges: bool = True
    devices: tuple[str, ...] = ()
    device_rules: tuple[str, ...] = ()
    cdi_directories: tuple[str, ...] = ()
    limits: ResourceLimits = NO_LIMITS
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int | None = None
    cgroup_manager: str = "cgroupfs"
    cgroup_parent: str = ""
    sysctls: Mapping[str, str] | None = None
    add_hosts: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    annotations: Mapping[str, str] | None = None
    hooks: Mapping[str, Any] | None = None
    hooks_directories: tuple[str, ...] = ()
    patches: tuple[Mapping[str, Any], ...] = ()
