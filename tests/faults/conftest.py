"""A store with an image in it, to be damaged; and a table of what was tried, at the end."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyctrd
from tests.faults.tally import Tally
from tests.faults.works import WORKS, Shop, Work, open_shop, set_up
from tests.registry_faults import FaultyRegistry
from tests.runtimes import ending

_PROPERTY = "faults"
_UNPACKING = ("pull", "load", "commit")
# What does not unpack is the same by all snapshotters over images.
SETTINGS = [
    (work, name)
    for work in WORKS
    for name in ("composefs", "overlayfs", "erofs")
    if name != "erofs" or work.name in _UNPACKING
]


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[Tally]:
    """Counts for the table at the end."""
    made = Tally()
    yield made
    for key, count in made.counts.items():
        record_property(_PROPERTY, (*key, count))


@pytest.fixture
def more(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """Whether the time is left that ``make soak`` gives each test."""
    end = time.monotonic() + request.config.getoption("--soak-seconds")
    return lambda: time.monotonic() < end


@pytest.fixture
def root() -> Path:
    """The root of the test's store."""
    return Path(os.environ["PYCTRD_ROOT"])


@pytest.fixture
def engine(state: Path) -> Iterator[pyctrd.Engine]:
    """An engine over it; its containers end with the test."""
    del state  # named so that PYCTRD_STATE is the short one: sockets are made in it
    with ending() as opened:
        yield opened


@pytest.fixture(params=SETTINGS, ids=lambda setting: f"{setting[0].name.replace(' ', '-')}-{setting[1]}")
def setting(request: pytest.FixtureRequest) -> tuple[Work, str]:
    """A work, and the snapshotter by which it is done."""
    found: tuple[Work, str] = request.param
    return found


@pytest.fixture
def work(setting: tuple[Work, str]) -> Work:
    return setting[0]


@pytest.fixture
def snapshotter(setting: tuple[Work, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Of all engines that ask for none."""
    name = setting[1]
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", name)
    return name


@pytest.fixture
def shop(work: Work, root: Path, state: Path, tmp_path: Path, snapshotter: str) -> Iterator[Shop]:
    """With the store that the work begins with."""
    del state, snapshotter
    with FaultyRegistry() as registry:
        opened = open_shop(root, tmp_path, registry)
        set_up(work, opened)
        yield opened
        opened.restore()


@pytest.fixture
def shop_of_pull(root: Path, state: Path, tmp_path: Path) -> Iterator[Shop]:
    """With the store that a pull begins with."""
    del state
    with FaultyRegistry() as registry:
        opened = open_shop(root, tmp_path, registry)
        set_up(next(work for work in WORKS if work.name == "pull"), opened)
        yield opened


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fault table: how a flow was disturbed, at how many points, and after how many nothing was wrong."""
    counts: Counter[tuple[str, str, str]] = Counter()
    reports = [report for of_one in terminalreporter.stats.values() for report in of_one]
    for report in reports:
        if getattr(report, "when", "") == "teardown":
            for how, flow, what, count in (value for name, value in report.user_properties if name == _PROPERTY):
                counts[how, flow, what] += count
    for how, flow in sorted({(how, flow) for how, flow, _ in counts}):
        tried, clean = counts[how, flow, "tried"], counts[how, flow, "clean"]
        terminalreporter.write_line(f"faults: {how:<12} {flow:<24} points {tried:>6}  clean {clean:>6}")
