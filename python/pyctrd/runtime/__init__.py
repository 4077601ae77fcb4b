"""Containers that run: their spec, the OCI runtime, the shim that stays with each, their streams."""

from pyctrd.runtime.cgroup import CgroupForm, cgroup_form, cgroups_path
from pyctrd.runtime.limits import Rlimit
from pyctrd.runtime.logs import LogLine
from pyctrd.runtime.runtime import Runtime
from pyctrd.runtime.spec import DEFAULT_CAPABILITIES, Bind, RunOptions, build_spec
from pyctrd.runtime.state import ContainerStatus, ExitStatus
from pyctrd.runtime.users import User, find_user

__all__ = [
    "DEFAULT_CAPABILITIES",
    "Bind",
    "CgroupForm",
    "ContainerStatus",
    "ExitStatus",
    "LogLine",
    "Rlimit",
    "RunOptions",
    "Runtime",
    "User",
    "build_spec",
    "cgroup_form",
    "cgroups_path",
    "find_user",
]
