"""What control groups and /proc say of a container: the parsers on text of real kernels, and real containers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pyctrd.errors import ConflictError, InvalidError, NotFoundError, RuncError, UnsupportedError
from pyctrd.runtime import stats
from pyctrd.runtime.cgroups import Groups, parse_number, parse_table
from pyctrd.runtime.processes import list_processes, parse_id_map, parse_stat
from pyctrd.runtime.state import ExitStatus
from pyctrd.runtime.stats import ContainerStats, CpuStats, InterfaceStats, IoStats, MemoryStats
from pyctrd.runtime.update import Changes, change_resources
from pyctrd.runtime.users import user_names
from tests.children import until
from tests.runtime.conftest import Host

MIB = 1 << 20
ID = "9c8f" * 16
V1_GROUPS = f"""\
9:name=systemd:/
8:pids:/pyctrd/{ID}
5:cpu,cpuacct:/pyctrd/{ID}
4:memory:/pyctrd/{ID}/inner
3:cpuset:/
0::/
"""
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2_MOUNTS = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
V2_MEMORY = {
    "memory.current": "12582912\n",
    "memory.max": "67108864\n",
    "memory.peak": "20971520\n",
    "memory.swap.current": "4096\n",
    "memory.swap.max": "max\n",
    "memory.stat": "anon 8388608\nfile 3145728\nkernel 1048576\ninactive_file 2097152\nactive_file 1048576\n",
    "memory.events": "low 0\nhigh 0\nmax 93\noom 3\noom_kill 2\noom_group_kill 0\n",
}
V1_MEMORY = {
    "memory.usage_in_bytes": "12582912\n",
    "memory.limit_in_bytes": "67108864\n",
    "memory.max_usage_in_bytes": "20971520\n",
    "memory.memsw.usage_in_bytes": "12587008\n",
    "memory.memsw.limit_in_bytes": "134217728\n",
    "memory.kmem.usage_in_bytes": "1048576\n",
    "memory.stat": (
        "cache 1\nrss 1\ninactive_file 1\nhierarchical_memory_limit 67108864\n"
        "total_cache 3145728\ntotal_rss 8388608\ntotal_swap 4096\ntotal_inactive_file 2097152\n"
    ),
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
}
IO_V2 = """\
8:0 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0
253:0 rbytes=800 wbytes=496 rios=8 wios=7 dbytes=0 dios=0
"""
IO_V1 = """\
8:0 Read 1459200
8:0 Write 314773504
8:0 Sync 314773504
8:0 Async 0
8:0 Discard 0
8:0 Total 316232704
253:0 Read 800
253:0 Write 496
253:0 Total 1296
Total 316234000
"""
NET_DEV = """\
Inter-|   Receive                                              |  Transmit
 face |bytes  packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  eth0: 1296      16    1    2    0     0          0         0      446       5    3    4    0     0       0          0
"""
STAT = "77 (a) b (c) S 1 77 77 0 -1 4194560 158 0 1 0 250 50 0 0 20 0 3 0 155 4460544 221 18446744073709551615 1 1 0\n"


def reader(files: Mapping[str, str]) -> Callable[[str], str | None]:
    """Reads files that are not there, by their names."""
    return lambda name: files[name] if name in files else None  # noqa: SIM401 - of one type


def test_version_1_groups_are_found_by_controller() -> None:
    found = Groups.parse(V1_GROUPS, V1_MOUNTS, ID)
    assert dict(found.v1) == {
        "cpu": Path(f"/sys/fs/cgroup/cpu,cpuacct/pyctrd/{ID}"),
        "cpuacct": Path(f"/sys/fs/cgroup/cpu,cpuacct/pyctrd/{ID}"),
        "memory": Path(f"/sys/fs/cgroup/memory/pyctrd/{ID}"),
        "pids": Path(f"/sys/fs/cgroup/pids/pyctrd/{ID}"),
    }
    assert found.v2 is None
    assert found.path == f"/pyctrd/{ID}"


def test_version_2_group_is_the_containers_own_wherever_its_init_moved() -> None:
    found = Groups.parse(f"0::/pyctrd/{ID}/init.scope\n", V2_MOUNTS, ID)
    assert (dict(found.v1), found.v2) == ({}, Path(f"/sys/fs/cgroup/pyctrd/{ID}"))


def test_a_mount_of_a_part_of_the_hierarchy_shows_what_is_in_it() -> None:
    mounts = "30 23 0:26 /outer /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert Groups.parse(f"0::/outer/pyctrd/{ID}\n", mounts, ID).v2 == Path(f"/sys/fs/cgroup/pyctrd/{ID}")
    assert Groups.parse(f"0::/elsewhere/{ID}\n", mounts, ID).v2 is None
    # Outside of what this process' control group namespace shows.
    assert Groups.parse(f"0::/../{ID}\n", V2_MOUNTS, ID).v2 is None


def test_a_group_that_is_not_the_containers_is_none() -> None:
    assert Groups.parse("4:memory:/\n0::/user.slice\n", V1_MOUNTS, ID) == Groups({}, None, "")
    with pytest.raises(UnsupportedError, match="no control group"):
        stats.read_stats(os.getpid(), ID, "name")


def test_numbers_without_a_limit_are_none() -> None:
    texts = ("12\n", "max\n", "9223372036854771712\n", "-1\n", "", None)
    assert [parse_number(text) for text in texts] == [12, None, None, None, None, None]
    assert parse_table("a 1\nb x\nc\nd 2\n") == {"a": 1, "d": 2}


def test_memory_of_version_2() -> None:
    assert stats.parse_memory_v2(reader(V2_MEMORY)) == MemoryStats(
        usage_bytes=12582912,
        working_set_bytes=10485760,
        limit_bytes=67108864,
        peak_bytes=20971520,
        swap_bytes=4096,
        swap_limit_bytes=None,
        cache_bytes=3145728,
        anonymous_bytes=8388608,
        kernel_bytes=1048576,
        oom_events=3,
        oom_kills=2,
    )
    assert stats.parse_memory_v2(reader({})) == MemoryStats()


def test_memory_of_version_1() -> None:
    assert stats.parse_memory_v1(reader(V1_MEMORY)) == MemoryStats(
        usage_bytes=12582912,
        working_set_bytes=10485760,
        limit_bytes=67108864,
        peak_bytes=20971520,
        swap_bytes=4096,
        swap_limit_bytes=67108864,
        cache_bytes=3145728,
        anonymous_bytes=8388608,
        kernel_bytes=1048576,
        oom_events=None,
        oom_kills=2,
    )
    assert stats.parse_memory_v1(reader({})) == MemoryStats()


def test_all_files_of_version_2_are_read(tmp_path: Path) -> None:
    group = tmp_path / ID
    (group / "inner").mkdir(parents=True)
    for name, text in V2_MEMORY.items():
        (group / name).write_text(text)
    (group / "cpu.stat").write_text(
        "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 3\nthrottled_usec 20\n"
    )
    (group / "io.stat").write_text(IO_V2)
    (group / "cgroup.procs").write_text("12\n7\n")
    (group / "inner" / "cgroup.procs").write_text("9\n")
    groups = Groups({}, group)
    assert stats._memory(groups).oom_kills == 2
    assert stats._cpu(groups) == CpuStats(
        usage_ns=1_500_000,
        user_ns=1_000_000,
        system_ns=500_000,
        periods=4,
        throttled_periods=3,
        throttled_ns=20_000,
    )
    assert stats._io(groups) == IoStats(1460000, 314774000, 200, 360)
    assert groups.processes() == [7, 9, 12]


def test_what_is_missing_is_none(tmp_path: Path) -> None:
    for groups in (Groups({}, tmp_path), Groups({"pids": tmp_path}, None), Groups({}, None)):
        assert stats._memory(groups) == MemoryStats()
        assert stats._cpu(groups) == CpuStats()
        assert stats._io(groups) == IoStats()
        assert groups.processes() == []


def test_transfers_are_summed_over_devices() -> None:
    assert stats.parse_io_v2(IO_V2) == IoStats(1460000, 314774000, 200, 360)
    assert stats.parse_io_v2("8:0\n") == IoStats(0, 0, 0, 0)  # as of a device that did nothing
    assert stats.parse_io_v1(IO_V1) == (1460000, 314774000)
    assert stats.parse_io_v1(None) is None


def test_interfaces_of_the_network() -> None:
    assert stats.parse_network(NET_DEV) == (
        InterfaceStats("lo"),
        InterfaceStats("eth0", 1296, 16, 1, 2, 446, 5, 3, 4),
    )


def test_share_of_processors_is_dockers() -> None:
    def sample(usage_ns: int | None, host_ns: int) -> ContainerStats:
        cpu = CpuStats(usage_ns=usage_ns, host_ns=host_ns, online_cpus=4)
        return ContainerStats("id", "name", 0, cpu, MemoryStats(), IoStats(), None, None, ())

    # Of four processors in one second: 4 s of host time, of which the container had 1.5.
    assert sample(2_500_000_000, 14_000_000_000).cpu_percent(sample(1_000_000_000, 10_000_000_000)) == 150.0
    for usage, host in ((1, 10), (0, 20), (None, 20), (2, 5)):
        assert sample(usage, host).cpu_percent(sample(1, 10)) == 0.0
    total, online = stats.parse_host_cpu("cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\ncpufreq x\n")
    assert (total, online) == (36 * 1_000_000_000 // os.sysconf("SC_CLK_TCK"), 2)


def test_a_process_is_read_whatever_its_name() -> None:
    tick, page = 1_000_000_000 // os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    assert parse_stat(STAT) == ("S", 1, 300 * tick, 3, 221 * page)
    assert parse_id_map("         0     100000      65536\n 70000 1 1\n") == [(0, 100000, 65536), (70000, 1, 1)]


def test_limits_are_merged_and_taken_away() -> None:
    devices = {"devices": [{"allow": False, "access": "rwm"}]}
    before = {**devices, "memory": {"limit": 64 * MIB}, "cpu": {"quota": 50_000, "period": 100_000}}
    kept, told = change_resources(before, Changes(pids=5, cpu_shares=2))
    assert kept == {**before, "cpu": {"quota": 50_000, "period": 100_000, "shares": 2}, "pids": {"limit": 5}}
    assert told == {key: kept[key] for key in ("memory", "cpu", "pids")}
    kept, told = change_resources(kept, Changes(memory_bytes=0, cpus=-1, pids=-1, cpu_shares=0))
    assert kept == {**devices, "cpu": {"period": 100_000, "shares": 1024}}
    assert told["memory"] == {"limit": -1, "swap": -1}
    assert told["cpu"]["quota"] == told["pids"]["limit"] == -1
    kept, _ = change_resources(before, Changes(cpus=0))
    assert "cpu" not in kept
    assert before["cpu"] == {"quota": 50_000, "period": 100_000}
    kept, _ = change_resources(before, Changes(memory_swap_bytes=64 * MIB, cpuset_cpus="0-1,3", cpuset_mems="0"))
    assert kept["memory"] == {"limit": 64 * MIB, "swap": 64 * MIB}
    assert kept["cpu"]["cpus"] == "0-1,3"


@pytest.mark.parametrize(
    "changes",
    [
        Changes(memory_bytes=MIB),
        Changes(memory_bytes=-2),
        Changes(memory_swap_bytes=64 * MIB),
        Changes(memory_bytes=64 * MIB, memory_swap_bytes=32 * MIB),
        Changes(cpus=0.001),
        Changes(cpus=float("nan")),
        Changes(cpus=100_000),
        Changes(cpu_shares=1),
        Changes(cpuset_cpus=""),
        Changes(cpuset_cpus="0-1-2"),
        Changes(cpuset_mems="0,"),
        Changes(pids=-5),
    ],
)
def test_limits_that_cannot_be_are_refused(changes: Changes) -> None:
    with pytest.raises(InvalidError):
        change_resources({}, changes)


def test_an_exit_record_of_before_has_no_oom() -> None:
    body = b'{"exit_status":137,"signal":9,"started_ns":1,"exited_ns":2,"error":""}'
    assert ExitStatus.parse(body) == ExitStatus(137, 9, 1, 2)
    assert ExitStatus.parse(body).reason == "signal"
    assert ExitStatus.parse(body.replace(b'"error"', b'"oom":true,"error"')).reason == "oom"
    # Another process of it was killed, and the container went on.
    assert ExitStatus(0, oom=True).reason == "exit"


@pytest.mark.root
def test_a_real_containers_groups_are_read(host: Host) -> None:
    bundle = host.prepare("a" * 64, "sh", "-c", "echo x; sleep 1000 & wait", memory_bytes=64 * MIB, pids=20, cpus=0.5)
    host.runtime.start("a" * 64, bundle)
    pid = host.runtime.status("a" * 64, bundle).pid
    until(lambda: stats.read_stats(pid, "a" * 64, "name").pids == 2)
    found = stats.read_stats(pid, "a" * 64, "name")
    assert found.cpu.usage_ns
    assert found.cpu.online_cpus == len(os.sched_getaffinity(0)) or found.cpu.online_cpus > 0
    assert found.cpu.host_ns > found.cpu.usage_ns
    assert found.cpu.periods is not None
    assert (found.memory.limit_bytes, found.pids_limit, found.memory.oom_kills) == (64 * MIB, 20, 0)
    assert found.io.read_bytes is not None
    names = user_names(host.rootfs)
    assert names == {0: "root", 1000: "web"}
    listed = list_processes(pid, "a" * 64, names)
    assert [(one.container_pid, one.user) for one in listed] == [(1, "root"), (listed[1].container_pid, "root")]
    assert [one.command for one in listed] == ["sh -c echo x; sleep 1000 & wait", "sleep 1000"]
    host.runtime.kill("a" * 64, 9)
    host.runtime.wait("a" * 64, bundle, timeout=60)
    with pytest.raises((FileNotFoundError, ProcessLookupError, UnsupportedError)):
        stats.read_stats(pid, "a" * 64, "name")


@pytest.mark.root
def test_the_runtime_updates_what_runs_alone(host: Host) -> None:
    bundle = host.prepare("updated", "sleep", "1000", pids=20)
    host.runtime.start("updated", bundle)
    host.runtime.update("updated", {"pids": {"limit": 30}})
    pid = host.runtime.status("updated", bundle).pid
    assert stats.read_stats(pid, "updated", "").pids_limit == 30
    host.runtime.kill("updated", 9)
    host.runtime.wait("updated", bundle, timeout=60)
    with pytest.raises((ConflictError, NotFoundError, RuncError)):  # as far as the shim has got
        host.runtime.update("updated", {"pids": {"limit": 40}})


@pytest.mark.root
def test_the_shim_records_what_was_killed_for_want_of_memory(host: Host) -> None:
    script = "sleep 0.2; x=; while :; do x=$x$(head -c 1000000 /dev/zero | tr '\\0' x); done"
    ended, _ = host.run("b" * 64, "sh", "-c", script, memory_bytes=16 * MIB)
    assert (ended.exit_code, ended.oom, ended.reason) == (137, True, "oom")
    ended, _ = host.run("c" * 64, "true", memory_bytes=16 * MIB)
    assert (ended.exit_code, ended.oom, ended.reason) == (0, False, "exit")
