"""``namespace ls create set rm``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.labels import read_labels
from pyctrd.cli.output import age_text, print_json, print_json_lines, print_table, size_text
from pyctrd.cli.sizes import SizeType

if TYPE_CHECKING:
    from pyctrd import Namespace, NamespaceUsage

label_option = click.option(
    "--label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    callback=read_labels,
    help="A word about it; set replaces all that there are.",
)
UNLIMITED = "unlimited"


@click.group("namespace")
def namespace_command() -> None:
    """Keep the tenants of the store."""


@namespace_command.command("ls")
@json_option
@pass_globals
def list_namespaces(options: Globals, *, as_json: bool) -> None:
    """List all namespaces of the store, with what each is charged for and what of that it alone has."""
    with options.engine() as engine:
        found = [(namespace, engine.namespaces.usage(namespace.name)) for namespace in engine.namespaces.list()]
    if as_json or options.json:
        print_json_lines(_describe(namespace) | usage._asdict() for namespace, usage in found)
    else:
        headings = ("NAME", "POLICY", "QUOTA", "CHARGED", "EXCLUSIVE", "CREATED", "LABELS")
        print_table(headings, (_cells(namespace, usage) for namespace, usage in found))


@namespace_command.command("create")
@click.argument("name")
@label_option
@click.option("--policy", type=click.Choice(["isolated", "shared"]), default="isolated", help="Whose content it gets.")
@click.option("--quota", type=SizeType(), help="What it may be charged for, in bytes or with k, m, g.")
@json_option
@pass_globals
def create_namespace(
    options: Globals,
    name: str,
    *,
    labels: dict[str, str],
    policy: Literal["isolated", "shared"],
    quota: int | None,
    as_json: bool,
) -> None:
    """Make a namespace."""
    with options.engine() as engine:
        made = engine.namespaces.create(name, labels=labels, policy=policy, quota=quota)
    _print(made, as_json=as_json or options.json)


@namespace_command.command("set")
@click.argument("name")
@label_option
@click.option("--policy", type=click.Choice(["isolated", "shared"]), help="Whose content it gets.")
@click.option("--quota", type=SizeType(UNLIMITED), help="Bytes, or with k, m, g; or unlimited.")
@json_option
@pass_globals
def set_namespace(
    options: Globals,
    name: str,
    *,
    labels: dict[str, str],
    policy: Literal["isolated", "shared"] | None,
    quota: int | Literal["unlimited"] | None,
    as_json: bool,
) -> None:
    """Change a namespace's labels, policy or quota."""
    with options.engine() as engine:
        changed = engine.namespaces.set(name, labels=labels or None, policy=policy, quota=quota)
    _print(changed, as_json=as_json or options.json)


@namespace_command.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="With its images, content and containers that do not run.")
@pass_globals
def remove_namespaces(options: Globals, names: tuple[str, ...], *, force: bool) -> None:
    """Take namespaces away."""
    with options.engine() as engine:
        for name in names:
            engine.namespaces.remove(name, force=force)
            click.echo(name)


def _print(namespace: Namespace, *, as_json: bool) -> None:
    if as_json:
        print_json(_describe(namespace))
    else:
        click.echo(namespace.name)


def _describe(namespace: Namespace) -> dict[str, Any]:
    return {
        "name": namespace.name,
        "created_ns": namespace.created_ns,
        "labels": namespace.labels,
        "policy": namespace.policy,
        "quota_bytes": namespace.quota_bytes,
    }


def _cells(namespace: Namespace, usage: NamespaceUsage) -> tuple[str, ...]:
    return (
        namespace.name,
        namespace.policy,
        "-" if namespace.quota_bytes is None else size_text(namespace.quota_bytes),
        size_text(usage.charged_bytes),
        size_text(usage.exclusive_bytes),
        age_text(namespace.created_ns),
        ",".join(f"{key}={value}" for key, value in sorted(namespace.labels.items())),
    )
