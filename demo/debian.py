"""An image of this machine's own Debian packages: real content, with no network."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.archives import Tar
from tests.images import BuiltImage, build_image, busybox_tar

CONFIG = {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GREETING=hello"], "Cmd": ["sh"], "WorkingDir": "/"}
# Where base-passwd keeps what its installation turns into /etc/passwd and /etc/group.
ACCOUNTS = {"etc/passwd": "usr/share/base-passwd/passwd.master", "etc/group": "usr/share/base-passwd/group.master"}
PLACES = ("dev", "home", "proc", "root", "run", "sys", "tmp", "var")


@dataclass(frozen=True)
class Made:
    """An image and what to call it."""

    name: str
    image: BuiltImage


def make_image() -> Made:
    """Three layers: Debian's required packages, its important ones, and one that changes a little of both."""
    change = Tar().file("etc/motd", b"hello from the third layer\n").whiteout("usr/share/info")
    if shutil.which("dpkg-query") is None:
        image = build_image([busybox_tar(), change.build()], config=CONFIG)
        return Made("busybox", image)
    installed = read_packages()
    required = with_dependencies(installed, "required")
    important = with_dependencies(installed, "important") - required
    tars = [tar_of(files_of(required), base=True), tar_of(files_of(important), base=False), change.build()]
    forms = ["gzip", "gzip", "zstd" if shutil.which("zstd") else "gzip"]
    image = build_image(tars, compression=forms, config=CONFIG)
    return Made(f"Debian, {len(required)} + {len(important)} packages of this machine", image)


@dataclass(frozen=True)
class Package:
    """An installed package."""

    name: str
    priority: str
    needs: tuple[str, ...]
    provides: tuple[str, ...]


def read_packages() -> list[Package]:
    """What is installed."""
    form = "${db:Status-Abbrev}\t${Priority}\t${binary:Package}\t${Pre-Depends},${Depends}\t${Package},${Provides}\n"
    listed = subprocess.run(["dpkg-query", "-W", "-f", form], capture_output=True, text=True, check=True).stdout
    rows = [line.split("\t") for line in listed.splitlines()]
    return [Package(row[2], row[1], _names(row[3]), _names(row[4])) for row in rows if row[0].strip() == "ii"]


def _names(relation: str) -> tuple[str, ...]:
    """The packages of ``a (>= 1), b:any | c``: every alternative that is installed comes along."""
    words = (part.split("(")[0].partition(":")[0].strip() for part in relation.replace("|", ",").split(","))
    return tuple(word for word in words if word)


def with_dependencies(installed: Iterable[Package], priority: str) -> set[str]:
    """The names of a priority's packages and of all that they need."""
    by_name: dict[str, set[Package]] = {}
    for package in installed:
        for name in package.provides:
            by_name.setdefault(name, set()).add(package)
    pending = [package for package in installed if package.priority == priority]
    found = set(pending)
    while pending:
        needed = {package for name in pending.pop().needs for package in by_name.get(name, ())} - found
        found |= needed
        pending += needed
    return {package.name for package in found}


def files_of(names: Iterable[str]) -> list[str]:
    """What packages installed, as paths without a slash in front, parents first and each once."""
    listed = subprocess.run(["dpkg-query", "-L", *names], capture_output=True, text=True, check=True).stdout
    found = set()
    for line in listed.splitlines():
        if line.startswith("/") and line != "/.":
            parent, name = os.path.split(line)
            # Since /usr was merged, packages that say /bin/ls mean /usr/bin/ls.
            found.add(os.path.join(os.path.realpath(parent), name).lstrip("/"))  # noqa: PTH118 - text, not a file
    return sorted(found)


def tar_of(paths: Iterable[str], *, base: bool) -> bytes:
    """A layer of files of this machine; what was removed since, or is no package's, is left out.

    Args:
        paths: Relative to the root directory.
        base: Add what installing makes: /bin and its like, places to mount on, accounts.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if base:
            _add_base(tar)
        known = set(tar.getnames())
        for path in paths:
            if path not in known and os.path.lexists(f"/{path}"):
                tar.add(f"/{path}", path, recursive=False)
    return content.getvalue()


def _add_base(tar: tarfile.TarFile) -> None:
    for name in PLACES:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        tar.addfile(entry)
    for path in sorted(Path("/").iterdir()):
        if path.is_symlink() and str(path.readlink()).startswith("usr/"):
            tar.add(path, path.name)
    for name, source in ACCOUNTS.items():
        if Path("/", source).exists():
            tar.add(f"/{source}", name)
