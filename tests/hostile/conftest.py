"""A stage for each hostile case, a deadline, and what the cases came to in the summary."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

import pyctrd
from tests.hostile.stage import WAYS, Stage
from tests.hostile.table import CLASS_OF
from tests.registry_faults import FaultyRegistry

MEMORY = Path("/dev/shm")
# A small case ends well within ten seconds (rule R14), a large one within minutes on a busy machine.
DEADLINE_SECONDS = 10.0
SLOW_DEADLINE_SECONDS = 240.0


@pytest.fixture(scope="session")
def served() -> Iterator[FaultyRegistry]:
    """A registry in this process: it takes what a real one would refuse."""
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture(name="registry")
def _registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as running:
        yield running


@pytest.fixture(name="elsewhere")
def _elsewhere() -> Iterator[FaultyRegistry]:
    """A host that no document may send us to: it must see nothing."""
    with FaultyRegistry() as running:
        yield running
        assert running.seen == []


@pytest.fixture(name="engine")
def _engine() -> Iterator[pyctrd.Engine]:
    with pyctrd.Engine() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _nothing_deep(tmp_path: Path) -> Iterator[None]:
    """Leave no tree that is deeper than Python removes: pytest would fail over it, at the end of a later run."""
    yield
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


@pytest.fixture
def stage(tmp_path: Path, served: FaultyRegistry) -> Iterator[Stage]:
    """Somewhere to play a case."""
    with _top(tmp_path) as top:
        made = Stage(top, served)
        yield made
        made.close()


def _has_xattrs(directory: Path) -> bool:
    try:
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            os.setxattr(file.name, "user.probe", b"")
    except OSError:
        return False
    return True


@contextmanager
def _top(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where that has all that a disk has: thousands of flushes are not the subject here."""
    found = tmp_path / "top"
    if _has_xattrs(MEMORY):
        found = Path(tempfile.mkdtemp(prefix="pyctrd-hostile-", dir=MEMORY))
    found.mkdir(exist_ok=True)
    try:
        yield found
    finally:
        # Some trees are deeper than Python removes; left behind, pytest would fail at its end over them.
        subprocess.run(["rm", "-rf", str(found)], check=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """End a case that hangs: by an exception, or with the process where native code does not come back."""
    seconds = SLOW_DEADLINE_SECONDS if item.get_closest_marker("slow") else DEADLINE_SECONDS

    def expire(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds * 2, exit=True, file=sys.__stderr__ or 2)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many rows of the table were played, by class."""
    played: set[str] = set()
    changes = 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            played.update(value for name, value in report.user_properties if name == "row")
            changes += outcome == "failed" and "canary changed" in report.longreprtext
    if played:
        count = Counter(CLASS_OF[row] for row in played)
        counted = ", ".join(f"{letter} {count[letter]}" for letter in "RSA")
        terminalreporter.write_line(
            f"hostile: {len(played)} layers: {counted}; ways {len(WAYS)}; canary changes {changes}"
        )
