"""Limits, as the spec's ``linux.resources``: for a new container, and for ``update`` of one that runs.

Spec:
    runtime-spec v1.1 config-linux.md, "Control groups"; the kernel's cgroup-v1 and cgroup-v2 documents.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, Self

from pyctrd.errors import InvalidError, NotFoundError, UnsupportedError
from pyctrd.oci.value import NamedTuple, dataclass
from pyctrd.runtime.cgroup import ROOT, CgroupForm

CPU_PERIOD_US = 100_000
MEMORY_MIN_BYTES = 6 << 20  # below, runc's own init is killed before the container's command starts
QUOTA_MIN_US = 1000
# What the kernel takes, by field.
_RANGES = {
    "cpu_shares": (2, 262_144),
    "cpu_period_us": (1000, 1_000_000),
    "memory_swappiness": (0, 100),
    "blkio_weight": (10, 1000),
}
_ONLINE = {"cpuset_cpus": "cpu", "cpuset_mems": "node"}


class Rate(NamedTuple):
    """How much may be read from or written to a block device each second.

    Attributes:
        path: The device, on the host.
        rate: Bytes, or operations.
    """

    path: str
    rate: int

    def entry(self, field: str) -> dict[str, int]:
        """The spec's.

        Raises:
            InvalidError: No block device, or no rate.
            NotFoundError: There is no such file.
        """
        if self.rate < 1:
            raise InvalidError(f"{field}: {self.path}: expected a rate of at least 1", field=field, value=self.rate)
        try:
            found = Path(self.path).stat()
        except OSError as error:
            raise NotFoundError(f"{field}: {self.path}: {error.strerror}", kind="device", name=self.path) from error
        if not stat.S_ISBLK(found.st_mode):
            raise InvalidError(f"{field}: {self.path}: expected a block device", field=field, value=self.path)
        return {"major": os.major(found.st_rdev), "minor": os.minor(found.st_rdev), "rate": self.rate}


class HugeLimit(NamedTuple):
    """How much memory may come in pages of a size.

    Attributes:
        page_size: "2MB", "1GB".
        limit_bytes: At most.
    """

    page_size: str
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """What a container may use; None, "" and () are no limit of its own.

    Attributes:
        memory_bytes: Of memory.
        memory_swap_bytes: Of memory and swap together; -1 for as much as there is.
        memory_reservation_bytes: What it keeps where memory is short on the host.
        memory_swappiness: 0 to 100; with version 1's control groups only.
        oom_kill_disable: Who is over the limit waits, and is not killed; with version 1's control groups only.
        cpus: Processors' worth of time.
        cpu_shares: 2 to 262144, beside others' 1024.
        cpu_period_us: 1000 to 1000000 microseconds, of which ``cpu_quota_us`` may be used.
        cpu_quota_us: At least 1000 microseconds; -1 for all.
        cpuset_cpus: Which processors: ``0-2,7``.
        cpuset_mems: Which memory nodes.
        pids: Processes and threads; -1 for any number.
        blkio_weight: 10 to 1000.
        device_read_bps: Bytes a second, by device.
        device_write_bps: Likewise.
        device_read_iops: Operations a second, by device.
        device_write_iops: Likewise.
        hugetlb: Of huge pages, by their size.
    """

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    memory_swappiness: int | None = None
    oom_kill_disable: bool = False
    cpus: float | None = None
    cpu_shares: int | None = None
    cpu_period_us: int | None = None
    cpu_quota_us: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int | None = None
    blkio_weight: int | None = None
    device_read_bps: tuple[Rate, ...] = ()
    device_write_bps: tuple[Rate, ...] = ()
    device_read_iops: tuple[Rate, ...] = ()
    device_write_iops: tuple[Rate, ...] = ()
    hugetlb: tuple[HugeLimit, ...] = ()

    @classmethod
    def none(cls) -> Self:
        """No limit at all."""
        return cls()


NO_LIMITS = ResourceLimits.none()


def resources(limits: ResourceLimits) -> dict[str, Any]:
    """The spec's ``linux.resources``, without devices; also what a runtime's ``update`` reads.

    Raises:
        InvalidError: A value is out of range, or two contradict each other; ``field`` names one.
        NotFoundError: A block device is missing.
    """
    if limits is NO_LIMITS:
        return {}
    for field, (least, most) in _RANGES.items():
        value = getattr(limits, field)
        if value is not None and not least <= value <= most:
            raise InvalidError(f"{field}: expected {least} to {most}, got {value}", field=field, value=value)
    found = {"memory": _memory(limits), "cpu": _cpu(limits), "blockIO": _block(limits)}
    made: dict[str, Any] = {name: value for name, value in found.items() if value}
    if limits.pids is not None:
        if limits.pids < -1:
            raise InvalidError(f"pids: expected at least -1, got {limits.pids}", field="pids", value=limits.pids)
        made["pids"] = {"limit": limits.pids}
    if limits.hugetlb:
        made["hugepageLimits"] = [{"pageSize": huge.page_size, "limit": huge.limit_bytes} for huge in limits.hugetlb]
    return made


def check_controllers(limits: ResourceLimits, form: CgroupForm, *, root: str = ROOT) -> None:
    """Refuse a limit for which this host has no controller.

    Args:
        limits: What is asked for.
        form: Of the host's control groups.
        root: Where they are mounted.

    Raises:
        UnsupportedError: The controller, or the kernel's file, is missing; one line names it.
    """
    if limits is NO_LIMITS:
        return
    made = resources(limits)
    unified = form is CgroupForm.V2
    if unified:
        found = set(Path(root, "cgroup.controllers").read_text().split())
    else:
        found = {path.name for path in Path(root).iterdir()} if form is not CgroupForm.NONE else set()
    cpu = made.get("cpu", {})
    wanted = {
        "memory": "memory" in made,
        "cpu": bool(cpu.keys() & {"shares", "period", "quota"}),
        "cpuset": bool(cpu.keys() & {"cpus", "mems"}),
        "pids": "pids" in made,
        "io" if unified else "blkio": "blockIO" in made,
        "hugetlb": "hugepageLimits" in made,
    }
    for controller, needed in wanted.items():
        if needed and controller not in found:
            raise _missing(controller, f"cgroup controller {controller}: this host has none")
    if unified and (limits.memory_swappiness is not None or limits.oom_kill_disable):
        name = "oom_kill_disable" if limits.oom_kill_disable else "memory_swappiness"
        raise _missing("cgroup v1", f"{name}: version 2 of control groups has no such thing")
    if not unified:
        _check_files(limits, Path(root))


def _check_files(limits: ResourceLimits, root: Path) -> None:
    """What a kernel may lack though it has the controller."""
    if limits.memory_swap_bytes is not None and not (root / "memory/memory.memsw.limit_in_bytes").exists():
        raise _missing("swap accounting", "memory_swap_bytes: this host does not count swap (swapaccount=1)")
    names = ("blkio/blkio.weight", "blkio/blkio.bfq.weight")
    if limits.blkio_weight is not None and not any((root / name).exists() for name in names):
        raise _missing("blkio.weight", "blkio_weight: this host's cgroup controller blkio has no weights")


def _missing(needs: str, text: str) -> UnsupportedError:
    return UnsupportedError(f"unsupported: {text}", feature=text.partition(":")[0], needs=needs)


def _memory(limits: ResourceLimits) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    limit, swap, reserved = limits.memory_bytes, limits.memory_swap_bytes, limits.memory_reservation_bytes
    if limit is not None:
        if limit < MEMORY_MIN_BYTES:
            raise InvalidError(
                f"memory: expected at least {MEMORY_MIN_BYTES} bytes, got {limit}", field="memory", value=limit
            )
        memory["limit"] = limit
    if swap is not None:
        if limit is None:
            raise InvalidError("memory_swap_bytes: expected a limit of memory too", field="memory_swap_bytes")
        if swap != -1 and swap < limit:
            raise InvalidError(
                f"memory_swap_bytes: {swap}: expected -1, or memory and swap together: at least {limit}",
                field="memory_swap_bytes",
                value=swap,
            )
        memory["swap"] = swap
    if reserved is not None:
        if reserved < 1 or (limit is not None and reserved > limit):
            raise InvalidError(
                f"memory_reservation_bytes: {reserved}: expected 1 to the limit of memory, {limit}",
                field="memory_reservation_bytes",
                value=reserved,
            )
        memory["reservation"] = reserved
    return memory | _memory_habits(limits)


def _memory_habits(limits: ResourceLimits) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if limits.memory_swappiness is not None:
        memory["swappiness"] = limits.memory_swappiness
    if limits.oom_kill_disable:
        if limits.memory_bytes is None:
            raise InvalidError(
                "oom_kill_disable: expected a limit of memory too: else the host runs out", field="oom_kill_disable"
            )
        memory["disableOOMKiller"] = True
    return memory


def _cpu(limits: ResourceLimits) -> dict[str, Any]:
    period, quota = limits.cpu_period_us, limits.cpu_quota_us
    if limits.cpus is not None:
        if period is not None or quota is not None:
            raise InvalidError("cpus: cpu_period_us and cpu_quota_us say the same: give one of both", field="cpus")
        if not 0.01 <= limits.cpus <= (os.cpu_count() or 1):
            raise InvalidError(
                f"cpus: expected 0.01 to {os.cpu_count()}, got {limits.cpus}", field="cpus", value=limits.cpus
            )
        period, quota = CPU_PERIOD_US, round(limits.cpus * CPU_PERIOD_US)
    if quota is not None and quota != -1 and quota < QUOTA_MIN_US:
        raise InvalidError(
            f"cpu_quota_us: expected -1 or at least {QUOTA_MIN_US}, got {quota}", field="cpu_quota_us", value=quota
        )
    numbers = {"shares": limits.cpu_shares, "period": period, "quota": quota}
    cpu: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    for name, field in (("cpus", "cpuset_cpus"), ("mems", "cpuset_mems")):
        if text := getattr(limits, field):
            _check_set(field, text)
            cpu[name] = text
    return cpu


def _check_set(field: str, text: str) -> None:
    """Refuse processors or memory nodes that the host does not have: the kernel says only "invalid"."""
    wanted = _numbers(text)
    if not wanted:
        raise InvalidError(f"{field}: {text}: expected numbers and ranges: 0-2,7", field=field, value=text)
    try:
        online = Path(f"/sys/devices/system/{_ONLINE[field]}/online").read_text().strip()
    except FileNotFoundError:
        online = "0"  # a kernel without NUMA
    if missing := wanted - _numbers(online):
        raise InvalidError(f"{field}: {text}: this host has {online}, and no {min(missing)}", field=field, value=text)


def _numbers(text: str) -> set[int]:
    """Of ``0-2,7``; none where it is written otherwise."""
    found: set[int] = set()
    for part in text.split(","):
        if not re.fullmatch(r"\d{1,5}(-\d{1,5})?", part, re.ASCII):
            return set()
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _block(limits: ResourceLimits) -> dict[str, Any]:
    block: dict[str, Any] = {}
    if limits.blkio_weight is not None:
        block["weight"] = limits.blkio_weight
    for name, field in (
        ("throttleReadBpsDevice", "device_read_bps"),
        ("throttleWriteBpsDevice", "device_write_bps"),
        ("throttleReadIOPSDevice", "device_read_iops"),
        ("throttleWriteIOPSDevice", "device_write_iops"),
    ):
        if rates := getattr(limits, field):
            block[name] = [rate.entry(field) for rate in rates]
    return block
