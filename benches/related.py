"""Disk of ten related images in one store: ``python -m benches.related --help``.

A Debian base and its point update, Python on both, Python stacks in several versions, one of them rebuilt with new
times: what one machine has that runs several services of one house. Each tool pulls all ten from a registry on
loopback into a store on a fresh file system of its own; what is counted is blocks of that file system.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyctrd
from benches.peers import corpus
from benches.peers.accounting import Group
from benches.peers.disk import drop_caches, fresh_disk, unmount_beneath
from benches.peers.tools import make_tools, missing_programs
from tests.images import build_image
from tests.registries import Registry

_STACKS = {
    "stack-1": ["numpy==1.26.4", "pandas==2.1.4"],
    "stack-2": ["numpy==1.26.4", "pandas==2.2.2"],
    "stack-3": ["numpy==2.0.2", "pandas==2.2.2", "scipy==1.13.1"],
    "stack-4": ["numpy==2.0.2", "pandas==2.2.3", "scipy==1.14.1"],
}
# Name to layers, lowest first; "+" marks one whose files all have another time.
_IMAGES = {
    "debian": ["base"],
    "debian-updated": ["base-updated"],
    "python": ["base", "python"],
    "python-updated": ["base-updated", "python-updated"],
    "stack-1": ["base", "python", "stack-1"],
    "stack-2": ["base", "python", "stack-2"],
    "stack-3": ["base-updated", "python-updated", "stack-3"],
    "stack-4": ["base-updated", "python-updated", "stack-4"],
    "stack-1-updated": ["base-updated", "python-updated", "stack-1"],
    "stack-1-rebuilt": ["+base", "+python", "+stack-1"],
}
_DISK_GIB = 8
_UNITS = 1e6
_SNAPSHOTTERS = ("overlayfs", "composefs")


def main() -> int:
    """Make the images where they are missing, and measure."""
    parser = argparse.ArgumentParser(prog="benches.related", description=__doc__)
    parser.add_argument("--layouts", type=Path, required=True, help="where the images are, or are made (1 GB)")
    parser.add_argument("--tools", type=lambda text: text.split(","), default=["pyctrd", "ctr", "podman"])
    parser.add_argument("--snapshotters", type=lambda text: text.split(","), default=list(_SNAPSHOTTERS))
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("benches.related: needs root: it mounts file systems", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if not (options.layouts / "stack-1-rebuilt").exists():
        with tempfile.TemporaryDirectory(prefix="related-", dir=options.layouts.parent) as scratch:
            make_layouts(options.layouts, Path(scratch))
    with tempfile.TemporaryDirectory(prefix="related-") as scratch, Registry(Path(scratch, "registry")) as registry:
        images = corpus.push(options.layouts, list(_IMAGES), registry.host)
        print(f"{len(images)} images, {sum(image.compressed_bytes for image in images) / _UNITS:.0f} MB of layers")
        for name in options.tools:
            if absent := missing_programs(name):
                print(f"{name}: left out: not installed: {', '.join(absent)}", file=sys.stderr)
                continue
            for form in options.snapshotters if name == "pyctrd" else [""]:
                place = Path(scratch, f"{name}{form}")
                place.mkdir()
                with fresh_disk(place, size_gib=_DISK_GIB) as disk:
                    _measure(name, form, [image.reference for image in images], disk)
    return 0


def _measure(name: str, form: str, references: list[str], disk: Path) -> None:
    """Print what a store takes after each image, and at the end without its blobs."""
    group = Group(f"pyctrd-related-{os.getpid()}-{name}-{form}")
    tool = make_tools([form])[f"{name}-{form}" if form else name](disk / "1", group)
    before = _used(disk)
    taken, seconds, cpu = [], 0.0, 0.0
    try:
        tool.start()
        for reference in references:
            drop_caches()
            cost = tool.group.run(tool.pull(reference), log=tool.store / "log", environment=tool.environment)
            if cost.status:
                raise RuntimeError(f"{name} {form}: {reference}: {cost.output}")
            seconds, cpu = seconds + cost.wall_seconds, cpu + cost.cpu_seconds
            taken.append(_used(disk) - before)
    finally:
        tool.stop()
        unmount_beneath(tool.store)
        tool.group.close()
    each = " ".join(f"{(now - last) / _UNITS:.1f}" for last, now in zip([0, *taken], taken, strict=False))
    print(f"{name} {form}: {taken[-1] / _UNITS:.0f} MB, {seconds:.2f} s, {cpu:.2f} CPU s; each: {each}")
    for blobs in (*disk.glob("1/root/content/blobs"), *disk.glob("1/root/io.containerd.content.v1.content")):
        shutil.rmtree(blobs)
        print(f"{name} {form} without blobs: {(_used(disk) - before) / _UNITS:.0f} MB")


def _used(disk: Path) -> int:
    subprocess.run(["sync", "--file-system", disk], check=True)
    state = os.statvfs(disk)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def make_layouts(directory: Path, scratch: Path) -> None:
    """Make the ten images as OCI layouts: debootstrap's minbase, apt in it, wheels from the package index."""
    base, updated = scratch / "base", scratch / "base-updated"
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", base], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cp", "-a", base, updated], check=True)
    with _chroot(updated, None) as run:
        _use_sources(updated)
        run("apt-get -q update && apt-get -qy dist-upgrade && apt-get clean && rm -rf /var/lib/apt/lists/*")
    layers = {"base": _tar(base), "base-updated": _tar(updated)}
    for name, below in (("python", base), ("python-updated", updated)):
        with _chroot(below, scratch / name) as run:
            _use_sources(scratch / name / "merged")
            packages = "python3 ca-certificates"
            run(f"apt-get -q update && apt-get -qy install --no-install-recommends {packages}")
            run("apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*")
        pyctrd.diff(scratch / name / "upper", scratch / f"{name}.tar", compression="none")
        layers[name] = (scratch / f"{name}.tar").read_bytes()
    for name, wheels in _STACKS.items():
        target = scratch / name / "opt/app"
        options = ["--no-compile", "--only-binary", ":all:", "--python-version", "3.11", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, *wheels], check=True)
        layers[name] = _tar(scratch / name)
    for image, names in _IMAGES.items():
        tars = [corpus.later(layers[name[1:]]) if name.startswith("+") else layers[name] for name in names]
        build_image(tars).write_layout(directory / image)


@contextmanager
def _chroot(lower: Path, scratch: Path | None) -> Iterator[Callable[[str], None]]:
    """Something that runs shell lines in a tree, or in an overlay over it, whose upper directory is the layer."""
    root = lower
    if scratch is not None:
        root = scratch / "merged"
        for part in ("merged", "upper", "work"):
            (scratch / part).mkdir(parents=True)
        options = f"lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", root], check=True)

    def run(line: str) -> None:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        environment |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        subprocess.run(["chroot", root, "sh", "-ec", line], check=True, env=environment, stdout=subprocess.DEVNULL)

    try:
        yield run
    finally:
        if scratch is not None:
            subprocess.run(["umount", root], check=True)


def _use_sources(root: Path) -> None:
    """The host's own package sources, security updates among them, however the host reaches them."""
    for name in ("sources.list", "sources.list.d", "apt.conf.d", "trusted.gpg.d", "auth.conf.d"):
        source = Path("/etc/apt", name)
        if source.is_dir():
            shutil.copytree(source, root / "etc/apt" / name, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, root / "etc/apt" / name)
    for source in (*Path("/usr/share/keyrings").glob("*"), *Path("/etc/apt/keyrings").glob("*")):
        target = root / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    for name in ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Path("/", name), root / name)


def _tar(tree: Path) -> bytes:
    """As a layer."""
    left_out = [f"--exclude={name}" for name in ("./dev/*", "./var/cache/apt/*", "./etc/apt/*", "./etc/hosts")]
    command = ["tar", "-c", "--sort=name", "--numeric-owner", *left_out, "-C", str(tree), "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


if __name__ == "__main__":
    sys.exit(main())
