"""The tables, as Markdown: ``python -m benches.peers.report DIR`` writes them again from what a run kept there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benches.peers import plot
from benches.peers.floor import IMAGE, OBJECTS, TREE
from benches.peers.goals import Judged, best_peer, judge
from benches.peers.results import Results, Run
from benches.peers.tools import OURS

RAW, TABLE, PLOT = "peers.json", "peers.md", "peers.png"
_MIB = 1 << 20
_MB = 1e6
_WORKS = {
    "update": "A new version that shares all layers but the top",
    "again": "Pull with nothing to do",
    "rebuilt": "The same image built again: another time on every file, each layer a new one",
    "load": "An archive as `docker save` writes it, into an empty store, unpacked",
}
_FORMS = {TREE: "directories", OBJECTS: "objects", IMAGE: "one file"}
_HOW = """
Wall: until the command has ended, an interpreter's start included; of `pyctrd-library`, a program that runs already.
CPU: of everything that a tool runs, daemons and children too. Peak: the highest sum of what its processes had at once.
Written: what reached the disk until all was there. In each round the tools take turns on a new ext4, each in a store of
its own, with the registry's files and the tool's own program in memory; another one begins each time. Medians of the
rounds (least to most). *Ratio* is the fastest peer's median over ours, *CPU ratio* the cheapest's; *floor* is the
machine's floor in the same run (`benches/peers/floor.py` defines it), *over it* how many times that ours took. Peers do
not flush what they unpacked before they return; pyctrd does, once a pull.
"""


def write(results: Results, directory: Path) -> None:
    """All three files, in place of what was there."""
    results.save(directory / RAW)
    (directory / TABLE).write_text(render(results))
    plot.draw(results, directory / PLOT)


def render(results: Results) -> str:
    """The whole document."""
    parts = [_head(results), "## Goals\n\n" + _goals(judge(results)), "## How it was measured\n\n" + _HOW.strip()]
    if images := results.images_of("pull"):
        parts.append("## Pull and unpack, empty store")
        parts += [_pulls(results, image) for image in images]
    if results.floors:
        parts.append("## The floor, by stage\n\n" + _floors(results))
    for work, title in _WORKS.items():
        if images := results.images_of(work):
            parts.append(f"## {title}")
            parts += [_runs(results, work, image) for image in images]
    if counts := results.images_of("many"):
        parts.append("## Many images with one call\n\n" + _many(results, counts))
    if images := results.images_of("start"):
        parts.append("## Start to exit of busybox `true`\n\n" + _starts(results, images[0]))
    if results.notes:
        parts.append("## Left out\n\n" + "\n".join(f"- {note}" for note in results.notes))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _head(results: Results) -> str:
    machine, settings = results.machine, results.settings
    text = (
        "# pyctrd beside other tools\n\n"
        "Written by `make bench-peers`; `peers.json` has every run, `peers.png` the first tables as a picture.\n\n"
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, Linux {machine['kernel']},"
        f" {machine['system']}, Python {machine['python']}; {settings['rounds']} rounds; load at the start"
        f" {machine['load_at_start']}. The engine's own choice of snapshotter here: `{settings['default']}`.\n\n"
    )
    text += "\n".join(f"- {name}: {version}" for name, version in results.versions.items())
    head = ("image", "layers", "compressed MB", "tar MB", "entries")
    rows = [
        (
            name,
            str(facts["layers"]),
            f"{facts['compressed_bytes'] / _MB:.1f}",
            f"{facts['tar_bytes'] / _MB:.1f}",
            f"{facts['entries']:,}",
        )
        for name, facts in results.images.items()
    ]
    return text + "\n\n" + table(head, rows)


def _goals(judged: Sequence[Judged]) -> str:
    head = ("work", "image", "of", "must", "aim", "measured", "reached", "from")
    rows = [(j.work, j.image, j.tool, j.must_text, j.aim_text, j.value_text, j.verdict, j.figures) for j in judged]
    return table(head, rows) if rows else "Nothing that a goal is set for was measured."


def _pulls(results: Results, image: str) -> str:
    peer_wall = best_peer(results, "wall_seconds", "pull", image)
    peer_cpu = best_peer(results, "cpu_seconds", "pull", image)
    rows = []
    for tool in results.tools_of("pull", image):
        if failed := results.failed("pull", image, tool):
            rows.append([tool, f"fails: {failed.error[-80:]}", *[""] * 7])
            continue
        runs = results.select("pull", image, tool)
        wall, cpu = (median(getattr(run, name) for run in runs) for name in ("wall_seconds", "cpu_seconds"))
        floor = results.floor_seconds(image, tool)
        ours = results.form_of(tool) is not None
        rows.append(
            [
                *_costs(tool, runs),
                f"{peer_wall[1] / wall:.2f}" if ours and peer_wall else "",
                f"{peer_cpu[1] / cpu:.2f}" if ours and peer_cpu and cpu else "",
                f"{floor:.2f}" if floor else "",
                f"{wall / floor:.2f}" if floor else "",
            ]
        )
    head = ("tool", "wall s", "CPU s", "peak MiB", "MB written", "ratio", "CPU ratio", "floor s", "over it")
    return f"### {image}\n\n" + table(head, rows)


def _costs(tool: str, runs: Sequence[Run]) -> list[str]:
    walls = [run.wall_seconds for run in runs]
    return [
        tool,
        f"{median(walls):.3f} ({min(walls):.3f} to {max(walls):.3f})",
        f"{median(run.cpu_seconds for run in runs):.3f}",
        f"{median(run.peak_bytes for run in runs) / _MIB:.0f}",
        f"{median(run.written_bytes for run in runs) / _MB:.1f}",
    ]


def _runs(results: Results, work: str, image: str) -> str:
    """A work with no floor of its own."""
    peer = best_peer(results, "wall_seconds", work, image)
    rows = []
    for tool in results.tools_of(work, image):
        if failed := results.failed(work, image, tool):
            rows.append([tool, f"fails: {failed.error[-80:]}", *[""] * 4])
            continue
        runs = results.select(work, image, tool)
        ours = tool.startswith(OURS)
        ratio = f"{peer[1] / median(run.wall_seconds for run in runs):.2f}" if ours and peer else ""
        rows.append([*_costs(tool, runs), ratio])
    return f"### {image}\n\n" + table(("tool", "wall s", "CPU s", "peak MiB", "MB written", "ratio"), rows)


def _floors(results: Results) -> str:
    cores = results.settings["cores"]
    rows = []
    for image in dict.fromkeys(name for name, _ in results.floors):
        floors = results.floors_of(image)
        stages = [
            median(sum(getattr(layer, stage) for layer in floor.layers) for floor in floors)
            for stage in ("receive", "blob_digest", "inflate", "tar_digest")
        ]
        stages.append(median(floor.keep for floor in floors))
        stages += [median(floor.write[form] for floor in floors) for form in _FORMS]
        stages.append(median(max(layer.slowest for layer in floor.layers) for floor in floors))
        stages += [median(floor.seconds(form, cores=cores) for floor in floors) for form in _FORMS]
        stages.append(median(floor.flush_seconds for floor in floors))
        rows.append([image, *(f"{seconds:.3f}" for seconds in stages)])
    head = ["image", "receive", "blob digest", "inflate", "tar digest", "keep blobs"]
    head += [f"write {name}" for name in _FORMS.values()]
    head += ["longest chain", *(f"floor, {name}" for name in _FORMS.values()), "(flush)"]
    text = (
        "CPU seconds of each stage alone; of writing, the kernel's. A floor is the sum of what its form needs over"
        f" {cores} cores, at least the longest chain. The last column is wall time, and in no floor.\n\n"
    )
    return text + table(head, rows)


def _many(results: Results, counts: Sequence[str]) -> str:
    rows = []
    for number in counts:
        for tool in results.tools_of("many", number):
            if failed := results.failed("many", number, tool):
                rows.append([number, f"fails: {failed.error[-80:]}", "", "", ""])
                continue
            runs = results.select("many", number, tool)
            _, wall, cpu, peak, _ = _costs(tool, runs)
            each = median(run.wall_seconds for run in runs) / int(number) * 1e3
            rows.append([number, wall, cpu, peak, f"{each:.1f}"])
    return table(("images", "wall s", "CPU s", "peak MiB", "ms an image"), rows)


def _starts(results: Results, image: str) -> str:
    rows = []
    for tool in results.tools_of("start", image):
        if failed := results.failed("start", image, tool):
            rows.append([tool, f"fails: {failed.error[-80:]}", "", ""])
            continue
        runs = results.select("start", image, tool)
        walls = [run.wall_seconds * 1e3 for run in runs]
        cpu = median(run.cpu_seconds * 1e3 for run in runs)
        rows.append([tool, f"{median(walls):.1f}", f"{min(walls):.1f}", f"{cpu:.1f}"])
    return table(("tool", "median ms", "least ms", "CPU ms"), rows)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    write(Results.load(place / RAW), place)
