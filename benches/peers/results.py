"""What was measured, as it is kept: runs, floors, and the facts about machine and tools. One JSON document."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benches.peers.floor import Floor, LayerFloor
from benches.peers.tools import LEAN, LIBRARY, OURS

_GIB = 1 << 30


@dataclass(frozen=True)
class Run:
    """One run of one tool.

    Attributes:
        work: "pull", "again", "update", "rebuilt", "load", "many", "start".
        image: Whose; of "many", how many.
        tool: Its name.
        turn: The round.
        status: The command's exit status.
        wall_seconds, cpu_seconds, peak_bytes: See ``Cost``.
        written_bytes: What reached the disk by it, until all was there.
        error: Of a failure, what the command said last.
    """

    work: str
    image: str
    tool: str
    turn: int
    status: int
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    written_bytes: int = 0
    error: str = ""


@dataclass
class Results:
    """Everything of one ``make bench-peers``.

    Attributes:
        machine: Processor, cores, memory, kernel, system; nothing that names the machine.
        versions: What each program says of itself.
        settings: Rounds, the engine's own snapshotter, the form of layers of each.
        images: Sizes, by name.
        runs: In the order in which they were made.
        floors: By image, one a round.
        notes: What was left out, and why.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    images: dict[str, dict[str, int]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    floors: list[tuple[str, Floor]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def select(self, work: str, image: str | None = None, tool: str | None = None) -> list[Run]:
        """The runs that ended well."""
        return [run for run in self._all(work, image, tool) if run.status == 0]

    def failed(self, work: str, image: str, tool: str) -> Run | None:
        """One that did not, if none ended well."""
        runs = list(self._all(work, image, tool))
        return runs[0] if runs and all(run.status for run in runs) else None

    def images_of(self, work: str) -> list[str]:
        """In the order in which they came."""
        return list(dict.fromkeys(run.image for run in self._all(work, None, None)))

    def tools_of(self, work: str, image: str) -> list[str]:
        """In the order in which they came."""
        return list(dict.fromkeys(run.tool for run in self._all(work, image, None)))

    def median(self, field_name: str, work: str, image: str, tool: str) -> float | None:
        """Of one field of the runs that ended well; None where there is none."""
        values = [float(getattr(run, field_name)) for run in self.select(work, image, tool)]
        return median(values) if values else None

    def floors_of(self, image: str) -> list[Floor]:
        """One a round."""
        return [floor for name, floor in self.floors if name == image]

    def form_of(self, tool: str) -> str | None:
        """How a tool of ours keeps layers; None for others."""
        forms: dict[str, str] = self.settings["forms"]
        if tool in {LIBRARY, LEAN}:
            return forms.get(self.settings["default"])
        return forms.get(tool.removeprefix(f"{OURS}-")) if tool.startswith(OURS) else None

    def floor_seconds(self, image: str, tool: str) -> float | None:
        """The machine's floor for what a tool of ours does with an image: the median of the rounds."""
        form = self.form_of(tool)
        floors = self.floors_of(image)
        if form is None or not floors:
            return None
        cores, blobs = self.settings["cores"], tool != LEAN
        return median(floor.seconds(form, cores=cores, blobs=blobs) for floor in floors)

    def save(self, path: Path) -> None:
        """Write it whole, a run a line."""
        document = asdict(self)
        lines = []
        for key, value in document.items():
            if isinstance(value, list) and value:
                rows = ",\n  ".join(json.dumps(row) for row in value)
                lines.append(f"{json.dumps(key)}: [\n  {rows}\n ]")
            else:
                lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
        path.write_text("{\n " + ",\n ".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read it again."""
        document = json.loads(path.read_bytes())
        document["runs"] = [Run(**run) for run in document["runs"]]
        floors = []
        for name, floor in document["floors"]:
            layers = tuple(LayerFloor(**layer) for layer in floor.pop("layers"))
            floors.append((name, Floor(layers=layers, **floor)))
        return cls(**(document | {"floors": floors}))

    def _all(self, work: str, image: str | None, tool: str | None) -> Iterator[Run]:
        for run in self.runs:
            if run.work == work and image in {None, run.image} and tool in {None, run.tool}:
                yield run


def describe_machine() -> dict[str, Any]:
    """What figures depend on, and nothing that names the machine."""
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return {
        "processor": processor,
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }
