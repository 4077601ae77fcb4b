"""Health checks as configs declare them: Docker's rules."""

from __future__ import annotations

from typing import Any

import pytest

from pyctrd.errors import InvalidError
from pyctrd.oci.health import HealthCheck, HealthConfig, find_health_check

SECOND = 10**9


@pytest.mark.parametrize(
    ("test", "shell", "command"),
    [
        (["CMD", "curl", "-f", "http://localhost/"], None, ("curl", "-f", "http://localhost/")),
        (["CMD-SHELL", "curl || exit 1"], None, ("/bin/sh", "-c", "curl || exit 1")),
        (["CMD-SHELL", "curl"], ["/bin/bash", "-o", "pipefail", "-c"], ("/bin/bash", "-o", "pipefail", "-c", "curl")),
    ],
)
def test_a_test_becomes_a_command(test: list[str], shell: list[str] | None, command: tuple[str, ...]) -> None:
    found = find_health_check({"Healthcheck": {"Test": test}, "Shell": shell}, None)
    assert found == HealthCheck(command, 30 * SECOND, 30 * SECOND, 0, 5 * SECOND, 3)


@pytest.mark.parametrize(
    "said", [None, {}, {"Test": None}, {"Test": []}, {"Test": ["NONE"]}, {"Test": [], "Retries": 1}]
)
def test_nothing_is_no_check(said: Any) -> None:
    assert find_health_check({"Healthcheck": said}, None) is None
    assert find_health_check({}, None) is None


def test_numbers_of_the_image_count_and_0_is_the_default() -> None:
    said = {"Test": ["CMD", "x"], "Interval": 2, "Timeout": 0, "StartPeriod": None, "StartInterval": 4, "Retries": 5}
    said |= {name: said[name] * 1_000_000 for name in ("Interval", "StartInterval")}  # type: ignore[operator]
    assert find_health_check({"Healthcheck": said}, None) == HealthCheck(
        ("x",), 2_000_000, 30 * SECOND, 0, 4_000_000, 5
    )


def test_what_a_user_says_goes_before_the_images() -> None:
    image = {"Healthcheck": {"Test": ["CMD", "x"], "Interval": SECOND, "Timeout": SECOND, "Retries": 7}}
    found = find_health_check(image, HealthConfig(timeout_ns=2 * SECOND))
    assert found == HealthCheck(("x",), SECOND, 2 * SECOND, 0, 5 * SECOND, 7)
    found = find_health_check(image, HealthConfig(("CMD", "y"), retries=1))
    assert found == HealthCheck(("y",), SECOND, SECOND, 0, 5 * SECOND, 1)
    assert find_health_check(image, HealthConfig(("NONE",))) is None
    # A user's own is taken where the image has none, and where it says that there is to be none.
    for said in ({}, {"Healthcheck": {"Test": ["NONE"]}}):
        assert find_health_check(said, HealthConfig(("CMD", "y"))) == HealthCheck(("y",))


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("config.Healthcheck", ["CMD", "x"]),
        ("config.Healthcheck.Test", {"Test": "CMD x"}),
        ("config.Healthcheck.Test", {"Test": ["CMD", 1]}),
        ("config.Healthcheck.Test", {"Test": ["curl", "-f"]}),
        ("config.Healthcheck.Test", {"Test": ["CMD"]}),
        ("config.Healthcheck.Test", {"Test": ["CMD-SHELL", ""]}),
        ("config.Healthcheck.Interval", {"Test": ["CMD", "x"], "Interval": "30s"}),
        ("config.Healthcheck.Interval", {"Test": ["CMD", "x"], "Interval": -1}),
        ("config.Healthcheck.Timeout", {"Test": ["CMD", "x"], "Timeout": 999_999}),
        ("config.Healthcheck.StartPeriod", {"Test": ["CMD", "x"], "StartPeriod": 1 << 63}),
        ("config.Healthcheck.StartInterval", {"Test": ["CMD", "x"], "StartInterval": 1.5}),
        ("config.Healthcheck.Retries", {"Test": ["CMD", "x"], "Retries": True}),
        ("config.Healthcheck.Retries", {"Test": ["CMD", "x"], "Retries": -3}),
    ],
)
def test_what_an_image_says_wrongly_is_named_unless_it_is_left_out(field: str, said: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        find_health_check({"Healthcheck": said}, None)
    assert caught.value.field == field
    assert field.rpartition(".")[2] in str(caught.value) or "health check" in str(caught.value)
    assert find_health_check({"Healthcheck": said}, HealthConfig(("NONE",))) is None


def test_a_shell_that_is_none_is_named() -> None:
    with pytest.raises(InvalidError, match=r"config\.Shell"):
        find_health_check({"Healthcheck": {"Test": ["CMD-SHELL", "x"]}, "Shell": "/bin/sh"}, None)


def test_times_of_no_check_are_refused() -> None:
    with pytest.raises(InvalidError, match="invalid health_timeout_seconds: the image has no health check") as caught:
        find_health_check({}, HealthConfig(timeout_ns=SECOND))
    assert caught.value.field == "health_timeout_seconds"
    with pytest.raises(InvalidError, match="invalid health_retries: "):
        find_health_check({"Healthcheck": {"Test": ["NONE"]}}, HealthConfig(retries=2))
