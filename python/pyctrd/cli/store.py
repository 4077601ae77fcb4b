"""``info version check unpack``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from pyctrd import __version__
from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.output import EXIT_FAILED, print_json, print_json_lines, printable
from pyctrd.cli.sizes import limit_option

if TYPE_CHECKING:
    from pyctrd import Finding, Limits


@click.command("version")
@json_option
@pass_globals
def version_command(options: Globals, *, as_json: bool) -> None:
    """Print the version."""
    if as_json or options.json:
        from pyctrd.engine import core_version

        print_json({"pyctrd": __version__, "core": core_version()})
    else:
        click.echo(f"pyctrd {__version__}")


@click.command("info")
@json_option
@pass_globals
def info_command(options: Globals, *, as_json: bool) -> None:
    """Tell what this engine is and what the host can do."""
    with options.engine() as engine:
        facts = engine.info()
    if as_json or options.json:
        print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name}: {printable(_text(value))}")


@click.command("check")
@click.option(
    "--digests", "--deep", "digests", is_flag=True, help="Hash every blob and every layer, on all processors."
)
@click.option("--repair", is_flag=True, help="Mend what is found; what is taken away goes to quarantine/ in the root.")
@json_option
@pass_globals
@click.pass_context
def check_command(context: click.Context, options: Globals, *, digests: bool, repair: bool, as_json: bool) -> None:
    """Compare what is recorded with what is on disk; exits 1 if anything is wrong, and stays so."""
    with options.engine() as engine:
        findings = engine.check(digests=digests, repair=repair)
    if as_json or options.json:
        print_json_lines(_describe(finding) for finding in findings)
    else:
        for finding in findings:
            click.echo(f"{finding.kind} {printable(finding.name)}: {printable(finding.problem)}")
            word = "repaired" if finding.repaired else "not repaired" if repair else "repair"
            click.echo(f"  {word}: {printable(finding.repair)}")
        if not findings:
            click.echo("clean")
    if not all(finding.repaired for finding in findings):
        context.exit(EXIT_FAILED)


@click.command("unpack")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--diff-id", metavar="DIGEST", help="What the uncompressed tar must hash to.")
@click.option("--digest", metavar="DIGEST", help="What the file itself must hash to.")
@click.option(
    "--ownership",
    type=click.Choice(["keep", "mapped", "recorded"]),
    default="keep",
    help="Owners as in the archive (root), in a user namespace (subuid), or recorded in xattrs.",
)
@limit_option
@json_option
@pass_globals
def unpack_command(
    options: Globals,
    file: str,
    directory: str,
    *,
    diff_id: str | None,
    digest: str | None,
    ownership: Literal["keep", "mapped", "recorded"],
    limits: Limits | None,
    as_json: bool,
) -> None:
    """Apply one layer file to a directory, with no store at all."""
    from pyctrd.engine import unpack

    done = unpack(file, directory, diff_id=diff_id, digest=digest, limits=limits, ownership=ownership)
    if as_json or options.json:
        print_json(
            {
                "digest": done.digest,
                "diff_id": done.diff_id,
                "entries": done.layer_entries,
                "bytes": done.layer_bytes,
                "skipped_xattrs": done.skipped_xattrs,
                "unrecorded_owners": done.unrecorded_owners,
            }
        )
    else:
        click.echo(done.diff_id)
        if done.skipped_xattrs:
            click.echo(f"extended attributes that were not set: {done.skipped_xattrs}", err=True)
        if done.unrecorded_owners:
            click.echo(f"symbolic links whose owner is recorded nowhere: {done.unrecorded_owners}", err=True)


def _describe(finding: Finding) -> dict[str, Any]:
    return finding._asdict()


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    return str(value)
