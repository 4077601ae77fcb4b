"""What the comparison says of its figures; that it measures is seen when it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benches.peers import report
from benches.peers.floor import Floor, LayerFloor
from benches.peers.goals import Judged, best_peer, judge
from benches.peers.results import Results, Run

CORES = 2


@pytest.fixture
def results() -> Results:
    """An image that three tools pulled twice, one of them in vain."""
    found = Results(
        machine={
            "processor": "a processor",
            "cores": CORES,
            "memory_gib": 1,
            "kernel": "6",
            "system": "Linux",
            "python": "3",
            "load_at_start": 0,
        },
        versions={"ctr": "1"},
        settings={"rounds": 2, "cores": CORES, "default": "composefs", "forms": {"composefs": "objects"}},
        images={"debian": {"layers": 2, "compressed_bytes": 10, "tar_bytes": 30, "entries": 3}},
    )
    for turn in (0, 1):
        found.runs += [
            Run("pull", "debian", "pyctrd-composefs", turn, 0, 1.0 + turn, 1.0, 90 << 20, 40),
            Run("pull", "debian", "ctr", turn, 0, 6.0, 3.0, 1 << 20, 40),
            Run("pull", "debian", "docker", turn, 1, 0.1, 0.1, 0, 0, "it | cannot"),
        ]
    layers = (LayerFloor(0.1, 0.1, 1.0, 0.2), LayerFloor(0.0, 0.0, 0.1, 0.0))
    found.floors.append(("debian", Floor(layers, 0.1, {"tree": 3.0, "objects": 0.1, "image": 0.0}, 9.0)))
    return found


def test_results_are_the_same_when_they_are_read_again(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "raw")
    assert Results.load(tmp_path / "raw") == results


def test_a_floor_is_the_work_over_the_cores_and_at_least_the_slowest_stage(results: Results) -> None:
    ((_, floor),) = results.floors
    assert floor.seconds("tree", cores=CORES) == pytest.approx((1.5 + 0.1 + 3.0) / CORES)
    assert floor.seconds("tree", cores=CORES, blobs=False) == pytest.approx((1.5 + 3.0) / CORES)
    assert floor.seconds("blocks", cores=CORES) == 1.0


def test_a_failed_run_is_nobodys_best_time(results: Results) -> None:
    assert best_peer(results, "wall_seconds", "pull", "debian") == ("ctr", 6.0)


def test_a_goal_is_judged_by_the_medians(results: Results) -> None:
    (wall,) = [judged for judged in judge(results) if judged.work.startswith("cold") and judged.image == "debian"]
    assert wall.value == pytest.approx(6.0 / 1.5)
    assert wall.verdict == "must"


@pytest.mark.parametrize(
    ("value", "at_most", "verdict"),
    [(3.0, False, "**no**"), (4.0, False, "must"), (5.0, False, "aim"), (1.0, True, "aim"), (9.0, True, "**no**")],
)
def test_a_verdict_is_the_farthest_bound_that_was_reached(value: float, at_most: bool, verdict: str) -> None:  # noqa: FBT001 - a case of the table
    assert Judged("", "", "", value, 4.0, 4.0 if at_most else 5.0, at_most=at_most).verdict == verdict


def test_the_tables_tell_what_failed_and_keep_their_shape(results: Results) -> None:
    text = report.render(results)
    assert "fails: it / cannot" in text
    rows = [line for line in text.splitlines() if line.startswith("| pyctrd-composefs")]
    assert len({row.count("|") for row in rows}) == 1
