"""Options that several commands have."""

from __future__ import annotations

from functools import wraps
from typing import Any

import click

platform_option = click.option("--platform", metavar="OS/ARCH", help="Another platform than the host's.")

progress_option = click.option(
    "--progress",
    "shown",
    type=click.Choice(["auto", "bars", "json", "none"]),
    help="How far it is, on standard error: bars, or a JSON object for each event; by default bars on a terminal.",
)
platforms_option = click.option(
    "--platform",
    "platform",
    metavar="OS/ARCH",
    multiple=True,
    help="Another platform than the host's; given again, more are stored beside it.",
)
all_platforms_option = click.option(
    "--all-platforms", is_flag=True, help="Store all that the image's index names beside it."
)


def _read_key(_context: click.Context, _parameter: click.Parameter, path: str | None) -> Any:
    if path is None:
        return None
    from pyctrd.policies import CosignKey

    return CosignKey(path)


verify_option = click.option(
    "--verify-key",
    "verify",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    callback=_read_key,
    help="Let in what is signed by this public key alone, as cosign signs [PYCTRD_VERIFY_KEY].",
)


def registry_options(function: Any) -> Any:
    """The options of every command that talks to a registry; the command gets the engine's as ``registry``."""

    @wraps(function)
    def wrapped(
        *arguments: Any,
        ca: str | None,
        plain_http: tuple[str, ...],
        insecure: tuple[str, ...],
        hosts: str | None,
        **named: Any,
    ) -> Any:
        registry = {"ca": ca, "plain_http": plain_http, "insecure": insecure or None, "hosts": hosts}
        return function(*arguments, registry=registry, **named)

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
        click.option(
            "--insecure-registry",
            "insecure",
            metavar="HOST|CIDR",
            multiple=True,
            help="Look at no certificate of it, and do without TLS if it has none [PYCTRD_INSECURE_REGISTRIES].",
        ),
        click.option(
            "--hosts",
            metavar="DIR",
            type=click.Path(exists=True, file_okay=False),
            help="Mirrors and certificates by registry, as containerd's hosts.toml [PYCTRD_HOSTS].",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped
