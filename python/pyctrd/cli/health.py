"""``healthcheck run``."""

from __future__ import annotations

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.output import print_json


@click.group("healthcheck")
def healthcheck_command() -> None:
    """What containers' health checks find."""


@healthcheck_command.command("run")
@click.argument("name", metavar="CONTAINER")
@json_option
@pass_globals
@click.pass_context
def healthcheck_run(context: click.Context, options: Globals, name: str, *, as_json: bool) -> None:
    """Probe a container at once, print what the probe wrote, and exit with 1 where it failed.

    It counts as every other probe of the container's health check.
    """
    with options.engine() as engine:
        result = engine.containers.get(name).run_health_check()
    if as_json or options.json:
        print_json(result._asdict())
    elif result.output:
        click.echo(result.output, nl=not result.output.endswith("\n"))
    context.exit(0 if result.exit_code == 0 else 1)
