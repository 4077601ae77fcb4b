"""What ``containers.create`` and ``run`` take by keyword, and its form for the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from pyctrd.runtime.life import Life
    from pyctrd.runtime.spec import RunOptions


class ContainerOptions(TypedDict, total=False):
    """What ``create`` and ``run`` take by keyword; what is left out is as the image says.

    Attributes:
        name: Unique in the namespace; the beginning of the id by default.
        labels: The caller's own.
        env: Variables, added to the image's.
        user: ``user[:group]``, names or numbers.
        working_dir: Absolute.
        entrypoint: Replaces the image's; an empty sequence runs the command alone.
        hostname: The beginning of the id by default.
        network: "none" (loopback alone, the default), "host", or a network namespace's absolute path.
        binds: ``SOURCE:DESTINATION[:ro]``.
        read_only: The root file system cannot be written to.
        terminal: The process gets a pseudo-terminal.
        stdin: Input can be sent to it; else it reads an empty one.
        auto_remove: It is deleted when it ends.
        stop_signal: What ``stop`` sends first.
        memory_bytes: Limit.
        cpus: Limit, in processors' worth of time.
        pids: Limit of processes and threads.
        rlimits: ``name=soft[:hard]``.
        oom_score_adj: -1000 to 1000.
        cap_add: Capabilities added to the default ones.
        cap_drop: Capabilities taken away; "ALL" for all.
        seccomp: False runs without the default profile.
        restart: What its shim does when it has ended: "no", "always", "unless-stopped", "on-failure" or "on-failure:N".
            Waits between runs as Docker's: 0.1 s, doubled up to a minute, anew after a run of 10 s.
        init: Its first process is pyctrd's, which passes signals on to the command and reaps what others leave behind.
        log_driver: "json-file" (the default), "cri" for the kubelet's form, or "none".
        log_max_bytes: Of one file of the log: 10 MiB by default, 0 for any size.
        log_max_files: Of the log: 5 by default.
    """

    name: str
    labels: Mapping[str, str]
    env: Mapping[str, str] | Sequence[str]
    user: str
    working_dir: str
    entrypoint: Sequence[str]
    hostname: str
    network: str
    binds: Sequence[str]
    read_only: bool
    terminal: bool
    stdin: bool
    auto_remove: bool
    stop_signal: str
    memory_bytes: int
    cpus: float
    pids: int
    rlimits: Sequence[str]
    oom_score_adj: int
    cap_add: Sequence[str]
    cap_drop: Sequence[str]
    seccomp: bool
    restart: str
    init: bool
    log_driver: str
    log_max_bytes: int
    log_max_files: int


def run_options(command: Sequence[str], options: ContainerOptions) -> RunOptions:
    """The runtime's form of a caller's options.

    Raises:
        InvalidError: One of them is none.
    """
    from pyctrd.runtime.limits import Rlimit
    from pyctrd.runtime.spec import Bind, RunOptions

    env = options.get("env", ())
    network = options.get("network", "none")
    if network not in ("none", "host") and not network.startswith("/"):
        raise InvalidError(
            f"invalid network: {network!r}: expected none, host, or a network namespace's absolute path",
            field="network",
            value=network,
        )
    entrypoint = options.get("entrypoint")
    return RunOptions(
        command=tuple(command),
        entrypoint=None if entrypoint is None else tuple(entrypoint),
        env=tuple(f"{key}={value}" for key, value in env.items()) if isinstance(env, Mapping) else tuple(env),
        user=options.get("user", ""),
        working_dir=options.get("working_dir", ""),
        hostname=options.get("hostname", ""),
        terminal=options.get("terminal", False),
        read_only=options.get("read_only", False),
        binds=tuple(Bind.parse(bind) for bind in options.get("binds", ())),
        network=network,
        capabilities=_capabilities(options.get("cap_add", ()), options.get("cap_drop", ())),
        seccomp=options.get("seccomp", True),
        memory_bytes=options.get("memory_bytes"),
        cpus=options.get("cpus"),
        pids=options.get("pids"),
        rlimits=tuple(Rlimit.parse(text) for text in options.get("rlimits", ())),
        oom_score_adj=options.get("oom_score_adj"),
    )


def life_options(options: ContainerOptions) -> Life:
    """What the container's shim is told.

    Raises:
        InvalidError: An option is none.
    """
    from pyctrd.runtime.life import LOG_MAX_BYTES, LOG_MAX_FILES, Life, check_log

    driver = options.get("log_driver", "json-file")
    max_bytes, max_files = options.get("log_max_bytes", LOG_MAX_BYTES), options.get("log_max_files", LOG_MAX_FILES)
    check_log(driver, max_bytes, max_files)
    return Life(driver, max_bytes, max_files, options.get("stdin", False), options.get("init", False))


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


def _capabilities(add: Sequence[str], drop: Sequence[str]) -> tuple[str, ...]:
    from pyctrd.runtime.spec import DEFAULT_CAPABILITIES

    dropped = {_capability(name) for name in drop}
    kept = () if "CAP_ALL" in dropped else (name for name in DEFAULT_CAPABILITIES if name not in dropped)
    return tuple(dict.fromkeys([*kept, *(_capability(name) for name in add)]))


def _capability(name: str) -> str:
    upper = name.upper()
    return upper if upper.startswith("CAP_") else f"CAP_{upper}"
