"""``pyctrd unshare``: a program in the user namespace in which an ordinary user's containers are."""

from __future__ import annotations

import os
import sys

import click


@click.command("unshare", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def unshare_command(command: tuple[str, ...]) -> int:
    """Run COMMAND, or a shell, as root of your own user namespace: programs that use pyctrd, or see its files."""
    from pyctrd import enter_user_namespace

    enter_user_namespace()
    words = command or (os.environ.get("SHELL") or "/bin/sh",)
    sys.stdout.flush()
    try:
        os.execvp(words[0], words)  # noqa: S606 - no shell is meant
    except OSError as error:
        click.echo(f"pyctrd: {words[0]}: {error.strerror}", err=True)
        return 127 if isinstance(error, FileNotFoundError) else 126
