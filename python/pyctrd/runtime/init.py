"""``--init``: the shim's own program as a container's first process, which reaps what others leave behind."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from pyctrd.errors import UnsupportedError
from pyctrd.runtime.shim import SHIM

# In /dev, which the runtime makes anew for each container: nothing appears in the root file system, be it read-only or
# hostile, and no directory of the image need exist.
INIT_PATH = "/dev/pyctrd-init"
# Program header of an executable that a dynamic linker has to load.
_PT_INTERP = 3
_HEADER = struct.Struct("<16xHHIQQQIHHH")
_HEAD_BYTES = 4096


def with_init(spec: dict[str, Any], *, program: Path = SHIM) -> dict[str, Any]:
    """The spec with pyctrd's init before its command, bound read-only from the host.

    Raises:
        UnsupportedError: The shim needs a C library, which the image need not have; or there is none.
    """
    if not is_static(program):
        raise UnsupportedError(
            "unsupported: init: this build's shim needs the host's C library",
            feature="init",
            needs="a shim that was linked statically",
            hint="install pyctrd from a wheel, or build it where the C library's static form is installed",
        )
    bind = {
        "destination": INIT_PATH,
        "source": str(program),
        "type": "bind",
        "options": ["bind", "ro", "nosuid", "nodev", "private"],
    }
    words = [INIT_PATH, "--as-init", "--", *spec["process"]["args"]]
    return {**spec, "process": {**spec["process"], "args": words}, "mounts": [*spec["mounts"], bind]}


def is_static(program: Path) -> bool:
    """Whether an ELF file runs with no dynamic linker.

    Spec:
        elf(5): ``e_phoff``, ``e_phentsize``, ``e_phnum``; ``PT_INTERP``.
    """
    try:
        with program.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return False
    if not head.startswith(b"\x7fELF\x02\x01") or len(head) < _HEADER.size:
        return False
    _, _, _, _, table, _, _, _, size, count = _HEADER.unpack_from(head)
    if table + size * count > len(head):
        return False
    return all(struct.unpack_from("<I", head, table + size * number)[0] != _PT_INTERP for number in range(count))
