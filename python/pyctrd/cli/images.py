"""``pull load images rmi mount umount``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.describe import describe_image
from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.options import (
    all_platforms_option,
    platforms_option,
    progress_option,
    registry_options,
    verify_option,
)
from pyctrd.cli.output import (
    age_text,
    print_json_lines,
    print_table,
    size_text,
)
from pyctrd.cli.progress import show_progress
from pyctrd.cli.pull import pull
from pyctrd.cli.sizes import limit_option

if TYPE_CHECKING:
    from pyctrd import IdRange, Limits, Policy
    from pyctrd.cli.progress import Mode

SHORT_DIGITS = 12
_IDS = "INSIDE:OUTSIDE:LENGTH"


digests_option = click.option(
    "--content-digests",
    is_flag=True,
    default=None,
    help="Record the BLAKE3 of each file's content, for ls --json [PYCTRD_CONTENT_DIGESTS].",
)
unpack_option = click.option("--no-unpack", is_flag=True, help="Store the blobs only.")
keep_option = click.option(
    "--no-keep-blobs",
    is_flag=True,
    default=None,
    help="Store no blob of a layer that is unpacked [PYCTRD_KEEP_BLOBS=0].",
)


@click.command("pull")
@click.argument("references", metavar="REFERENCE...", nargs=-1, required=True)
@registry_options
@verify_option
@platforms_option
@all_platforms_option
@limit_option
@digests_option
@unpack_option
@keep_option
@click.option(
    "--layer-connections",
    metavar="N",
    type=click.IntRange(1, 6),
    help="Connections for one large layer, where more are faster [PYCTRD_LAYER_CONNECTIONS, 6].",
)
@click.option("-q", "--quiet", is_flag=True, help="Print the digest and nothing else.")
@progress_option
@click.option("--stages", is_flag=True, help="Add the busy, starved and blocked time of each stage (with --json).")
@json_option
@pass_globals
def pull_command(
    options: Globals,
    references: tuple[str, ...],
    *,
    registry: dict[str, Any],
    verify: Policy | None,
    platform: tuple[str, ...],
    all_platforms: bool,
    limits: Limits | None,
    content_digests: bool | None,
    no_unpack: bool,
    no_keep_blobs: bool | None,
    layer_connections: int | None,
    quiet: bool,
    shown: Mode | None,
    stages: bool,
    as_json: bool,
) -> int:
    """Bring images in from registries: verified, stored, unpacked.

    Of several each is printed as it comes in, by its name and digest; what fails is told, and the others go on. With
    --json they are one list, in the order given.
    """
    _check_platforms(platform, all_platforms=all_platforms)
    if stages and len(references) > 1:
        raise click.UsageError("--stages takes one reference")
    if no_keep_blobs and no_unpack:
        raise click.UsageError("--no-unpack and --no-keep-blobs: nothing would be kept")
    return pull(
        options,
        references,
        {
            "platform": platform,
            "all_platforms": all_platforms,
            "unpack": not no_unpack,
            "keep_blobs": False if no_keep_blobs else None,
        },
        quiet=quiet,
        shown=shown,
        stages=stages,
        as_json=as_json or options.json,
        **registry,
        policy=verify,
        limits=limits,
        content_digests=content_digests,
        layer_connections=layer_connections,
    )


def _check_platforms(platform: tuple[str, ...], *, all_platforms: bool) -> None:
    if all_platforms and len(platform) > 1:
        raise click.UsageError("--all-platforms takes one --platform: which is unpacked")


@click.command("load")
@click.option(
    "-i",
    "--input",
    "source",
    metavar="FILE|DIR|-",
    default="-",
    help="An OCI layout, or what docker save or podman save wrote; standard input by default. Or oci:DIR[:NAME], "
    "oci-archive:FILE[:NAME], docker-archive:FILE[:NAME] for one image of it.",
)
@click.option("--name", metavar="REFERENCE", help="What to call the image; without a tag, images keep theirs.")
@platforms_option
@all_platforms_option
@limit_option
@digests_option
@unpack_option
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@progress_option
@json_option
@pass_globals
def load_command(
    options: Globals,
    source: str,
    *,
    name: str | None,
    platform: tuple[str, ...],
    all_platforms: bool,
    limits: Limits | None,
    content_digests: bool | None,
    no_unpack: bool,
    quiet: bool,
    shown: Mode | None,
    as_json: bool,
) -> None:
    """Bring images in from a layout or an archive: verified, stored, unpacked. Prints their names."""
    _check_platforms(platform, all_platforms=all_platforms)
    if source == "-" and sys.stdin.isatty():
        raise click.UsageError("standard input is a terminal: give a file or directory with -i, or pipe one in")
    with options.engine(limits=limits, content_digests=content_digests) as engine:
        with show_progress(shown, quiet=quiet or as_json or options.json) as progress:
            images = engine.images.load(
                sys.stdin.buffer if source == "-" else source,
                name=name,
                platform=platform,
                all_platforms=all_platforms,
                unpack=not no_unpack,
                progress=progress,
            )
        if as_json or options.json:
            print_json_lines(describe_image(image) for image in images)
        else:
            for image in images:
                click.echo(image.name)


@click.command("images")
@click.option("-q", "--quiet", is_flag=True, help="Print the names only.")
@json_option
@pass_globals
def images_command(options: Globals, *, quiet: bool, as_json: bool) -> None:
    """List the images of the namespace."""
    with options.engine() as engine:
        images = engine.images.list()
        if as_json or options.json:
            print_json_lines(describe_image(image) for image in images)
        elif quiet:
            for image in images:
                click.echo(image.name)
        else:
            print_table(
                ("IMAGE", "DIGEST", "PLATFORM", "PULLED", "SIZE"),
                (
                    (
                        image.name,
                        short(image.digest),
                        ",".join(image.platforms),
                        age_text(image.created_ns),
                        size_text(image.size_bytes),
                    )
                    for image in images
                ),
            )


@click.command("rmi")
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Even if a container was made from it.")
@click.option("--no-collect", is_flag=True, help="Leave what nothing needs then on the disk, until gc.")
@pass_globals
def rmi_command(options: Globals, names: tuple[str, ...], *, force: bool, no_collect: bool) -> None:
    """Remove images, and what nothing else needs from the disk."""
    with options.engine() as engine:
        for name in names:
            engine.images.remove(name, force=force, collect=not no_collect)
            click.echo(name)


def _read_ids(_context: click.Context, _parameter: click.Parameter, words: tuple[str, ...]) -> list[IdRange] | None:
    from pyctrd import IdRange

    found = []
    for word in words:
        numbers = word.split(":")
        if len(numbers) != len(IdRange._fields) or not all(part.isascii() and part.isdigit() for part in numbers):
            raise click.BadParameter(f"{word!r}: expected {_IDS}, as 0:100000:65536")
        found.append(IdRange(*map(int, numbers)))
    return found or None


@click.command("mount")
@click.argument("name", metavar="IMAGE")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("--uidmap", "uids", metavar=_IDS, multiple=True, callback=_read_ids, help="Show owners as others.")
@click.option("--gidmap", "gids", metavar=_IDS, multiple=True, callback=_read_ids, help="Groups; as owners by default.")
@pass_globals
def mount_command(
    options: Globals, name: str, directory: str, *, uids: list[IdRange] | None, gids: list[IdRange] | None
) -> None:
    """Mount an image read-only on a directory."""
    with options.engine() as engine:
        engine.images.get(name).mount(directory, uids=uids, gids=gids)
        click.echo(directory)


@click.command("umount")
@click.argument("directory", type=click.Path())
@pass_globals
def umount_command(options: Globals, directory: str) -> None:
    """Undo ``mount``."""
    with options.engine() as engine:
        engine.images.unmount(directory)


def short(digest: str) -> str:
    """A digest's first digits, enough to name it on a screen."""
    return digest.partition(":")[2][:SHORT_DIGITS]
