"""One large layer over slow connections: what ranges gain, and what they cost. ``python -m benches.ranges`` (root).

An image of one gzip layer is pulled out of a docker-registry on loopback: directly, and through a relay that has each
connection bring 20 MB/s, through one that adds 50 ms of latency to that (as 1 MiB in flight comes to), and through one
whose connections share 20 MB/s. Each tool and setting is a process of its own over a new store, in turn, several times.
Skopeo copies to a directory and unpacks nothing, so pyctrd does that as well, beside a pull that unpacks.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tests.archives import Tar
from tests.images import build_image
from tests.registries import Registry
from tests.relays import SlowRelay

ROUNDS = int(os.environ.get("ROUNDS", "3"))
# As hexadecimal digits: gzip makes nearly half of it.
NOISE_BYTES = 256 << 20
RATE = 20e6
LATENCY_SECONDS = 0.05
NETWORKS: dict[str, dict[str, float] | None] = {
    "loopback": None,
    "20 MB/s a connection": {"rate": RATE},
    "the same, 50 ms": {"rate": RATE, "latency": LATENCY_SECONDS},
    "20 MB/s in all": {"total": RATE},
}
_CHILD = """
import json, sys
import pyctrd
root, state, reference, connections, unpack = sys.argv[1:]
with pyctrd.Engine(root=root, state=state, layer_connections=int(connections)) as engine:
    engine.images.pull(reference, unpack=unpack == "unpack")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def commands(directory: Path, reference: str) -> dict[str, list[str]]:
    """Each tool's words."""
    store = [sys.executable, "-c", _CHILD, str(directory / "root"), str(directory / "state"), reference]
    found = {
        f"pyctrd, {how}, {connections} connection{'s'[: connections - 1]}": [*store, str(connections), how]
        for how in ("unpack", "store")
        for connections in (1, 6)
    }
    if shutil.which("skopeo") is not None:
        copied = directory / "root" / "copied"
        words = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{reference}", f"dir:{copied}"]
        found["skopeo, store"] = words
    return found


def measure(directory: Path, words: list[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and, of pyctrd, MiB at the most; the store is gone afterwards."""
    (directory / "root").mkdir()
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    passed, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(directory / "root")
    os.sync()  # what one leaves to be written is not the next one's
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return passed, cpu, int(done.stdout or 0) / 1024


def main() -> None:
    """Print a Markdown table, of the rounds the fastest and the largest peak; all figures as JSON to standard error."""
    layer = Tar().file("noise", random.Random(1).randbytes(NOISE_BYTES // 2).hex().encode()).build()
    image = build_image([layer])
    print(f"A layer of {len(image.layers[0].content) / 1e6:.0f} MB, {len(layer) / 1e6:.0f} unpacked.\n")
    print("| network | tool | seconds | CPU seconds | peak MiB |")
    print("|---" * 5 + "|")
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name,
        Registry(Path(name) / "registry") as running,
    ):
        reference = image.push(running, "ranges/one", tag="latest")
        for network, limits in NETWORKS.items():
            relay: AbstractContextManager[SlowRelay | None] = (
                nullcontext(None) if limits is None else SlowRelay(running.host, **limits)
            )
            with relay as between:
                host = running.host if between is None else between.host
                tools = commands(Path(name), reference.replace(running.host, host))
                found: dict[str, list[tuple[float, float, float]]] = {tool: [] for tool in tools}
                for _ in range(ROUNDS):
                    for tool, words in tools.items():
                        found[tool].append(measure(Path(name), words))
            for tool, figures in found.items():
                rounds = list(zip(*figures, strict=True))
                seconds, cpu, peak = min(rounds[0]), min(rounds[1]), max(rounds[2])
                print(
                    f"| {network} | {tool} | {seconds:.2f} | {cpu:.2f} | {f'{peak:.0f}' if peak else ''} |", flush=True
                )
                print(json.dumps({"network": network, "tool": tool, "figures": figures}), file=sys.stderr)


if __name__ == "__main__":
    main()
