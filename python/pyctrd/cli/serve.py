"""``serve registry``: the store for other machines."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.labels import read_labels
from pyctrd.cli.output import print_json

TOKENS_MAX_BYTES = 1 << 20


def _read_tokens(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> dict[str, str]:
    """A file with ``USER:TOKEN`` on each line; a token on the command line would be seen by everybody."""
    if path is None:
        return {}
    text = path.read_bytes()[:TOKENS_MAX_BYTES].decode(errors="replace")
    tokens = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, token = line.strip().partition(":")
        if not (user and colon and token):
            raise click.BadParameter(f"{path}: line {number}: expected USER:TOKEN")
        tokens[token] = user
    return tokens


@click.group("serve")
def serve_command() -> None:
    """Serve the store to other machines."""


@serve_command.command("registry")
@click.option("--listen", metavar="ADDRESS:PORT", default="127.0.0.1:5000", show_default=True, help="Where.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM: for HTTPS.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key.")
@click.option(
    "--anonymous",
    type=click.Choice(["none", "pull", "push"]),
    default="pull",
    show_default=True,
    help="What anybody may do.",
)
@click.option("--htpasswd", type=click.Path(path_type=Path), help="Users and bcrypt hashes, as htpasswd -B makes them.")
@click.option(
    "--token-file",
    "tokens",
    type=click.Path(exists=True, path_type=Path),
    callback=_read_tokens,
    help="USER:TOKEN on each line: bearer tokens that were given out.",
)
@click.option(
    "--user-namespace",
    "namespaces",
    metavar="USER=NAMESPACE",
    multiple=True,
    callback=read_labels,
    help="Whose repositories a user sees; those of -n, if nothing is said.",
)
@click.option("--reader", "readers", metavar="USER", multiple=True, help="A user who may only pull.")
@click.option(
    "--challenge",
    type=click.Choice(["token", "basic"]),
    default="token",
    show_default=True,
    help="How a client is asked who it is.",
)
@click.option(
    "--upstream", "upstreams", metavar="REGISTRY", multiple=True, help="Where what is not here is fetched from."
)
@click.option("--public-url", metavar="URL", default="", help="How clients reach it, behind a proxy.")
@click.option("--plain-http", metavar="HOST", multiple=True, help="An upstream that is talked to without TLS.")
@click.option("--quiet", "-q", is_flag=True, help="No line for each request on standard error.")
@json_option
@pass_globals
def serve_registry(
    options: Globals,
    /,
    *,
    plain_http: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    **serving: Any,
) -> None:
    """Serve the namespace's images and whatever is sent to it, as a registry.

    It ends at SIGTERM or Ctrl-C, when what is being answered has its answer.
    """
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    if not quiet:
        _log_requests()
    with (
        options.engine(plain_http=plain_http) as engine,
        engine.serve_registry(**serving) as server,
    ):
        if as_json or options.json:
            print_json({"address": server.address, "tls": serving["tls_cert"] is not None})
        else:
            click.echo(f"listening on {server.address}")
        while not ending.wait(1.0):  # a signal ends no wait that is just to begin
            pass


def _log_requests() -> None:
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("pyctrd.registry")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
