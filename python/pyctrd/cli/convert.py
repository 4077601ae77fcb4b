"""``convert``: an image's layers in another form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from pyctrd.cli.describe import describe_image
from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.options import progress_option
from pyctrd.cli.output import print_json
from pyctrd.cli.progress import Mode, show_progress
from pyctrd.cli.sizes import limit_option

if TYPE_CHECKING:
    from pyctrd import Limits


@click.command("convert")
@click.argument("source")
@click.argument("target")
@click.option(
    "--compression",
    type=click.Choice(["gzip", "zstd", "zstd:chunked", "none"]),
    default="gzip",
    show_default=True,
    help="Of all layers; zstd:chunked is zstd of which some tools fetch single files.",
)
@click.option("--level", metavar="N", type=int, help="gzip 1 to 9, 6 by default; zstd 1 to 19, 3. Repacks all layers.")
@limit_option
@click.option("-q", "--quiet", is_flag=True, help="Print the digest and nothing else.")
@progress_option
@json_option
@pass_globals
def convert_command(
    options: Globals,
    source: str,
    target: str,
    *,
    compression: Literal["gzip", "zstd", "zstd:chunked", "none"],
    level: int | None,
    limits: Limits | None,
    quiet: bool,
    shown: Mode | None,
    as_json: bool,
) -> None:
    """Make TARGET of an image's layers, compressed otherwise; the config and what is unpacked stay the same.

    Of an image for several platforms the one that is in the store is converted, alone.
    """
    as_json |= options.json
    with options.engine(limits=limits) as engine:
        with show_progress(shown, quiet=quiet or as_json) as progress:
            image = engine.images.convert(source, target, compression=compression, level=level, progress=progress)
        if as_json:
            print_json(describe_image(image))
        else:
            click.echo(image.digest)
