"""``push copy tag``."""

from __future__ import annotations

from typing import Any, Literal

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.options import progress_option, registry_options
from pyctrd.cli.output import print_json
from pyctrd.cli.progress import Mode, show_progress
from pyctrd.cli.sizes import SizeType

chunk_option = click.option(
    "--chunk-size",
    "chunk_bytes",
    metavar="SIZE",
    type=SizeType(),
    default=0,
    help="Send blobs in requests of this size (32m); one request for each by default.",
)
reduced_option = click.option(
    "--reduced", is_flag=True, help="An index that names the --platform alone; its digest is another one."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print the digest and nothing else.")


@click.command("push")
@click.argument("image")
@click.argument("target", required=False)
@registry_options
@click.option(
    "--platform", metavar="OS/ARCH", multiple=True, help="That one's manifest; given again, the index with these alone."
)
@click.option("--all-platforms", is_flag=True, help="The whole index that was pulled, not this platform's manifest.")
@reduced_option
@click.option(
    "--compression",
    type=click.Choice(["gzip", "zstd", "zstd:chunked", "none"]),
    help="Compress all layers so; as they are by default.",
)
@chunk_option
@quiet_option
@progress_option
@json_option
@pass_globals
def push_command(
    options: Globals,
    image: str,
    target: str | None,
    *,
    registry: dict[str, Any],
    platform: tuple[str, ...],
    all_platforms: bool,
    reduced: bool,
    compression: Literal["gzip", "zstd", "zstd:chunked", "none"] | None,
    chunk_bytes: int,
    quiet: bool,
    shown: Mode | None,
    as_json: bool,
) -> None:
    """Send an image to a registry, under its own name or as TARGET; prints the digest that it has there."""
    if platform and all_platforms:
        raise click.UsageError("--platform and --all-platforms: choose one")
    _check_reduced(platform, reduced=reduced)
    if (platform or all_platforms) and compression is not None:
        raise click.UsageError("--compression: the image's own platform is converted, and no other")
    as_json |= options.json
    with options.engine(**registry) as engine:
        found = engine.images.get(image)
        with show_progress(shown, quiet=quiet or as_json) as progress:
            digest = engine.images.push(
                found.name,
                target,
                platform=platform,
                all_platforms=all_platforms,
                reduced=reduced,
                compression=compression,
                chunk_bytes=chunk_bytes,
                progress=progress,
            )
        _print(target or found.name, digest, as_json=as_json)


@click.command("copy")
@click.argument("source")
@click.argument("target")
@registry_options
@click.option(
    "--platform", metavar="OS/ARCH", multiple=True, help="That one's manifest; given again, the index with these alone."
)
@reduced_option
@click.option("--referrers", is_flag=True, help="Signatures and other artifacts that tell of the image, too.")
@chunk_option
@quiet_option
@progress_option
@json_option
@pass_globals
def copy_command(
    options: Globals,
    source: str,
    target: str,
    *,
    registry: dict[str, Any],
    platform: tuple[str, ...],
    reduced: bool,
    referrers: bool,
    chunk_bytes: int,
    quiet: bool,
    shown: Mode | None,
    as_json: bool,
) -> None:
    """Copy an image between registries, all its platforms, byte for byte; nothing is stored. Prints its digest."""
    _check_reduced(platform, reduced=reduced)
    as_json |= options.json
    with options.engine(**registry) as engine:
        with show_progress(shown, quiet=quiet or as_json) as progress:
            digest = engine.images.copy(
                source,
                target,
                platform=platform,
                reduced=reduced,
                referrers=referrers,
                chunk_bytes=chunk_bytes,
                progress=progress,
            )
        _print(target, digest, as_json=as_json)


@click.command("tag")
@click.argument("image")
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@pass_globals
def tag_command(options: Globals, image: str, targets: tuple[str, ...]) -> None:
    """Give an image another name."""
    with options.engine() as engine:
        for target in targets:
            engine.images.tag(image, target)


def _check_reduced(platform: tuple[str, ...], *, reduced: bool) -> None:
    if reduced and not platform:
        raise click.UsageError("--reduced: to which --platform?")


def _print(name: str, digest: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "digest": digest})
    else:
        click.echo(digest)
