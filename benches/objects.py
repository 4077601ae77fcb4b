"""What files cost in each form of a layer: disk, unpacking, mounting, names and reading.

``python -m benches.objects [LAYOUTS [LIMIT ...]]``, as root: a folder of OCI layouts with a tag each, related images
best; without it two small ones are made. Every row is a store of its own on an ext4 of its own, without blobs: first
directories (overlayfs), then blocks (erofs), then objects (composefs) with each limit of what is none. All layers of
all images are brought in, one after the other, each once; then each image is settled, and some are mounted, gone
through by name, and read whole, with cold caches and again with warm ones. Run it under ``unshare -m``: a mount
namespace that is made meanwhile would keep the disks busy.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benches.peers.corpus import Layer, layers_of, make_layouts
from benches.peers.disk import fresh_disk
from pyctrd import _core
from pyctrd.snapshots.composefs import Composefs
from pyctrd.snapshots.erofs import Erofs
from pyctrd.snapshots.overlayfs import Overlayfs
from pyctrd.snapshots.protocol import LayerForm, LayerRef, Snapshotter

LIMITS = (0, 512, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10)
DISK_GIB = 6
READ_BYTES = 1 << 20
# Read whole in each view; all of them would mostly read the same objects again.
READ_IMAGES = 3
# An overlay that was unmounted lets go of its image a moment later.
SETTLE_SECONDS = 1.0


class Store(NamedTuple):
    """How layers are kept, and what of a file is short."""

    name: str
    form: LayerForm
    limit: int | None

    def open_snapshotter(self, root: Path, state: Path) -> Snapshotter:
        """The one for this form."""
        if self.form == "tree":
            return Overlayfs(root)
        return Erofs(root, state) if self.form == "blocks" else Composefs(root, state)


class Row(NamedTuple):
    """What one store came to."""

    name: str
    disk_mib: float
    files: int
    unpack_s: float
    settle_s: float
    mount_ms: float
    find_s: float
    cold_s: float
    warm_s: float


def bring_in(root: Path, layer: Layer, store: Store) -> LayerRef:
    """Unpack a layer."""
    ingest = _core.Ingest(
        root,
        layer.diff_id.partition(":")[2][:32],
        digest=layer.digest,
        diff_id=layer.diff_id,
        unpack=True,
        keep_blob=False,
        form=store.form,
        packed_bytes=store.limit,
    )
    with layer.path.open("rb", buffering=0) as file:
        more = True
        while more:
            with ingest.buffer() as view:
                count = file.readinto(view)
            more = count > 0
            ingest.commit(count)
    ingest.finish()
    _core.publish(root, [ingest])
    return LayerRef(layer.diff_id, root / "layers" / layer.diff_id.replace(":", "/"))


def read_all(top: Path) -> int:
    """Read every file beneath a directory, in the order of its names."""
    count = 0
    buffer = bytearray(READ_BYTES)
    for where, _, names in os.walk(top):
        for name in sorted(names):
            path = Path(where, name)
            if path.is_symlink() or not path.is_file():
                continue
            count += 1
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    return count


def drop_all_caches() -> None:
    """Also of names and inodes, which most of what is read here is."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def used(root: Path) -> float:
    """MiB that are used on the disk of a directory."""
    os.sync()
    stat = os.statvfs(root)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize / (1 << 20)


def measure(store: Store, images: Sequence[Sequence[Layer]], disk: Path) -> Row:
    """Bring everything into a store on an empty disk, and look at it."""
    root, state = disk / "root", disk / "state"
    for directory in (root, state):
        directory.mkdir()
    before, inodes = used(disk), os.statvfs(disk).f_ffree
    start = time.monotonic()
    known: dict[str, LayerRef] = {}
    for layer in (layer for image in images for layer in image):
        if layer.diff_id not in known:
            known[layer.diff_id] = bring_in(root, layer, store)
    unpacked = time.monotonic()
    snapshotter = store.open_snapshotter(root, state)
    stacks = [[known[layer.diff_id] for layer in image] for image in images]
    for stack in stacks:
        snapshotter.settle(stack)
    settled = time.monotonic()
    disk_mib, files = used(disk) - before, inodes - os.statvfs(disk).f_ffree
    mount, find, cold, warm = looked_at(snapshotter, stacks[-READ_IMAGES:], disk)
    return Row(store.name, disk_mib, files, unpacked - start, settled - unpacked, mount, find, cold, warm)


def looked_at(snapshotter: Snapshotter, stacks: list[list[LayerRef]], disk: Path) -> tuple[float, float, float, float]:
    """Milliseconds for a mount; seconds for all names with cold caches, and for reading all files cold and warm."""
    target = disk / "target"
    target.mkdir()
    times = []
    drop_all_caches()
    for number, stack in enumerate(stacks):
        snapshot = snapshotter.view(f"view-{number}", stack)
        start = time.monotonic()
        snapshotter.mount(snapshot, target)
        mounted = time.monotonic()
        for path in target.rglob("*"):
            path.lstat()
        found = time.monotonic()
        drop_all_caches()
        dropped = time.monotonic()
        read_all(target)
        cold = time.monotonic()
        read_all(target)
        times.append((1000 * (mounted - start), found - mounted, cold - dropped, time.monotonic() - cold))
        snapshotter.unmount(target)
        drop_all_caches()
    mounts, finds, colds, warms = zip(*times, strict=True)
    return sum(mounts) / len(mounts), sum(finds), sum(colds), sum(warms)


def rows(layouts: Path, limits: Sequence[int]) -> Iterator[Row]:
    """A store for each form and limit."""
    images = [layers_of(index.parent) for index in sorted(layouts.glob("*/index.json"))]
    stores = [Store("directories", "tree", None), Store("blocks", "blocks", None)]
    for store in [*stores, *(Store(f"objects over {limit}", "objects", limit) for limit in limits)]:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as made, fresh_disk(Path(made), size_gib=DISK_GIB) as disk:
            yield measure(store, images, disk)
            time.sleep(SETTLE_SECONDS)


def main() -> None:
    """Print a row a store."""
    with tempfile.TemporaryDirectory() as made:
        layouts = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(made)
        if len(sys.argv) == 1:
            make_layouts(layouts)
        names = ("MiB", "inodes", "unpack s", "settle s", "mount ms", "find s", "cold s", "warm s")
        print(f"{'store':<20}" + "".join(f"{name:>10}" for name in names))
        for row in rows(layouts, [int(word) for word in sys.argv[2:]] or LIMITS):
            print(
                f"{row.name:<20}{row.disk_mib:>10.1f}{row.files:>10}{row.unpack_s:>10.2f}{row.settle_s:>10.2f}"
                f"{row.mount_ms:>10.2f}{row.find_s:>10.2f}{row.cold_s:>10.2f}{row.warm_s:>10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
