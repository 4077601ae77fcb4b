"""Push and copy beside skopeo, crane and podman: ``python -m benches.push --layout DIR:TAG`` (root).

The image comes from an OCI layout. Each tool has it in a store of its own kind: pyctrd in its store, podman in its own,
skopeo and crane as the layout. It is pushed to a docker-registry on loopback that is new for each run, and copied from
one registry to another. Tools take turns, another one begins each time; medians, least and most. CPU seconds are the
tool's alone: the registry's are the same for all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.registries import Registry

GB = 1e9


class Run(NamedTuple):
    """Wall time and CPU seconds of one run."""

    seconds: float
    cpu: float


def run(words: list[str], **environment: str) -> Run:
    """Run a tool to its end."""
    begun = time.monotonic()
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | environment
    ) as child:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{words}: exit status {child.returncode}")
    return Run(time.monotonic() - begun, used.ru_utime + used.ru_stime)


class Bench:
    """The image in every tool's store.

    Args:
        layout: ``DIR:TAG``.
        directory: Where everything is made.
        source: A registry that has the image.
    """

    def __init__(self, layout: str, directory: Path, source: Registry) -> None:
        self._layout = layout
        self._directory = directory
        self._source = source
        self._pyctrd = [
            sys.executable,
            "-m",
            "pyctrd",
            "--root",
            str(directory / "root"),
            "--state",
            str(directory / "s"),
        ]
        self._podman = ["podman", "--root", str(directory / "podman"), "--runroot", str(directory / "r")]
        self._skopeo = [
            "skopeo",
            "--insecure-policy",
            "copy",
            "-q",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
        ]
        plain = f"{source.host}/image:1"
        run([*self._skopeo, f"oci:{layout}", f"docker://{plain}"])
        run([*self._pyctrd, "pull", "-q", plain])
        if shutil.which("podman"):
            run([*self._podman, "pull", "-q", "--tls-verify=false", plain])
        # crane pushes a layout's one image from a directory of its own.
        self._own = directory / "layout"
        run([*self._skopeo, f"oci:{layout}", f"oci:{self._own}:1"])

    @property
    def size(self) -> int:
        """Bytes of the image's blobs."""
        return sum(path.stat().st_size for path in (self._own / "blobs/sha256").iterdir())

    def works(self) -> dict[str, dict[str, Callable[[str], Run]]]:
        """Work → tool → what does it, to a registry."""
        image = f"{self._source.host}/image:1"
        push: dict[str, Callable[[str], Run]] = {
            "pyctrd": lambda to: run([*self._pyctrd, "push", "-q", image, f"{to}/image:1"]),
            "skopeo": lambda to: run([*self._skopeo, f"oci:{self._own}:1", f"docker://{to}/image:1"]),
        }
        copy: dict[str, Callable[[str], Run]] = {
            "pyctrd": lambda to: run([*self._pyctrd, "copy", "-q", image, f"{to}/image:1"]),
            "skopeo": lambda to: run([*self._skopeo, f"docker://{image}", f"docker://{to}/image:1"]),
        }
        if shutil.which("podman"):
            push["podman"] = lambda to: run([*self._podman, "push", "-q", "--tls-verify=false", image, f"{to}/image:1"])
        if shutil.which("crane"):
            push["crane"] = lambda to: run(["crane", "--insecure", "push", str(self._own), f"{to}/image:1"])
            copy["crane"] = lambda to: run(["crane", "--insecure", "copy", image, f"{to}/image:1"])
        return {"push": push, "copy": copy}


def measure(bench: Bench, directory: Path, rounds: int) -> None:
    """Print a Markdown table for each work."""
    for work, tools in bench.works().items():
        found: dict[str, list[Run]] = defaultdict(list)
        names = list(tools)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                target = directory / "target"
                with Registry(target) as registry:
                    found[name].append(tools[name](registry.host))
                shutil.rmtree(target)
                os.sync()  # what one leaves to be written is not the next one's
        print(f"\n## {work}\n\n| tool | seconds | MB/s | CPU s a GB | ratio to pyctrd |\n|---|---|---|---|---|")
        ours = statistics.median(run.seconds for run in found["pyctrd"])
        for name, runs in found.items():
            seconds = sorted(run.seconds for run in runs)
            median = statistics.median(seconds)
            cpu = statistics.median(run.cpu for run in runs) / (bench.size / GB)
            print(
                f"| {name} | {median:.3f} ({seconds[0]:.3f} to {seconds[-1]:.3f}) | {bench.size / 1e6 / median:.0f} "
                f"| {cpu:.2f} | {median / ours:.2f} |",
                flush=True,
            )


def main() -> None:
    """Measure one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", required=True, metavar="DIR:TAG")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name,
        Registry(Path(name) / "source") as source,
    ):
        bench = Bench(options.layout, Path(name), source)
        print(f"{bench.size / 1e6:.1f} MB of blobs, {options.rounds} rounds")
        measure(bench, Path(name), options.rounds)


if __name__ == "__main__":
    main()
