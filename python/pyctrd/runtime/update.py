"""Limits that change while a container runs: what its ``config.json`` says from now on, and what the runtime is told.

Spec:
    runtime-spec v1.1 config-linux.md, "Control groups"; ``runc update --resources``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pyctrd.errors import InvalidError
from pyctrd.oci.value import NamedTuple
from pyctrd.runtime.cgroups import Groups
from pyctrd.runtime.resources import CPU_PERIOD_US, MEMORY_MIN_BYTES

UNLIMITED = -1
SHARES_DEFAULT = 1024
# The kernel's MIN_SHARES and MAX_SHARES.
SHARES_MIN, SHARES_MAX = 2, 262_144
CPUS_MIN = 0.01
# What an update says of a group; devices are none of it.
_UPDATED = ("memory", "cpu", "pids", "blockIO")


class Changes(NamedTuple):
    """Limits to change; None leaves one as it is, 0 and -1 take it away.

    Attributes:
        memory_bytes: Memory.
        memory_swap_bytes: Memory and swap together, as Docker counts.
        memory_reservation_bytes: What it is reclaimed down to where the host is short.
        cpus: In processors' worth of time.
        cpu_shares: Weight among others; 0 and -1 are the default, 1024.
        cpuset_cpus: Processors, as "0-2,4".
        cpuset_mems: Memory nodes, likewise.
        pids: Processes and threads.
    """

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids: int | None = None


def change_resources(resources: Mapping[str, Any], changes: Changes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The spec's ``linux.resources`` with changes.

    Returns:
        What ``config.json`` says, where no limit is no entry; and what the runtime is told, where it is -1.

    Raises:
        InvalidError: A limit cannot be used.
    """
    _check(changes)
    told = {key: dict(resources[key]) for key in _UPDATED if resources.get(key)}
    for section, key, value in _entries(changes):
        told.setdefault(section, {})[key] = value
    memory = told.get("memory", {})
    limit, both = memory.get("limit"), memory.get("swap")
    if both not in (None, UNLIMITED) and (limit is None or both < limit):
        raise InvalidError(
            f"memory_swap_bytes: expected at least the memory limit, {limit or 'of which there is none'}, got {both}: "
            "it is memory and swap together",
            field="memory_swap_bytes",
            value=both,
        )
    kept = {**resources, **{section: _kept(values) for section, values in told.items()}}
    return {key: value for key, value in kept.items() if value}, told


def check_use(pid: int, container_id: str, changes: Changes) -> str:
    """Why the kernel would refuse a limit, or kill for it; "" where it would not.

    Version 1 refuses a memory limit below what is used; version 2 takes it, and kills processes until it is met.

    Raises:
        FileNotFoundError, ProcessLookupError: The container has ended.
    """
    groups = Groups.of_process(pid, container_id)
    limit = changes.memory_bytes
    used = groups.number("", "memory.current") if "memory" not in groups.v1 else None
    if used is not None and limit is not None and 0 < limit < used:
        return f"memory limit {limit} is below the {used} bytes that it uses"
    return ""


def _entries(changes: Changes) -> list[tuple[str, str, Any]]:
    """Section, key and value of each change, as the runtime takes them."""
    cpus = changes.cpus
    quota = None if cpus is None else round(cpus * CPU_PERIOD_US) if cpus > 0 else UNLIMITED
    shares = SHARES_DEFAULT if changes.cpu_shares in (0, -1) else changes.cpu_shares
    found = (
        ("memory", "limit", _limit(changes.memory_bytes)),
        ("memory", "swap", _limit(changes.memory_swap_bytes)),
        ("memory", "reservation", _limit(changes.memory_reservation_bytes)),
        ("cpu", "quota", quota),
        ("cpu", "period", None if quota is None else CPU_PERIOD_US),
        ("cpu", "shares", shares),
        ("cpu", "cpus", changes.cpuset_cpus),
        ("cpu", "mems", changes.cpuset_mems),
        ("pids", "limit", _limit(changes.pids)),
    )
    entries = [entry for entry in found if entry[2] is not None]
    if changes.memory_bytes in (0, -1) and changes.memory_swap_bytes is None:
        entries.append(("memory", "swap", UNLIMITED))  # a limit of both that is below one of them is none
    return entries


def _limit(value: int | None) -> int | None:
    return UNLIMITED if value == 0 else value


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if value != UNLIMITED}
    return {} if set(kept) == {"period"} else kept


def _check(changes: Changes) -> None:
    at_least = {"memory_bytes": MEMORY_MIN_BYTES, "memory_swap_bytes": MEMORY_MIN_BYTES, "pids": 1}
    at_least["memory_reservation_bytes"] = 1
    for field, least in at_least.items():
        value = getattr(changes, field)
        if value is not None and value not in (0, -1) and value < least:
            raise InvalidError(f"{field}: expected at least {least}, 0 or -1, got {value}", field=field, value=value)
    cpus = changes.cpus
    most = os.cpu_count() or 1
    if cpus is not None and cpus not in (0, -1) and not CPUS_MIN <= cpus <= most:
        raise InvalidError(f"cpus: expected {CPUS_MIN} to {most}, 0 or -1, got {cpus}", field="cpus", value=cpus)
    shares = changes.cpu_shares
    if shares is not None and shares not in (0, -1) and not SHARES_MIN <= shares <= SHARES_MAX:
        raise InvalidError(
            f"cpu_shares: expected {SHARES_MIN} to {SHARES_MAX}, 0 or -1, got {shares}",
            field="cpu_shares",
            value=shares,
        )
    for field in ("cpuset_cpus", "cpuset_mems"):
        text = getattr(changes, field)
        if text is not None and not _is_list(text):
            raise InvalidError(f'{field}: {text!r}: expected numbers and ranges, as "0-2,4"', field=field, value=text)


def _is_list(text: str) -> bool:
    ranges = [part.split("-") for part in text.split(",")]
    return all(len(ends) <= 2 and all(end.isascii() and end.isdigit() for end in ends) for ends in ranges)
