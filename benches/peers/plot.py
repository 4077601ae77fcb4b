"""The picture: wall time and CPU time of every tool for every image, the machine's floors beside them."""

from __future__ import annotations

import sys
from pathlib import Path

from benches.peers.results import Results
from benches.peers.tools import OURS

_PANELS = (("wall_seconds", "wall, s"), ("cpu_seconds", "CPU, s"))
_INCHES_EACH, _INCHES_WIDE = 0.2, 13.0
_DPI = 110
_PEERS = {"ctr": "#5b8db8", "podman": "#8f6bb3", "docker": "#3f6e8c", "skopeo+umoci": "#8a8a8a"}
_OWN = ("#d95f0e", "#fe9929", "#fec44f", "#fee391", "#993404")


def draw(results: Results, path: Path) -> None:
    """Draw it; without matplotlib (`pip install --group bench`) say so, for the tables are what counts."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("benches.peers: no picture: matplotlib is missing (pip install --group bench)", file=sys.stderr)
        return
    mpl.use("agg")
    from matplotlib import pyplot as plt

    rows = [(image, tool) for image in results.images_of("pull") for tool in results.tools_of("pull", image)]
    if not rows:
        return
    images = list(dict.fromkeys(image for image, _ in rows))
    height = max(3.0, _INCHES_EACH * (len(rows) + len(images)) + 1)
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(_INCHES_WIDE, height), sharey=True)
    own = dict(zip(dict.fromkeys(tool for _, tool in rows if tool.startswith(OURS)), _OWN, strict=False))
    places, labels = [], []
    place = 0.0
    for number, (image, tool) in enumerate(rows):
        place += 1.0 if number and rows[number - 1][0] != image else 0.0
        places.append(place)
        labels.append(f"{image}   {tool}" if not number or rows[number - 1][0] != image else tool)
        for axis, (field, _) in zip(axes, _PANELS, strict=True):
            value = results.median(field, "pull", image, tool)
            color = own.get(tool) or _PEERS.get(tool, "#444444")
            axis.barh(place, value or 0.0, color=color, height=0.85)
            axis.text(value or 0.0, place, f" {value:.2f}" if value else " fails", va="center", fontsize=7)
        if (floor := results.floor_seconds(image, tool)) is not None:
            axes[0].plot([floor, floor], [place - 0.45, place + 0.45], color="black", linewidth=1.5)
        place += 1.0
    for axis, (_, title) in zip(axes, _PANELS, strict=True):
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.3)
        axis.margins(x=0.1)
    axes[0].set_yticks(places, labels, fontsize=7)
    axes[0].invert_yaxis()
    axes[0].set_title("Pull and unpack, empty store; black: the machine's floor for that form", fontsize=9)
    axes[1].set_title("daemons and children included", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI, metadata={"Software": ""})
    plt.close(figure)
