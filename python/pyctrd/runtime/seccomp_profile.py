"""A seccomp profile of the user's own, in Docker's form, as the spec's ``linux.seccomp``.

Spec:
    Docker's ``profiles/seccomp``: ``archMap``, and rules that count with capabilities, architectures and kernels;
    runtime-spec v1.1 config-linux.md, "Seccomp".
"""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import orjson

from pyctrd.errors import InvalidError, NotFoundError

PROFILE_MAX_BYTES = 1 << 20  # Docker's own has 30 KiB
_ACTIONS = "ALLOW ERRNO KILL KILL_PROCESS KILL_THREAD LOG NOTIFY TRACE TRAP"
_OPERATORS = "NE LT LE EQ GE GT MASKED_EQ"
ACTIONS = tuple(f"SCMP_ACT_{name}" for name in _ACTIONS.split())
OPERATORS = tuple(f"SCMP_CMP_{name}" for name in _OPERATORS.split())
# As ``uname -m`` says → libseccomp's name, and Go's, which rules name.
MACHINES: Mapping[str, tuple[str, str]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "armv7l": ("SCMP_ARCH_ARM", "arm"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
}


def load_profile(path: str, capabilities: Collection[str], *, machine: str = "", kernel: str = "") -> dict[str, Any]:
    """Read a profile's file.

    Args:
        path: On the host.
        capabilities: Of the container's bounding set: some rules count with them alone.
        machine: As ``uname -m`` says; "" is this host's.
        kernel: As ``uname -r`` says; "" is this host's.

    Raises:
        NotFoundError: There is no such file.
        InvalidError: It is no profile; the message says where.
    """
    try:
        with Path(path).open("rb") as file:
            body = file.read(PROFILE_MAX_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"seccomp profile: {path}: {error.strerror}", kind="file", name=path) from error
    if len(body) > PROFILE_MAX_BYTES:
        raise _wrong(path, f"expected at most {PROFILE_MAX_BYTES} bytes")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _wrong(path, f"no JSON: {error}") from error
    if not isinstance(document, dict):
        raise _wrong(path, "expected an object")
    try:
        return _profile(document, set(capabilities), machine or platform.machine(), kernel or platform.release())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InvalidError):
            raise _wrong(path, str(error)) from error
        raise _wrong(path, f"not in the form of a profile: {error}") from error


def _profile(document: Mapping[str, Any], capabilities: set[str], machine: str, kernel: str) -> dict[str, Any]:
    native, go = MACHINES.get(machine, ("", machine))
    made: dict[str, Any] = {"defaultAction": _one_of(document.get("defaultAction"), ACTIONS, "defaultAction")}
    if document.get("archMap") and document.get("architectures"):
        raise InvalidError("architectures and archMap: expected one of both")
    architectures = list(document.get("architectures") or ())
    for entry in document.get("archMap") or ():
        if entry["architecture"] == native:
            architectures = [native, *(entry.get("subArchitectures") or ())]
    if architectures:
        made["architectures"] = architectures
    for key in ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata"):
        if document.get(key) is not None:
            made[key] = document[key]
    version = _version(kernel)
    made["syscalls"] = [
        _rule(rule, place)
        for place, rule in enumerate(document.get("syscalls") or ())
        if _counts(rule, capabilities, go, version)
    ]
    return made


def _counts(rule: Mapping[str, Any], capabilities: set[str], machine: str, kernel: tuple[int, int]) -> bool:
    """Whether its conditions hold."""
    excludes, includes = rule.get("excludes") or {}, rule.get("includes") or {}
    if machine in (excludes.get("arches") or ()) or capabilities & set(excludes.get("caps") or ()):
        return False
    if (least := excludes.get("minKernel")) and kernel >= _version(least):
        return False
    if (arches := includes.get("arches")) and machine not in arches:
        return False
    if (least := includes.get("minKernel")) and kernel < _version(least):
        return False
    return set(includes.get("caps") or ()) <= capabilities


def _rule(rule: Mapping[str, Any], place: int) -> dict[str, Any]:
    where = f"syscalls[{place}]"
    if rule.get("name") and rule.get("names"):
        raise InvalidError(f"{where}: name and names: expected one of both")
    names = [rule["name"]] if rule.get("name") else rule.get("names")
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidError(f"{where}.names: expected the names of calls")
    made: dict[str, Any] = {"names": list(names), "action": _one_of(rule.get("action"), ACTIONS, f"{where}.action")}
    if rule.get("errnoRet") is not None:
        made["errnoRet"] = int(rule["errnoRet"])
    if arguments := rule.get("args"):
        made["args"] = [_argument(argument, f"{where}.args") for argument in arguments]
    return made


def _argument(argument: Mapping[str, Any], where: str) -> dict[str, Any]:
    made: dict[str, Any] = {"index": int(argument["index"]), "value": int(argument["value"])}
    if not 0 <= made["index"] <= 5:
        raise InvalidError(f"{where}.index: expected 0 to 5, got {made['index']}")
    if argument.get("valueTwo"):
        made["valueTwo"] = int(argument["valueTwo"])
    made["op"] = _one_of(argument.get("op"), OPERATORS, f"{where}.op")
    return made


def _one_of(value: Any, known: tuple[str, ...], where: str) -> str:
    if value not in known:
        raise InvalidError(f"{where}: {value}: expected one of {', '.join(known)}")
    return str(value)


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None:
        raise InvalidError(f"minKernel: {text}: expected a version: 4.8")
    return int(found[1]), int(found[2])


def _wrong(path: str, why: str) -> InvalidError:
    return InvalidError(f"seccomp profile: {path}: {why}", field="seccomp", value=path)
