"""``run``: an image's command, in the foreground or detached."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import pass_globals
from pyctrd.cli.life import detach_keys_option, life_options, read_life_options
from pyctrd.cli.options import platform_option, registry_options, verify_option
from pyctrd.cli.output import complain, print_json
from pyctrd.cli.progress import show_progress
from pyctrd.cli.sizes import limit_option, parse_size
from pyctrd.errors import CommandNotExecutableError, CommandNotFoundError, DetachedError, InvalidError, PyctrdError

if TYPE_CHECKING:
    from pyctrd import Limits, Policy
    from pyctrd.container_options import ContainerOptions
    from pyctrd.engine import Engine
    from pyctrd.image import Image

# As Docker's and a shell's: the engine failed, the command cannot be executed, the command is not there.
EXIT_ENGINE = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


def container_options(function: Any) -> Any:
    """The options of what makes a container."""
    for option in reversed(
        (
            click.option("--name", metavar="NAME", help="Unique in the namespace."),
            click.option("-e", "--env", metavar="NAME[=VALUE]", multiple=True, help="Set a variable, or pass it on."),
            click.option("-w", "--workdir", metavar="DIR", help="The working directory."),
            click.option("-u", "--user", metavar="USER[:GROUP]", help="Names or numbers."),
            click.option("--entrypoint", metavar="COMMAND", help='Replaces the image\'s; "" for none.'),
            click.option("-v", "--volume", metavar="SRC:DST[:ro]", multiple=True, help="Show a part of the host."),
            click.option("--network", metavar="none|host|PATH", default="none", help="Or a network namespace's path."),
            click.option("-h", "--hostname", metavar="NAME", help="The beginning of the id by default."),
            click.option("--read-only", is_flag=True, help="The root file system cannot be written to."),
            click.option("--rm", "auto_remove", is_flag=True, help="Delete the container when it ends."),
            click.option("-l", "--label", metavar="KEY=VALUE", multiple=True, help="A label of your own."),
            click.option("-m", "--memory", metavar="BYTES[kmg]", help="Memory limit."),
            click.option("--cpus", type=float, metavar="N", help="Processors' worth of time."),
            click.option("--pids-limit", type=int, metavar="N", help="Processes and threads."),
            click.option("--ulimit", metavar="NAME=SOFT[:HARD]", multiple=True, help="A resource limit."),
            click.option("--oom-score-adj", type=int, metavar="N", help="-1000 to 1000."),
            click.option("--cap-add", metavar="CAP", multiple=True, help="Add a capability."),
            click.option("--cap-drop", metavar="CAP", multiple=True, help="Take a capability away; ALL for all."),
            click.option("--stop-signal", metavar="SIGNAL", help="What stop sends first."),
        )
    ):
        function = option(function)
    return life_options(function)


@click.command("run", context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]})
@click.argument("reference", metavar="IMAGE")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@container_options
@registry_options
@verify_option
@platform_option
@limit_option
@click.option("-d", "--detach", is_flag=True, help="Leave it running and print its id.")
@click.option("-i", "--interactive", is_flag=True, help="Send it this command's input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@detach_keys_option
@click.option(
    "--pull", "policy", type=click.Choice(["missing", "always", "never"]), default="missing", show_default=True
)
@click.option("--runtime", metavar="NAME|PATH", help="The OCI runtime [PYCTRD_RUNTIME, runc].")
@click.option("--snapshotter", metavar="NAME", help="overlayfs, native, composefs or erofs [PYCTRD_SNAPSHOTTER].")
@pass_globals
@click.pass_context
def run_command(
    context: click.Context,
    options: Globals,
    /,
    reference: str,
    command: tuple[str, ...],
    *,
    registry: dict[str, Any],
    verify: Policy | None,
    runtime: str | None,
    snapshotter: str | None,
    limits: Limits | None,
    **chosen: Any,
) -> None:
    """Run a command in a new container; pulls the image if it is missing."""
    try:
        with options.engine(
            **registry, policy=verify, limits=limits, runtime=runtime, snapshotter=snapshotter
        ) as engine:
            image = _find_or_pull(engine, reference, chosen["policy"], chosen["platform"])
            status = _run(engine, image, command, options, chosen)
    except (PyctrdError, OSError) as error:
        if options.debug:
            raise
        status = complain(error, status=_status_of(error))
    context.exit(status)


def _run(engine: Engine, image: Image, command: tuple[str, ...], options: Globals, chosen: dict[str, Any]) -> int:
    terminal, stdin = chosen["tty"], chosen["interactive"]
    wanted = _container_options(chosen)
    if chosen["detach"]:
        container = engine.containers.run(image, command, **wanted)
        if options.json:
            print_json({"id": container.id, "name": container.name})
        else:
            click.echo(container.id)
        return 0
    if terminal and stdin and not sys.stdin.isatty():
        raise InvalidError(
            "invalid input: -t with -i needs a terminal, and standard input is none",
            field="tty",
            value="-it",
            hint="leave -t out",
        )
    container = engine.containers.create(image, command, **wanted)
    try:
        return container.start_attached(terminal=terminal, stdin=stdin, detach_keys=chosen["detach_keys"]).exit_code
    except DetachedError:
        return 0
    except PyctrdError:
        if container.status.state == "created":
            container.delete(force=True)  # it never ran: there is nothing in it to look at
        raise


def _find_or_pull(engine: Engine, reference: str, policy: str, platform: str | None) -> Image:
    if policy != "always":
        image = engine.images.get(reference) if policy == "never" else engine.images.find(reference)
        if image is not None and (platform is None or image.platform == platform):
            return image
    with show_progress(quiet=False) as progress:
        return engine.images.pull(reference, platform=platform, progress=progress)


def _status_of(error: BaseException) -> int:
    if isinstance(error, CommandNotFoundError):
        return EXIT_NOT_FOUND
    if isinstance(error, CommandNotExecutableError):
        return EXIT_NOT_EXECUTABLE
    return EXIT_ENGINE


def _container_options(chosen: dict[str, Any]) -> ContainerOptions:
    import shlex

    found: ContainerOptions = {
        "name": chosen["name"] or "",
        "env": [_variable(text) for text in chosen["env"]],
        "user": chosen["user"] or "",
        "working_dir": chosen["workdir"] or "",
        "hostname": chosen["hostname"] or "",
        "network": chosen["network"],
        "binds": chosen["volume"],
        "read_only": chosen["read_only"],
        "terminal": chosen["tty"],
        "stdin": chosen["interactive"],
        "auto_remove": chosen["auto_remove"],
        "labels": dict(_label(text) for text in chosen["label"]),
        "rlimits": chosen["ulimit"],
        "cap_add": chosen["cap_add"],
        "cap_drop": chosen["cap_drop"],
        "stop_signal": chosen["stop_signal"] or "",
        **read_life_options(chosen),
    }
    if chosen["entrypoint"] is not None:
        found["entrypoint"] = shlex.split(chosen["entrypoint"])
    if chosen["memory"] is not None:
        found["memory_bytes"] = _memory(chosen["memory"])
    if chosen["cpus"] is not None:
        found["cpus"] = chosen["cpus"]
    if chosen["pids_limit"] is not None:
        found["pids"] = chosen["pids_limit"]
    if chosen["oom_score_adj"] is not None:
        found["oom_score_adj"] = chosen["oom_score_adj"]
    return found


def _variable(text: str) -> str:
    """``NAME=value``; a name alone passes this process' variable on, as Docker does."""
    import os

    return text if "=" in text else f"{text}={os.environ.get(text, '')}"


def _label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _memory(text: str) -> int:
    size = parse_size(text)
    if size is None:
        raise InvalidError(
            f"invalid memory limit: {text!r}: expected a number with k, m or g", field="memory", value=text
        )
    return size
