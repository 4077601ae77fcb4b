"""One layer alone, from memory into a store: which stage it waits for.

``python -m benches.layer [LAYOUT [ROUNDS]]``, as root: the largest layer of an OCI layout, Debian's by default, in each
form, on an ext4 of its own each time; the fastest round of three. Of each stage its seconds at work, those in which it
had no core included: on a busy machine, or one with fewer cores than stages, they are more than its own. What can be
gained by doing one of them on several cores ends where the next longest begins.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benches.objects import DISK_GIB, Store
from benches.peers.corpus import Layer, layers_of, make_layouts
from benches.peers.disk import fresh_disk
from pyctrd import _core

ROUNDS = 3
STORES = (Store("blocks", "blocks", None), Store("directories", "tree", None), Store("objects", "objects", None))
STAGES = ("receive", "store", "inflate", "diff", "apply")
_NS = 1e9


class Row(NamedTuple):
    """One ingest; by its wall time first, so that the least is the fastest."""

    wall_s: float
    cpu_s: float
    busy_s: tuple[float, ...]


def cpu_seconds() -> float:
    """Of this process, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(layer: Layer, store: Store, disk: Path) -> Row:
    """Bring the layer and its blob into an empty store; it is not published, so that no flush is in it."""
    root = disk / "root"
    root.mkdir()
    ingest = _core.Ingest(
        root,
        layer.diff_id.partition(":")[2][:32],
        digest=layer.digest,
        diff_id=layer.diff_id,
        unpack=True,
        keep_blob=True,
        form=store.form,
        packed_bytes=store.limit,
    )
    start, used = time.monotonic(), cpu_seconds()
    with layer.path.open("rb", buffering=0) as file:
        more = True
        while more:
            with ingest.buffer() as view:
                count = file.readinto(view)
            more = count > 0
            ingest.commit(count)
    ingest.finish()
    wall, used = time.monotonic() - start, cpu_seconds() - used
    stages = ingest.stages()
    ingest.abort()
    return Row(wall, used, tuple(stages[name].busy_ns / _NS for name in STAGES))


def main() -> None:
    """Print a row a form."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        place = Path(made)
        layout = Path(sys.argv[1]) if len(sys.argv) > 1 else place / "layouts" / "debian"
        rounds = int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
        if len(sys.argv) == 1:
            layout.parent.mkdir()
            make_layouts(layout.parent)
        layer = max(layers_of(layout), key=lambda layer: layer.size)
        layer.path.read_bytes()  # into the page cache
        print(f"{layer.size / 1e6:.0f} MB, gzip by {_core.INFLATE}")
        print(f"{'form':<12}" + "".join(f"{name:>10}" for name in ("wall s", "CPU s", *STAGES)))
        for store in STORES:
            rows = []
            for _ in range(rounds):
                with tempfile.TemporaryDirectory(dir=place) as own, fresh_disk(Path(own), size_gib=DISK_GIB) as disk:
                    rows.append(measure(layer, store, disk))
            best = min(rows)
            print(f"{store.name:<12}" + "".join(f"{value:>10.3f}" for value in (best.wall_s, best.cpu_s, *best.busy_s)))


if __name__ == "__main__":
    main()
