"""What ``run`` takes about a container's shim: its log, its restart policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.sizes import parse_size
from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from pyctrd.container_options import ContainerOptions


detach_keys_option = click.option(
    "--detach-keys",
    metavar="KEYS",
    default="ctrl-p,ctrl-q",
    show_default=True,
    help='Typed on a terminal, they leave it running; "" for none.',
)


def life_options(function: Any) -> Any:
    """The options of what the shim does for a container."""
    for option in reversed(
        (
            click.option(
                "--restart",
                metavar="POLICY",
                default="no",
                help="no, on-failure[:N], always or unless-stopped.",
            ),
            click.option("--stop-timeout", type=float, metavar="SECONDS", help="Before stop kills it [10]."),
            click.option("--log-driver", metavar="NAME", default="json-file", help="json-file, cri or none."),
            click.option("--log-opt", metavar="KEY=VALUE", multiple=True, help="max-size=10m, max-file=5."),
        )
    ):
        function = option(function)
    return function


def read_life_options(chosen: dict[str, Any]) -> ContainerOptions:
    """Those options for ``containers.create``.

    Raises:
        InvalidError: One cannot be read.
    """
    found: ContainerOptions = {"restart": chosen["restart"], "log_driver": chosen["log_driver"]}
    if chosen["stop_timeout"] is not None:
        found["stop_timeout"] = chosen["stop_timeout"]
    for text in chosen["log_opt"]:
        key, _, value = text.partition("=")
        number = parse_size(value) if key == "max-size" else int(value) if value.isascii() and value.isdigit() else None
        # Docker's and Podman's word for no bound.
        number = 0 if key == "max-size" and value == "-1" else number
        if key not in ("max-size", "max-file") or number is None:
            raise InvalidError(
                f"invalid --log-opt: {text!r}: expected max-size=SIZE or max-file=N", field="log_opt", value=text
            )
        if key == "max-size":
            found["log_max_bytes"] = number
        else:
            found["log_max_files"] = number
    return found
