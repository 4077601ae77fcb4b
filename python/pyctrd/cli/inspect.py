"""``inspect``: all that is known of an image or a container, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.describe import describe_image
from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.output import print_json_lines

if TYPE_CHECKING:
    from pyctrd.image import Image


@click.command("inspect")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
@pass_globals
def inspect_command(options: Globals, names: tuple[str, ...], *, as_json: bool) -> None:  # noqa: ARG001 - always JSON
    """Print all that is known of containers and images, one JSON object on a line for each."""
    with options.engine() as engine:
        found = []
        for name in names:
            if (container := engine.containers.find(name)) is not None:
                found.append({"kind": "container", **container.inspect()})
                continue
            image = engine.images.get(name)
            found.append({"kind": "image", **describe_image(image), "config": _config(image)})
    print_json_lines(found)


def _config(image: Image) -> Mapping[str, Any] | None:
    """The image config's document; None for an artifact that is no image."""
    return image.config.raw if image.manifest.is_image else None
