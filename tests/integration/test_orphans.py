"""Containers whose shim was killed: every next look puts them right."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import pyctrd
from tests.children import until
from tests.images import Images

pytestmark = pytest.mark.root

WAIT_SECONDS = 60.0
LOOKS: dict[str, Callable[[pyctrd.Engine, pyctrd.Container], object]] = {
    "status": lambda _, container: container.status,
    "wait": lambda _, container: container.wait(timeout=WAIT_SECONDS),
    "stop": lambda _, container: container.stop(),
    "start": lambda _, container: container.start(),
    "delete": lambda _, container: container.delete(),
    "repair": lambda engine, _: engine.check(repair=True),
}


def kill_shim(container: pyctrd.Container) -> None:
    directory = Path(os.environ["PYCTRD_STATE"]) / "shims" / container.id
    pid = json.loads((directory / "shim.json").read_text())["shim_pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2])


@pytest.mark.parametrize("look", LOOKS)
def test_the_next_look_ends_it_and_records_that(engine: pyctrd.Engine, images: Images, look: str) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(image, ["sleep", "600"], restart="always")
    pid = container.status.pid
    kill_shim(container)
    (finding,) = engine.check()
    assert (finding.kind, finding.cause) == ("container", "orphaned")
    LOOKS[look](engine, container)
    until(lambda: not Path(f"/proc/{pid}").exists())
    told = [event.attributes for event in engine.events(types=["container"], actions=["exited"])]
    assert [(one["exit_code"], one["signal"]) for one in told] == [(137, 9)]
    if look == "delete":
        assert engine.containers.list() == []
    elif look == "start":
        assert container.status.state == "running"
    else:
        status = container.status
        assert (status.state, status.exit is not None and status.exit.error) == (
            "stopped",
            "its shim was killed, and then it was",
        )
        assert not (Path(os.environ["PYCTRD_STATE"]) / "runtimes" / "runc" / container.id).exists()
    assert engine.check() == []


def test_one_whose_process_is_gone_too_has_a_record(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(image, ["sleep", "600"])
    pid = container.status.pid
    kill_shim(container)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())
    status = container.status
    assert (status.state, status.exit is not None and status.exit.exit_code) == ("stopped", 255)
    container.start()
    assert container.status.state == "running"


def test_one_that_rested_between_two_runs_keeps_its_last_status(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(image, ["sh", "-c", "exit 3"], restart="always")
    until(lambda: container.status.restart_count >= 5 and container.status.state == "restarting")
    kill_shim(container)
    assert container.wait(timeout=WAIT_SECONDS).exit_code == 3
    assert container.status.state == "stopped"
    assert engine.containers.restore_policies() == ([container.name], {})
