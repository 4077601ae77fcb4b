"""What ``containers.create`` and ``run`` take by keyword, and its form for the runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from pyctrd.oci.health import HealthConfig
    from pyctrd.runtime.life import Life
    from pyctrd.runtime.mounts import Mount
    from pyctrd.runtime.options import RunOptions
    from pyctrd.runtime.resources import ResourceLimits

_LIMITS = (
    *("memory_bytes", "memory_swap_bytes", "memory_reservation_bytes", "memory_swappiness", "oom_kill_disable"),
    *("cpus", "cpu_shares", "cpu_period_us", "cpu_quota_us", "cpuset_cpus", "cpuset_mems", "pids", "blkio_weight"),
)
_RATES = ("device_read_bps", "device_write_bps", "device_read_iops", "device_write_iops")
_USERNS = ("userns", "uidmaps", "gidmaps", "subuidname", "subgidname")
_NAMESPACES = ("network", "pid", "ipc", "uts", "cgroupns")


class ContainerOptions(TypedDict, total=False):
    """What ``create`` and ``run`` take by keyword; what is left out is as the image says.

    Attributes:
        name: Unique in the namespace; the beginning of the id by default.
        labels: The caller's own.
        env: Variables, added to the image's.
        user: ``user[:group]``, names or numbers.
        group_add: Further groups, names or numbers.
        working_dir: Absolute.
        entrypoint: Replaces the image's; an empty sequence runs the command alone.
        hostname: The beginning of the id by default.
        domainname: NIS domain name.
        network: "none" (loopback alone, the default), "host", ``container:NAME``, whose container runs, or a network
            namespace's absolute path, also as ``ns:PATH``.
        pid: "private" (the default), "host", ``container:NAME`` or a path.
        ipc: Likewise; also "none", without /dev/shm. /dev/shm of another container is not shared.
        uts: Likewise; ``hostname`` is for a private one alone.
        cgroupns: "private", "host" or a path.
        userns: "host" (the default); ``auto[:size=N]``: ids that no other container of this store has, of the ranges
            that "containers" has in /etc/subuid and /etc/subgid; "keep-id": a namespace with the caller's ids;
            "private": with the ids of ``uidmaps`` or ``subuidname``; ``container:NAME``; or a namespace's path, also
            as ``ns:PATH``. The container's files have the ids that it sees: they are mounted mapped.
        uidmaps: ``CONTAINER:HOST[:LENGTH]``: users of its user namespace.
        gidmaps: Likewise groups; as ``uidmaps`` by default, and the other way round.
        subuidname: Whose ranges in /etc/subuid its user namespace has.
        subgidname: Likewise of /etc/subgid; ``subuidname`` by default.
        binds: ``SOURCE:DESTINATION[:OPTION,…]``: ro, rw, rro, [r]private, [r]shared, [r]slave, nosuid, nodev, noexec.
            SOURCE may name a volume, made if it is missing, and filled from the image if it is empty (not with
            ``nocopy``); ``DESTINATION`` alone is a volume for this container.
        mounts: ``type=bind|tmpfs|volume|image,source=…,target=…,readonly,…``, as Docker's and Podman's ``--mount``. An
            image is read-only without ``rw=true``, may be of a ``subpath``, and is held as the container's own is.
        tmpfs: ``DESTINATION[:OPTION,…]``: size=64m, mode=1777, exec, …
        shm_size_bytes: Size of /dev/shm; 64 MiB by default.
        read_only: The root file system cannot be written to.
        read_only_tmpfs: With ``read_only``, /run, /tmp and /var/tmp can: they are memory.
        terminal: The process gets a pseudo-terminal.
        stdin: Input can be sent to it; else it reads an empty one.
        init: Its first process passes signals on to the command, and reaps what others leave behind: pyctrd's own.
        init_path: Another program of the host for that; statically linked.
        auto_remove: It is deleted when it ends.
        stop_signal: What ``stop`` sends first.
        stop_timeout: Seconds before ``stop`` and ``restart`` kill it, where they are not told: 10 by default.
        memory_bytes: Limit.
        memory_swap_bytes: Limit of memory and swap together; -1 for as much as there is.
        memory_reservation_bytes: What it keeps where memory is short.
        memory_swappiness: 0 to 100.
        oom_kill_disable: Who is over the limit waits, and is not killed.
        cpus: Limit, in processors' worth of time.
        cpu_shares: 2 to 262144, beside others' 1024.
        cpu_period_us: Microseconds, of which ``cpu_quota_us`` may be used.
        cpu_quota_us: Microseconds.
        cpuset_cpus: Which processors: ``0-2,7``.
        cpuset_mems: Which memory nodes.
        pids: Limit of processes and threads.
        blkio_weight: 10 to 1000.
        device_read_bps: Bytes a second, by the path of a block device.
        device_write_bps: Likewise.
        device_read_iops: Operations a second, likewise.
        device_write_iops: Likewise.
        hugetlb: Bytes in huge pages, by their size: "2MB".
        rlimits: ``name=soft[:hard]``.
        oom_score_adj: -1000 to 1000.
        cgroup_parent: Absolute path of the control group that its own is made in; with the engine's ``cgroup_manager``
            "systemd" a slice, as "machine.slice".
        privileged: All capabilities and devices of the host, nothing hidden, no seccomp profile.
        cap_add: Capabilities added to the default ones; "ALL" for all that this process has.
        cap_drop: Capabilities taken away; "ALL" for all.
        security_opt: ``seccomp=unconfined|default|FILE``, ``no-new-privileges[=false]``, ``apparmor=PROFILE``,
            ``label=…``, ``systempaths=unconfined``, ``mask=PATH[:PATH]``, ``unmask=ALL|PATH[:PATH]``.
        seccomp: False runs without the default profile.
        rootfs: A directory of the host to run, in place of an image. It is used as it is, and never removed.
        overlay: What is written goes to a layer of the container's own above that directory.
        devices: ``HOST[:CONTAINER][:rwm]``, or CDI devices: ``vendor.com/class=name``.
        device_cgroup_rules: ``c 10:229 rwm``.
        cdi_dirs: Where CDI descriptions are; /etc/cdi and /var/run/cdi by default.
        sysctls: Kernel parameters of its own namespaces.
        add_hosts: ``NAME:ADDRESS`` for /etc/hosts.
        dns: Name servers.
        dns_search: Domains to search; "." for none.
        dns_options: As resolv.conf(5).
        annotations: For the runtime.
        hooks: The runtime-spec's, by name.
        hooks_dirs: Directories of the host's hooks, in Podman's and CRI-O's form: those for it are run before these.
        spec_patch: A JSON merge patch (RFC 7396) of the ``config.json``, or a whole one; several are applied in turn.
        restart: What its shim does when it has ended: "no", "always", "unless-stopped", "on-failure" or "on-failure:N".
            Waits between runs as Docker's: 0.1 s, doubled up to a minute, anew after a run of 10 s.
        health_cmd: Asks it for its health in place of the image's check: a text for a shell, or a program and its
            arguments; exit code 0 is healthy. "none" is no check.
        health_interval_seconds: From the end of a probe to the next; 30 by default. With this as with those below, what
            is left out, or 0, is as the image says.
        health_timeout_seconds: After so long a probe has failed, and is ended with what it started; 30 by default.
        health_start_period_seconds: Failures so soon after the start do not count; 0 by default.
        health_start_interval_seconds: In place of the interval until then, or until it is healthy; 5 by default.
        health_retries: So many failures in a row make it unhealthy; 3 by default.
        no_healthcheck: Leave the image's check out.
        log_driver: "json-file" (the default), "cri" for the kubelet's form, or "none".
        log_max_bytes: Of one file of the log: 10 MiB by default, 0 for any size.
        log_max_files: Of the log: 5 by default.
    """

    name: str
    labels: Mapping[str, str]
    env: Mapping[str, str] | Sequence[str]
    user: str
    group_add: Sequence[str]
    working_dir: str
    entrypoint: Sequence[str]
    hostname: str
    domainname: str
    network: str
    pid: str
    ipc: str
    uts: str
    cgroupns: str
    userns: str
    uidmaps: Sequence[str]
    gidmaps: Sequence[str]
    subuidname: str
    subgidname: str
    binds: Sequence[str]
    mounts: Sequence[str]
    tmpfs: Sequence[str]
    shm_size_bytes: int
    read_only: bool
    read_only_tmpfs: bool
    terminal: bool
    stdin: bool
    init: bool
    init_path: str
    auto_remove: bool
    stop_signal: str
    stop_timeout: float
    memory_bytes: int
    memory_swap_bytes: int
    memory_reservation_bytes: int
    memory_swappiness: int
    oom_kill_disable: bool
    cpus: float
    cpu_shares: int
    cpu_period_us: int
    cpu_quota_us: int
    cpuset_cpus: str
    cpuset_mems: str
    pids: int
    blkio_weight: int
    device_read_bps: Mapping[str, int]
    device_write_bps: Mapping[str, int]
    device_read_iops: Mapping[str, int]
    device_write_iops: Mapping[str, int]
    hugetlb: Mapping[str, int]
    rlimits: Sequence[str]
    oom_score_adj: int
    cgroup_parent: str
    privileged: bool
    cap_add: Sequence[str]
    cap_drop: Sequence[str]
    security_opt: Sequence[str]
    seccomp: bool
    rootfs: str | os.PathLike[str]
    overlay: bool
    devices: Sequence[str]
    device_cgroup_rules: Sequence[str]
    cdi_dirs: Sequence[str]
    sysctls: Mapping[str, str]
    add_hosts: Sequence[str]
    dns: Sequence[str]
    dns_search: Sequence[str]
    dns_options: Sequence[str]
    annotations: Mapping[str, str]
    hooks: Mapping[str, Sequence[Mapping[str, Any]]]
    hooks_dirs: Sequence[str]
    spec_patch: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    restart: str
    health_cmd: str | Sequence[str]
    health_interval_seconds: float
    health_timeout_seconds: float
    health_start_period_seconds: float
    health_start_interval_seconds: float
    health_retries: int
    no_healthcheck: bool
    log_driver: str
    log_max_bytes: int
    log_max_files: int


def run_options(command: Sequence[str], options: ContainerOptions) -> RunOptions:
    """The runtime's form of a caller's options.

    Raises:
        InvalidError: One of them is none.
        UnsupportedError: This host cannot do it.
    """
    from pyctrd.runtime.limits import Rlimit
    from pyctrd.runtime.options import RunOptions

    _check_names(options)
    env = options.get("env", ())
    entrypoint = options.get("entrypoint")
    more: dict[str, Any] = {
        field: tuple(options[name])  # type: ignore[literal-required]  # names of this class
        for name, field in _SEQUENCES.items()
        if options.get(name)
    }
    more |= {name: options[name] for name in ("sysctls", "annotations", "hooks") if options.get(name)}
    more |= _namespaces(options)
    more |= _security(options)
    return RunOptions(
        command=tuple(command),
        entrypoint=None if entrypoint is None else tuple(entrypoint),
        env=tuple(f"{key}={value}" for key, value in env.items()) if isinstance(env, Mapping) else tuple(env),
        user=options.get("user", ""),
        working_dir=options.get("working_dir", ""),
        hostname=options.get("hostname", ""),
        domainname=options.get("domainname", ""),
        terminal=options.get("terminal", False),
        console_size=_own_size() if options.get("terminal") else None,
        read_only=options.get("read_only", False),
        init=bool(options.get("init") or options.get("init_path")),
        mounts=_mounts(options),
        privileged=options.get("privileged", False),
        seccomp=options.get("seccomp", True),
        limits=resource_limits(options),
        rlimits=tuple(Rlimit.parse(text) for text in options.get("rlimits", ())),
        oom_score_adj=options.get("oom_score_adj"),
        patches=_patches(options),
        **more,
    )


def _own_size() -> tuple[int, int] | None:
    from pyctrd.runtime.terminal import own_size

    return own_size()


def life_options(options: ContainerOptions) -> Life:
    """What the container's shim is told.

    Raises:
        InvalidError: An option is none.
    """
    from pyctrd.runtime.life import (
        LOG_MAX_BYTES,
        LOG_MAX_FILES,
        STOP_TIMEOUT_SECONDS,
        Life,
        check_log,
        check_stop_timeout,
    )

    driver = options.get("log_driver", "json-file")
    max_bytes, max_files = options.get("log_max_bytes", LOG_MAX_BYTES), options.get("log_max_files", LOG_MAX_FILES)
    check_log(driver, max_bytes, max_files)
    stop_timeout = check_stop_timeout(options.get("stop_timeout", STOP_TIMEOUT_SECONDS))
    return Life(driver, max_bytes, max_files, options.get("stdin", False), stop_timeout)


def health_options(options: ContainerOptions) -> HealthConfig | None:
    """What is said of its health check; None is nothing.

    Raises:
        InvalidError: An option is none, or two contradict each other.
    """
    given = [name for name in (*_HEALTH_TIMES, "health_retries", "health_cmd") if options.get(name) is not None]
    if not given and not options.get("no_healthcheck"):
        return None
    from pyctrd.oci.health import NONE, HealthConfig

    command = options.get("health_cmd")
    is_off = isinstance(command, str) and command.lower() == NONE.lower()
    if options.get("no_healthcheck") or is_off:
        if other := [name for name in given if not (is_off and name == "health_cmd")]:
            raise InvalidError(
                f"invalid {other[0]}: there is to be no health check: leave one of the two out",
                field=other[0],
                value=options[other[0]],  # type: ignore[literal-required]  # a name of this class
            )
        return HealthConfig((NONE,))
    return HealthConfig(
        () if command is None else _health_test(command),
        interval_ns=_health_time("health_interval_seconds", options),
        timeout_ns=_health_time("health_timeout_seconds", options),
        start_period_ns=_health_time("health_start_period_seconds", options),
        start_interval_ns=_health_time("health_start_interval_seconds", options),
        retries=_health_retries(options.get("health_retries")),
    )


_HEALTH_TIMES = (
    *("health_interval_seconds", "health_timeout_seconds"),
    *("health_start_period_seconds", "health_start_interval_seconds"),
)


def _health_test(command: str | Sequence[str]) -> tuple[str, ...]:
    from pyctrd.runtime.words import passable

    words = ("CMD-SHELL", command) if isinstance(command, str) else ("CMD", *command)
    if len(words) == 1 or not words[1]:
        raise InvalidError(
            "invalid health_cmd: expected a command",
            field="health_cmd",
            value=command,
            hint="leave the image's check out: no_healthcheck",
        )
    for word in words:
        passable("health_cmd", word)
    return words


def _health_time(name: str, options: Mapping[str, Any]) -> int:
    from pyctrd.oci.health import SECOND_NS, TIME_LEAST_NS, TIME_MOST_NS

    seconds = options.get(name)
    if seconds is None:
        return 0
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not (seconds == 0 or TIME_LEAST_NS <= seconds * SECOND_NS <= TIME_MOST_NS):
        shown = f"{seconds:g}" if is_number else repr(seconds)
        raise InvalidError(f"invalid {name}: {shown}: expected 0, or at least 0.001 seconds", field=name, value=seconds)
    found: int = round(seconds * SECOND_NS)
    return found


def _health_retries(retries: object) -> int:
    from pyctrd.oci.health import RETRIES_MOST

    if retries is None:
        return 0
    if type(retries) is not int or not 0 <= retries <= RETRIES_MOST:
        raise InvalidError(
            f"invalid health_retries: {retries!r}: expected 0 to {RETRIES_MOST}", field="health_retries", value=retries
        )
    return retries


def restart_policy(options: ContainerOptions) -> str:
    """The restart policy.

    Raises:
        InvalidError: There is none like it, or the container is to be deleted at its end.
    """
    from pyctrd.runtime.life import check_policy

    policy = check_policy(options.get("restart", "no"))
    if policy != "no" and options.get("auto_remove"):
        raise InvalidError(
            f"invalid restart policy: {policy}: the container is deleted when it ends",
            field="restart",
            value=policy,
            hint="leave --rm out, or --restart",
        )
    return policy


def _check_names(options: ContainerOptions) -> None:
    """Refuse what would be passed over in silence, or taken letter by letter."""
    known = ContainerOptions.__annotations__
    for name, value in options.items():
        if name not in known:
            from difflib import get_close_matches

            close = get_close_matches(name, known)
            hint = f"did you mean {close[0]}?" if close else ""
            raise InvalidError(f"invalid option: {name}: there is none of this name", field=name, value=name, hint=hint)
        if isinstance(value, str) and name in (*_SEQUENCES, *_TEXTS):
            raise InvalidError(f"invalid {name}: {value!r}: expected a sequence of texts", field=name, value=value)


_TEXTS = (
    "uidmaps",
    "gidmaps",
    "env",
    "entrypoint",
    "binds",
    "mounts",
    "tmpfs",
    "rlimits",
    "cap_add",
    "cap_drop",
    "security_opt",
)
_SEQUENCES = {
    "group_add": "groups",
    "devices": "devices",
    "device_cgroup_rules": "device_rules",
    "cdi_dirs": "cdi_directories",
    "hooks_dirs": "hooks_directories",
    "add_hosts": "add_hosts",
    "dns": "dns",
    "dns_search": "dns_search",
    "dns_options": "dns_options",
}


def resource_limits(options: Mapping[str, Any]) -> ResourceLimits:
    """The limits among a caller's options, by the same keywords; the rest is not looked at."""
    from pyctrd.runtime.resources import NO_LIMITS, HugeLimit, Rate, ResourceLimits

    found = {name: options[name] for name in _LIMITS if options.get(name) not in (None, "", False)}
    for name in _RATES:
        if rates := options.get(name):
            found[name] = tuple(Rate(path, rate) for path, rate in rates.items())
    if huge := options.get("hugetlb"):
        found["hugetlb"] = tuple(HugeLimit(size, limit) for size, limit in huge.items())
    return ResourceLimits(**found) if found else NO_LIMITS


def _namespaces(options: ContainerOptions) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if wanted := [name for name in _NAMESPACES if options.get(name)]:
        from pyctrd.runtime.namespaces import read_mode

        found = {name: read_mode(name, str(options[name])) for name in wanted}  # type: ignore[literal-required]
    if any(options.get(name) for name in _USERNS):
        from pyctrd.runtime.userns import read_userns

        found["userns_request"] = read_userns(
            options.get("userns", ""),
            uids=options.get("uidmaps", ()),
            gids=options.get("gidmaps", ()),
            subuid=options.get("subuidname", ""),
            subgid=options.get("subgidname", ""),
        )
    if parent := options.get("cgroup_parent"):
        found["cgroup_parent"] = parent
    if (size := options.get("shm_size_bytes")) is not None:
        if size < 1:
            raise InvalidError(f"shm_size_bytes: expected at least 1, got {size}", field="shm_size_bytes", value=size)
        found["shm_bytes"] = size
    return found


def _security(options: ContainerOptions) -> dict[str, Any]:
    add, drop = options.get("cap_add", ()), options.get("cap_drop", ())
    privileged, words = options.get("privileged", False), options.get("security_opt", ())
    found: dict[str, Any] = {"no_new_privileges": False} if privileged else {}
    if add or drop or privileged:
        from pyctrd.runtime.security_options import choose_capabilities

        found["capabilities"] = choose_capabilities(add, drop, privileged=privileged)
    if words:
        from pyctrd.runtime.security_options import read_security

        found["security"], gain_nothing = read_security(words)
        if gain_nothing is not None:
            found["no_new_privileges"] = gain_nothing
    return found


def _mounts(options: ContainerOptions) -> tuple[Mount, ...]:
    made: list[Mount] = []
    if any(options.get(name) for name in ("binds", "mounts", "tmpfs", "read_only_tmpfs")):
        from pyctrd.runtime.mount_options import parse_mount, parse_tmpfs, parse_volume, read_only_tmpfs

        made += map(parse_volume, options.get("binds", ()))
        made += map(parse_mount, options.get("mounts", ()))
        made += map(parse_tmpfs, options.get("tmpfs", ()))
        if options.get("read_only_tmpfs"):
            if not options.get("read_only"):
                raise InvalidError("read_only_tmpfs: the root can be written to anyway", field="read_only_tmpfs")
            made += read_only_tmpfs(made)
    if options.get("init") or options.get("init_path"):
        from pyctrd.runtime.init import find_init

        if any(mount.destination.rstrip("/") == "/dev" for mount in made):
            raise InvalidError("init: it stands in /dev, where another mount is to be", field="init")
        made.append(find_init(options.get("init_path", "")))
    return tuple(made)


def _patches(options: ContainerOptions) -> tuple[Mapping[str, Any], ...]:
    patch = options.get("spec_patch", ())
    return (patch,) if isinstance(patch, Mapping) else tuple(patch)
