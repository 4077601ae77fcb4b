"""``ls cat``: an image's files, with no mount and no rights."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from pyctrd.cli.globals import Globals
from pyctrd.cli.group import json_option, pass_globals
from pyctrd.cli.output import print_json_lines, printable
from pyctrd.errors import NotFoundError

if TYPE_CHECKING:
    from pyctrd import FileEntry
    from pyctrd.image import Image

COPY_BYTES = 1 << 20
SECOND_NS = 1_000_000_000
_TYPE_BITS = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "character": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


@click.command("ls")
@click.argument("name", metavar="IMAGE")
@click.argument("path", default="/")
@click.option("-l", "long", is_flag=True, help="Mode, owner and group by number, size, time (UTC), name, link target.")
@click.option("-R", "recursive", is_flag=True, help="Everything below PATH, each by its path from there.")
@json_option
@pass_globals
def ls_command(options: Globals, name: str, path: str, *, long: bool, recursive: bool, as_json: bool) -> None:
    """List a directory of an image, or name a file, without mounting it.

    Names with control characters are escaped on a terminal and with -l; elsewhere they are written as they are.
    """
    with options.engine() as engine:
        image = engine.images.get(name)
        entries = _entries(image, path, recursive=recursive, follow=not long)
        if as_json or options.json:
            print_json_lines(describe_file(entry) for _, entry in entries)
        elif long:
            for label, entry in entries:
                click.echo(_long(label, entry))
        else:
            _print_names(label for label, _ in entries)


@click.command("cat")
@click.argument("name", metavar="IMAGE")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@pass_globals
def cat_command(options: Globals, name: str, paths: tuple[str, ...]) -> None:
    """Write files of an image to standard output, one after the other, as they are."""
    with options.engine() as engine:
        image = engine.images.get(name)
        for path in paths:
            with image.open(path) as file:
                shutil.copyfileobj(file, sys.stdout.buffer, COPY_BYTES)


def describe_file(entry: FileEntry) -> dict[str, Any]:
    """The JSON form of a file. JSON is UTF-8: bytes that are not become U+FFFD, and stand beside it in base64."""
    path, link = os.fsencode(entry.path), os.fsencode(entry.link or "")
    return {
        "path": _text(path),
        "path_base64": _base64_unless_text(path),
        "kind": entry.kind,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "size_bytes": entry.size_bytes,
        # Apart: an archive may name a time whose nanoseconds are no number of JSON's 64 bits.
        "mtime_seconds": entry.mtime_ns // SECOND_NS,
        "mtime_subsecond_ns": entry.mtime_ns % SECOND_NS,
        "link": None if entry.link is None else _text(link),
        "link_base64": _base64_unless_text(link),
        "device": entry.device,
        "xattrs_base64": {
            _text(os.fsencode(key)): base64.b64encode(value).decode() for key, value in entry.xattrs.items()
        },
        "layer": entry.layer,
        "inode": entry.inode,
        "offset": entry.offset,
        "content_digest": entry.content_digest,
    }


def _entries(image: Image, path: str, *, recursive: bool, follow: bool) -> Iterable[tuple[str, FileEntry]]:
    """What is to be listed, each under the name that it is shown by."""
    named = image.lstat(path)
    if named.kind == "symlink" and (follow or path.endswith("/")):
        with suppress(NotFoundError):  # a link that leads nowhere is listed itself
            target = image.stat(path)
            named = target if target.kind == "directory" else named
    if named.kind != "directory":
        return [(path, named)]
    walk = image.walk(named.path, depth=None if recursive else 1)
    next(walk)  # the directory itself
    start = len(named.path.rstrip("/")) + 1
    return ((entry.path[start:], entry) for entry in walk)


def _print_names(names: Iterable[str]) -> None:
    if sys.stdout.isatty():
        for name in names:
            click.echo(printable(name))
    else:
        sys.stdout.flush()
        for name in names:
            sys.stdout.buffer.write(os.fsencode(name) + b"\n")


def _long(label: str, entry: FileEntry) -> str:
    size = ",".join(map(str, entry.device)) if entry.device else str(entry.size_bytes)
    mode = stat.filemode(_TYPE_BITS[entry.kind] | entry.mode)
    arrow = "" if entry.link is None else f" -> {printable(entry.link)}"
    return f"{mode} {entry.uid:>5} {entry.gid:>5} {size:>10} {_time(entry.mtime_ns)} {printable(label)}{arrow}"


def _time(time_ns: int) -> str:
    """Years that no calendar has come from archives, too."""
    try:
        return datetime.fromtimestamp(time_ns // SECOND_NS, UTC).replace(tzinfo=None).isoformat() + "Z"
    except (ValueError, OverflowError, OSError):
        return f"@{time_ns // SECOND_NS}".rjust(20)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _base64_unless_text(raw: bytes) -> str | None:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return base64.b64encode(raw).decode()
    return None
