"""What a user wants of a container, other than its image says."""

from __future__ import annotations

from pyctrd.oci.value import dataclass
from pyctrd.runtime.cgroup import PARENT
from pyctrd.runtime.limits import Rlimit
from pyctrd.runtime.mounts import Bind
from pyctrd.runtime.security import DEFAULT_CAPABILITIES


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
