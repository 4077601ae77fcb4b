"""Health checks, carried out by the shim with no engine there, with each OCI runtime."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import ConflictError, DeadlineError, NotFoundError, UnsupportedError
from pyctrd.runtime import state as states
from tests.children import until
from tests.images import Images, build_image, busybox_tar
from tests.runtimes import RUNTIMES, ending, usable

pytestmark = pytest.mark.root

WAIT_SECONDS = 60.0
# Of a container that runs until it is deleted, also with no pid namespace of its own.
SLEEP = ["sleep", "600"]
FAST: dict[str, Any] = {"health_interval_seconds": 0.05}


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


def checked(engine: pyctrd.Engine, images: Images, check: Mapping[str, Any], **more: Any) -> pyctrd.Image:
    """busybox with a health check."""
    config = {"Env": ["PATH=/bin"], "Healthcheck": check, **more}
    return engine.images.pull(images.push(build_image([busybox_tar()], config=config), tag="1").reference)


def run(engine: pyctrd.Engine, image: pyctrd.Image, check: str, **options: Any) -> pyctrd.Container:
    """A container that is asked often."""
    return engine.containers.run(image, SLEEP, **{"health_cmd": check, **FAST, **options})


def health_of(container: pyctrd.Container) -> pyctrd.Health:
    found = container.health
    assert found is not None
    return found


def until_results(container: pyctrd.Container, number: int) -> pyctrd.Health:
    until(lambda: len(health_of(container).results) >= number)
    return health_of(container)


def until_probed(container: pyctrd.Container, times: int) -> None:
    """Wait until probes have ended that were not known when this was called."""
    before = {result.start_ns for result in health_of(container).results}
    seen: set[int] = set()

    def are_there() -> bool:
        seen.update(result.start_ns for result in health_of(container).results)
        return len(seen - before) >= times

    until(are_there)


def changes(engine: pyctrd.Engine) -> list[tuple[str, str | None]]:
    """What was told of runs and of health."""
    found = engine.events(types=["container"], actions=["started", "health_status", "exited"])
    return [(event.action, event.attributes.get("reason")) for event in found]


def processes(word: str) -> list[int]:
    """Processes of this host whose command line has a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if word.encode() in words:
            found.append(int(path.parent.name))
    return found


def shim_directory(container: pyctrd.Container) -> Path:
    return Path(os.environ["PYCTRD_STATE"]) / "shims" / container.id


def test_an_images_check_makes_it_healthy_with_the_containers_own_process(
    engine: pyctrd.Engine, images: Images
) -> None:
    check = {"Test": ["CMD-SHELL", "echo $NAME; id -u; pwd; grep -s no /none || cat"], "Interval": 50_000_000}
    image = checked(engine, images, check, User="app", WorkingDir="/home/app")
    container = engine.containers.create(image, SLEEP, env={"NAME": "own"}, terminal=True, stdin=True)
    assert container.health == pyctrd.Health("starting", 0, ())
    container.start(terminal=True, stdin=True)
    health = container.wait_healthy(WAIT_SECONDS)
    assert (health.status, health.failing_streak) == ("healthy", 0)
    result = health.results[0]
    assert (result.exit_code, result.output.split()) == (0, ["own", "1000", "/home/app"])
    assert 0 < result.start_ns < result.end_ns
    assert changes(engine) == [("started", None), ("health_status", "healthy")]
    container.delete(force=True)
    assert not shim_directory(container).exists()
    assert engine.check() == []


def test_without_a_check_there_is_no_health(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = engine.containers.run(image, SLEEP)
    assert container.health is None
    assert container.inspect()["health"] is None
    for ask in (container.wait_healthy, container.run_health_check):
        with pytest.raises(NotFoundError, match="has no health check"):
            ask()


@pytest.mark.parametrize("off", [{"no_healthcheck": True}, {"health_cmd": "none"}, {}])
def test_a_check_can_be_left_out(engine: pyctrd.Engine, images: Images, off: dict[str, Any]) -> None:
    test = ["NONE"] if not off else ["CMD", "true"]
    container = engine.containers.run(checked(engine, images, {"Test": test}), SLEEP, **off)
    assert container.health is None
    assert not (shim_directory(container) / "health.json").exists()


def test_so_many_failures_in_a_row_make_it_unhealthy_and_one_success_healthy(
    engine: pyctrd.Engine, image: pyctrd.Image
) -> None:
    container = run(engine, image, "test -e /tmp/works && exit 0; echo no file; exit 3", health_retries=2)
    with pytest.raises(
        ConflictError, match=r"is unhealthy: \d+ failures in a row, the last with exit code 3: no file"
    ) as e:
        container.wait_healthy(WAIT_SECONDS)
    assert e.value.state == "unhealthy"
    health = until_results(container, 5)
    assert health.failing_streak >= 2
    assert {(result.exit_code, result.output) for result in health.results} == {(3, "no file\n")}
    container.exec_output(["touch", "/tmp/works"])
    until(lambda: health_of(container).is_healthy)
    assert health_of(container).failing_streak == 0
    container.exec_output(["rm", "/tmp/works"])
    until(lambda: health_of(container).status == "unhealthy")
    assert len(health_of(container).results) <= 5
    assert changes(engine) == [
        ("started", None), ("health_status", "unhealthy"), ("health_status", "healthy"), ("health_status", "unhealthy"),
    ]  # fmt: skip
    assert [event.attributes["reason"] for event in engine.events(reasons=["healthy"])] == ["healthy"]


def test_failures_of_the_start_period_do_not_count(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = run(
        engine, image, "test -e /tmp/works", health_retries=1, health_interval_seconds=0.06,
        health_start_period_seconds=600, health_start_interval_seconds=0.05,
    )  # fmt: skip
    health = until_results(container, 5)
    assert (health.status, health.failing_streak) == ("starting", 0)
    assert {result.exit_code for result in health.results} == {1}
    container.exec_output(["touch", "/tmp/works"])
    container.wait_healthy(WAIT_SECONDS)
    container.exec_output(["rm", "/tmp/works"])
    # One success has ended the period.
    until(lambda: health_of(container).status == "unhealthy")


def test_a_probe_that_takes_too_long_ends_with_all_that_it_started(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    script = "trap '' TERM; sleep 31.4159 & (sleep 31.4159 &) ; echo begun; sleep 31.4159"
    container = run(engine, image, script, health_timeout_seconds=0.3, health_retries=1, health_interval_seconds=600)
    result = container.run_health_check()
    assert result.exit_code == -1
    assert result.output == "health check exceeded timeout (0.3s): begun\n"
    assert processes("31.4159") == []
    assert health_of(container).status == "unhealthy"
    # The container goes on, and so does its shim.
    assert container.exec_output(["echo", "on"]).stdout == b"on\n"


def test_what_is_left_running_by_a_probe_delays_nothing(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = run(engine, image, "sleep 600 & echo done")
    result = container.wait_healthy(WAIT_SECONDS).results[0]
    assert (result.exit_code, result.output) == (0, "done\n")
    assert container.stop(0).signal == signal.SIGKILL


def test_output_is_kept_up_to_a_bound_and_need_not_be_text(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    # Where SIGPIPE is ignored, as youki leaves it, those that write into a pipe complain.
    script = r"""yes 0123456 2>/dev/null | head -c 300000; printf 'a\377"\001\\'; exit 7"""
    result = until_results(run(engine, image, script), 2).results[-1]
    assert result.exit_code == 7
    # The last 4096 bytes; the one that is no UTF-8 is one character.
    assert result.output == ("0123456\n" * 512)[5:] + 'a\ufffd"\x01\\'
    assert len(result.output) == 4096
    # Five of those that take most room are read as well.
    other = run(engine, image, r"tr '\000' '\001' < /dev/zero 2>/dev/null | head -c 5000")
    assert {result.output for result in until_results(other, 5).results} == {"\x01" * 4096}


def test_a_probe_that_is_not_there_has_failed_and_says_why(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = run(engine, image, "", health_cmd=["/bin/missing", "word"], health_retries=1)
    with pytest.raises(ConflictError, match=r"is unhealthy: 1 failures in a row.*/bin/missing"):
        container.wait_healthy(WAIT_SECONDS)
    result = until_results(container, 5).results[-1]
    assert result.exit_code == -1
    assert "/bin/missing" in result.output
    assert result.output.count("\n") == 0
    # Each probe has a file for the runtime's words of its own: nothing grows.
    assert (shim_directory(container) / "health.log").stat().st_size < 4096


def test_a_paused_container_is_not_probed(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    paused, other = run(engine, image, "true", name="paused"), run(engine, image, "true", name="other")
    for container in (paused, other):
        container.wait_healthy(WAIT_SECONDS)
    paused.pause()
    with pytest.raises(ConflictError, match="cannot be probed: it is paused"):
        paused.run_health_check()
    until_probed(other, 3)  # what had ended before the pause is recorded by then
    before = health_of(paused)
    until_probed(other, 10)
    assert health_of(paused) == before
    assert before.is_healthy
    paused.resume()
    until_probed(paused, 2)
    assert health_of(paused).is_healthy


def test_the_time_of_a_probe_stands_still_while_it_is_frozen(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    script = "touch /tmp/begun; sleep 1"
    container = run(engine, image, script, health_timeout_seconds=3, health_interval_seconds=0.1)
    other = run(engine, image, "sleep 1", health_interval_seconds=0.1)
    until(lambda: container.exec_output(["test", "-e", "/tmp/begun"]).exit_code == 0)
    container.pause()
    until(lambda: len(health_of(other).results) >= 5)  # more than the time-out
    container.resume()
    assert container.wait_healthy(WAIT_SECONDS).results[0].exit_code == 0


def test_a_restart_begins_anew(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    # The first run is healthy, the others never are.
    script = "echo run >> /runs; sleep 600 & trap 'exit 1' USR1; wait"
    container = engine.containers.run(
        image, ["sh", "-c", script], restart="always", health_cmd="test $(wc -l < /runs) = 1", **FAST,
        health_retries=1000,
    )  # fmt: skip
    container.wait_healthy(WAIT_SECONDS)
    first = container.status
    container.kill("SIGUSR1")
    until(lambda: container.status.restart_count == 1 and container.status.state == "running")
    until(lambda: health_of(container).failing_streak > 0)
    assert health_of(container).status == "starting"
    assert all(result.start_ns > first.started_ns for result in health_of(container).results)
    with pytest.raises(DeadlineError, match=r"did not become healthy within 0\.01 seconds: it is starting"):
        container.wait_healthy(0.01)
    container.stop(0)
    assert changes(engine) == [
        ("started", None), ("health_status", "healthy"), ("exited", "exit"), ("started", None), ("exited", "signal"),
    ]  # fmt: skip
    # And so does a start by the user.
    container.start()
    assert health_of(container).status == "starting"


def test_changes_that_nobody_saw_are_told_at_the_removal_in_their_order(
    engine: pyctrd.Engine, image: pyctrd.Image
) -> None:
    script = "until test -e /tmp/asked; do sleep 0.05; done; sleep 0.3"
    container = engine.containers.run(image, ["sh", "-c", script], health_cmd="touch /tmp/asked", **FAST)
    bundle = Path(os.environ["PYCTRD_ROOT"]) / "containers" / "default" / container.id
    until((bundle / "exit.json").exists)
    assert json.loads((bundle / "health").read_text())["status"] == "healthy"
    container.delete()
    assert changes(engine) == [("started", None), ("health_status", "healthy"), ("exited", "exit")]


def test_who_follows_hears_of_changes(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    with_check = run(engine, image, "test -e /tmp/works", health_retries=1)
    followed = engine.events(since="0", follow=True, timeout=WAIT_SECONDS, actions=["health_status"])
    event = next(followed)
    assert (event.name, event.attributes["reason"], event.attributes["id"]) == (
        with_check.name, "unhealthy", with_check.id,
    )  # fmt: skip
    with_check.exec_output(["touch", "/tmp/works"])
    assert next(followed).attributes["reason"] == "healthy"


def test_the_end_of_a_container_is_no_failure_and_waits_for_no_probe(
    engine: pyctrd.Engine, image: pyctrd.Image
) -> None:
    # The second probe lasts: the container ends in its middle.
    check = "test -e /tmp/again || { touch /tmp/again; exit 0; }; touch /tmp/lasts; sleep 600"
    container = run(engine, image, check, health_retries=1)
    container.wait_healthy(WAIT_SECONDS)
    until(lambda: container.exec_output(["test", "-e", "/tmp/lasts"]).exit_code == 0)
    ended = container.stop(0)
    assert ended.signal == signal.SIGKILL
    health = health_of(container)
    assert (health.status, len(health.results)) == ("healthy", 1)
    assert changes(engine)[-1] == ("exited", "signal")
    with pytest.raises(ConflictError, match="cannot become healthy: it is stopped, with exit code 137"):
        container.wait_healthy(WAIT_SECONDS)
    with pytest.raises(ConflictError, match="cannot be probed: it is stopped"):
        container.run_health_check()


def test_without_a_pid_namespace_of_its_own_nothing_of_a_probe_is_left(
    engine: pyctrd.Engine, image: pyctrd.Image
) -> None:
    script = "(sleep 27.1828 &); exec sleep 27.1828"
    container = run(engine, image, script, pid="host", health_timeout_seconds=0.3, health_retries=1)
    until(lambda: health_of(container).status == "unhealthy")
    assert container.status.state == "running"
    container.stop(0)
    container.delete()
    assert processes("27.1828") == []


def test_in_a_user_namespace_a_probe_is_its_root(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    maps = ["0:100000:65536"]
    script = "id -u; cat /proc/self/uid_map"
    if Path(engine.info()["runtime"]).name == "youki":  # its exec would have it be root of the host
        with pytest.raises(UnsupportedError, match="youki starts them outside"):
            run(engine, image, script, uidmaps=maps, gidmaps=maps)
        assert engine.containers.list() == []
        with pytest.raises(UnsupportedError, match="youki starts them outside"):
            engine.containers.run(image, SLEEP, uidmaps=maps, gidmaps=maps).exec_output(["id"])
        return
    container = run(engine, image, script, uidmaps=maps, gidmaps=maps)
    inside, mapped = container.wait_healthy(WAIT_SECONDS).results[0].output.splitlines()
    assert (inside, mapped.split()) == ("0", ["0", "100000", "65536"])


def test_a_shim_that_is_killed_in_a_probes_middle_leaves_nothing(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = run(engine, image, "touch /tmp/begun; sleep 16.1803")
    until(lambda: container.exec_output(["test", "-e", "/tmp/begun"]).exit_code == 0)
    os.kill(states.shim_pid(shim_directory(container)), signal.SIGKILL)
    until(lambda: container.status.state == "stopped")
    assert processes("16.1803") == []
    with pytest.raises(ConflictError, match="cannot become healthy: it is stopped"):
        container.wait_healthy(WAIT_SECONDS)
    container.start()
    assert health_of(container).status == "starting"
    container.delete(force=True)
    assert not shim_directory(container).exists()
    assert engine.check() == []


def test_probes_leave_no_zombies_and_no_descriptors(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    container = run(engine, image, "true")
    container.wait_healthy(WAIT_SECONDS)
    shim = states.shim_pid(shim_directory(container))

    def descriptors() -> int:
        return len(list(Path(f"/proc/{shim}/fd").iterdir()))

    before = descriptors()
    until_probed(container, 30)
    # A probe has a descriptor for its process, one for its output, and some more while it is being started: so that is
    # looked for which holds between two. Of thirty that left one each none would.
    until(lambda: descriptors() <= before)
    children = Path(f"/proc/{shim}/task/{shim}/children")
    until(lambda: len(children.read_text().split()) == 1)  # init alone


def test_a_fork_is_asked_as_its_source_is(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    source = engine.containers.create(image, SLEEP, health_cmd="true", **FAST)
    fork = source.fork()
    fork.start()
    assert fork.wait_healthy(WAIT_SECONDS).status == "healthy"
