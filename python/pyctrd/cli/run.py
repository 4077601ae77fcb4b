"""``run``: an image's command, in the foreground or detached."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.container_options import ContainerCommand, claim_file, container_options, wanted_options
from pyctrd.cli.globals import Globals
from pyctrd.cli.group import pass_globals
from pyctrd.cli.life import detach_keys_option, life_options, read_life_options
from pyctrd.cli.options import platform_option, registry_options, verify_option
from pyctrd.cli.output import complain, print_json
from pyctrd.cli.progress import show_progress
from pyctrd.cli.sizes import limit_option
from pyctrd.errors import CommandNotExecutableError, CommandNotFoundError, DetachedError, InvalidError, PyctrdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyctrd.container import Container
    from pyctrd.engine import Engine
    from pyctrd.image import Image

# As Docker's and a shell's: the engine failed, the command cannot be executed, the command is not there.
EXIT_ENGINE = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


_SETTINGS = {"allow_interspersed_args": False, "help_option_names": ["--help"]}


def making_options(function: Any) -> Any:
    """The options of ``run`` and ``create`` that are none of the container's spec alone."""
    for option in (
        click.option(
            "--snapshotter", metavar="NAME", help="overlayfs, native, composefs or erofs [PYCTRD_SNAPSHOTTER]."
        ),
        click.option("--runtime", metavar="NAME|PATH", help="The OCI runtime [PYCTRD_RUNTIME, runc]."),
        click.option("--cgroup-manager", metavar="NAME", help="cgroupfs or systemd [PYCTRD_CGROUP_MANAGER, cgroupfs]."),
        click.option(
            "--pull", "policy", type=click.Choice(["missing", "always", "never"]), default="missing", show_default=True
        ),
        limit_option,
        platform_option,
        verify_option,
        registry_options,
    ):
        function = option(function)
    return life_options(function)


@click.command("run", cls=ContainerCommand, context_settings=_SETTINGS)
@click.argument("reference", metavar="IMAGE")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@container_options
@making_options
@click.option("-i", "--interactive", is_flag=True, help="Send it this command's input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running and print its id.")
@detach_keys_option
@pass_globals
@click.pass_context
def run_command(
    context: click.Context, options: Globals, /, reference: str, command: tuple[str, ...], **chosen: Any
) -> None:
    """Run a command in a new container; pulls the image if it is missing."""
    context.exit(_in_engine(_run, reference, command, options, chosen))


def _in_engine(
    work: Callable[[Engine, Image | None, tuple[str, ...], Globals, dict[str, Any]], int],
    reference: str,
    command: tuple[str, ...],
    options: Globals,
    chosen: dict[str, Any],
) -> int:
    """Make a container as was chosen, do something with it, and tell how that ended as a shell's user expects it."""
    settings = {name: chosen.pop(name) for name in ("runtime", "cgroup_manager", "snapshotter", "limits")}
    try:
        with options.engine(runs=True, **chosen.pop("registry"), policy=chosen.pop("verify"), **settings) as engine:
            image, command = _choose(engine, reference, command, chosen)
            _pull_mounts(engine, chosen)
            return work(engine, image, command, options, chosen)
    except (PyctrdError, OSError) as error:
        if options.debug:
            raise
        return complain(error, status=_status_of(error))


def _run(
    engine: Engine, image: Image | None, command: tuple[str, ...], options: Globals, chosen: dict[str, Any]
) -> int:
    terminal, stdin = chosen["tty"], chosen["interactive"]
    if chosen.get("pidfile") and not chosen["detach"]:
        raise InvalidError("pidfile: needs -d", field="pidfile", value=chosen["pidfile"])
    if terminal and stdin and not chosen["detach"] and not sys.stdin.isatty():
        raise InvalidError(
            "invalid input: -t with -i needs a terminal, and standard input is none",
            field="tty",
            value="-it",
            hint="leave -t out",
        )
    container = _create(engine, image, command, chosen)
    if chosen["detach"]:
        _start_detached(container, chosen)
        return _tell(container, options)
    try:
        return container.start_attached(terminal=terminal, stdin=stdin, detach_keys=chosen["detach_keys"]).exit_code
    except DetachedError:
        return 0
    except PyctrdError:
        if container.status.state == "created":
            container.delete(force=True)  # it never ran: there is nothing in it to look at
        raise


def _create(engine: Engine, image: Image | None, command: tuple[str, ...], chosen: dict[str, Any]) -> Container:
    write_id = claim_file(chosen.get("cidfile"))
    try:
        wanted = wanted_options(chosen)
        wanted.update(read_life_options(chosen))
        container = engine.containers.create(image, command, **wanted)
    except BaseException:
        write_id("")
        raise
    write_id(container.id)
    return container


def _start_detached(container: Container, chosen: dict[str, Any]) -> None:
    try:
        container.start(terminal=chosen["tty"], stdin=chosen["interactive"])
        if path := chosen.get("pidfile"):
            with open(path, "w", encoding="ascii") as file:  # noqa: PTH123  # a path as the user gave it
                file.write(f"{container.status.pid}\n")
    except BaseException:
        container.delete(force=True)
        raise


def _tell(container: Container, options: Globals) -> int:
    if options.json:
        print_json({"id": container.id, "name": container.name})
    else:
        click.echo(container.id)
    return 0


def _choose(
    engine: Engine, reference: str, command: tuple[str, ...], chosen: dict[str, Any]
) -> tuple[Image | None, tuple[str, ...]]:
    """The image and the command; with a directory in its place, all words are the command's."""
    if chosen["rootfs"] is not None:
        return None, (reference, *command)
    return _find_or_pull(engine, reference, chosen["policy"], chosen["platform"]), command


def _pull_mounts(engine: Engine, chosen: dict[str, Any]) -> None:
    """Bring in the images that are to be mounted."""
    for text in chosen.get("mount", ()):
        keys = dict(part.partition("=")[::2] for part in text.split(","))
        if keys.get("type") == "image" and (source := keys.get("source") or keys.get("src")):
            _find_or_pull(engine, source, chosen["policy"], chosen["platform"])


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


@click.command("create", cls=ContainerCommand, context_settings=_SETTINGS)
@click.argument("reference", metavar="IMAGE")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@container_options
@making_options
@click.option("-i", "--interactive", is_flag=True, help="It takes input, when it is started.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@pass_globals
@click.pass_context
def create_command(
    context: click.Context, options: Globals, /, reference: str, command: tuple[str, ...], **chosen: Any
) -> None:
    """Make a container, and start nothing; pulls the image if it is missing."""
    context.exit(_in_engine(_make, reference, command, options, chosen))


def _make(
    engine: Engine, image: Image | None, command: tuple[str, ...], options: Globals, chosen: dict[str, Any]
) -> int:
    return _tell(_create(engine, image, command, chosen), options)
