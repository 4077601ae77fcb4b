"""A container's health, as its check finds it."""

from __future__ import annotations

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.container_files import ContainerFiles


class ContainerHealth(ContainerFiles):
    """The part of a container that its health is."""

    @property
    def health(self) -> pyctrd.Health | None:
        """What its health check found: ``status``, ``failing_streak`` and the last five ``results``.

        None where it has no check. Of one that has ended it is what was known at its end.
        """
        from pyctrd.flows.health import container_health

        return container_health(self._rooms, self._record)

    def wait_healthy(self, timeout: float | None = None) -> pyctrd.Health:
        """Wait until its health check finds that it does its work.

        Restarts by its policy are waited for.

        Args:
            timeout: Seconds; None waits for as long as it runs.

        Raises:
            ConflictError: It does not run, or has ended; or it is unhealthy, which ``state`` says then.
            DeadlineError: ``timeout`` seconds went by.
            NotFoundError: It has no health check.
        """
        from pyctrd.flows.health import wait_healthy

        return wait_healthy(self._rooms, self._record, timeout)

    def run_health_check(self) -> pyctrd.HealthResult:
        """Have a probe run at once, and wait for it; it counts as every other one.

        Returns:
            ``exit_code`` (0 is healthy, -1 is none), ``output``, ``start_ns`` and ``end_ns``.

        Raises:
            ConflictError: The container does not run, or ended or was paused meanwhile.
            NotFoundError: It has no health check.
        """
        from pyctrd.flows.health import run_health_check

        return run_health_check(self._rooms, self._record)
