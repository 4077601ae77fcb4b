"""Run the comparison: ``python -m benches.peers --help``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benches.peers import corpus
from benches.peers.accounting import Cost, Group
from benches.peers.disk import drop_caches, fresh_disk, unmount_beneath
from benches.peers.report import pull_table, start_table
from benches.peers.tools import TOOLS, Tool, missing_programs, versions
from tests.registries import Registry

_SPARE_GIB = 4
_STORE_FACTOR = 5  # compressed and unpacked, of what skopeo and umoci keep twice


def main() -> int:
    """Measure, and print the tables."""
    options = _options()
    if os.geteuid() != 0:
        print("benches.peers: needs root: it mounts a file system and runs containers", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was mounted is unmounted
    tools = []
    for name in options.tools:
        if absent := missing_programs(name):
            print(f"{name}: left out: not installed: {', '.join(absent)} (make deps-peers)", file=sys.stderr)
        else:
            tools.append(name)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}"
    )
    for name, version in versions().items():
        print(f"  {name}: {version}")
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        _compare(options, tools, Path(scratch))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benches.peers", description=__doc__)
    parser.add_argument("--layouts", type=Path, help="a directory of OCI layouts tagged latest; made here if not given")
    parser.add_argument("--images", type=lambda text: text.split(","), default=["tiny", "debian"])
    parser.add_argument("--tools", type=lambda text: text.split(","), default=list(TOOLS))
    parser.add_argument("--rounds", type=int, default=3, help="pulls of each image by each tool")
    parser.add_argument("--starts", type=int, default=20, help="runs of `true` by each tool; 0 leaves them out")
    parser.add_argument("--json", type=Path, help="where each run's figures go, one a line")
    return parser.parse_args()


def _compare(options: argparse.Namespace, tools: list[str], scratch: Path) -> None:
    layouts = options.layouts
    if layouts is None:
        layouts = scratch / "layouts"
        corpus.make_layouts(layouts)
    with Registry(scratch / "registry") as registry:
        images = corpus.push(layouts, options.images, registry.host)
        smallest = min(images, key=lambda image: image.compressed_bytes)
        stores = (
            sum(image.compressed_bytes + smallest.compressed_bytes for image in images)
            * _STORE_FACTOR
            * len(tools)
            * options.rounds
        )
        with fresh_disk(scratch, size_gib=(stores >> 30) + _SPARE_GIB) as disk:
            records = []
            for number in range(options.rounds):
                for image in images:
                    for tool in tools:
                        # Each begins with the same free memory, the registry's files and its own program in it.
                        drop_caches()
                        _read_all(scratch / "registry")
                        _pull(tool, smallest.reference, disk, f"warm-{image.name}-{number}")
                        cost = _pull(tool, image.reference, disk, f"{image.name}-{number}")
                        records.append((image, tool, cost))
                        _keep(options.json, {"what": "pull", "image": image.name, "tool": tool}, cost)
            print(pull_table(records, rounds=options.rounds))
            if options.starts and (found := [image for image in images if image.name == "tiny"]):
                print(start_table(_starts(tools, found[0].reference, disk, options.starts)))


def _pull(tool_name: str, reference: str, disk: Path, run: str) -> Cost:
    tool = _new_tool(tool_name, disk, run)
    try:
        tool.start()
        return tool.group.run(tool.pull(reference), log=tool.store / "log")
    finally:
        tool.stop()
        unmount_beneath(tool.store)
        tool.group.close()


def _new_tool(name: str, disk: Path, run: str) -> Tool:
    # Short: podman refuses a path of over 50 bytes for its runroot.
    store = disk / str(len(list(disk.iterdir())))
    return TOOLS[name](store, Group(f"pyctrd-bench-{os.getpid()}-{name}-{run}"))


def _starts(tools: list[str], reference: str, disk: Path, count: int) -> dict[str, list[Cost]]:
    """Start to exit of `true`, the tools in turn; and of bare runc on an unpacked bundle."""
    running: dict[str, Tool] = {}
    costs: dict[str, list[Cost]] = {}
    try:
        for name in tools:
            tool = _new_tool(name, disk, "start")
            if tool.run_true(reference, "x") is None:
                tool.group.close()
            else:
                running[name] = tool
                tool.start()
                subprocess.run(tool.pull(reference), check=True, capture_output=True)
        bundle = _bundle(reference, disk)
        runc = Group(f"pyctrd-bench-{os.getpid()}-runc-start")
        for number in range(count):
            argv = ["runc", "--root", f"{disk}/runc", "run", "--bundle", str(bundle), f"bare-{number}"]
            costs.setdefault("runc", []).append(runc.run(argv, log=disk / "start.log"))
            for name, tool in running.items():
                words = tool.run_true(reference, f"bench-{number}")
                assert words is not None
                costs.setdefault(name, []).append(tool.group.run(words, log=disk / "start.log"))
        runc.close()
    finally:
        for tool in running.values():
            tool.stop()
            unmount_beneath(tool.store)
            tool.group.close()
    return costs


def _bundle(reference: str, disk: Path) -> Path:
    bundle = disk / "bundle"
    layout = f"oci:{disk}/bundle-oci:x"
    copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{reference}", layout]
    subprocess.run(copy, check=True)
    subprocess.run(["umoci", "unpack", "--image", f"{disk}/bundle-oci:x", bundle], check=True, capture_output=True)
    spec = bundle / "config.json"
    document = json.loads(spec.read_text())
    document["process"] |= {"terminal": False, "args": ["/bin/true"], "rlimits": []}
    spec.write_text(json.dumps(document))
    return bundle


def _read_all(directory: Path) -> None:
    for path in directory.rglob("data"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def _keep(path: Path | None, labels: dict[str, str], cost: Cost) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(labels | vars(cost)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
