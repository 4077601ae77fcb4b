"""What users say of health checks, and where they see what was found."""

from __future__ import annotations

import json
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import ConflictError, InvalidError
from pyctrd.metadata.database import Database
from tests.children import until
from tests.images import Images, build_image, busybox_tar
from tests.integration.conftest import Cli

pytestmark = pytest.mark.root

WAIT_SECONDS = 60.0
SLEEP = ["sleep", "600"]
CHECK = {
    "Test": ["CMD", "test", "-e", "/etc/passwd"],
    "Interval": 50_000_000,
    "Timeout": 20_000_000_000,
    "StartPeriod": 1_000_000,
    "StartInterval": 40_000_000,
    "Retries": 9,
}


@pytest.fixture
def busybox(engine: pyctrd.Engine, images: Images) -> str:
    """An image without a check, in the store already."""
    return engine.images.pull(images.busybox.reference).name


@pytest.fixture
def checked(engine: pyctrd.Engine, images: Images) -> str:
    """One with a check."""
    config = {"Env": ["PATH=/bin"], "Healthcheck": CHECK}
    return engine.images.pull(images.push(build_image([busybox_tar()], config=config), tag="checked").reference).name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--health-interval", "1s"], "invalid health_interval_seconds: the image has no health check"),
        (["--health-cmd", ""], "invalid health_cmd: expected a command"),
        (
            ["--health-cmd", "true", "--health-interval", "often"],
            "invalid health_interval: 'often': expected a duration",
        ),
        (["--health-cmd", "true", "--health-timeout", "-1s"], "invalid health_timeout: '-1s': expected a duration"),
        (
            ["--health-cmd", "true", "--health-timeout", "10us"],
            "invalid health_timeout_seconds: 1e-05: expected 0, or at",
        ),
        (["--health-cmd", "true", "--health-start-period", "900000000h"], "invalid health_start_period_seconds: "),
        (["--health-cmd", "true", "--health-retries", "-1"], "invalid health_retries: -1: expected 0 to "),
        (["--health-cmd", "true", "--no-healthcheck"], "invalid health_cmd: there is to be no health check"),
        (["--health-retries", "2", "--health-cmd", "none"], "invalid health_retries: there is to be no health check"),
    ],
)
def test_bad_options_are_refused_in_one_line_and_leave_nothing(
    cli: Cli, engine: pyctrd.Engine, busybox: str, words: list[str], told: str
) -> None:
    done = cli("create", *words, busybox, "true")
    assert done.status == 125
    assert done.out == ""
    assert told in done.err.splitlines()[0]
    assert engine.containers.list() == []


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("health_cmd", {"health_cmd": []}),
        ("health_cmd", {"health_cmd": ["a\0b"]}),
        ("health_interval_seconds", {"health_cmd": "true", "health_interval_seconds": float("nan")}),
        ("health_interval_seconds", {"health_cmd": "true", "health_interval_seconds": float("inf")}),
        ("health_timeout_seconds", {"health_cmd": "true", "health_timeout_seconds": -1}),
        ("health_timeout_seconds", {"health_cmd": "true", "health_timeout_seconds": "1s"}),
        ("health_start_interval_seconds", {"no_healthcheck": True, "health_start_interval_seconds": 1}),
        ("health_retries", {"health_cmd": "true", "health_retries": 1.5}),
        ("health_retries", {"health_cmd": "true", "health_retries": True}),
    ],
)
def test_bad_keywords_are_named(engine: pyctrd.Engine, busybox: str, field: str, options: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        engine.containers.create(busybox, SLEEP, **options)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"invalid {field}") or field in str(caught.value)
    assert engine.containers.list() == []


def test_an_image_whose_check_is_none_can_be_run_without(cli: Cli, engine: pyctrd.Engine, images: Images) -> None:
    built = build_image([busybox_tar()], config={"Env": ["PATH=/bin"], "Healthcheck": {"Test": ["curl"]}})
    name = engine.images.pull(images.push(built, tag="wrong").reference).name
    done = cli("run", name, "true")
    assert (done.status, engine.containers.list()) == (125, [])
    assert done.err.splitlines() == [
        "pyctrd: invalid health check: ['curl']: expected CMD or CMD-SHELL and a command, or NONE",
        "hint: choose another check, or none: --no-healthcheck",
    ]
    assert cli("run", "--no-healthcheck", name, "true").status == 0
    assert cli("run", "--health-cmd", "true", name, "true").status == 0


def test_options_of_the_command_line_reach_the_shim(cli: Cli, engine: pyctrd.Engine, checked: str) -> None:
    made = cli(
        "create", "--health-cmd", "echo ok", "--health-interval", "1m30s", "--health-timeout", "500ms",
        "--health-retries", "4", "--health-start-period", "2s", "--health-start-interval", "250ms", checked, "true",
    )  # fmt: skip
    assert engine.containers.get(made.out.strip()).inspect()["health_check"] == {
        "command": ["/bin/sh", "-c", "echo ok"],
        "interval_ns": 90_000_000_000,
        "timeout_ns": 500_000_000,
        "start_period_ns": 2_000_000_000,
        "start_interval_ns": 250_000_000,
        "retries": 4,
    }
    kept = cli("create", "--health-retries", "4", checked, "true")
    check = engine.containers.get(kept.out.strip()).inspect()["health_check"]
    assert (check["command"], check["interval_ns"], check["retries"]) == (CHECK["Test"][1:], CHECK["Interval"], 4)  # type: ignore[index]


def test_health_is_seen_by_every_command(cli: Cli, engine: pyctrd.Engine, busybox: str) -> None:
    often = ["--health-interval", "50ms", "--health-retries", "1"]
    for name, check in (("good", "echo fine"), ("bad", "exit 9"), ("slow", "sleep 600")):
        cli("run", "-d", "--name", name, "--health-cmd", check, *often, busybox, *SLEEP)
    cli("run", "-d", "--name", "plain", busybox, *SLEEP)
    good, bad = engine.containers.get("good"), engine.containers.get("bad")
    assert cli("wait", "--condition", "healthy", "good").out == "healthy\n"
    until(lambda: bad.health is not None and bad.health.status == "unhealthy")
    shown = {line.split()[1]: line for line in cli("ps").out.splitlines()[1:]}
    assert shown["good"].endswith(" (healthy)")
    assert shown["bad"].endswith(" (unhealthy)")
    assert shown["slow"].endswith(" (health: starting)")
    assert "health" not in shown["plain"]
    facts = {line["name"]: line["health"] for line in cli("ps", "--json").lines}
    assert facts == {"good": "healthy", "bad": "unhealthy", "slow": "starting", "plain": None}
    for health, name in (("healthy", "good"), ("unhealthy", "bad"), ("starting", "slow"), ("none", "plain")):
        assert [line["name"] for line in cli("ps", "--json", "--filter", f"health={health}").lines] == [name]
    refused = cli("ps", "--filter", "health=well")
    assert (refused.status, "health='well': expected one of starting, healthy" in refused.err) == (1, True)

    (told,) = cli("inspect", "good").lines
    assert (told["health"]["status"], told["health"]["failing_streak"]) == ("healthy", 0)
    result = told["health"]["results"][-1]
    assert (result["exit_code"], result["output"], result["start"] < result["end"]) == (0, "fine\n", True)
    (plain,) = cli("inspect", "plain").lines
    assert (plain["health"], plain["health_check"]) == (None, None)

    events = cli("events", "--no-follow", "--since", "0", "--filter", "action=health_status", "--json").lines
    assert {(event["name"], event["attributes"]["reason"]) for event in events} == {
        ("good", "healthy"),
        ("bad", "unhealthy"),
    }
    failed = cli("wait", "--condition", "healthy", "bad")
    assert failed.status == 1
    assert failed.err.splitlines()[0].startswith("pyctrd: container bad: is unhealthy: ")
    late = cli("wait", "--condition", "healthy", "--timeout", "0.1", "slow")
    assert "did not become healthy within 0.1 seconds: it is starting" in late.err

    bad.pause()
    assert "health" not in next(line for line in cli("ps").out.splitlines() if " bad " in line)
    good.stop(0)
    assert "health" not in next(line for line in cli("ps", "-a").out.splitlines() if " good " in line)
    assert good.health is not None
    assert good.health.status == "healthy"  # as it was when it ended
    assert cli("ps", "-a", "-q", "--filter", "health=healthy").out == ""


def test_a_probe_can_be_asked_for(cli: Cli, engine: pyctrd.Engine, busybox: str) -> None:
    check = "echo asked; test ! -e /tmp/bad"
    container = engine.containers.run(busybox, SLEEP, name="one", health_cmd=check, health_interval_seconds=600)
    assert container.health == pyctrd.Health("starting", 0, ())
    done = cli("healthcheck", "run", "one")
    assert (done.status, done.out, done.err) == (0, "asked\n", "")
    # It counts.
    assert container.health is not None
    assert container.health.is_healthy
    container.exec_output(["touch", "/tmp/bad"])
    failed = cli("--json", "healthcheck", "run", "one")
    assert failed.status == 1
    assert (failed.lines[0]["exit_code"], failed.lines[0]["output"]) == (1, "asked\n")
    assert container.health.failing_streak == 1
    container.stop(0)
    refused = cli("healthcheck", "run", "one")
    assert refused.status == 1
    assert refused.err == "pyctrd: container one: cannot be probed: it is stopped, with exit code 137\n"
    assert cli("healthcheck", "run", "nobody").status == 1


def test_who_asks_while_a_probe_runs_gets_one_of_after(engine: pyctrd.Engine, busybox: str) -> None:
    check = "touch /tmp/begun; cat /tmp/word; sleep 0.5"
    container = engine.containers.run(busybox, SLEEP, health_cmd=check, health_interval_seconds=0.05)
    until(lambda: container.exec_output(["test", "-e", "/tmp/begun"]).exit_code == 0)
    container.exec_output(["sh", "-c", "echo word > /tmp/word"])
    assert container.run_health_check().output == "word\n"


def test_a_container_that_was_not_started_cannot_become_healthy(engine: pyctrd.Engine, checked: str) -> None:
    container = engine.containers.create(checked, SLEEP)
    with pytest.raises(ConflictError, match="cannot become healthy: it is created"):
        container.wait_healthy()


def test_commit_and_convert_keep_the_check(cli: Cli, engine: pyctrd.Engine, checked: str) -> None:
    container = engine.containers.run(checked, SLEEP)
    container.wait_healthy(WAIT_SECONDS)
    container.commit("localhost/committed:1")
    engine.images.convert("localhost/committed:1", "localhost/converted:1", compression="zstd")
    for name in ("localhost/committed:1", "localhost/converted:1"):
        assert engine.images.get(name).config.raw["config"]["Healthcheck"] == CHECK
        other = engine.containers.run(name, SLEEP)
        assert other.wait_healthy(WAIT_SECONDS).status == "healthy"


def test_a_store_of_before_has_told_no_health(engine: pyctrd.Engine, database: Database, busybox: str) -> None:
    container = engine.containers.run(busybox, SLEEP, health_cmd="true", health_interval_seconds=0.05)
    container.wait_healthy(WAIT_SECONDS)
    assert database.containers.told_health("default", container.id) > 0
    assert database.containers.told_health("default", "0" * 64) == 0
    (event,) = engine.events(actions=["health_status"])
    assert json.loads(json.dumps(dict(event.attributes)))["reason"] == "healthy"
    # Told once, whoever looks.
    assert container.status.state == "running"
    assert len(list(engine.events(actions=["health_status"]))) == 1
