"""What the project wants to reach beside the fastest peer, and whether a run reached it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benches.peers.corpus import REBUILT, ZSTD
from benches.peers.floor import IMAGE, TREE, known_form
from benches.peers.results import Results
from benches.peers.tools import LEAN, LIBRARY, OURS

_MIB = 1 << 20
# What must be reached, and what is aimed at, as the fastest peer's wall time over ours; by form of layers and image.
# For the second form stands whatever the engine chooses by itself, until it can make images.
_PULLS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    TREE: {
        "pyapp": (4, 5),
        "torch": (4, 5),
        f"pyapp{ZSTD}": (3.5, 4.2),
        f"torch{ZSTD}": (3.5, 4.2),
        "debian": (3.5, 4.5),
    },
    IMAGE: {
        "pyapp": (5.5, 7),
        "torch": (5, 6),
        f"pyapp{ZSTD}": (4.5, 5.5),
        f"torch{ZSTD}": (4.5, 5.5),
        "debian": (3.5, 4.5),
        "tiny-files": (8, 15),
        f"tiny-files{ZSTD}": (8, 15),
        "links": (8, 15),
        f"links{ZSTD}": (8, 15),
    },
}
_CPU = {TREE: (2.5, 3.0), IMAGE: (4.0, 5.0)}
_FLOOR = (1.3, 1.15)
_PEAK_MIB = (150.0, 80.0)
_UPDATE_RATIO, _UPDATE_SECONDS = 3.0, 0.08
_REBUILT_FEWER, _REBUILT_RATIO = 0.95, 2.0
_AGAIN_SECONDS = 0.01
_LOAD = (4.0, 5.0)
# Linear: the time that a further image takes among many, over what it takes among few; with some room for noise.
_LINEAR, _FLAT = 1.15, 1.15
_FEW = 20


@dataclass(frozen=True)
class Judged:
    """A goal beside what was measured. ``must`` and ``aim`` are bounds; most are to be reached from below."""

    work: str
    image: str
    tool: str
    value: float
    must: float | None
    aim: float | None
    unit: str = "times"
    at_most: bool = False
    figures: str = ""

    @property
    def verdict(self) -> str:
        """How far it got."""
        if self.aim is not None and self._is_in(self.aim):
            return "aim"
        if self.must is None:
            return "not the aim"
        return "must" if self._is_in(self.must) else "**no**"

    @property
    def must_text(self) -> str:
        """As the table has it; empty where there is none."""
        return "" if self.must is None else self._text(self.must)

    @property
    def aim_text(self) -> str:
        """As the table has it; empty where there is none."""
        return "" if self.aim is None else self._text(self.aim)

    @property
    def value_text(self) -> str:
        """As the table has it."""
        return f"{self._number(self.value)} {self.unit}"

    def _is_in(self, bound: float) -> bool:
        return self.value <= bound if self.at_most else self.value >= bound

    def _text(self, bound: float) -> str:
        return f"{'≤' if self.at_most else '≥'} {self._number(bound)}"

    def _number(self, value: float) -> str:
        return f"{value:.3f}" if self.unit == "s" else f"{value:.0f}" if self.unit == "MiB" else f"{value:.3g}"


def best_peer(results: Results, field: str, work: str, image: str) -> tuple[str, float] | None:
    """Which of those that are not ours has the least median, and that."""
    found = [
        (tool, value)
        for tool in results.tools_of(work, image)
        if not tool.startswith(OURS) and (value := results.median(field, work, image, tool)) is not None
    ]
    return min(found, key=lambda pair: pair[1]) if found else None


def judge(results: Results) -> list[Judged]:
    """Every goal that something was measured for."""
    goals = (_pulls, _cpu, _floor, _memory, _update, _rebuilt, _again, _load, _many)
    return [judged for goal in goals for judged in goal(results)]


def _subjects(results: Results) -> list[tuple[str, str]]:
    """Tool and the form whose goals it has: overlayfs, and erofs or else the engine's own choice."""
    forms: dict[str, str] = results.settings["forms"]
    images = [name for name, form in forms.items() if known_form(form) == IMAGE]
    second = images[0] if images else results.settings["default"]
    found = [(f"{OURS}-{name}", TREE) for name, form in forms.items() if form == TREE]
    if forms.get(second) != TREE:
        found.append((f"{OURS}-{second}", IMAGE))
    return found


def _against_best(
    results: Results,
    title: str,
    work: str,
    image: str,
    tool: str,
    *,
    bounds: tuple[float, float | None],
    field: str = "wall_seconds",
) -> Iterator[Judged]:
    """How many times what ours took the best peer took; nothing where one of them has no figure."""
    peer, own = best_peer(results, field, work, image), results.median(field, work, image, tool)
    if peer is not None and own:
        figures = f"{own:.3f} s, {peer[0]} {peer[1]:.3f} s"
        yield Judged(title, image, tool, peer[1] / own, *bounds, figures=figures)


def _pulls(results: Results) -> Iterator[Judged]:
    for tool, form in _subjects(results):
        for image, bounds in _PULLS[form].items():
            yield from _against_best(results, "cold pull and unpack: wall", "pull", image, tool, bounds=bounds)


def _cpu(results: Results) -> Iterator[Judged]:
    for tool, form in _subjects(results):
        for image in _PULLS[form]:
            title, bounds = "the same: CPU seconds", _CPU[form]
            yield from _against_best(results, title, "pull", image, tool, bounds=bounds, field="cpu_seconds")


def _floor(results: Results) -> Iterator[Judged]:
    title = "the same: distance from the floor"
    for tool, form in _subjects(results):
        for image in _PULLS[form]:
            floor = results.floor_seconds(image, tool)
            wall = results.median("wall_seconds", "pull", image, tool)
            if floor and wall:
                figures = f"{wall:.3f} s, floor {floor:.3f} s"
                yield Judged(title, image, tool, wall / floor, *_FLOOR, at_most=True, figures=figures)


def _memory(results: Results) -> Iterator[Judged]:
    ours = [run for run in results.runs if run.tool.startswith(OURS) and run.work != "start" and not run.status]
    if ours:
        run = max(ours, key=lambda run: run.peak_bytes)
        image = f"{run.image} images" if run.work == "many" else run.image
        value = run.peak_bytes / _MIB
        work = f"peak memory: the most of any run ({run.work})"
        yield Judged(work, image, run.tool, value, *_PEAK_MIB, unit="MiB", at_most=True)


def _update(results: Results) -> Iterator[Judged]:
    title = "new version, only the top layer is new"
    for image in results.images_of("update"):
        for tool in (name for name in results.tools_of("update", image) if name.startswith(OURS)):
            yield from _against_best(results, title, "update", image, tool, bounds=(_UPDATE_RATIO, None))
            wall = results.median("wall_seconds", "update", image, tool)
            if wall is not None:
                yield Judged("the same: wall", image, tool, wall, None, _UPDATE_SECONDS, unit="s", at_most=True)


def _rebuilt(results: Results) -> Iterator[Judged]:
    for image in results.images_of("rebuilt"):
        tool = f"{OURS}-composefs"
        first = image.removesuffix(REBUILT)
        cold, again = (results.median("wall_seconds", *at, tool) for at in (("pull", first), ("rebuilt", image)))
        before, after = (results.median("written_bytes", *at, tool) for at in (("pull", first), ("rebuilt", image)))
        if cold and again and before and after is not None:
            work = "rebuilt layer whose files are all known"
            yield Judged(
                f"{work}: fewer bytes written", image, tool, 1 - after / before, _REBUILT_FEWER, None, "of all"
            )
            blobs = results.images[image]["compressed_bytes"]
            was = results.images[first]["compressed_bytes"]
            fewer = 1 - max(0.0, after - blobs) / max(1.0, before - was)
            yield Judged(f"{work}: the same, without the blob", image, tool, fewer, _REBUILT_FEWER, None, unit="of all")
            yield Judged(f"{work}: our own cold time over it", image, tool, cold / again, _REBUILT_RATIO, None)


def _again(results: Results) -> Iterator[Judged]:
    title = "nothing to do, open engine"
    for image in results.images_of("again"):
        for tool in (name for name in results.tools_of("again", image) if name.startswith(OURS)):
            if tool not in {LIBRARY, LEAN}:
                yield from _against_best(results, "nothing to do, command", "again", image, tool, bounds=(1.0, None))
            elif (wall := results.median("wall_seconds", "again", image, tool)) is not None:
                yield Judged(title, image, tool, wall, _AGAIN_SECONDS, None, unit="s", at_most=True)


def _load(results: Results) -> Iterator[Judged]:
    title = "import of an archive, unpacked"
    for image in results.images_of("load"):
        for tool in (name for name in results.tools_of("load", image) if name.startswith(OURS)):
            yield from _against_best(results, title, "load", image, tool, bounds=_LOAD)


def _many(results: Results) -> Iterator[Judged]:
    counts = [int(number) for number in results.images_of("many") if results.select("many", number)]
    few = [number for number in counts if number >= _FEW]
    if len(few) > 2:
        walls = {number: results.median("wall_seconds", "many", str(number), LIBRARY) or 0.0 for number in few}
        peaks = [results.median("peak_bytes", "many", str(few[at]), LIBRARY) or 0.0 for at in (0, -1)]
        # What each further image takes: the interpreter's start is in all of them.
        early = (walls[few[-2]] - walls[few[0]]) / (few[-2] - few[0])
        late = (walls[few[-1]] - walls[few[-2]]) / (few[-1] - few[-2])
        if early > 0:
            work, images = "many images: time for a further one", f"{few[-2]} to {few[-1]} over {few[0]} to {few[-2]}"
            yield Judged(work, images, LIBRARY, late / early, _LINEAR, None, at_most=True)
        images = f"{few[-1]} over {few[0]}"
        yield Judged("many images: memory", images, LIBRARY, peaks[1] / peaks[0], _FLAT, None, at_most=True)
