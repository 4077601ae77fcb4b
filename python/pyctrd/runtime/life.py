"""What a container's shim does besides holding it: its log, its restarts, its health check. Kept in the bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from pyctrd.errors import InvalidError, naming
from pyctrd.oci.health import HealthCheck
from pyctrd.oci.value import NamedTuple

# Of one file, and of how many: the kubelet's defaults. A container that writes without end takes 50 MiB and no more;
# what it said last is there, and a day's ordinary output is, too. Docker's default, no bound, fills the disk.
LOG_MAX_BYTES = 10 << 20
LOG_MAX_FILES = 5
LOG_FILES_MOST = 1000  # each is renamed when the log is rotated
LOG_DRIVERS = ("json-file", "cri", "none")

# As Docker's, between the stop signal and SIGKILL.
STOP_TIMEOUT_SECONDS = 10.0
# A year: what is more is an unwise way to say "never".
STOP_TIMEOUT_MAX_SECONDS = 366 * 24 * 3600.0

LIFE = "life.json"
# Read by the shim at the end of each run, so that a policy can be changed while it waits.
POLICY = "restart"
# There from the moment on in which the user wants the container to end, until it is started again.
STOPPED = "stopped"
# The ends of runs that were followed by others, a line each; the shim writes it.
RUNS = "runs"
# Changes of its health, a line each; the shim writes it.
HEALTH = "health"
RESTARTS_MAX = (1 << 32) - 1
_BODY_MAX_BYTES = 256 << 10


class Life(NamedTuple):
    """What the shim is told when it starts a container.

    Attributes:
        log_driver: "json-file", "cri" or "none".
        log_max_bytes: Of one file of the log; 0 is any size.
        log_max_files: Of the log, the written one among them.
        stdin: Whether input can be sent to it, where nobody says otherwise.
        stop_timeout_seconds: How long ``stop`` waits before it kills, where nobody says otherwise.
        health: How its health is asked for; None is not at all.
    """

    log_driver: str = "json-file"
    log_max_bytes: int = LOG_MAX_BYTES
    log_max_files: int = LOG_MAX_FILES
    stdin: bool = False
    stop_timeout_seconds: float = STOP_TIMEOUT_SECONDS
    health: HealthCheck | None = None

    @property
    def words(self) -> list[str]:
        """The shim's arguments for it."""
        return [
            *("--log-driver", self.log_driver),
            *("--log-max-bytes", str(self.log_max_bytes)),
            *("--log-max-files", str(self.log_max_files)),
            *(() if self.health is None else ("--health", ",".join(map(str, self.health[1:])))),
        ]


def check_log(driver: str, max_bytes: int, max_files: int) -> None:
    """Refuse what the shim could not do.

    Raises:
        InvalidError: There is no such driver, or a bound is out of range.
    """
    if driver not in LOG_DRIVERS:
        raise InvalidError(
            f"invalid log driver: {driver!r}: expected {', '.join(LOG_DRIVERS)}", field="log_driver", value=driver
        )
    if max_bytes < 0:
        raise InvalidError(
            f"invalid size of a log: {max_bytes}: expected 0 for any, or more",
            field="log_max_bytes",
            value=str(max_bytes),
        )
    if not 1 <= max_files <= LOG_FILES_MOST:
        raise InvalidError(
            f"invalid number of log files: {max_files}: expected 1 to {LOG_FILES_MOST}",
            field="log_max_files",
            value=str(max_files),
        )


def check_stop_timeout(seconds: float) -> float:
    """Seconds to wait for a container's end, as they are.

    Raises:
        InvalidError: They are less than none, or no number that can be waited for.
    """
    if not 0 <= seconds <= STOP_TIMEOUT_MAX_SECONDS:
        raise InvalidError(
            f"invalid stop_timeout: {seconds}: expected 0 to {STOP_TIMEOUT_MAX_SECONDS:.0f} seconds",
            field="stop_timeout",
            value=str(seconds),
        )
    return float(seconds)


def check_policy(text: str) -> str:
    """A restart policy as the shim reads it.

    Args:
        text: "no", "always", "unless-stopped", "on-failure" or "on-failure:N".

    Raises:
        InvalidError: It is none of these.
    """
    name, colon, times = text.partition(":")
    if name == "on-failure" and (not colon or (times.isascii() and times.isdigit() and int(times) <= RESTARTS_MAX)):
        return text
    if colon or name not in ("", "no", "always", "unless-stopped"):
        raise InvalidError(
            f"invalid restart policy: {text!r}: expected no, always, unless-stopped, on-failure or on-failure:N",
            field="restart",
            value=text,
        )
    return name or "no"


def write_life(bundle: Path, life: Life) -> None:
    """Keep it in the bundle, durably; nothing is written where all is as by default."""
    if life != Life():
        values = life._asdict()
        if life.health is not None:
            values["health"] = life.health._asdict()
        replace_durably(bundle / LIFE, orjson.dumps(values))


def read_life(bundle: Path) -> Life:
    """What ``write_life`` kept.

    Raises:
        InvalidError: Somebody else wrote it.
    """
    body = read_bounded(bundle / LIFE, _BODY_MAX_BYTES)
    if body is None:
        return Life()
    try:
        values: dict[str, Any] = orjson.loads(body)
        if (health := values.get("health")) is not None:
            values["health"] = HealthCheck(**{**health, "command": tuple(health["command"])})
        return Life(**values)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidError(f"{LIFE}: {error}", field=LIFE) from error


def write_policy(bundle: Path, policy: str) -> None:
    """Set the restart policy; the shim looks at it when a run has ended."""
    if policy != read_policy(bundle):
        replace_durably(bundle / POLICY, f"{policy}\n".encode())


def read_policy(bundle: Path) -> str:
    """The restart policy."""
    try:
        return (bundle / POLICY).read_text().strip()
    except FileNotFoundError:
        return "no"


def want_stopped(bundle: Path) -> bool:
    """Record that the user wants the container to end: no policy starts it again, neither now nor after a reboot.

    Durable when this returns, so before the signal: a machine that loses its power then knows it.

    Returns:
        Whether the container has a policy at all; without one nothing is recorded.
    """
    if read_policy(bundle) == "no":
        return False
    if not (bundle / STOPPED).exists():
        replace_durably(bundle / STOPPED, b"")
    return True


def is_wanted_stopped(bundle: Path) -> bool:
    """Whether the user wanted it to end, and has not started it since."""
    return (bundle / STOPPED).exists()


def forget_runs(bundle: Path) -> None:
    """What was of the last start: the user's wish, the ends of its runs, and how its health changed."""
    for name in (STOPPED, RUNS, HEALTH):
        (bundle / name).unlink(missing_ok=True)


def replace_durably(path: Path, body: bytes) -> None:
    """Replace a file: after a power cut there is the old one or the whole new one."""
    staged = path.with_name(path.name + ".tmp")
    with naming(staged):
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    flush_directory(path.parent)


def read_bounded(path: Path, max_bytes: int) -> bytes | None:
    """A record's bytes, no more than so many; None where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except FileNotFoundError:
        return None


def flush_directory(directory: Path) -> None:
    """Make what was renamed in it survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with naming(directory):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
