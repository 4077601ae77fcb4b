"""A container's life, the same with each OCI runtime: its states, what each of them allows, and what ends it.

The states are the runtime specification's (runtime.md, "State"), with containerd's "paused".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import CommandNotFoundError, ConflictError, DeadlineError
from tests.images import Images
from tests.runtimes import RUNTIMES, ending, usable

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 120.0
SLEEP = ["sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"]

Request = Callable[[pyctrd.Container], object]
REQUESTS: dict[str, Request] = {
    "start": lambda container: container.start(),
    "pause": lambda container: container.pause(),
    "resume": lambda container: container.resume(),
    "kill": lambda container: container.kill("SIGCONT"),
    "stop": lambda container: container.stop(DEADLINE_SECONDS),
    "wait": lambda container: container.wait(0.001),
    "attach": lambda container: container.attach(),
    "delete": lambda container: container.delete(),
}
# What each state allows; all else is a ConflictError that names it.
ALLOWED = {
    "created": {"start", "delete"},
    "running": {"pause", "kill", "stop", "wait"},
    "paused": {"resume", "kill", "wait", "stop"},
    "stopped": {"start", "stop", "wait", "attach", "delete"},
}
REFUSED = [(state, name) for state, allowed in ALLOWED.items() for name in REQUESTS if name not in allowed]
# Joining a container that runs is a test of its own: it ends with the container.
REFUSED = [case for case in REFUSED if case not in {("running", "attach"), ("paused", "attach")}]


@pytest.fixture(params=RUNTIMES)
def engine(request: pytest.FixtureRequest, state: Path) -> Iterator[pyctrd.Engine]:
    """With one runtime after the other; its containers end with the test."""
    del state
    with usable(request.param) as runtime, ending(runtime=runtime) as opened:
        yield opened


@pytest.fixture
def image(engine: pyctrd.Engine, images: Images) -> pyctrd.Image:
    """busybox."""
    return engine.images.pull(images.busybox.reference)


def bring(engine: pyctrd.Engine, image: pyctrd.Image, state: str) -> pyctrd.Container:
    """A container in a state."""
    container = engine.containers.create(image, SLEEP)
    if state == "created":
        return container
    container.start()
    next(container.log_lines(follow=True))  # it has set its trap
    if state == "paused":
        container.pause()
    elif state == "stopped":
        container.stop(DEADLINE_SECONDS)
    return container


@pytest.mark.parametrize("phase", ALLOWED)
def test_each_state_is_told_and_allows_what_it_allows(engine: pyctrd.Engine, image: pyctrd.Image, phase: str) -> None:
    for name in sorted(ALLOWED[phase]):
        container = bring(engine, image, phase)
        assert container.status.state == phase
        if name == "wait" and phase != "stopped":
            with pytest.raises(DeadlineError):
                REQUESTS[name](container)
        else:
            REQUESTS[name](container)
        container.delete(force=True)


@pytest.mark.parametrize(("phase", "name"), REFUSED)
def test_what_a_state_does_not_allow_is_a_conflict_that_names_it(
    engine: pyctrd.Engine, image: pyctrd.Image, phase: str, name: str
) -> None:
    container = bring(engine, image, phase)
    with pytest.raises(ConflictError) as refused:
        REQUESTS[name](container)
    assert refused.value.state == phase
    assert refused.value.name in {container.id, container.name}
    assert container.status.state == phase


def test_states_follow_one_another_as_the_requests_do(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = engine.containers.create(image, SLEEP)
    seen = [container.status.state]
    for request in (container.start, container.pause, container.resume):
        request()
        seen.append(container.status.state)
    next(container.log_lines(follow=True))
    assert container.stop(DEADLINE_SECONDS).exit_code == 5
    seen.append(container.status.state)
    container.start()
    seen.append(container.status.state)
    container.kill()
    assert container.wait(DEADLINE_SECONDS).exit_code == 137
    seen.append(container.status.state)
    assert seen == ["created", "running", "paused", "running", "stopped", "running", "stopped"]
    container.delete()
    assert engine.containers.find(container.id) is None
    container.delete()


@pytest.mark.parametrize(
    ("command", "exit_code", "signal"),
    [
        (["true"], 0, 0),
        (["sh", "-c", "exit 255"], 255, 0),
        (["sh", "-c", "kill -9 $$"], 137, 9),
        (["sh", "-c", "kill -TERM $$; sleep 60"], 143, 15),
    ],
)
def test_how_it_ended_is_told_as_a_shell_tells_it(
    engine: pyctrd.Engine, image: pyctrd.Image, command: list[str], exit_code: int, signal: int
) -> None:
    if signal:
        # The kernel spares the first process of a pid namespace what it has no handler for: one of its children ends.
        command = ["sh", "-c", 'sh -c "$0"; exit $?', command[-1]]
    container = engine.containers.run(image, command)
    status = container.wait(DEADLINE_SECONDS)
    assert (status.exit_code, status.signal) == (exit_code, 0)
    assert status.started_ns <= status.exited_ns


def test_the_last_to_stop_is_killed_and_says_by_what(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = engine.containers.run(image, ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"])
    next(container.log_lines(follow=True))
    status = container.stop(0.2)
    assert (status.exit_code, status.signal) == (137, 9)


def test_another_engine_sees_it_waits_for_it_and_ends_it(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = engine.containers.run(image, SLEEP, name="shared")
    with pyctrd.Engine() as other:  # whatever runtime it would take itself
        seen = other.containers.get("shared")
        assert seen.status.pid == container.status.pid
        next(seen.log_lines(follow=True))
        assert seen.stop(DEADLINE_SECONDS).exit_code == 5
    assert container.wait(0).exit_code == 5


def test_what_cannot_be_started_leaves_a_container_that_can_be_deleted(
    engine: pyctrd.Engine, image: pyctrd.Image
) -> None:
    container = engine.containers.create(image, ["no-such-command"])
    for _ in range(2):
        with pytest.raises(CommandNotFoundError):
            container.start()
        assert container.status.state == "created"
    container.delete()
    assert engine.check() == []
