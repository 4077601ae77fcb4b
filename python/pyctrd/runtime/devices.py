"""Devices of the host in a container, and what its control group lets it do with them.

Spec:
    runtime-spec v1.1 config-linux.md, "Devices" and "Allowed Device list"; docker-run(1), ``--device``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyctrd.errors import InvalidError, NotFoundError
from pyctrd.oci.value import NamedTuple

ACCESS = "rwm"
DENY_ALL: dict[str, Any] = {"allow": False, "access": ACCESS}
ALLOW_ALL: dict[str, Any] = {"allow": True, "access": ACCESS}
# Of a terminal, of a file system of the container's own, or of another namespace.
_NOT_PASSED = ("/dev/console", "/dev/ptmx", "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd")  # noqa: S108  # names of devices
_RULE = re.compile(r"([abc]) (\d+|\*):(\d+|\*) ([rwm]{1,3})")
DEVICES_MAX = 4096  # of one directory: more is a mistake, as "/"


class Device(NamedTuple):
    """A device of the host, or a directory of them.

    Attributes:
        source: Absolute, on the host.
        destination: Absolute, in the container.
        access: Of "r", "w" and "m" (mknod) those that it may.
    """

    source: str
    destination: str
    access: str = ACCESS


def parse_device(text: str) -> Device:
    """Read ``HOST[:CONTAINER][:rwm]``.

    Raises:
        InvalidError: It does not have this form.
    """
    source, *rest = text.split(":")
    access = rest.pop() if rest and re.fullmatch(r"[rwm]{1,3}", rest[-1]) else ACCESS
    destination = rest.pop() if rest else source
    if rest or not all(path.startswith("/") and ".." not in path.split("/") for path in (source, destination)):
        raise InvalidError(
            f"device: {text}: expected HOST[:CONTAINER][:rwm] with absolute paths, or a CDI device's vendor/class=name",
            field="device",
            value=text,
        )
    return Device(source, destination, access)


def parse_rule(text: str) -> dict[str, Any]:
    """Read a rule of a control group, ``c 10:229 rwm``, as the spec's.

    Raises:
        InvalidError: It does not have this form.
    """
    found = _RULE.fullmatch(text)
    if found is None:
        raise InvalidError(
            f"device rule: {text}: expected a, b or c, MAJOR:MINOR or *, and of r, w, m: 'c 10:229 rwm'",
            field="device_cgroup_rules",
            value=text,
        )
    kind, major, minor, access = found.groups()
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    rule |= {name: int(number) for name, number in (("major", major), ("minor", minor)) if number != "*"}
    return rule


def device_entries(devices: Iterable[Device]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The spec's ``linux.devices``, and the rules that allow them.

    Raises:
        NotFoundError: There is no such device.
        InvalidError: A file is none, or a directory has none.
    """
    made: dict[str, dict[str, Any]] = {}
    rules = []
    for device in devices:
        for source, destination in _expand(device):
            entry = _entry(source, destination)
            made[destination] = entry
            rules.append(allow(entry, device.access))
    return list(made.values()), rules


def allow(entry: dict[str, Any], access: str = ACCESS) -> dict[str, Any]:
    """The rule that lets an entry be used."""
    kind = "c" if entry["type"] == "u" else entry["type"]
    return {"allow": True, "type": kind, "major": entry["major"], "minor": entry["minor"], "access": access}


def host_devices(root: str = "/dev") -> list[dict[str, Any]]:
    """The spec's entries for all devices of the host, for a privileged container."""
    made = []
    for path in _walk(root):
        if not path.startswith(_NOT_PASSED):
            with suppress(FileNotFoundError):  # it was taken away meanwhile, as loop devices are
                made.append(_entry(path, path))
    return made


def _expand(device: Device) -> Iterator[tuple[str, str]]:
    try:
        mode = Path(device.source).stat().st_mode
    except OSError as error:
        raise NotFoundError(f"device: {device.source}: {error.strerror}", kind="device", name=device.source) from error
    if not stat.S_ISDIR(mode):
        yield device.source, device.destination
        return
    found = list(_walk(device.source))
    if not found or len(found) > DEVICES_MAX:
        raise InvalidError(
            f"device: {device.source}: expected 1 to {DEVICES_MAX} devices in it, found {len(found)}",
            field="device",
            value=device.source,
        )
    for path in found:
        yield path, device.destination.rstrip("/") + path.removeprefix(device.source.rstrip("/"))


def _walk(root: str) -> Iterator[str]:
    for directory, _, names in os.walk(root):
        for name in sorted(names):
            path = f"{directory.rstrip('/')}/{name}"
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:
                continue
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                yield path


def _entry(source: str, destination: str) -> dict[str, Any]:
    found = Path(source).stat()
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise InvalidError(f"device: {source}: no device", field="device", value=source, hint="files are for -v")
    return {
        "path": destination,
        "type": "c" if stat.S_ISCHR(found.st_mode) else "b",
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "fileMode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }
