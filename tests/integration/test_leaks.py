"""Containers come and go: nothing of them is left, however many there were."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pyctrd
from tests.images import Images

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 300.0
AT_ONCE = 8
# Of this process, over a thousand runs: less than a tenth of what one of them holds while it starts.
GROWTH_MAX_BYTES = 8 << 20


def held(root: Path, state: Path) -> dict[str, int]:
    """What containers of a root hold of the host, by kind."""
    places = (os.fsencode(root), os.fsencode(state))
    found = {"processes": 0, "zombies": 0}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, status = (
                (process / "cmdline").read_bytes(),
                (process / "stat").read_text().rpartition(")")[2].split(),
            )
        except OSError:  # it has ended
            continue
        found["processes"] += any(place in words for place in places)
        found["zombies"] += status[0] == "Z" and status[1] == str(os.getpid())
    mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    found["mounts"] = sum(any(place in line for place in places) for line in mounts)
    sockets = Path("/proc/net/unix").read_bytes().splitlines()
    found["sockets"] = sum(places[1] in line for line in sockets)
    found["descriptors"] = sum(1 for _ in Path("/proc/self/fd").iterdir())
    found["threads"] = threading.active_count()
    found["files of the state"] = sum(1 for _ in state.rglob("*"))
    for name in ("containers", "snapshots", "trash"):
        found[f"files of {name}"] = sum(1 for path in (root / name).rglob("*") if path != root / name / "default")
    return found


def cgroups(ids: list[str]) -> list[Path]:
    """Control groups that containers by these ids have, under every hierarchy."""
    wanted = set(ids)
    parents = [*Path("/sys/fs/cgroup").glob("pyctrd"), *Path("/sys/fs/cgroup").glob("*/pyctrd")]
    return [group for parent in parents for group in parent.iterdir() if group.name in wanted]


def namespaces(pids: list[int]) -> set[str]:
    """Network namespaces of processes that run."""
    return {str(Path(f"/proc/{pid}/ns/net").readlink()) for pid in pids}


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [pytest.param(24, id="short"), pytest.param(1000, id="long", marks=pytest.mark.soak)])
def test_after_many_runs_nothing_is_held_that_was_not_before(
    engine: pyctrd.Engine, images: Images, tmp_path: Path, state: Path, count: int
) -> None:
    image = engine.images.pull(images.busybox.reference)
    root = Path(os.environ["PYCTRD_ROOT"])
    ids: list[str] = []

    def live(number: int) -> None:
        container = engine.containers.run(image, ["sh", "-c", f"echo {number} > /written; echo {number}; exit 3"])
        ids.append(container.id)
        assert container.wait(DEADLINE_SECONDS).exit_code == 3
        assert container.logs() == f"{number}\n"
        container.delete()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(live, range(AT_ONCE * 2)))  # what is loaded, opened and made once
    gc.collect()
    before, memory = held(root, state), resident_bytes()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(live, range(count)))
    gc.collect()
    after = held(root, state)
    assert {kind: (before[kind], after[kind]) for kind in after if after[kind] > before[kind]} == {}
    assert cgroups(ids) == []
    assert resident_bytes() - memory < GROWTH_MAX_BYTES
    assert engine.check() == []


@pytest.mark.parametrize("count", [pytest.param(12, id="short"), pytest.param(200, id="long", marks=pytest.mark.soak)])
def test_many_that_live_at_once_are_each_themselves_and_leave_nothing(
    engine: pyctrd.Engine, images: Images, state: Path, count: int
) -> None:
    image = engine.images.pull(images.busybox.reference)
    root = Path(os.environ["PYCTRD_ROOT"])

    def live(number: int) -> None:
        container = engine.containers.run(image, ["true"], name=f"first-{number}")
        container.wait(DEADLINE_SECONDS)
        container.delete()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(live, range(AT_ONCE * 2)))  # each thread has a connection to the database, and some are kept
    before = held(root, state)
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def start(number: int) -> pyctrd.Container:
            return engine.containers.run(
                image, ["sh", "-c", "echo $NUMBER; exec sleep 3600"], env={"NUMBER": str(number)}, name=f"c-{number}"
            )

        alive = list(pool.map(start, range(count)))
        statuses = [container.status for container in alive]
        assert {status.state for status in statuses} == {"running"}
        assert len(namespaces([status.pid for status in statuses])) == count
        assert len(cgroups([container.id for container in alive])) >= count
        ended = list(pool.map(lambda container: container.stop(0), alive))
        assert {status.signal for status in ended} <= {9, 15}
        assert [container.logs() for container in alive] == [f"{number}\n" for number in range(count)]
        list(pool.map(lambda container: container.delete(), alive))
    gc.collect()
    after = held(root, state)
    assert {kind: (before[kind], after[kind]) for kind in after if after[kind] > before[kind]} == {}
    assert cgroups([container.id for container in alive]) == []
