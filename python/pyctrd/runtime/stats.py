"""What a container uses, read from the files of its control groups and its processes: no program is run.

Spec:
    The kernel's admin-guide/cgroup-v2.rst and cgroup-v1/{memory,cpuacct,blkio-controller}.rst; proc_pid_net(5).
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.oci.hold import waiting
from pyctrd.oci.value import NamedTuple
from pyctrd.runtime.cgroups import Groups, parse_number, parse_table

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_MIN_SECONDS = 0.01  # a sample is some twenty files
_US_NS = 1000
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# Of the first line of /proc/stat: user to steal. Guests' time is in the first two already.
_STAT_FIELDS = 8


class CpuStats(NamedTuple):
    """Processor time since the container started. None is what this host's kernel does not tell.

    Attributes:
        usage_ns: In all.
        user_ns: In programs; from the kernel's ticks under version 1.
        system_ns: In the kernel for them.
        per_cpu_ns: By processor; empty under version 2.
        periods: Of the limit that went by.
        throttled_periods: In which it was reached.
        throttled_ns: How long was waited for the next one.
        host_ns: All processors of the host together, idle time included, since its boot.
        online_cpus: How many processors that are.
    """

    usage_ns: int | None = None
    user_ns: int | None = None
    system_ns: int | None = None
    per_cpu_ns: tuple[int, ...] = ()
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None
    host_ns: int = 0
    online_cpus: int = 0


class MemoryStats(NamedTuple):
    """Memory, in bytes. None is what there is not: a limit, swap accounting, the controller.

    Attributes:
        usage_bytes: Charged to it now, the cache of its files included.
        working_set_bytes: The same without cached file data that was not used lately: what the limit really meets.
        limit_bytes: Its own.
        peak_bytes: Most that it ever had (version 2 from Linux 5.19 on).
        swap_bytes: Swapped out.
        swap_limit_bytes: How much may be, beside memory.
        cache_bytes: File data in memory.
        anonymous_bytes: The processes' own.
        kernel_bytes: The kernel's for it.
        oom_events: How often no memory could be had within the limit (version 2).
        oom_kills: How many processes the kernel killed for that.
    """

    usage_bytes: int | None = None
    working_set_bytes: int | None = None
    limit_bytes: int | None = None
    peak_bytes: int | None = None
    swap_bytes: int | None = None
    swap_limit_bytes: int | None = None
    cache_bytes: int | None = None
    anonymous_bytes: int | None = None
    kernel_bytes: int | None = None
    oom_events: int | None = None
    oom_kills: int | None = None


class IoStats(NamedTuple):
    """Transfers of block devices. None where the controller is missing.

    Attributes:
        read_bytes: Read.
        write_bytes: Written.
        read_ops: Requests of that.
        write_ops: Likewise.
    """

    read_bytes: int | None = None
    write_bytes: int | None = None
    read_ops: int | None = None
    write_ops: int | None = None


class InterfaceStats(NamedTuple):
    """One interface of the container's network namespace, as it sees it, since it was made.

    Attributes:
        name: As "eth0".
        rx_bytes: Received.
        rx_packets: Received.
        rx_errors: That were none.
        rx_dropped: For which there was no room.
        tx_bytes: Sent.
        tx_packets: Sent.
        tx_errors: That could not be.
        tx_dropped: Likewise.
    """

    name: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


class ContainerStats(NamedTuple):
    """What a container uses at one moment.

    Attributes:
        id: The container's.
        name: The container's.
        time_ns: When, in nanoseconds since 1970.
        cpu: Processor time.
        memory: Memory.
        io: Block devices.
        pids: Processes and threads; None where the controller is missing.
        pids_limit: How many there may be; None for no limit.
        network: By interface; loopback included. Empty with the host's network, which is not the container's.
    """

    id: str
    name: str
    time_ns: int
    cpu: CpuStats
    memory: MemoryStats
    io: IoStats
    pids: int | None
    pids_limit: int | None
    network: tuple[InterfaceStats, ...]

    def cpu_percent(self, before: ContainerStats) -> float:
        """The share of one processor that was used since a sample before, as Docker shows it: 200 is two.

        Args:
            before: Of the same container. Where no time went by, or it was started again since, the answer is 0.
        """
        used = (self.cpu.usage_ns or 0) - (before.cpu.usage_ns or 0)
        host = self.cpu.host_ns - before.cpu.host_ns
        return used / host * self.cpu.online_cpus * 100 if used > 0 and host > 0 else 0.0


def read_stats(pid: int, container_id: str, name: str) -> ContainerStats:
    """One sample.

    Args:
        pid: The container's init.
        container_id: Names its groups.
        name: Only passed on.

    Raises:
        FileNotFoundError, ProcessLookupError: It has ended.
        UnsupportedError: No controller that counts is mounted here.
    """
    groups = Groups.of_process(pid, container_id)
    if not groups.v1 and (groups.v2 is None or groups.directory("", "cgroup.controllers") is None):
        raise UnsupportedError(
            f"container {container_id}: no control group of it can be read",
            feature="container statistics",
            needs="cgroup v1 controllers or v2 mounted, and the container's group in them",
        )
    host_ns, online = parse_host_cpu(Path("/proc/stat").read_text())
    return ContainerStats(
        id=container_id,
        name=name,
        time_ns=time.time_ns(),
        cpu=_cpu(groups)._replace(host_ns=host_ns, online_cpus=online),
        memory=_memory(groups),
        io=_io(groups),
        pids=_first(groups.number("pids", "pids.current"), groups.number("", "pids.current")),
        pids_limit=_first(groups.number("pids", "pids.max"), groups.number("", "pids.max")),
        network=_network(pid),
    )


def stream_stats(pid: int, interval: float, sample: Callable[[], ContainerStats | None]) -> Iterator[ContainerStats]:
    """A sample now and at each interval, until the process ends.

    Args:
        pid: The container's init; the caller has seen that it is.
        interval: Seconds.
        sample: Takes one; None where the container has ended.

    Raises:
        InvalidError: The interval is too short.
    """
    if not interval >= INTERVAL_MIN_SECONDS:
        raise InvalidError(
            f"invalid interval: {interval}: expected at least {INTERVAL_MIN_SECONDS} seconds",
            field="interval",
            value=interval,
        )
    return _walk(pid, interval, sample)


def _walk(pid: int, interval: float, sample: Callable[[], ContainerStats | None]) -> Iterator[ContainerStats]:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        due = time.monotonic()
        # Asked once the descriptor holds the process: so it is not another one with its number.
        while (found := sample()) is not None:
            yield found
            due = max(due + interval, time.monotonic())
            if _ends_before(pidfd, due):
                return
    finally:
        os.close(pidfd)


def _ends_before(pidfd: int, due: float) -> bool:
    """Wait until a time of the monotonic clock; whether the process ended before."""
    bell = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(bell, select.POLLIN)
        with waiting(partial(os.eventfd_write, bell, 1)):
            return bool(poll.poll(max(0.0, due - time.monotonic()) * 1000))
    finally:
        os.close(bell)


def parse_host_cpu(text: str) -> tuple[int, int]:
    """Time of all processors, in nanoseconds, and how many there are, from ``/proc/stat``."""
    lines = text.splitlines()
    total = sum(int(field) for field in lines[0].split()[1 : 1 + _STAT_FIELDS])
    online = sum(line.startswith("cpu") and line[3:4].isdigit() for line in lines)
    return total * _TICK_NS, online


def parse_network(text: str) -> tuple[InterfaceStats, ...]:
    """The interfaces in ``/proc/PID/net/dev``."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        values = [int(number) for number in numbers.split()]
        found.append(InterfaceStats(name.strip(), *values[0:4], *values[8:12]))
    return tuple(found)


def parse_io_v2(text: str | None) -> IoStats:
    """The sum over all devices of ``io.stat``."""
    if text is None:
        return IoStats()
    sums = dict.fromkeys(("rbytes", "wbytes", "rios", "wios"), 0)
    for line in text.splitlines():
        for word in line.split()[1:]:
            key, _, value = word.partition("=")
            if key in sums and value.isdigit():
                sums[key] += int(value)
    return IoStats(*sums.values())


def parse_io_v1(text: str | None) -> tuple[int, int] | None:
    """What was read and written in all, of a file of ``blkio.throttle``: bytes, or requests."""
    if text is None:
        return None
    sums = {"Read": 0, "Write": 0}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in sums:
            sums[words[1]] += int(words[2])
    return sums["Read"], sums["Write"]


def _cpu(groups: Groups) -> CpuStats:
    if (usage := groups.number("cpuacct", "cpuacct.usage")) is not None:
        ticks = groups.table("cpuacct", "cpuacct.stat")
        limit = groups.table("cpu", "cpu.stat")
        per_cpu = (groups.text("cpuacct", "cpuacct.usage_percpu") or "").split()
        return CpuStats(
            usage_ns=usage,
            user_ns=_times(ticks.get("user"), _TICK_NS),
            system_ns=_times(ticks.get("system"), _TICK_NS),
            per_cpu_ns=tuple(int(number) for number in per_cpu),
            periods=limit.get("nr_periods"),
            throttled_periods=limit.get("nr_throttled"),
            throttled_ns=limit.get("throttled_time"),
        )
    table = groups.table("", "cpu.stat")  # usage is there also without the controller
    return CpuStats(
        usage_ns=_times(table.get("usage_usec"), _US_NS),
        user_ns=_times(table.get("user_usec"), _US_NS),
        system_ns=_times(table.get("system_usec"), _US_NS),
        periods=table.get("nr_periods"),
        throttled_periods=table.get("nr_throttled"),
        throttled_ns=_times(table.get("throttled_usec"), _US_NS),
    )


def _memory(groups: Groups) -> MemoryStats:
    if "memory" in groups.v1:
        return parse_memory_v1(lambda file: groups.text("memory", file))
    return parse_memory_v2(lambda file: groups.text("", file))


def parse_memory_v1(read: Callable[[str], str | None]) -> MemoryStats:
    """From version 1's files, which ``read`` gives by their names."""
    usage = parse_number(read("memory.usage_in_bytes"))
    if usage is None:
        return MemoryStats()
    table = parse_table(read("memory.stat"))
    limit = parse_number(read("memory.limit_in_bytes"))
    both, both_limit = (parse_number(read(f"memory.memsw.{name}_in_bytes")) for name in ("usage", "limit"))
    swap_limit = None if both_limit is None or limit is None else max(0, both_limit - limit)
    return MemoryStats(
        usage_bytes=usage,
        working_set_bytes=max(0, usage - table.get("total_inactive_file", 0)),
        limit_bytes=limit,
        peak_bytes=parse_number(read("memory.max_usage_in_bytes")),
        swap_bytes=table.get("total_swap", None if both is None else max(0, both - usage)),
        swap_limit_bytes=swap_limit,
        cache_bytes=table.get("total_cache"),
        anonymous_bytes=table.get("total_rss"),
        kernel_bytes=parse_number(read("memory.kmem.usage_in_bytes")),
        oom_kills=parse_table(read("memory.oom_control")).get("oom_kill"),
    )


def parse_memory_v2(read: Callable[[str], str | None]) -> MemoryStats:
    """From version 2's files, which ``read`` gives by their names."""
    usage = parse_number(read("memory.current"))
    if usage is None:
        return MemoryStats()
    table = parse_table(read("memory.stat"))
    events = parse_table(read("memory.events"))
    return MemoryStats(
        usage_bytes=usage,
        working_set_bytes=max(0, usage - table.get("inactive_file", 0)),
        limit_bytes=parse_number(read("memory.max")),
        peak_bytes=parse_number(read("memory.peak")),
        swap_bytes=parse_number(read("memory.swap.current")),
        swap_limit_bytes=parse_number(read("memory.swap.max")),
        cache_bytes=table.get("file"),
        anonymous_bytes=table.get("anon"),
        kernel_bytes=table.get("kernel"),
        oom_events=events.get("oom"),
        oom_kills=events.get("oom_kill"),
    )


def _io(groups: Groups) -> IoStats:
    if "blkio" not in groups.v1:
        return parse_io_v2(groups.text("", "io.stat"))

    def both(kind: str) -> tuple[int, int] | None:
        # Where an I/O scheduler does the accounting, only the second one is filled.
        file = f"blkio.throttle.io_{kind}_recursive"
        return parse_io_v1(groups.text("blkio", file)) or parse_io_v1(groups.text("blkio", f"blkio.throttle.io_{kind}"))

    moved, asked = both("service_bytes"), both("serviced")
    return IoStats(*(moved or (None, None)), *(asked or (None, None)))


def _network(pid: int) -> tuple[InterfaceStats, ...]:
    own = Path("/proc/self/ns/net").readlink()
    if Path(f"/proc/{pid}/ns/net").readlink() == own:
        return ()
    return parse_network(Path(f"/proc/{pid}/net/dev").read_text())


def _times(value: int | None, factor: int) -> int | None:
    return None if value is None else value * factor


def _first(one: int | None, other: int | None) -> int | None:
    return other if one is None else one
