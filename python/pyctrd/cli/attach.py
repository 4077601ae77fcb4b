"""``attach``: to a container's output, or files to an image of a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.labels import read_labels
from pyctrd.cli.life import detach_keys_option
from pyctrd.cli.options import registry_options
from pyctrd.cli.output import print_json
from pyctrd.errors import DetachedError


@click.command("attach")
@click.argument("name", metavar="CONTAINER|REFERENCE")
@click.argument("files", metavar="[FILE[:TYPE]]...", nargs=-1)
@registry_options
@click.option("--type", "artifact_type", metavar="TYPE", help="Of the artifact that the files become.")
@click.option(
    "--annotation",
    "annotations",
    metavar="KEY=VALUE",
    multiple=True,
    callback=read_labels,
    help="Of the artifact's manifest.",
)
@detach_keys_option
@json_option
@pass_globals
@click.pass_context
def attach_command(
    context: click.Context,
    options: Globals,
    name: str,
    files: tuple[str, ...],
    *,
    registry: dict[str, Any],
    artifact_type: str | None,
    annotations: dict[str, str],
    detach_keys: str,
    as_json: bool,
) -> None:
    """Show a running container's output until it ends; or, with --type, attach files to an image of a registry.

    The files become an artifact of that registry which tells of the image (see referrers); its digest is printed. A
    file's media type may stand behind it: sbom.json:application/spdx+json.
    """
    if artifact_type is None:
        if files or annotations:
            raise click.UsageError("files are attached to an image of a registry: --type says as what")
        with options.engine() as engine:
            try:
                status = engine.containers.get(name).attach(terminal=None, stdin=None, detach_keys=detach_keys)
            except DetachedError:
                context.exit(0)
        context.exit(status.exit_code)
    if not files:
        raise click.UsageError("no file to attach")
    with options.engine(**registry) as engine:
        digest = engine.registry.repository(name).attach(
            [_read_file(word) for word in files], artifact_type=artifact_type, annotations=annotations
        )
    if as_json or options.json:
        print_json({"subject": name, "digest": digest})
    else:
        click.echo(digest)


def _read_file(word: str) -> str | tuple[str, str]:
    """A path, with its media type where one stands behind it."""
    path, _, media_type = word.rpartition(":")
    return (path, media_type) if path and "/" in media_type and not Path(word).exists() else word
