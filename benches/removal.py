"""What a removal costs whoever unpacks a layer next, after or beside 200,000 names that go.

``python -m benches.removal [LAYOUT [NAME ...]]``, as root: an OCI layout, Debian's by default, whose first layer is
unpacked, as a directory where no other form is named. Every row is an ext4 of its own, with a journal and without one,
since these two give freed inodes out again by different rules: without, the kernel passes over each that was freed in
the last minutes (``recently_deleted`` in fs/ext4/ialloc.c). Seconds of CPU are what the kernel spent for this process
while it unpacked; what its own threads write back later is in none of them.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyctrd
from benches.objects import Store, bring_in
from benches.peers.corpus import Layer, layers_of, make_layouts
from benches.peers.disk import drop_caches, fresh_disk
from pyctrd import _core
from pyctrd.snapshots.protocol import LayerForm

NAMES = 200_000
_IN_DIRECTORY = 8  # as in Debian's own layer
_DIRECTORIES_EACH = 2_500  # ten layers
DISK_GIB = 8
INODES = 700_000
# A second, a journal's commit, a minute, and more than the five minutes for which the table's dirty blocks count.
LATER_SECONDS = (0, 10, 65, 130, 310, 370)
PACE = 1_000  # names a second, where they go slowly

FORMS: tuple[tuple[LayerForm, str], ...] = (("blocks", "erofs"), ("objects", "composefs"), ("tree", "overlayfs"))


class Row(NamedTuple):
    """One unpacking."""

    journal: bool
    name: str
    wall_s: float
    system_s: float


def litter(disk: Path) -> Path:
    """Ten trees with all the names, in a directory like that of layers."""
    layers = disk / "layers"
    for number in range(NAMES // _IN_DIRECTORY):
        directory = layers / str(number // _DIRECTORIES_EACH) / str(number)
        directory.mkdir(parents=True)
        for name in range(_IN_DIRECTORY - 1):  # and the directory itself
            os.close(os.open(directory / str(name), os.O_WRONLY | os.O_CREAT))
    drop_caches()
    return layers


def remove(layers: Path) -> None:
    """All of them, as fast as it goes."""
    for tree in sorted(layers.iterdir()):
        _core.remove_tree(layers, tree.name)


def remove_slowly(layers: Path, stopped: threading.Event) -> None:
    """A directory and what is in it at a time, at a steady pace."""
    for tree in sorted(layers.iterdir()):
        for directory in sorted(tree.iterdir()):
            if stopped.wait(_IN_DIRECTORY / PACE):
                return
            _core.remove_tree(tree, directory.name)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall and of the kernel's CPU for a call."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    call()
    wall = time.monotonic() - start
    return wall, resource.getrusage(resource.RUSAGE_SELF).ru_stime - before.ru_stime


def sync() -> None:
    """Commit the journal, where there is one."""
    subprocess.run(["sync"], check=True)


class _Scene:
    """One disk, with its litter."""

    def __init__(self, disk: Path, layer: Layer) -> None:
        self.disk, self.layer = disk, layer
        self.new = 0

    def unpack(self) -> tuple[float, float]:
        self.new += 1
        (self.disk / "layers").mkdir(exist_ok=True)
        return timed(lambda: pyctrd.unpack(self.layer.path, self.disk / "layers" / f"new{self.new}"))

    def take(self, form: LayerForm) -> tuple[float, float]:
        root = self.disk / form
        root.mkdir()
        return timed(lambda: bring_in(root, self.layer, Store(form, form, None)))

    def fresh(self) -> Iterator[tuple[str, float, float]]:
        yield "nothing was there", *self.unpack()

    def kept(self) -> Iterator[tuple[str, float, float]]:
        litter(self.disk)
        yield "nothing goes", *self.unpack()

    def renamed(self) -> Iterator[tuple[str, float, float]]:
        litter(self.disk).rename(self.disk / "trash")
        yield "renamed away", *self.unpack()

    def gone(self) -> Iterator[tuple[str, float, float]]:
        remove(litter(self.disk))
        start = time.monotonic()
        for seconds in LATER_SECONDS:
            time.sleep(max(0.0, start + seconds - time.monotonic()))
            yield f"removed, {seconds} s later", *self.unpack()

    def flushed(self) -> Iterator[tuple[str, float, float]]:
        remove(litter(self.disk))
        sync()
        start = time.monotonic()
        for seconds in LATER_SECONDS[:4]:
            time.sleep(max(0.0, start + seconds - time.monotonic()))
            yield f"removed, flushed, {seconds} s later", *self.unpack()

    def elsewhere(self) -> Iterator[tuple[str, float, float]]:
        litter(self.disk).rename(self.disk / "trash")
        remove(self.disk / "trash")
        yield "removed from another directory", *self.unpack()

    def forms(self) -> Iterator[tuple[str, float, float]]:
        remove(litter(self.disk))
        for form, name in FORMS:
            yield f"removed, then brought in for {name}", *self.take(form)

    def removal(self) -> Iterator[tuple[str, float, float]]:
        layers = litter(self.disk)
        yield "the removal itself", *timed(lambda: remove(layers))

    def beside(self) -> Iterator[tuple[str, float, float]]:
        layers = litter(self.disk)
        removing = threading.Thread(target=remove, args=[layers.rename(self.disk / "trash")])
        removing.start()
        wall, system = self.unpack()
        removing.join()
        yield "while they are removed (with their CPU)", wall, system

    def beside_slowly(self) -> Iterator[tuple[str, float, float]]:
        trash = litter(self.disk).rename(self.disk / "trash")
        stopped = threading.Event()
        removing = threading.Thread(target=remove_slowly, args=[trash, stopped])
        removing.start()
        try:
            yield f"while {PACE} a second are removed", *self.unpack()
        finally:
            stopped.set()
            removing.join()


SCENES: tuple[Callable[[_Scene], Iterator[tuple[str, float, float]]], ...] = (
    _Scene.fresh,
    _Scene.kept,
    _Scene.renamed,
    _Scene.gone,
    _Scene.flushed,
    _Scene.elsewhere,
    _Scene.forms,
    _Scene.removal,
    _Scene.beside,
    _Scene.beside_slowly,
)


def rows(layer: Layer, wanted: list[str]) -> Iterator[Row]:
    """Every scene, on a disk with a journal and on one without."""
    for journal in (True, False):
        for scene in SCENES:
            if wanted and scene.__name__ not in wanted:
                continue
            with (
                tempfile.TemporaryDirectory(dir="/var/tmp") as made,
                fresh_disk(Path(made), size_gib=DISK_GIB, inodes=INODES, journal=journal) as disk,
            ):
                for name, wall, system in scene(_Scene(disk, layer)):
                    yield Row(journal, name, wall, system)


def main() -> None:
    """Print a row an unpacking."""
    with tempfile.TemporaryDirectory() as made:
        layout = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(made) / "debian"
        if len(sys.argv) == 1:
            make_layouts(Path(made))
        print(f"{'journal':<9}{'before it is unpacked':<42}{'wall s':>8}{'system s':>10}")
        for row in rows(layers_of(layout)[0], sys.argv[2:]):
            journal = "yes" if row.journal else "no"
            print(f"{journal:<9}{row.name:<42}{row.wall_s:>8.2f}{row.system_s:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
