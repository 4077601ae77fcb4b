"""Which form of control groups this host has, and where a container's stand."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.runtime.limits import is_in_user_namespace

MOUNTS = Path("/proc/self/mounts")
ROOT = "/sys/fs/cgroup"
PARENT = "/pyctrd"
V1_PROBED = "pids"


class CgroupForm(StrEnum):
    """How controllers are mounted."""

    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"
    NONE = "none"


def cgroup_form(mounts: str | None = None) -> CgroupForm:
    """The host's form.

    Args:
        mounts: Text as in ``/proc/self/mounts``; None reads it.
    """
    text = MOUNTS.read_text() if mounts is None else mounts
    v1 = v2 = False
    for line in text.splitlines():
        _, where, kind, *_ = line.split(" ", 3)
        if kind == "cgroup2" and where == ROOT:
            return CgroupForm.V2
        beneath = where.startswith(ROOT + "/")
        v1 = v1 or (kind == "cgroup" and beneath)
        v2 = v2 or (kind == "cgroup2" and beneath)
    if v1:
        return CgroupForm.HYBRID if v2 else CgroupForm.V1
    return CgroupForm.NONE


def cgroups_path(container_id: str, *, parent: str = "") -> str:
    """The spec's ``linux.cgroupsPath``: absolute, the same under every form, made by cgroupfs.

    Args:
        container_id: Names the group.
        parent: Absolute path of the group around it; "" is ``PARENT``.

    Raises:
        InvalidError: The parent is none.
    """
    parent = parent or PARENT
    if not parent.startswith("/") or ".." in parent.split("/"):
        raise InvalidError(
            f"cgroup_parent: {parent}: expected an absolute path without ..",
            field="cgroup_parent",
            value=parent,
            hint="slices are of cgroup_manager systemd" if parent.endswith(".slice") else "",
        )
    return f"{parent.rstrip('/')}/{container_id}"


def are_usable(form: CgroupForm | None = None) -> bool:
    """Whether groups can be made: in a user namespace only where its part of the hierarchy was given to it."""
    if not is_in_user_namespace():
        return True
    form = form or cgroup_form()
    place = ROOT if form is CgroupForm.V2 else f"{ROOT}/{V1_PROBED}"
    return form is not CgroupForm.NONE and os.access(place, os.W_OK)


def require(feature: str, *, otherwise: str = "leave limits and pausing out") -> None:
    """Refuse what takes a control group where none can be made.

    Args:
        feature: What that is.
        otherwise: What can be done without.

    Raises:
        UnsupportedError: None can.
    """
    if not are_usable():
        needs = "a control group, and this user may make none"
        raise UnsupportedError(
            f"unsupported: {feature}: needs {needs}",
            feature=feature,
            needs=needs,
            hint=f"cgroup v2 can be delegated to users; without, {otherwise}",
        )


def check_runtime(binary: str, form: CgroupForm) -> None:
    """Refuse a runtime that cannot use the host's form.

    Raises:
        UnsupportedError: crun with hybrid control groups: it answers "invalid cgroup mode". youki that was built
            without version 1's, where the host has those.
    """
    if form in (CgroupForm.V1, CgroupForm.HYBRID) and Path(binary).name.startswith("youki"):
        _check_v1(binary)
    if form is CgroupForm.HYBRID and Path(binary).name.startswith("crun"):
        raise UnsupportedError(
            f"unsupported: {binary}: refuses the hybrid cgroups of this host",
            feature="crun with hybrid cgroups",
            needs="cgroup v1 or v2 alone",
            hint="use runc, or boot the host with systemd.unified_cgroup_hierarchy=1",
        )


def is_frozen(pid: int, form: CgroupForm) -> bool:
    """Whether the process's control group is paused."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    for line in lines:
        _, controllers, path = line.split(":", 2)
        try:
            if form is CgroupForm.V2 and not controllers:
                return "frozen 1" in Path(f"{ROOT}{path}/cgroup.events").read_text()
            if controllers == "freezer":
                return Path(f"{ROOT}/freezer{path}/freezer.state").read_text().strip() != "THAWED"
        except OSError:
            return False  # the group at the hierarchy's root has no such file, or it is just being removed
    return False


def _check_v1(binary: str) -> None:
    from pyctrd.runtime.features import read_features
    from pyctrd.runtime.runc import find_binary

    groups = (read_features(find_binary(binary)).get("linux") or {}).get("cgroup") or {}
    if groups.get("v1") is False:
        raise UnsupportedError(
            f"unsupported: {binary}: was built without this host's cgroup v1",
            feature="youki with cgroup v1",
            needs="cgroup v2, or youki built with its feature v1",
            hint="use runc, or cargo install youki --features v1",
        )
