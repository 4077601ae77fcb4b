"""``exec``: another command in a running container."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import pass_globals
from pyctrd.cli.life import detach_keys_option
from pyctrd.cli.output import complain, print_json
from pyctrd.cli.run import EXIT_ENGINE, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND
from pyctrd.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    DeadlineError,
    DetachedError,
    InvalidError,
    PyctrdError,
)

if TYPE_CHECKING:
    from pyctrd.engine import Engine

EXIT_TIMED_OUT = 124  # as timeout(1)'s


@click.command("exec", context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="CONTAINER")
@click.argument("command", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-d", "--detach", is_flag=True, help="Leave it running and print its id.")
@click.option("-i", "--interactive", is_flag=True, help="Send it this command's input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-e", "--env", metavar="NAME[=VALUE]", multiple=True, help="Set a variable, or pass it on.")
@click.option("-u", "--user", metavar="USER[:GROUP]", default="", help="Names or numbers.")
@click.option("-w", "--workdir", metavar="DIR", default="", help="The working directory.")
@detach_keys_option
@click.option("--privileged", is_flag=True, help="All capabilities.")
@click.option("--cap-add", metavar="CAP", multiple=True, help="Add a capability.")
@click.option("--cap-drop", metavar="CAP", multiple=True, help="Take a capability away; ALL for all.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Kill it, and what it started, after this long.")
@pass_globals
@click.pass_context
def exec_command(
    context: click.Context, options: Globals, /, name: str, command: tuple[str, ...], **chosen: Any
) -> None:
    """Run another command in a running container.

    The exit status is the command's; 125 where it could not be started, 126 and 127 where it cannot be executed or is
    not there, 124 where it was killed by --timeout.
    """
    try:
        with options.engine() as engine:
            status = _exec(engine, name, command, options, chosen)
    except (PyctrdError, OSError) as error:
        if options.debug or isinstance(error, BrokenPipeError):
            raise
        status = complain(error, status=_status_of(error))
    context.exit(status)


def _exec(engine: Engine, name: str, command: tuple[str, ...], options: Globals, chosen: dict[str, Any]) -> int:
    terminal, stdin, detach = chosen["tty"], chosen["interactive"], chosen["detach"]
    if terminal and stdin and not detach and not sys.stdin.isatty():
        raise InvalidError(
            "invalid input: -t with -i needs a terminal, and standard input is none",
            field="tty",
            value="-it",
            hint="leave -t out",
        )
    process = engine.containers.get(name).exec(
        command,
        env=[_variable(text) for text in chosen["env"]],
        user=chosen["user"],
        working_dir=chosen["workdir"],
        terminal=terminal,
        stdin=stdin,
        privileged=chosen["privileged"],
        cap_add=chosen["cap_add"],
        cap_drop=chosen["cap_drop"],
        detach=detach,
        timeout=chosen["timeout"],
    )
    if not detach:
        try:
            return process.attach(detach_keys=chosen["detach_keys"]).exit_code
        except DetachedError:
            return 0
    if options.json:
        print_json({"id": process.id, "pid": process.pid})
    else:
        click.echo(process.id)
    return 0


def _status_of(error: BaseException) -> int:
    if isinstance(error, CommandNotFoundError):
        return EXIT_NOT_FOUND
    if isinstance(error, CommandNotExecutableError):
        return EXIT_NOT_EXECUTABLE
    return EXIT_TIMED_OUT if isinstance(error, DeadlineError) and error.operation == "exec" else EXIT_ENGINE


def _variable(text: str) -> str:
    """``NAME=value``; a name alone passes this process' variable on, as Docker does."""
    import os

    return text if "=" in text else f"{text}={os.environ.get(text, '')}"
