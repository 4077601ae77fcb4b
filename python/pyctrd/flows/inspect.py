"""All that is known of a container, as one document whose keys stay: docs/inspect.md."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyctrd.errors import NotFoundError, PyctrdError
from pyctrd.flows.alter import read_spec
from pyctrd.flows.health import container_check, container_health
from pyctrd.flows.run import USERNS, bundle_path, container_status
from pyctrd.runtime.life import read_life, read_policy
from pyctrd.runtime.logs import rfc3339
from pyctrd.runtime.runc import Program

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.oci.health import HealthCheck
    from pyctrd.runtime.health import Health
    from pyctrd.runtime.state import ContainerStatus

_SECOND_NS = 1_000_000_000


def inspect_container(rooms: Rooms, record: ContainerRecord) -> dict[str, Any]:
    """See ``Container.inspect``."""
    status = container_status(rooms, record)
    bundle = bundle_path(rooms, record)
    spec = read_spec(record, bundle)
    process = spec.get("process", {})
    linux = spec.get("linux", {})
    user = process.get("user", {})
    return {
        "id": record.id,
        "name": record.name,
        "namespace": record.namespace,
        "image": record.image_name,
        "image_digest": record.image_digest,
        "command": list(record.command),
        "labels": dict(record.labels),
        **_state(record, status),
        "health": _health(container_health(rooms, record, status)),
        "health_check": _health_check(container_check(rooms, record)),
        "restart_policy": read_policy(bundle),
        "env": process.get("env", []),
        "working_dir": process.get("cwd", "/"),
        "user": {"uid": user.get("uid", 0), "gid": user.get("gid", 0), "groups": user.get("additionalGids", [])},
        "terminal": bool(process.get("terminal")),
        "capabilities": process.get("capabilities", {}).get("bounding", []),
        "no_new_privileges": bool(process.get("noNewPrivileges")),
        "hostname": spec.get("hostname", ""),
        "user_namespace": _user_namespace(bundle),
        "network": _network(linux.get("namespaces", [])),
        "mounts": _mounts(spec, bundle),
        "read_only": bool(spec.get("root", {}).get("readonly")),
        "limits": _limits(linux.get("resources", {}), process),
        "stop_signal": record.stop_signal,
        "stop_timeout": read_life(bundle).stop_timeout_seconds,
        "auto_remove": record.auto_remove,
        "cgroup_path": linux.get("cgroupsPath", ""),
        "bundle_path": str(bundle),
        "rootfs_path": spec.get("root", {}).get("path", ""),
        "log_path": str(bundle / "log"),
        "runtime": _runtime(rooms, record),
        "snapshotter": _snapshotter(rooms, record),
        "size_bytes": written_bytes(rooms, record),
    }


def written_bytes(rooms: Rooms, record: ContainerRecord) -> int | None:
    """What stands in its writable layer, on disk; None where that is gone."""
    with suppress(NotFoundError, FileNotFoundError):
        snapshotter = rooms.snapshotter_of(record.snapshot_key)
        return None if snapshotter is None else snapshotter.usage(record.snapshot_key)
    return None


def _time(time_ns: int) -> str | None:
    """As text; None for 0, which is none."""
    return rfc3339(time_ns) if time_ns else None


def _state(record: ContainerRecord, status: ContainerStatus) -> dict[str, Any]:
    ended = status.exit
    exited_ns = ended.exited_ns if ended else 0
    return {
        "created": _time(record.created_ns),
        "created_ns": record.created_ns,
        "state": status.state,
        "pid": status.pid,
        "started": _time(status.started_ns),
        "started_ns": status.started_ns,
        "restart_count": status.restart_count,
        "exited": _time(exited_ns),
        "exited_ns": exited_ns or None,
        "exit_code": ended.exit_code if ended else None,
        "signal": ended.signal if ended else None,
        "oom": ended.oom if ended else None,
        "reason": ended.reason if ended else None,
        "error": ended.error if ended else "",
    }


def _health(health: Health | None) -> dict[str, Any] | None:
    if health is None:
        return None
    results = [{**one._asdict(), "start": _time(one.start_ns), "end": _time(one.end_ns)} for one in health.results]
    return {"status": health.status, "failing_streak": health.failing_streak, "results": results}


def _health_check(check: HealthCheck | None) -> dict[str, Any] | None:
    return None if check is None else {**check._asdict(), "command": list(check.command)}


def _network(namespaces: list[Mapping[str, Any]]) -> str:
    """As ``containers.create`` takes it."""
    for namespace in namespaces:
        if namespace.get("type") == "network":
            return str(namespace.get("path") or "none")
    return "host"


def _user_namespace(bundle: Path) -> dict[str, Any] | None:
    """What it was asked for, and ids in the container, on the host and their number; None for the engine's own."""
    import orjson

    try:
        found: dict[str, Any] = orjson.loads((bundle / USERNS).read_bytes())
    except FileNotFoundError:
        return None
    return found


def _is_users(mount: Mapping[str, Any]) -> bool:
    """Whether it is a part of the host, and none of the file systems that every container has."""
    return mount.get("type") == "bind" or "bind" in mount.get("options", []) or "rbind" in mount.get("options", [])


def _mounts(spec: Mapping[str, Any], bundle: Path) -> list[dict[str, Any]]:
    made = [_mount(mount) for mount in spec.get("mounts", []) if _is_users(mount)]
    if (bundle / "images.json").exists():
        from pyctrd.flows.image_mounts import read_images

        images = {held.destination: held.image for held in read_images(bundle)}
        for mount in made:
            if mount["destination"] in images:
                mount |= {"type": "image", "image": images[mount["destination"]]}
    return made


def _mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    options = mount.get("options", [])
    return {
        "type": mount.get("type", ""),
        "source": mount.get("source", ""),
        "destination": mount.get("destination", ""),
        "read_only": "ro" in options,
        "options": options,
    }


def _limits(resources: Mapping[str, Any], process: Mapping[str, Any]) -> dict[str, Any]:
    memory, cpu = resources.get("memory", {}), resources.get("cpu", {})
    quota, period = cpu.get("quota"), cpu.get("period")
    return {
        "memory_bytes": memory.get("limit"),
        "memory_swap_bytes": memory.get("swap"),
        "memory_reservation_bytes": memory.get("reservation"),
        "cpus": quota / period if quota and period and quota > 0 else None,
        "cpu_shares": cpu.get("shares"),
        "cpuset_cpus": cpu.get("cpus"),
        "cpuset_mems": cpu.get("mems"),
        "pids": resources.get("pids", {}).get("limit"),
        "oom_score_adj": process.get("oomScoreAdj"),
        "rlimits": process.get("rlimits", []),
    }


def _runtime(rooms: Rooms, record: ContainerRecord) -> dict[str, Any]:
    """Name, path and version; what a runtime that is not here would say is None."""
    program = Program.parse(record.runtime)
    found: dict[str, Any] = {"name": program.binary, "args": list(program.args), "path": None, "version": None}
    with suppress(PyctrdError, OSError):
        found["path"], found["version"] = rooms.runtime(record.runtime).program()
    return found


def _snapshotter(rooms: Rooms, record: ContainerRecord) -> dict[str, Any]:
    snapshotter = rooms.snapshotter_of(record.snapshot_key)
    return {"name": None if snapshotter is None else snapshotter.name, "key": record.snapshot_key}
