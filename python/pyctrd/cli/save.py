"""``save``: images to a layout, an archive or a stream."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Literal

import click

from pyctrd.cli.describe import describe_image
from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.options import progress_option
from pyctrd.cli.output import EXIT_FAILED, print_error, print_json_lines
from pyctrd.cli.progress import Mode, show_progress

# Podman calls a layout oci-dir.
_FORMATS: Mapping[str, Literal["docker-archive", "oci-archive", "oci"]] = {
    "docker-archive": "docker-archive",
    "oci-archive": "oci-archive",
    "oci": "oci",
    "oci-dir": "oci",
}


@click.command("save")
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="FILE|DIR|-",
    default="-",
    help="Where to; standard output by default, which may be no terminal.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(_FORMATS)),
    default="docker-archive",
    show_default=True,
    help="oci-archive keeps blobs and digests as they are; oci is a directory, to which images are added.",
)
@click.option(
    "--platform",
    metavar="OS/ARCH",
    multiple=True,
    help="That platform's manifest alone, for umoci, crane and others that take no index which is not whole; given "
    "again, the index with these.",
)
@click.option("--all-platforms", is_flag=True, help="Fail where something that an index names is not in the store.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@progress_option
@json_option
@pass_globals
def save_command(
    options: Globals,
    names: tuple[str, ...],
    *,
    output: str,
    form: str,
    platform: tuple[str, ...],
    all_platforms: bool,
    quiet: bool,
    shown: Mode | None,
    as_json: bool,
) -> int:
    """Write images to a file, a directory or standard output, for load, docker, podman, skopeo and others."""
    wanted = _FORMATS[form]
    if platform and all_platforms:
        raise click.UsageError("--platform and --all-platforms: choose one")
    is_stream = output == "-"
    if is_stream and wanted == "oci":
        raise click.UsageError("a layout is a directory: give one with -o")
    if is_stream and sys.stdout.isatty():
        raise click.UsageError("standard output is a terminal: give a file with -o, or redirect it")
    as_json |= options.json
    if is_stream and as_json:
        raise click.UsageError("standard output cannot have both the archive and JSON: give a file with -o")
    with options.engine() as engine, show_progress(shown, quiet=quiet or as_json) as progress:
        try:
            engine.images.save(
                names,
                sys.stdout.buffer if is_stream else output,
                format=wanted,
                platform=platform,
                all_platforms=all_platforms,
                progress=progress,
            )
        except BrokenPipeError:
            # Unlike a listing of which somebody wants the first lines, half an archive is nothing.
            print_error("broken pipe: whoever reads the archive left before its end")
            return EXIT_FAILED
        if as_json:
            print_json_lines(describe_image(engine.images.get(name)) for name in names)
    return 0
