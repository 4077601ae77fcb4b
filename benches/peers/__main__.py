"""Run the comparison: ``python -m benches.peers --help``.

For each image, in each round: a new file system; on it each tool's cold pull, what follows in its store, and the
machine's floor (``benches.peers.floor`` says what that is). Then archives, many images at once, and starts of
containers. Everything is kept in ``peers.json``, told in ``peers.md`` and drawn in ``peers.png``; whoever runs it again
replaces them. ``python -m benches.peers.report DIR`` writes the latter two again from the first.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from benches.peers import corpus, floor, report
from benches.peers.accounting import Group
from benches.peers.corpus import IMAGES, NEXT_VERSIONS, REBUILT, ZSTD, Image
from benches.peers.results import Results, describe_machine
from benches.peers.tools import Tool, make_tools, missing_programs, offered_snapshotters, versions
from benches.peers.works import Bench, describe
from tests.registries import Registry

WORKS = ("pull", "floor", "again", "update", "rebuilt", "load", "many", "start")
_DEFAULT_IMAGES = [name + form for name in IMAGES for form in ("", ZSTD) if name + form != f"tiny{ZSTD}"]
_REBUILT_IMAGE = "debian"
# The first that is there.
_LOAD_IMAGES = ("pyapp", "torch", "debian", "tiny")
_QUIET_LOAD = 0.5


def main() -> int:
    """Measure, and write the results."""
    options = _options()
    if os.geteuid() != 0:
        print("benches.peers: needs root: it mounts a file system and runs containers", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was mounted is unmounted
    default, forms = offered_snapshotters()
    tools = _tools(options, forms)
    machine = describe_machine()
    if machine["load_at_start"] > _QUIET_LOAD:
        print(f"benches.peers: others use this machine (load {machine['load_at_start']})", file=sys.stderr)
    settings = {"rounds": options.rounds, "starts": options.starts, "default": default, "forms": forms}
    results = Results(machine, versions(), settings | {"cores": machine["cores"]})
    options.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="peers-", dir=options.scratch) as scratch:
        _measure(options, tools, results, Path(scratch))
    report.write(results, options.results)
    print((options.results / report.TABLE).read_text())
    return 0


def _options() -> argparse.Namespace:
    words: Callable[[str], list[str]] = lambda text: text.split(",")  # noqa: E731 - argparse names it in its messages
    parser = argparse.ArgumentParser(prog="benches.peers", description=__doc__)
    parser.add_argument("--layouts", type=Path, help="a directory of OCI layouts tagged latest; made here if not given")
    parser.add_argument("--images", type=words, default=_DEFAULT_IMAGES, help="those that are there are measured")
    parser.add_argument("--tools", type=words, help="by name; all by default, ours with each snapshotter")
    parser.add_argument("--works", type=words, default=list(WORKS), help=",".join(WORKS))
    parser.add_argument("--rounds", type=int, default=5, help="of everything but starts")
    parser.add_argument("--starts", type=int, default=20, help="runs of `true` by each tool")
    parser.add_argument("--results", type=Path, default=Path("benches/results"), help="where the files go")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="where the disks are made: ext4 best")
    return parser.parse_args()


def _tools(options: argparse.Namespace, forms: Mapping[str, str]) -> dict[str, Callable[[Path, Group], Tool]]:
    found = {}
    for name, make in make_tools(forms).items():
        if options.tools and name not in options.tools:
            continue
        if absent := missing_programs(name):
            print(f"{name}: left out: not installed: {', '.join(absent)} (make deps-peers)", file=sys.stderr)
        else:
            found[name] = make
    return found


def _measure(
    options: argparse.Namespace,
    tools: Mapping[str, Callable[[Path, Group], Tool]],
    results: Results,
    scratch: Path,
) -> None:
    with Registry(scratch / "registry") as registry:
        images = _push(options, scratch, registry)
        bench = Bench(tools, images, registry, scratch, results, options.works)
        measured = []
        for name in options.images:
            if name in images:
                measured.append(images[name])
            else:
                bench.note(f"{name}: left out: not among the layouts, and not one that is made here")
        bench.subjects = floor.prepare(list(images.values()), scratch / "tars")
        results.images |= describe(list(images.values()), bench.subjects)
        many = bench.push_many() if "many" in options.works else []
        loaded = next((images[name] for name in _LOAD_IMAGES if name in images), None)
        for turn in range(options.rounds):
            for image in measured if "pull" in options.works else []:
                bench.pulls(image, turn)
            if "load" in options.works and loaded is not None:
                bench.load(loaded, turn)
            if many:
                bench.many(many, turn)
            report.write(results, options.results)  # what was found survives what goes wrong later
        if "start" in options.works and "tiny" in images:
            bench.starts(images["tiny"], options.starts)


def _push(options: argparse.Namespace, scratch: Path, registry: Registry) -> dict[str, Image]:
    """What is measured, and what follows it, into the registry."""
    layouts = options.layouts
    if layouts is None:
        layouts = scratch / "layouts"
        corpus.make_layouts(layouts)
    names = [*options.images, *filter(None, (NEXT_VERSIONS.get(name) for name in options.images))]
    if _REBUILT_IMAGE in names:
        names.append(f"{_REBUILT_IMAGE}{REBUILT}")
    found = corpus.find_layouts(names, layouts, scratch / "made")
    return {image.name: image for image in corpus.push(found, list(found), registry.host)}


if __name__ == "__main__":
    sys.exit(main())
