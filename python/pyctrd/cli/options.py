"""Options that several commands have."""

from __future__ import annotations

from typing import Any

import click

platform_option = click.option("--platform", metavar="OS/ARCH", help="Another platform than the host's.")


def registry_options(function: Any) -> Any:
    """The options of every command that talks to a registry; the command gets ``ca`` and ``plain_http``."""
    for option in (
        click.option(
            "--ca",
            metavar="FILE",
            type=click.Path(exists=True, dir_okay=False),
            help="Certificates (PEM) to trust.",
        ),
        click.option(
            "--plain-http",
            metavar="HOST",
            multiple=True,
            help="Talk to HOST without TLS (loopback needs no mention).",
        ),
    ):
        function = option(function)
    return function
