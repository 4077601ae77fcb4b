"""What options name, found: other containers' namespaces, groups, what this host and its runtime can do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from pyctrd.errors import ConflictError
from pyctrd.runtime.life import replace_durably
from pyctrd.runtime.mounts import HOST_NETWORK_FILES, Bind
from pyctrd.runtime.namespaces import KINDS, joined, namespace_path
from pyctrd.runtime.resources import NO_LIMITS
from pyctrd.runtime.runc import Program
from pyctrd.runtime.spec import host_name

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.runtime.options import RunOptions

# Which namespaces are whose, by the options' field: a container that is started again has to find them anew.
JOINS = "joins.json"


def settle_options(rooms: Rooms, record: ContainerRecord, options: RunOptions, bundle: Path) -> RunOptions:
    """The options with paths where they name containers; refused where this host cannot do it.

    Raises:
        NotFoundError: There is no such container.
        ConflictError: It does not run.
        UnsupportedError: The host or the runtime cannot do it.
    """
    if any(isinstance(mount, Bind) and mount.recursive_read_only for mount in options.mounts):
        from pyctrd.runtime.features import check_recursive_read_only
        from pyctrd.runtime.runc import find_binary

        check_recursive_read_only(find_binary(Program.parse(record.runtime).binary))
    if Program.parse(record.runtime).uses_systemd:
        options = replace(options, cgroup_manager="systemd")
    if options.limits is not NO_LIMITS:
        from pyctrd.runtime.cgroup import cgroup_form, require
        from pyctrd.runtime.resources import check_controllers

        require("limits")
        check_controllers(options.limits, cgroup_form())
    names = joined(options)
    if not names:
        return options
    found = {field: find_running(rooms, name) for field, name in names.items()}
    replace_durably(bundle / JOINS, orjson.dumps({field: other.id for field, (other, _) in found.items()}))
    paths: dict[str, Any] = {field: namespace_path(field, pid) for field, (_, pid) in found.items()}
    return replace(options, **paths)


def join_again(rooms: Rooms, record: ContainerRecord, bundle: Path) -> None:
    """Write the namespaces of other containers into ``config.json`` anew: those may have been started again since.

    Raises:
        NotFoundError: One of them is gone.
        ConflictError: It does not run.
    """
    try:
        joins = orjson.loads((bundle / JOINS).read_bytes())
    except FileNotFoundError:
        return
    from pyctrd.flows.alter import read_spec, updating

    paths = {}
    for field, identity in joins.items():
        _, pid = find_running(rooms, identity)
        paths[KINDS[field]] = namespace_path(field, pid)
    with updating(record, bundle):
        spec = read_spec(record, bundle)
        stale = [
            one for one in spec["linux"]["namespaces"] if one.get("path") != paths.get(one["type"], one.get("path"))
        ]
        for entry in stale:
            entry["path"] = paths[entry["type"]]
        if stale:
            rooms.runtime(record.runtime).create_bundle(bundle, spec, transient=record.auto_remove)


def name_files(rooms: Rooms, options: RunOptions, bundle: Path, container_id: str) -> dict[str, str]:
    """/etc/hosts and /etc/resolv.conf of the host's side, by path in the container: its own, or whose network it joins.

    Args:
        rooms: The engine's rooms.
        options: Before they were settled.
        bundle: Where its own are written.
        container_id: For the name of its host.

    Raises:
        InvalidError: An address or a name is none.
    """
    other = joined(options).get("network")
    if not (other or options.add_hosts or options.dns or options.dns_search or options.dns_options):
        return {}
    from pyctrd.runtime.names import hosts_text, read_base, resolv_text, write_file

    found = _others_names(rooms, other) if other else {}
    hosts, resolv = HOST_NETWORK_FILES
    base = options.network == "host"
    if options.add_hosts:
        text = read_base(found.get(hosts, hosts)) if base or hosts in found else ""
        host = host_name(options, container_id)
        write_file(bundle / "hosts", hosts_text(options.add_hosts, hostname=host, base=text))
        found[hosts] = str(bundle / "hosts")
    if options.dns or options.dns_search or options.dns_options:
        text = read_base(found.get(resolv, resolv)) if base or resolv in found else ""
        text = resolv_text(servers=options.dns, search=options.dns_search, options=options.dns_options, base=text)
        write_file(bundle / "resolv.conf", text)
        found[resolv] = str(bundle / "resolv.conf")
    return found


def _others_names(rooms: Rooms, name: str) -> dict[str, str]:
    record, _ = find_running(rooms, name)
    spec = orjson.loads((rooms.bundle(record.namespace, record.id) / "config.json").read_bytes())
    mounts = spec.get("mounts") or ()
    return {mount["destination"]: mount["source"] for mount in mounts if mount["destination"] in HOST_NETWORK_FILES}


def find_running(rooms: Rooms, name: str) -> tuple[ContainerRecord, int]:
    """A container that runs, and its first process.

    Raises:
        NotFoundError: There is none.
        ConflictError: It does not run.
    """
    from pyctrd.flows.run import container_status, get_container

    record = get_container(rooms, name)
    status = container_status(rooms, record)
    if status.state not in ("running", "paused") or not status.pid:
        raise ConflictError(
            f"container {record.name}: its namespaces cannot be joined: it is {status.state}",
            kind="container",
            name=record.name,
            state=status.state,
            allowed="running, paused",
            hint=f"start it first: pyctrd start {record.name}",
        )
    return record, status.pid
