"""Containers whose shim was killed: ended, and written down as well as it can be known how they ended."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from pyctrd.runtime import life, state
from pyctrd.runtime.state import ExitStatus

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.runtime.runc import Runc


def end_orphan(runc: Runc, container_id: str, bundle: Path, directory: Path) -> bool:
    """As ``Runtime.end_orphan``, for what seemed to be one a moment ago.

    Args:
        runc: The runtime that it was started with.
        container_id: Which one.
        bundle: Where its exit record will be.
        directory: Its shim's own; made where it is gone while the runtime still knows the container.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with state.shim_lock(directory) as is_ours:
        running = state.read_running(directory)
        # Somebody else may have done this, and started it again, since the look.
        if not is_ours or state.read_exit(bundle) is not None:
            return False
        if running is None:
            runc.delete(container_id)  # nobody was told that it had started, and so it never has
            return True
        if (written := state.read_exit(directory)) is not None:
            return _record_end(bundle, directory, written)
        was_alive = running.is_alive()
        runc.delete(container_id)
        ended = state.last_seen(bundle, running)
        if was_alive:
            error = "its shim was killed, and then it was"
            ended = ExitStatus(128 + signal.SIGKILL, signal.SIGKILL, running.started_ns, time.time_ns(), error)
        _record_end(bundle, directory, ended)
    return True


def _record_end(bundle: Path, directory: Path, ended: ExitStatus) -> bool:
    """Write down how a container ended, or, where the disk is full, in memory until there is room; whether it is."""
    try:
        life.replace_durably(bundle / state.EXIT_RECORD, ended.to_json())
    except OSError:
        if state.read_exit(directory) is None:
            life.replace_durably(directory / state.EXIT_RECORD, ended.to_json())
        return False
    (directory / state.EXIT_RECORD).unlink(missing_ok=True)
    return True
