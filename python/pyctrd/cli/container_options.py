"""The options of commands that make a container, and what they say in the engine's words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.sizes import parse_size
from pyctrd.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pyctrd.container_options import ContainerOptions

_ALL = "pyctrd.container_options.all"
_VARIABLES = ("PYCTRD_RUN_", "PYCTRD_CREATE_")
FILE_MAX_BYTES = 16 << 20


def container_options(function: Any) -> Any:
    """The options that nearly every container is made with; ``ContainerCommand`` knows the others."""
    for option in reversed(
        (
            click.option("--name", metavar="NAME", help="Unique in the namespace."),
            click.option("-e", "--env", metavar="NAME[=VALUE]", multiple=True, help="Set a variable, or pass it on."),
            click.option("-w", "--workdir", metavar="DIR", help="The working directory."),
            click.option("-u", "--user", metavar="USER[:GROUP]", help="Names or numbers."),
            click.option("--entrypoint", metavar="COMMAND", help='Replaces the image\'s; "" for none.'),
            click.option(
                "-v",
                "--volume",
                metavar="[SRC|VOLUME:]DST[:OPT,…]",
                multiple=True,
                help="Show a part of the host, or a volume: ro, rw, rro, nocopy, …",
            ),
            click.option(
                "--network", "--net", metavar="none|host|…", default="none", help="Or container:NAME, or ns:PATH."
            ),
            click.option("-h", "--hostname", metavar="NAME", help="The beginning of the id by default."),
            click.option("--read-only", is_flag=True, help="The root file system cannot be written to."),
            click.option("--rm", "auto_remove", is_flag=True, help="Delete the container when it ends."),
            click.option("-l", "--label", metavar="KEY=VALUE", multiple=True, help="A label of your own."),
            click.option("-m", "--memory", metavar="BYTES[kmg]", help="Memory limit."),
            click.option("--cpus", type=float, metavar="N", help="Processors' worth of time."),
            click.option("--pids-limit", type=int, metavar="N", help="Processes and threads."),
            click.option("--ulimit", metavar="NAME=SOFT[:HARD]", multiple=True, help="A resource limit."),
            click.option("--oom-score-adj", type=int, metavar="N", help="-1000 to 1000."),
            click.option("--cap-add", metavar="CAP", multiple=True, help="Add a capability; ALL for all."),
            click.option("--cap-drop", metavar="CAP", multiple=True, help="Take a capability away; ALL for all."),
            click.option("--rootfs", metavar="DIR", help="Run a directory in place of an image: no IMAGE follows."),
            click.option("--rootfs-overlay", is_flag=True, help="Leave that directory as it is: write above it."),
            click.option("--stop-signal", metavar="SIGNAL", help="What stop sends first."),
        )
    ):
        function = option(function)
    return function


def _text(name: str, metavar: str, help_text: str) -> click.Option:
    return click.Option([name], metavar=metavar, help=help_text)


def _many(name: str, metavar: str, help_text: str) -> click.Option:
    return click.Option([name], metavar=metavar, multiple=True, help=help_text)


def _number(name: str, metavar: str, help_text: str) -> click.Option:
    return click.Option([name], metavar=metavar, type=int, help=help_text)


def _switch(name: str, help_text: str) -> click.Option:
    return click.Option([name], is_flag=True, help=help_text)


def _file(name: str, help_text: str) -> click.Option:
    return click.Option([name], metavar="FILE", multiple=True, help=help_text)


def _groups() -> Mapping[str, tuple[click.Option, ...]]:
    """All other options, by the heading that they have in the help."""
    rate = "PATH:RATE[kmg]"
    return {
        "Files": (
            _many("--mount", "type=…,source=…,target=…", "bind, tmpfs, volume or image, with Docker's keys."),
            _many("--tmpfs", "DST[:OPT,…]", "Memory: size=64m, mode=1777, exec, …"),
            _switch("--read-only-tmpfs", "With --read-only: /run, /tmp and /var/tmp are memory."),
            _text("--shm-size", "BYTES[kmg]", "Of /dev/shm [64m]."),
            _many("--device", "HOST[:CONT][:rwm]", "A device, a directory of them, or CDI's vendor/class=name."),
            _many("--device-cgroup-rule", "RULE", "As 'c 10:229 rwm'."),
            _many("--cdi-spec-dir", "DIR", "Where CDI descriptions are [/etc/cdi, /var/run/cdi]."),
        ),
        "Security": (
            _switch("--privileged", "All capabilities and devices, nothing hidden, no profile."),
            _many("--security-opt", "KEY[=VALUE]", "seccomp=, no-new-privileges, apparmor=, label=, mask=, unmask=, …"),
            _many("--group-add", "GROUP", "One more group of the process."),
            _switch("--init", "A small reaper is the first process."),
            _text("--init-path", "FILE", "Which one, on the host [PYCTRD_INIT]."),
            _many("--sysctl", "NAME=VALUE", "A kernel parameter of its namespaces."),
        ),
        "Limits": (
            _text("--memory-swap", "BYTES[kmg]|-1", "Of memory and swap together."),
            _text("--memory-reservation", "BYTES[kmg]", "Kept where memory is short."),
            _number("--memory-swappiness", "N", "0 to 100."),
            _switch("--oom-kill-disable", "Wait, where memory is used up."),
            _number("--cpu-shares", "N", "2 to 262144, beside others' 1024."),
            _number("--cpu-period", "US", "1000 to 1000000 microseconds."),
            _number("--cpu-quota", "US", "Of each period."),
            _text("--cpuset-cpus", "LIST", "Which processors: 0-2,7."),
            _text("--cpuset-mems", "LIST", "Which memory nodes."),
            _number("--blkio-weight", "N", "10 to 1000."),
            _many("--device-read-bps", rate, "Bytes a second."),
            _many("--device-write-bps", rate, "Bytes a second."),
            _many("--device-read-iops", rate, "Operations a second."),
            _many("--device-write-iops", rate, "Operations a second."),
            _text("--cgroup-parent", "PATH|SLICE", "The control group around its own."),
        ),
        "Namespaces and names": (
            _text("--pid", "MODE", "private, host, container:NAME, or ns:PATH."),
            _text("--ipc", "MODE", "Likewise, and none."),
            _text("--uts", "MODE", "Likewise."),
            _text("--cgroupns", "MODE", "private, host, or ns:PATH."),
            _text("--userns", "MODE", "host, auto[:size=N], keep-id, private, container:NAME, or ns:PATH."),
            _many("--uidmap", "CONT:HOST[:N]", "Users of its user namespace."),
            _many("--gidmap", "CONT:HOST[:N]", "Groups of it; as users by default."),
            _text("--subuidname", "NAME", "Whose ids of /etc/subuid its user namespace has."),
            _text("--subgidname", "NAME", "Whose of /etc/subgid [as --subuidname]."),
            _text("--domainname", "NAME", "NIS domain name."),
            _many("--add-host", "NAME:ADDRESS", "A line of /etc/hosts."),
            _many("--dns", "ADDRESS", "A name server."),
            _many("--dns-search", "DOMAIN", "A domain to search; . for none."),
            _many("--dns-option", "OPTION", "As resolv.conf(5)."),
        ),
        "Health": (
            _text("--health-cmd", "COMMAND", "Asks for its health, by a shell; none for no check."),
            _text("--health-interval", "DURATION", "Between probes: 1m30s, 500ms [30s]."),
            _text("--health-timeout", "DURATION", "Of a probe, which is ended then [30s]."),
            _number("--health-retries", "N", "Failures in a row that make it unhealthy [3]."),
            _text("--health-start-period", "DURATION", "Failures so soon do not count [0s]."),
            _text("--health-start-interval", "DURATION", "Between probes until then [5s]."),
            _switch("--no-healthcheck", "Leave the image's check out."),
        ),
        "Records": (
            _file("--env-file", "Variables, NAME[=VALUE] a line."),
            _file("--label-file", "Labels, KEY=VALUE a line."),
            _many("--annotation", "KEY=VALUE", "For the runtime."),
            _many("--hooks-dir", "DIR", "Hooks of the host, as Podman's and CRI-O's."),
            click.Option(["--cidfile"], metavar="FILE", help="Gets the container's id; must not be there."),
            click.Option(["--pidfile"], metavar="FILE", help="Gets the first process's id; with -d."),
            _file("--spec-patch", "JSON merge patch of config.json, or a whole one."),
        ),
    }


class ContainerCommand(click.Command):
    """A command that makes a container.

    It has ninety options. Most commands give few and usual ones, and would wait for the making of all the others:
    those are made when a word is there that the usual ones do not know, for the help, and for variables.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The usual options, or all."""
        usual = super().get_params(ctx)
        groups = ctx.meta.get(_ALL)
        return usual if groups is None else [*usual, *(option for group in groups.values() for option in group)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Look first whether the usual options will do."""
        usual = {name for param in super().get_params(ctx) for name in param.opts} - {"--help"}
        unknown = any(word.startswith("--") and word.partition("=")[0] not in usual for word in args)
        if unknown or any(name.startswith(_VARIABLES) for name in os.environ):
            ctx.meta[_ALL] = _groups()
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The usual options, then the others under their headings."""
        groups = ctx.meta.pop(_ALL, None)
        super().format_options(ctx, formatter)
        for heading, options in (groups or {}).items():
            records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
            with formatter.section(heading):
                formatter.write_dl(records)
        ctx.meta[_ALL] = groups


def wanted_options(chosen: Mapping[str, Any]) -> ContainerOptions:
    """What the options say, by the engine's keywords; what was not given is not there.

    Raises:
        InvalidError: A value cannot be read.
        NotFoundError: A file is missing.
    """
    import shlex

    found: dict[str, Any] = {
        "name": chosen["name"] or "",
        "env": [*_lines(chosen.get("env_file")), *chosen["env"]],
        "working_dir": chosen["workdir"] or "",
        "binds": chosen["volume"],
        "rlimits": chosen["ulimit"],
        "labels": dict(_pair(text) for text in (*_lines(chosen.get("label_file")), *chosen["label"])),
    }
    found["env"] = [_variable(text) for text in found["env"]]
    for name, keyword in _AS_THEY_ARE.items():
        if chosen.get(name) not in (None, (), "") or (name == "health_cmd" and chosen.get(name) is not None):
            found[keyword] = chosen[name]
    found |= _numbers(chosen)
    if chosen["rootfs"] is not None:
        found["rootfs"], found["overlay"] = chosen["rootfs"], chosen["rootfs_overlay"]
    if chosen["entrypoint"] is not None:
        found["entrypoint"] = shlex.split(chosen["entrypoint"])
    if files := chosen.get("spec_patch"):
        found["spec_patch"] = [_document(path) for path in files]
    made: ContainerOptions = found  # type: ignore[assignment]  # each name is one of its
    return made


def _numbers(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes, times, rates by device, and what is written NAME=VALUE."""
    found: dict[str, Any] = {}
    for name in ("memory", "memory_swap", "memory_reservation", "shm_size"):
        if (text := chosen.get(name)) is not None:
            found[f"{name}_bytes"] = -1 if text == "-1" and name == "memory_swap" else _size(name, text)
    for name in ("device_read_bps", "device_write_bps", "device_read_iops", "device_write_iops"):
        if texts := chosen.get(name):
            found[name] = dict(_rate(name, text) for text in texts)
    for name in ("health_interval", "health_timeout", "health_start_period", "health_start_interval"):
        if (text := chosen.get(name)) is not None:
            from pyctrd.cli.times import parse_duration

            found[f"{name}_seconds"] = parse_duration(text, field=name)
    for name, keyword in (("sysctl", "sysctls"), ("annotation", "annotations")):
        if texts := chosen.get(name):
            found[keyword] = dict(_equals(name, text) for text in texts)
    return found


# Option → keyword, of those whose values need no other form.
_AS_THEY_ARE = {
    **{
        name: name
        for name in (
            *("user", "hostname", "network", "read_only", "auto_remove", "cap_add", "cap_drop", "stop_signal", "cpus"),
            *("oom_score_adj", "tmpfs", "read_only_tmpfs", "privileged", "security_opt", "group_add", "init"),
            *("init_path", "memory_swappiness", "oom_kill_disable", "cpu_shares", "cpuset_cpus", "cpuset_mems"),
            *("blkio_weight", "cgroup_parent", "pid", "ipc", "uts", "cgroupns", "userns", "domainname", "dns"),
            *("dns_search", "subuidname", "subgidname"),
            *("health_cmd", "health_retries", "no_healthcheck"),
        )
    },
    "tty": "terminal",
    "interactive": "stdin",
    "pids_limit": "pids",
    "mount": "mounts",
    "device": "devices",
    "device_cgroup_rule": "device_cgroup_rules",
    "cdi_spec_dir": "cdi_dirs",
    "hooks_dir": "hooks_dirs",
    "cpu_period": "cpu_period_us",
    "cpu_quota": "cpu_quota_us",
    "uidmap": "uidmaps",
    "gidmap": "gidmaps",
    "add_host": "add_hosts",
    "dns_option": "dns_options",
}


def claim_file(path: str | None) -> Callable[[str], None]:
    """Make a file that must not be there yet; what comes back writes into it, and "" takes it away again.

    Raises:
        InvalidError: It is there.
    """
    if path is None:
        return lambda _: None
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError as error:
        raise InvalidError(
            f"cidfile: {path}: is there already",
            field="cidfile",
            value=path,
            hint="another container may run: look, then rm it",
        ) from error
    name = path

    def write(text: str) -> None:
        os.write(descriptor, text.encode())
        os.close(descriptor)
        if not text:
            os.unlink(name)  # noqa: PTH108  # a path as the user gave it

    return write


def _lines(paths: Iterable[str] | None) -> list[str]:
    """Of files, without empty lines and those that begin with "#"."""
    found = []
    for path in paths or ():
        lines = (line.lstrip() for line in _read(path).decode("utf-8", "surrogateescape").splitlines())
        found += [line for line in lines if line and not line.startswith("#")]
    return found


def _document(path: str) -> Any:
    import orjson

    try:
        return orjson.loads(_read(path))
    except orjson.JSONDecodeError as error:
        raise InvalidError(f"spec_patch: {path}: no JSON: {error}", field="spec_patch", value=path) from error


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # a path as the user gave it
            return file.read(FILE_MAX_BYTES)
    except OSError as error:
        raise NotFoundError(f"file: {path}: {error.strerror}", kind="file", name=path) from error


def _variable(text: str) -> str:
    """``NAME=value``; a name alone passes this process' variable on, as Docker does."""
    return text if "=" in text else f"{text}={os.environ.get(text, '')}"


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _equals(field: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidError(f"{field}: {text}: expected NAME=VALUE", field=field, value=text)
    return key, value


def _rate(field: str, text: str) -> tuple[str, int]:
    path, _, rate = text.rpartition(":")
    if not path:
        raise InvalidError(f"{field}: {text}: expected PATH:RATE", field=field, value=text)
    return path, _size(field, rate)


def _size(field: str, text: str) -> int:
    size = parse_size(text)
    if size is None:
        raise InvalidError(f"invalid {field}: {text!r}: expected a number with k, m or g", field=field, value=text)
    return size
