"""``search-tags referrers delete``: what a registry has, and taking it away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.options import registry_options
from pyctrd.cli.output import print_json_lines, print_table, size_text

if TYPE_CHECKING:
    from pyctrd import Descriptor


@click.command("search-tags")
@click.argument("repository")
@registry_options
@json_option
@pass_globals
def search_tags_command(options: Globals, repository: str, *, registry: dict[str, Any], as_json: bool) -> None:
    """List the tags of a registry's repository."""
    with options.engine(**registry) as engine:
        found = engine.registry.repository(repository)
        for tag in found.tags():
            if as_json or options.json:
                print_json_lines([{"name": found.name, "tag": tag}])
            else:
                click.echo(tag)


@click.command("referrers")
@click.argument("reference")
@registry_options
@click.option("--type", "artifact_type", metavar="TYPE", default="", help="Only artifacts of this type.")
@json_option
@pass_globals
def referrers_command(
    options: Globals,
    reference: str,
    *,
    registry: dict[str, Any],
    artifact_type: str,
    as_json: bool,
) -> None:
    """List what tells of an image in its registry: signatures, bills of materials and the like."""
    with options.engine(**registry) as engine:
        found = engine.registry.repository(reference).referrers(artifact_type=artifact_type)
    if as_json or options.json:
        print_json_lines(_describe(entry) for entry in found)
    else:
        print_table(
            ("DIGEST", "TYPE", "SIZE"),
            ((str(entry.digest), entry.artifact_type or entry.media_type, size_text(entry.size)) for entry in found),
        )


@click.command("delete")
@click.argument("references", metavar="REFERENCE...", nargs=-1, required=True)
@registry_options
@pass_globals
def delete_command(options: Globals, references: tuple[str, ...], *, registry: dict[str, Any]) -> None:
    """Delete tags from a registry, or by a digest a manifest with all its tags."""
    for reference in references:
        if ":" not in reference.rpartition("/")[2]:
            raise click.UsageError(f"{reference}: say which tag, or which digest")
    with options.engine(**registry) as engine:
        for reference in references:
            engine.registry.repository(reference).delete()


def _describe(entry: Descriptor) -> dict[str, Any]:
    return {
        "digest": str(entry.digest),
        "media_type": entry.media_type,
        "artifact_type": entry.artifact_type,
        "size_bytes": entry.size,
        "annotations": dict(entry.annotations),
    }
