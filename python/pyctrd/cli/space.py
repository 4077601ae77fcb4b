"""``df``."""

from __future__ import annotations

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.output import print_json, print_table, size_text


@click.command("df")
@click.option("--all-namespaces", is_flag=True, help="Of each namespace of the store as well, and of the store itself.")
@json_option
@pass_globals
def df_command(options: Globals, *, all_namespaces: bool, as_json: bool) -> None:
    """Tell what takes the disk: by image and container, by namespace."""
    with options.engine() as engine:
        space = engine.df(all_namespaces=all_namespaces)
        namespace = engine.namespace
    if as_json or options.json:
        print_json(
            {
                "namespace": namespace,
                "charged_bytes": space.charged_bytes,
                "images": [image._asdict() for image in space.images],
                "containers": [container._asdict() for container in space.containers],
                "volumes": [volume._asdict() for volume in space.volumes],
                "namespaces": [known._asdict() for known in space.namespaces],
                "store": None if space.store is None else space.store._asdict(),
            }
        )
        return
    click.echo(f"charged {size_text(space.charged_bytes)}")
    if space.images:
        print_table(
            ("IMAGE", "SIZE", "UNIQUE", "SHARED"),
            ((image.name, *map(size_text, image[1:])) for image in space.images),
        )
    if space.containers:
        print_table(("CONTAINER", "WRITTEN"), ((name, size_text(count)) for name, count in space.containers))
    if space.volumes:
        print_table(("VOLUME", "SIZE"), ((name, size_text(count)) for name, count in space.volumes))
    if space.namespaces:
        print_table(
            ("NAMESPACE", "CHARGED", "EXCLUSIVE", "CONTAINERS"),
            ((known.name, *map(size_text, known[1:])) for known in space.namespaces),
        )
    if (store := space.store) is not None:
        click.echo(f"store: {store.blobs} blobs, {size_text(store.blob_bytes)}")
        click.echo(f"store: {store.layers} layers unpacked, {size_text(store.layer_bytes)}")
        if store.objects:
            click.echo(f"store: {store.objects} contents of files, {size_text(store.object_bytes)}")
        if store.removed_bytes:
            click.echo(f"store: {size_text(store.removed_bytes)} on their way out; pyctrd gc frees them now")
