"""Tables of medians, and how many times pyctrd each tool took."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benches.peers.accounting import Cost, mib
from benches.peers.corpus import Image

_OURS = "pyctrd"
_GB = 1e9


def pull_table(records: Sequence[tuple[Image, str, Cost]], *, rounds: int) -> str:
    """Pull and unpack into an empty store; CPU for each GB of compressed layers."""
    head = f"{'image':12}{'tool':16}{'wall s':>22}{'CPU s':>8}{'CPU s/GB':>10}"
    head += f"{'peak MiB':>10}{'ratio':>7}{'CPU ratio':>11}"
    lines = [
        "",
        f"Pull and unpack, empty store, medians of {rounds} (min-max); ratio: the tool's wall over pyctrd's",
        head,
    ]
    for image in dict.fromkeys(image for image, _, _ in records):
        ours = [cost for at, tool, cost in records if at == image and tool == _OURS and cost.status == 0]
        for tool in dict.fromkeys(tool for at, tool, _ in records if at == image):
            costs = [cost for at, name, cost in records if at == image and name == tool and cost.status == 0]
            if not costs:
                failed = next(cost for at, name, cost in records if at == image and name == tool)
                lines.append(f"{image.name:12}{tool:16} failed: {failed.output.strip().splitlines()[-1:]}")
                continue
            lines.append(_pull_row(image, tool, costs, ours))
    return "\n".join(lines)


def start_table(costs: dict[str, list[Cost]]) -> str:
    """Start to exit of a container that runs `true`."""
    lines = [
        "",
        "Start to exit of busybox `true`, the tools in turn",
        f"{'tool':16}{'median ms':>11}{'min ms':>9}{'CPU ms':>9}",
    ]
    for tool, runs in costs.items():
        good = [cost for cost in runs if cost.status == 0]
        if len(good) < len(runs):
            failed = next(cost for cost in runs if cost.status != 0)
            lines.append(f"{tool:16} {len(runs) - len(good)} of {len(runs)} failed: {failed.output.strip()[-200:]}")
        if good:
            walls = [cost.wall_seconds * 1e3 for cost in good]
            cpu = median(cost.cpu_seconds * 1e3 for cost in good)
            lines.append(f"{tool:16}{median(walls):11.1f}{min(walls):9.1f}{cpu:9.1f}")
    return "\n".join(lines)


def _pull_row(image: Image, tool: str, costs: Sequence[Cost], ours: Sequence[Cost]) -> str:
    walls = [cost.wall_seconds for cost in costs]
    wall, cpu = median(walls), median(cost.cpu_seconds for cost in costs)
    spread = f"{wall:.2f} ({min(walls):.2f}-{max(walls):.2f})"
    row = f"{image.name:12}{tool:16}{spread:>22}{cpu:8.2f}{cpu / image.compressed_bytes * _GB:10.1f}"
    row += f"{mib(int(median(cost.peak_bytes for cost in costs))):>10}"
    if ours:
        row += f"{wall / median(cost.wall_seconds for cost in ours):7.2f}"
        row += f"{cpu / median(cost.cpu_seconds for cost in ours):11.2f}"
    return row
