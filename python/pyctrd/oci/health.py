"""Health checks as image configs and users declare them, and what comes of both.

Spec:
    docker-image-spec v1.3, "Healthcheck", which image-spec v1.1 config.md reserves the name for; rules and defaults are
    those of Docker's daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyctrd.errors import InvalidError
from pyctrd.oci.document import invalid
from pyctrd.oci.value import NamedTuple

SECOND_NS = 1_000_000_000
DEFAULT_INTERVAL_NS = 30 * SECOND_NS
DEFAULT_TIMEOUT_NS = 30 * SECOND_NS
DEFAULT_START_INTERVAL_NS = 5 * SECOND_NS
DEFAULT_RETRIES = 3
# What runs a command that is one text, where the image says no other shell.
SHELL = ("/bin/sh", "-c")
TIME_LEAST_NS = 1_000_000  # as Docker's: less would do nothing but start probes
TIME_MOST_NS = (1 << 63) - 1
RETRIES_MOST = (1 << 32) - 1
NONE = "NONE"
_TIMES = {
    "interval_ns": "Interval",
    "timeout_ns": "Timeout",
    "start_period_ns": "StartPeriod",
    "start_interval_ns": "StartInterval",
}
_HINT = "choose another check, or none: --no-healthcheck"


class HealthCheck(NamedTuple):
    """How a container is asked for its health.

    Attributes:
        command: The program and its arguments; its exit code 0 is healthy.
        interval_ns: From the end of a probe, or the start, to the next, in nanoseconds.
        timeout_ns: After so long a probe is ended, and has failed.
        start_period_ns: Failures so soon after the start do not count, unless one was healthy before.
        start_interval_ns: In place of the interval until then.
        retries: So many failures in a row are unhealthy.
    """

    command: tuple[str, ...]
    interval_ns: int = DEFAULT_INTERVAL_NS
    timeout_ns: int = DEFAULT_TIMEOUT_NS
    start_period_ns: int = 0
    start_interval_ns: int = DEFAULT_START_INTERVAL_NS
    retries: int = DEFAULT_RETRIES


class HealthConfig(NamedTuple):
    """What an image or a user says of it.

    Attributes:
        test: "NONE" alone, "CMD" and the words of a command, or "CMD-SHELL" and a text for a shell; () is not said.
        interval_ns: 0 is not said, as with the others.
        timeout_ns: See ``HealthCheck``.
        start_period_ns: Likewise.
        start_interval_ns: Likewise.
        retries: Likewise.
    """

    test: tuple[str, ...] = ()
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0

    @property
    def is_off(self) -> bool:
        """Whether it says that there is to be none."""
        return self.test[:1] == (NONE,)

    @classmethod
    def read(cls, values: Any) -> HealthConfig:
        """An image config's ``Healthcheck``.

        Raises:
            InvalidError: It is none; ``field`` says where.
        """
        field = "config.Healthcheck"
        if values is None:
            return cls()
        if not isinstance(values, Mapping):
            raise invalid(field, values, "an object")
        test = values.get("Test") or ()
        if not isinstance(test, list | tuple) or not all(isinstance(word, str) for word in test):
            raise invalid(f"{field}.Test", test, "an array of texts")
        numbers = {
            name: _number(f"{field}.{key}", values.get(key), TIME_LEAST_NS, TIME_MOST_NS)
            for name, key in _TIMES.items()
        }
        retries = _number(f"{field}.Retries", values.get("Retries"), 1, RETRIES_MOST)
        return cls(tuple(test), **numbers, retries=retries)

    def over(self, other: HealthConfig) -> HealthConfig:
        """This, and the other's where this does not say."""
        return HealthConfig(
            self.test or other.test,
            self.interval_ns or other.interval_ns,
            self.timeout_ns or other.timeout_ns,
            self.start_period_ns or other.start_period_ns,
            self.start_interval_ns or other.start_interval_ns,
            self.retries or other.retries,
        )

    def settle(self, shell: tuple[str, ...] = SHELL) -> HealthCheck | None:
        """What is to be done; None is nothing.

        Args:
            shell: Runs a text.

        Raises:
            InvalidError: The test is none.
        """
        if not self.test or self.is_off:
            return None
        kind, *words = self.test
        if kind not in ("CMD", "CMD-SHELL") or not words or not words[0]:
            shown = list(self.test)
            raise InvalidError(
                f"invalid health check: {shown!r}: expected CMD or CMD-SHELL and a command, or NONE",
                field="config.Healthcheck.Test",
                value=shown,
                hint=_HINT,
            )
        command = (*shell, *words) if kind == "CMD-SHELL" else tuple(words)
        return HealthCheck(
            command,
            self.interval_ns or DEFAULT_INTERVAL_NS,
            self.timeout_ns or DEFAULT_TIMEOUT_NS,
            self.start_period_ns,
            self.start_interval_ns or DEFAULT_START_INTERVAL_NS,
            self.retries or DEFAULT_RETRIES,
        )


def find_health_check(run: Mapping[str, Any], wanted: HealthConfig | None) -> HealthCheck | None:
    """The health check of a container.

    Args:
        run: The ``config`` object of its image's config.
        wanted: What the user says, which goes before the image's; None is nothing.

    Raises:
        InvalidError: What either says cannot be done, or the user's times are of no check.
    """
    if wanted is not None and wanted.is_off:
        return None
    said = HealthConfig.read(run.get("Healthcheck"))
    if wanted is not None and not wanted.test and (not said.test or said.is_off):
        name = next(name for name, value in wanted._asdict().items() if value)
        name = name.replace("_ns", "_seconds")
        raise InvalidError(
            f"invalid health_{name}: the image has no health check, and none was given",
            field=f"health_{name}",
            hint="give its command: --health-cmd",
        )
    shell = run.get("Shell") or SHELL
    if not isinstance(shell, list | tuple) or not all(isinstance(word, str) for word in shell):
        raise invalid("config.Shell", shell, "an array of texts")
    return (said if wanted is None else wanted.over(said)).settle(tuple(shell))


def _number(field: str, value: Any, least: int, most: int) -> int:
    if value is None or (type(value) is int and value == 0):
        return 0
    if type(value) is not int or not least <= value <= most:
        raise invalid(field, value, f"0, or {least} to {most}")
    return value
