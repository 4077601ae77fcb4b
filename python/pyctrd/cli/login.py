"""``login logout``: who we are to a registry."""

from __future__ import annotations

import sys
from typing import Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import pass_globals
from pyctrd.cli.options import registry_options
from pyctrd.errors import InvalidError

DEFAULT_REGISTRY = "docker.io"
SECRET_MAX_CHARS = 64 * 1024
file_option = click.option(
    "--authfile",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="The file to use [REGISTRY_AUTH_FILE, ~/.docker/config.json].",
)


@click.command("login")
@click.argument("host", metavar="[REGISTRY]", default=DEFAULT_REGISTRY)
@registry_options
@click.option("-u", "--username", metavar="NAME", help="Who; asked for on a terminal.")
@click.option("-p", "--password", metavar="SECRET", help="Others may see it: --password-stdin hides it.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@file_option
@pass_globals
def login_command(
    options: Globals,
    host: str,
    *,
    registry: dict[str, Any],
    username: str | None,
    password: str | None,
    password_stdin: bool,
    authfile: str | None,
) -> None:
    """Try credentials at a registry, and keep them for pyctrd, Docker and Podman."""
    if password is not None and password_stdin:
        raise click.UsageError("--password and --password-stdin: give one")
    if username is None:
        username = _ask("username", hidden=False)
    if password_stdin:
        password = sys.stdin.read(SECRET_MAX_CHARS + 1).removesuffix("\n").removesuffix("\r")
        if len(password) > SECRET_MAX_CHARS:
            raise InvalidError("invalid password: too long", field="password")
    elif password is None:
        password = _ask("password", hidden=True)
    if not username or not password:
        raise click.UsageError("neither the name nor the password may be empty")
    with options.engine(**registry) as engine:
        path = engine.registry.login(host, username, password, file=authfile)
    click.echo(f"logged in: {host}: written to {path}", err=True)


@click.command("logout")
@click.argument("host", metavar="[REGISTRY]", default=DEFAULT_REGISTRY)
@file_option
@pass_globals
def logout_command(options: Globals, host: str, *, authfile: str | None) -> None:
    """Forget the credentials of a registry."""
    with options.engine() as engine:
        known = engine.registry.logout(host, file=authfile)
    click.echo(f"logged out: {host}" if known else f"not logged in: {host}", err=True)


def _ask(what: str, *, hidden: bool) -> str:
    if not sys.stdin.isatty():
        raise click.UsageError(f"no {what}: give --username, and --password-stdin, or use a terminal")
    return str(click.prompt(what, hide_input=hidden, err=True))
