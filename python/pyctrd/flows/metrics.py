"""Containers' use as Prometheus reads it: docs/metrics.md.

Spec:
    Prometheus' text exposition format 0.0.4; names as cAdvisor has them where it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pyctrd.errors import UnsupportedError
from pyctrd.flows.observe import stats_of_all
from pyctrd.flows.runs import notice

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.runtime.state import ContainerStatus
    from pyctrd.runtime.stats import ContainerStats

_NS = 1e-9
STATES = ("created", "running", "paused", "restarting", "stopped")
Sample = tuple[str, float]
# Name, kind, help, and its value of a sample; None is left out.
_STATS: tuple[tuple[str, str, str, Callable[[ContainerStats], float | None]], ...] = (
    ("container_cpu_usage_seconds_total", "counter", "Processor time.", lambda s: _seconds(s.cpu.usage_ns)),
    ("container_cpu_user_seconds_total", "counter", "In programs.", lambda s: _seconds(s.cpu.user_ns)),
    ("container_cpu_system_seconds_total", "counter", "In the kernel.", lambda s: _seconds(s.cpu.system_ns)),
    ("container_cpu_cfs_periods_total", "counter", "Periods of the limit.", lambda s: s.cpu.periods),
    (
        "container_cpu_cfs_throttled_periods_total",
        "counter",
        "Periods in which the limit was reached.",
        lambda s: s.cpu.throttled_periods,
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "counter",
        "Time that was waited for the next period.",
        lambda s: _seconds(s.cpu.throttled_ns),
    ),
    ("container_memory_usage_bytes", "gauge", "Memory, cached files included.", lambda s: s.memory.usage_bytes),
    (
        "container_memory_working_set_bytes",
        "gauge",
        "Memory without cached files that were not used lately.",
        lambda s: s.memory.working_set_bytes,
    ),
    ("container_memory_max_usage_bytes", "gauge", "Most that it had.", lambda s: s.memory.peak_bytes),
    ("container_memory_cache", "gauge", "File data in memory, in bytes.", lambda s: s.memory.cache_bytes),
    ("container_memory_rss", "gauge", "The processes' own memory, in bytes.", lambda s: s.memory.anonymous_bytes),
    ("container_memory_swap", "gauge", "Swapped out, in bytes.", lambda s: s.memory.swap_bytes),
    ("container_oom_events_total", "counter", "Processes killed for want of memory.", lambda s: s.memory.oom_kills),
    ("container_spec_memory_limit_bytes", "gauge", "Limit; 0 is none.", lambda s: s.memory.limit_bytes or 0),
    ("container_processes_and_threads", "gauge", "Processes and threads.", lambda s: s.pids),
    ("container_threads_max", "gauge", "Limit of those; 0 is none.", lambda s: s.pids_limit or 0),
    ("container_fs_reads_bytes_total", "counter", "Read of block devices.", lambda s: s.io.read_bytes),
    ("container_fs_writes_bytes_total", "counter", "Written to them.", lambda s: s.io.write_bytes),
    ("container_fs_reads_total", "counter", "Requests to read.", lambda s: s.io.read_ops),
    ("container_fs_writes_total", "counter", "Requests to write.", lambda s: s.io.write_ops),
    ("container_last_seen", "gauge", "When this was read, in seconds since 1970.", lambda s: s.time_ns * _NS),
)
_NETWORK = (
    ("container_network_receive_bytes_total", "Received.", "rx_bytes"),
    ("container_network_receive_packets_total", "Received.", "rx_packets"),
    ("container_network_receive_errors_total", "Received that were none.", "rx_errors"),
    ("container_network_receive_packets_dropped_total", "Received, no room.", "rx_dropped"),
    ("container_network_transmit_bytes_total", "Sent.", "tx_bytes"),
    ("container_network_transmit_packets_total", "Sent.", "tx_packets"),
    ("container_network_transmit_errors_total", "That could not be sent.", "tx_errors"),
    ("container_network_transmit_packets_dropped_total", "Not sent, no room.", "tx_dropped"),
)


def metrics_text(rooms: Rooms, *, all_namespaces: bool = False) -> str:
    """See ``Engine.metrics``."""
    names = [known.name for known in rooms.database.namespaces.list()] if all_namespaces else [rooms.namespace]
    looked_at = [(record, notice(rooms, record)) for name in names for record in rooms.database.containers.list(name)]
    records = {record.id: record for record, _ in looked_at}
    samples: list[ContainerStats] = []
    for name in names:
        try:
            samples += (sample for sample in stats_of_all(rooms, name) if sample.id in records)
        except UnsupportedError:
            continue  # what is known without control groups is told all the same
    lines = [*_of_states(looked_at), *_of_stats(records, samples), *_of_network(records, samples)]
    return "".join(line + "\n" for line in lines)


def _of_states(looked_at: Sequence[tuple[ContainerRecord, ContainerStatus]]) -> Iterator[str]:
    states = [
        (_labels(record, state=state), float(status.state == state)) for record, status in looked_at for state in STATES
    ]
    yield from _family("pyctrd_container_state", "gauge", "1 for the state that it is in.", states)
    started = [(_labels(record), status.started_ns * _NS) for record, status in looked_at if status.started_ns]
    yield from _family("container_start_time_seconds", "gauge", "When it was started, in seconds since 1970.", started)
    codes = [(_labels(record), float(status.exit.exit_code)) for record, status in looked_at if status.exit]
    yield from _family("pyctrd_container_exit_code", "gauge", "How it ended.", codes)
    killed = [(_labels(record), float(status.exit.oom)) for record, status in looked_at if status.exit]
    yield from _family(
        "pyctrd_container_oom_killed", "gauge", "1 if the kernel killed in it for want of memory.", killed
    )


def _of_stats(records: dict[str, ContainerRecord], samples: Sequence[ContainerStats]) -> Iterator[str]:
    for name, kind, what, value_of in _STATS:
        values = [
            (_labels(records[sample.id]), float(value)) for sample in samples if (value := value_of(sample)) is not None
        ]
        yield from _family(name, kind, what, values)


def _of_network(records: dict[str, ContainerRecord], samples: Sequence[ContainerStats]) -> Iterator[str]:
    for name, what, field in _NETWORK:
        values = [
            (_labels(records[sample.id], interface=one.name), float(getattr(one, field)))
            for sample in samples
            for one in sample.network
        ]
        yield from _family(name, "counter", what, values)


def _family(name: str, kind: str, what: str, samples: Sequence[Sample]) -> Iterator[str]:
    if samples:
        yield f"# HELP {name} {what}"
        yield f"# TYPE {name} {kind}"
        for labels, value in samples:
            yield f"{name}{{{labels}}} {int(value) if value.is_integer() else repr(value)}"


def _labels(record: ContainerRecord, **more: str) -> str:
    own = {"namespace": record.namespace, "id": record.id, "name": record.name, "image": record.image_name}
    return ",".join(f'{key}="{_escape(value)}"' for key, value in {**own, **more}.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns * _NS
