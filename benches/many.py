"""Many images: whether time is linear and memory flat in their number. ``python -m benches.many`` (root).

Each image has a layer that all have (8 MiB) and two of its own (1 MiB in a file, 200 small files), in a docker-registry
on loopback. Each number is pulled by a process of its own into a new store, and beside it by `pull` in a loop.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.archives import Tar
from tests.images import build_image
from tests.registries import Registry

COUNTS = (1, 20, 200)
BASE_BYTES = 8 << 20
OWN_BYTES = 1 << 20
SMALL_FILES = 200
_CHILD = """
import json, resource, sys, threading, time
import pyctrd
root, state, how, *references = sys.argv[1:]
threads = 0
begun = time.monotonic()
with pyctrd.Engine(root=root, state=state) as engine:
    if how == "many":
        with engine.images.pull_many(references) as results:
            for result in results:
                result.get()
                threads = max(threads, threading.active_count())
    else:
        for reference in references:
            engine.images.pull(reference)
used = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: that of a process begins with what its parent had.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(json.dumps({
    "seconds": time.monotonic() - begun, "cpu": used.ru_utime + used.ru_stime,
    "peak_mib": int(peak) / 1024, "threads": threads,
}))
"""


def push(registry: Registry, count: int) -> list[str]:
    """The images, pushed."""
    noise = random.Random(1)
    base = Tar().file("base", noise.randbytes(BASE_BYTES)).build()
    references = []
    for number in range(count):
        small = Tar().directory("small")
        for i in range(SMALL_FILES):
            small.file(f"small/{i}", b"%d of %d\n" % (i, number))
        image = build_image([base, Tar().file("own", noise.randbytes(OWN_BYTES)).build(), small.build()])
        references.append(image.push(registry, f"many/{number}", tag="latest"))
    return references


def measure(directory: Path, how: str, references: list[str]) -> dict[str, float]:
    """One process's figures; the store is gone afterwards."""
    root, state = directory / "root", directory / "state"
    words = [sys.executable, "-c", _CHILD, str(root), str(state), how, *references]
    done = subprocess.run(words, check=True, capture_output=True)
    shutil.rmtree(root)
    os.sync()  # what one leaves to be written is not the next one's
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print a Markdown table."""
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name,
        Registry(Path(name) / "registry") as running,
    ):
        references = push(running, max(COUNTS))
        print("| images | how | seconds | seconds an image | CPU seconds | peak MiB | threads |")
        print("|---" * 7 + "|")
        for count in COUNTS:
            for how in ("many", "loop"):
                found = measure(Path(name), how, references[:count])
                print(
                    f"| {count} | {how} | {found['seconds']:.2f} | {found['seconds'] / count:.3f} | {found['cpu']:.2f} "
                    f"| {found['peak_mib']:.0f} | {found['threads']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
