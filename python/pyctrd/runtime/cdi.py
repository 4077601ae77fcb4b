"""Devices by their vendors' descriptions: CDI, as ``vendor.com/class=name``.

Descriptions are JSON files of two directories; of those of equal names, the later directory's counts.

Spec:
    Container Device Interface SPEC.md 0.3 to 1.0.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from pyctrd.errors import ConflictError, InvalidError, NotFoundError, UnsupportedError
from pyctrd.runtime.devices import ACCESS, allow

DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0")
FILE_MAX_BYTES = 4 << 20  # of nodes with eight GPUs, and partitions of each, they stay below 300 KiB
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_NAME = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_.-]*)=([A-Za-z0-9][A-Za-z0-9_.:-]*)")
_EDITS = ("env", "deviceNodes", "mounts", "hooks", "additionalGids", "intelRdt")


def is_cdi(text: str) -> bool:
    """Whether a device is named as CDI does, and is no path."""
    return _NAME.fullmatch(text) is not None


def apply_devices(spec: dict[str, Any], names: Sequence[str], directories: Sequence[str] = DIRECTORIES) -> None:
    """Change a spec as the descriptions of devices say.

    Args:
        spec: A ``config.json``, changed in place.
        names: ``vendor.com/class=name``.
        directories: Where the descriptions are, the most important one last.

    Raises:
        NotFoundError: No description has such a device, or a node of it is missing.
        ConflictError: Two files of one directory describe it.
        InvalidError: A description is broken.
        UnsupportedError: It has a version or edits that are not known here, or might be in a YAML file.
    """
    applied: set[str] = set()
    for name in dict.fromkeys(names):
        path, document, device = _find(name, directories)
        try:
            if path not in applied:
                _apply(spec, document.get("containerEdits") or {}, path)
                applied.add(path)
            _apply(spec, device.get("containerEdits") or {}, path)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InvalidError):
                raise
            raise _wrong(path, f"{name}: edits that cannot be read: {error!r}") from error


def _find(name: str, directories: Sequence[str]) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise InvalidError(f"device: {name}: expected vendor/class=name", field="device", value=name)
    kind, device_name = found.groups()
    unread = []
    for directory in reversed(directories):
        here = []
        for path in sorted(Path(directory).glob("*")):
            if path.suffix in (".yaml", ".yml"):
                unread.append(path)
            elif path.suffix == ".json":
                document = _read(path)
                if document.get("kind") == kind:
                    here += [
                        (str(path), document, device)
                        for device in document["devices"]
                        if device.get("name") == device_name
                    ]
        if len(here) > 1:
            files = " and ".join(path for path, _, _ in here)
            raise ConflictError(f"device: {name}: described twice: in {files}", kind="device", name=name)
        if here:
            return here[0]
    if unread:
        raise UnsupportedError(
            f"unsupported: device: {name}: in no JSON file, and YAML is not read: {unread[0]}",
            feature="CDI in YAML",
            needs="JSON",
            hint="write it as JSON: nvidia-ctk cdi generate --format=json, for one",
        )
    raise NotFoundError(
        f"device not found: {name}: no file of {', '.join(directories)} describes it", kind="device", name=name
    )


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        body = file.read(FILE_MAX_BYTES + 1)
    try:
        document = orjson.loads(body) if len(body) <= FILE_MAX_BYTES else None
    except orjson.JSONDecodeError as error:
        raise _wrong(str(path), f"no JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("devices"), list):
        raise _wrong(str(path), f"expected an object with devices, of at most {FILE_MAX_BYTES} bytes")
    version = document.get("cdiVersion")
    if version not in VERSIONS:
        raise UnsupportedError(
            f"unsupported: {path}: cdiVersion {version}: expected one of {', '.join(VERSIONS)}",
            feature=f"CDI {version}",
            needs=VERSIONS[-1],
        )
    return document


def _apply(spec: dict[str, Any], edits: Mapping[str, Any], path: str) -> None:
    if unknown := edits.keys() - set(_EDITS):
        raise UnsupportedError(
            f"unsupported: {path}: containerEdits.{min(unknown)}",
            feature=f"CDI {min(unknown)}",
            needs="a newer version",
        )
    process, linux = spec["process"], spec["linux"]
    for entry in edits.get("env") or ():
        name = entry.partition("=")[0]
        process["env"] = [*(known for known in process["env"] if known.partition("=")[0] != name), entry]
    for node in edits.get("deviceNodes") or ():
        device = _node(node, path)
        linux["devices"] = [*(old for old in linux.get("devices", ()) if old["path"] != device["path"]), device]
        linux["resources"]["devices"].append(allow(device, node.get("permissions") or ACCESS))
    for mount in edits.get("mounts") or ():
        spec["mounts"].append(_mount(mount, path))
    for hook in edits.get("hooks") or ():
        if hook["hookName"] not in HOOKS:
            raise _wrong(path, f"hook {hook['hookName']}: expected one of {', '.join(HOOKS)}")
        entry = {key: hook[key] for key in ("path", "args", "env", "timeout") if hook.get(key)}
        spec.setdefault("hooks", {}).setdefault(hook["hookName"], []).append(entry)
    gids = [gid for gid in edits.get("additionalGids") or () if gid]
    process["user"]["additionalGids"] = sorted({*process["user"].get("additionalGids", ()), *gids})
    if edits.get("intelRdt"):
        linux["intelRdt"] = dict(edits["intelRdt"])


def _node(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    source = node.get("hostPath") or node["path"]
    kind, major, minor = node.get("type"), node.get("major"), node.get("minor")
    if not (kind and major is not None and minor is not None) and kind != "p":
        try:
            found = Path(source).stat()
        except OSError as error:
            raise NotFoundError(f"device: {source} of {path}: {error.strerror}", kind="device", name=source) from error
        actual = "c" if stat.S_ISCHR(found.st_mode) else "b" if stat.S_ISBLK(found.st_mode) else ""
        if not actual or (kind and kind != actual):
            raise _wrong(path, f"{source}: expected a device of type {kind or 'c or b'}")
        kind, major, minor = actual, os.major(found.st_rdev), os.minor(found.st_rdev)
    entry = {"path": node["path"], "type": kind, "major": major, "minor": minor}
    return entry | {key: node[key] for key in ("fileMode", "uid", "gid") if node.get(key) is not None}


def _mount(mount: Mapping[str, Any], path: str) -> dict[str, Any]:
    source, destination = mount["hostPath"], mount["containerPath"]
    if not destination.startswith("/"):
        raise _wrong(path, f"mounts: {destination}: expected an absolute path")
    kind = mount.get("type") or "bind"
    if kind == "bind" and not Path(source).exists():
        raise NotFoundError(f"mount: {source} of {path}: no such file or directory", kind="file", name=source)
    options = list(mount.get("options") or ("ro", "nosuid", "nodev"))
    if kind == "bind" and not {"bind", "rbind"} & set(options):
        options.insert(0, "rbind")
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _wrong(path: str, why: str) -> InvalidError:
    return InvalidError(f"CDI: {path}: {why}", field="device", value=path)
