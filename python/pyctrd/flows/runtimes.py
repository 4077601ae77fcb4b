"""Which OCI runtime new containers are made for: by name, as configured, and with whose control groups."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyctrd.runtime.runc import SYSTEMD_CGROUP, Program

if TYPE_CHECKING:
    from pyctrd.flows.settings import Settings

# Read where no other file is named, and passed over where it is not there.
FILE = Path("/etc/pyctrd/runtimes.json")


def chosen_program(settings: Settings) -> Program:
    """The runtime for a new container.

    Raises:
        NotFoundError: The file of runtimes is missing.
        InvalidError: It, or what the engine was given, is none.
        UnsupportedError: systemd is wanted, and is not there.
    """
    program = program_of(settings)
    if settings.cgroup_manager == "systemd" and not program.uses_systemd:
        program = Program(program.binary, (*program.args, SYSTEMD_CGROUP))
    if program.uses_systemd:
        from pyctrd.runtime.systemd import check_systemd

        check_systemd()
    return program


def program_of(settings: Settings) -> Program:
    """The runtime that the engine's settings name, by itself."""
    return named_runtimes(settings).get(settings.runtime) or Program(settings.runtime)


def named_runtimes(settings: Settings) -> dict[str, Program]:
    """Those that have names: of the file, and before them those that the engine was given."""
    file = settings.runtimes_file or (FILE if FILE.exists() else None)
    if file is None and not settings.runtimes:
        return {}
    from pyctrd.runtime.program import named_programs

    found: dict[str, Program] = {}
    if file is not None:
        found |= _read(file, file.stat().st_mtime_ns if file.exists() else 0)
    return found | named_programs(settings.runtimes)


def describe_runtime(settings: Settings) -> dict[str, Any]:
    """What ``info`` tells of it; what is wrong with it in place of its version."""
    from pyctrd.errors import PyctrdError
    from pyctrd.runtime.cgroup import cgroup_form
    from pyctrd.runtime.features import summarize
    from pyctrd.runtime.program import read_version
    from pyctrd.runtime.runc import find_binary

    told: dict[str, Any] = {
        "runtime": f"{settings.runtime} (not found)",
        "runtime_version": None,
        "runtime_args": [],
        "runtime_features": {},
        "runtime_problem": "",
        "runtimes": {},
        "cgroup": str(cgroup_form()),
        "cgroup_manager": settings.cgroup_manager,
    }
    try:
        told["runtimes"] = {name: program.binary for name, program in named_runtimes(settings).items()}
        program = chosen_program(settings)
        told["runtime_args"] = list(program.args)
        told["runtime"] = path = find_binary(program.binary)
        name, version = read_version(path)
        told["runtime_version"] = f"{name} {version}"
        told["runtime_features"] = summarize(path)
    except (PyctrdError, OSError) as error:
        told["runtime_problem"] = str(error)
    return told


@lru_cache(maxsize=8)
def _read(file: Path, changed_ns: int) -> dict[str, Program]:
    del changed_ns  # another one is another file
    from pyctrd.runtime.program import read_runtimes

    return read_runtimes(file)
