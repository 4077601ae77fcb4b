"""A reaper as a container's first process: the shim's own program, or another one of the host, bound into it.

Spec:
    docker-run(1), ``--init``; elf(5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from pyctrd.errors import InvalidError, NotFoundError, UnsupportedError
from pyctrd.runtime.mounts import Bind, Tmpfs, Volume
from pyctrd.runtime.shim import SHIM

# In /dev, which the runtime makes anew for each container: nothing appears in the root file system, be it read-only or
# hostile, and no directory of the image need exist.
INIT = "/dev/pyctrd-init"
VARIABLE = "PYCTRD_INIT"
PROGRAMS = ("docker-init", "catatonit", "tini-static", "tini")
DIRECTORIES = ("/usr/libexec/podman", "/usr/libexec/docker")
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_PT_INTERP = 3
_HEADERS_MAX = 128


def find_init(path: str = "") -> Bind:
    """The bind of a program that needs nothing of the container's files.

    Args:
        path: Absolute, on the host; "" is ``$PYCTRD_INIT``, else the shim, else the first that is installed.

    Raises:
        NotFoundError: There is no such file.
        InvalidError: It needs libraries, which the container may not have.
        UnsupportedError: None is installed.
    """
    if wanted := path or os.environ.get(VARIABLE, ""):
        if not os.access(wanted, os.X_OK):
            raise NotFoundError(f"init: {wanted}: no such program", kind="program", name=wanted)
        if not is_static(wanted):
            raise InvalidError(f"init: {wanted}: expected a statically linked program", field="init_path", value=wanted)
        return _bind(wanted)
    if is_static(SHIM):
        return _bind(os.fspath(SHIM))
    for name in PROGRAMS:
        for directory in (*os.get_exec_path(), *DIRECTORIES):
            candidate = f"{directory}/{name}"
            if os.access(candidate, os.X_OK) and is_static(candidate):
                return _bind(candidate)
    raise UnsupportedError(
        "unsupported: init: this build's shim needs the host's C library, and no small init is installed",
        feature="init",
        needs="a shim that was linked statically, or " + " or ".join(PROGRAMS),
        hint="install one (Debian: apt-get install tini, or catatonit), or set PYCTRD_INIT to a static one",
    )


def with_init(words: Sequence[str], mounts: Sequence[Bind | Tmpfs | Volume]) -> list[str]:
    """The command, run by what stands at ``INIT``."""
    own = any(isinstance(mount, Bind) and mount == _bind(os.fspath(SHIM)) for mount in mounts)
    return [INIT, *(("--as-init",) if own else ()), "--", *words]


def is_static(path: str | os.PathLike[str]) -> bool:
    """Whether a program of this machine's kind needs no loader: nothing of its libraries is in a container."""
    try:
        file = open(path, "rb")  # noqa: PTH123, SIM115  # a path as it was found
    except FileNotFoundError:
        return False
    with file:
        head = file.read(64)
        if len(head) < 64 or not head.startswith(_ELF64_LITTLE):
            return False
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(offset)
        table = file.read(size * min(count, _HEADERS_MAX))
    kinds = {struct.unpack_from("<I", table, place)[0] for place in range(0, len(table), size)} if size else set()
    return _PT_INTERP not in kinds


def _bind(path: str) -> Bind:
    return Bind(os.path.realpath(path), INIT, read_only=True)
