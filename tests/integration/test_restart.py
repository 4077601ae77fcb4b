"""Restart policies, carried out by the shim with no engine there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import ConflictError, DeadlineError, InvalidError
from pyctrd.runtime.life import is_wanted_stopped
from pyctrd.runtime.state import read_runs
from tests.children import until
from tests.images import Images
from tests.integration.conftest import Cli

pytestmark = pytest.mark.root

WAIT_SECONDS = 60.0


@pytest.fixture
def image(engine: pyctrd.Engine, images: Images) -> pyctrd.Image:
    return engine.images.pull(images.busybox.reference)


def bundle_of(container: pyctrd.Container) -> Path:
    return Path(os.environ["PYCTRD_ROOT"]) / "containers" / "default" / container.id


def runs_told(engine: pyctrd.Engine) -> list[tuple[str, int | None]]:
    found = engine.events(types=["container"], actions=["started", "exited"])
    return [(event.action, event.attributes.get("exit_code")) for event in found]


def test_on_failure_counts_and_ends_with_the_last_status(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    script = "echo run >> /runs; cat /runs | wc -l; exit $(( $(cat /runs | wc -l) + 2 ))"
    container = engine.containers.run(image, ["sh", "-c", script], restart="on-failure:3")
    ended = container.wait(timeout=WAIT_SECONDS)
    assert (ended.exit_code, ended.error) == (6, "")
    status = container.status
    assert (status.state, status.restart_count) == ("stopped", 3)
    assert container.logs() == "1\n2\n3\n4\n"
    assert runs_told(engine) == [
        ("started", None), ("exited", 3), ("started", None), ("exited", 4),
        ("started", None), ("exited", 5), ("started", None), ("exited", 6),
    ]  # fmt: skip
    assert engine.containers.restore_policies() == ([], {})


def test_on_failure_leaves_a_success_alone(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = engine.containers.run(image, ["true"], restart="on-failure")
    assert container.wait(timeout=WAIT_SECONDS).exit_code == 0
    assert container.status.restart_count == 0


def test_a_stop_between_two_runs_is_heard_at_once_and_lasts(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = engine.containers.run(image, ["sh", "-c", "exit 4"], restart="always")
    # By then it waits for seconds each time.
    until(lambda: container.status.restart_count >= 5 and container.status.state == "restarting")
    with pytest.raises(ConflictError, match="restarting"):
        container.start()
    with pytest.raises(ConflictError, match="restarting"):
        container.delete()
    with pytest.raises(DeadlineError):
        container.wait(timeout=0.01)
    assert container.stop().exit_code == 4
    assert container.status.state == "stopped"
    assert is_wanted_stopped(bundle_of(container))
    container.start()
    assert not is_wanted_stopped(bundle_of(container))
    assert container.status.restart_count < 5
    container.delete(force=True)
    assert engine.check() == []


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_users_signal_ends_the_policy(engine: pyctrd.Engine, image: pyctrd.Image, end: str) -> None:
    container = engine.containers.run(image, ["sleep", "600"], restart="always")
    if end == "stop":
        container.stop(timeout=0)
    else:
        container.kill()
    ended = container.wait(timeout=WAIT_SECONDS)
    assert ended.signal == signal.SIGKILL
    assert container.status.state == "stopped"
    assert container.status.restart_count == 0


def test_another_signal_leaves_the_policy(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = engine.containers.run(image, ["sh", "-c", "trap 'exit 9' USR1; sleep 600 & wait"], restart="always")
    pid = container.status.pid

    def again() -> bool:
        if container.status.pid == pid:
            container.kill("SIGUSR1")
        return container.status.restart_count > 0 and container.status.state == "running"

    until(again)
    container.delete(force=True)


def test_a_follower_and_a_waiter_see_all_runs(engine: pyctrd.Engine, image: pyctrd.Image, cli: Cli) -> None:
    script = "echo hello; test -e /third && exit 0; test -e /second && touch /third; touch /second; exit 1"
    made = cli("run", "-d", "--name", "again", "--restart", "on-failure:9", image.name, "sh", "-c", script)
    assert made.status == 0
    done = cli("logs", "-f", "again")
    assert done.out == "hello\n" * 3
    assert cli("wait", "again").out == "0\n"
    (facts,) = cli("--json", "ps", "-a").lines
    assert (facts["restart_policy"], facts["restart_count"], facts["exit_code"]) == ("on-failure:9", 2, 0)


def test_the_foreground_stays_over_restarts(image: pyctrd.Image, cli: Cli) -> None:
    script = "cat; echo over; test -e /second && exit 0; touch /second; exit 1"
    done = cli("run", "-i", "--restart", "on-failure", image.name, "sh", "-c", script, text="typed\n")
    assert (done.status, done.out) == (0, "typed\nover\nover\n")


def test_only_the_last_runs_are_kept_and_each_is_told_once(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = engine.containers.run(image, ["false"], restart="on-failure:6")
    followed = engine.events(since="0", types=["container"], actions=["exited"], follow=True, timeout=WAIT_SECONDS)
    seen = [next(followed).attributes["started_ns"] for _ in range(7)]
    assert len(set(seen)) == 7
    container.wait(timeout=WAIT_SECONDS)
    assert [run.started_ns for run in read_runs(bundle_of(container))] == seen[:6]
    assert runs_told(engine) == [("started", None), ("exited", 1)] * 7


def test_a_reboot_is_followed_by_what_policies_want(
    engine: pyctrd.Engine, image: pyctrd.Image, cli: Cli, state: Path
) -> None:
    del state
    script = ["sh", "-c", "exec sleep 600"]
    for name, policy in [
        ("a", "always"),
        ("u", "unless-stopped"),
        ("s", "unless-stopped"),
        ("n", "no"),
        ("f", "on-failure"),
    ]:
        engine.containers.run(image, script, name=name, restart=policy)
    engine.containers.create(image, script, name="made", restart="always")
    for name in "as":
        engine.containers.get(name).stop(timeout=0)
    reboot(engine)
    states = {container.name: container.status.state for container in engine.containers.list()}
    assert states == {"a": "stopped", "s": "stopped", "u": "created", "n": "created", "f": "created", "made": "created"}
    done = cli("start", "--policy")
    assert (done.status, sorted(done.out.split())) == (0, ["a", "f", "u"])
    assert engine.containers.restore_policies() == ([], {})
    assert {c.name for c in engine.containers.list() if c.status.state == "running"} == {"a", "f", "u"}


def reboot(engine: pyctrd.Engine) -> None:
    """What a reboot leaves of containers: no process, and nothing in the state directory."""
    directory = Path(os.environ["PYCTRD_STATE"])
    for container in engine.containers.list():
        if container.status.pid:
            os.kill(
                json.loads((directory / "shims" / container.id / "shim.json").read_text())["shim_pid"], signal.SIGKILL
            )
            runc = ["runc", "--root", str(directory / "runtimes" / "runc"), "delete", "--force", container.id]
            subprocess.run(runc, check=True)
    for name in ("shims", "runtimes"):
        shutil.rmtree(directory / name)


def test_a_policy_that_is_none_is_one_line(engine: pyctrd.Engine, image: pyctrd.Image, cli: Cli) -> None:
    for policy in ("sometimes", "on-failure:x", "always:3"):
        with pytest.raises(InvalidError, match="restart policy"):
            engine.containers.create(image, restart=policy)
    done = cli("run", "--rm", "--restart", "always", image.name)
    assert (done.status, "leave --rm out" in done.err) == (125, True)
    assert engine.containers.list() == []


def test_a_container_that_cannot_be_started_again_says_so(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = engine.containers.run(
        image, ["/bin/once"], entrypoint=["sh", "-c", "rm /bin/sh; exit 3"], restart="always"
    )
    ended = container.wait(timeout=WAIT_SECONDS)
    assert ended.exit_code == 3
    assert "cannot be started again" in ended.error
    assert container.status.state == "stopped"


def test_logs_take_options_of_docker(image: pyctrd.Image, cli: Cli) -> None:
    made = cli(
        *("run", "--name", "small", "--log-driver", "cri", "--log-opt", "max-size=1k", "--log-opt", "max-file=3"),
        *(image.name, "seq", "500"),
    )
    assert made.status == 0
    assert cli("logs", "--tail", "2", "small").out == "499\n500\n"
    assert cli("logs", "--since", "1h", "--until", "1s", "--tail", "1", "small").err == ""
    assert cli("logs", "--until", "1h", "small").out == ""
    assert cli("logs", "--since", "1h", "--tail", "1", "small").out == "500\n"
    assert cli("logs", "--since", "yesterday", "small").status == 1
    assert cli("run", "--log-opt", "size=1", image.name).status == 125
