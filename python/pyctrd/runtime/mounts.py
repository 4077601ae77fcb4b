"""A container's mounts: those that every one has, and parts of the host.

Spec:
    runtime-spec v1.1 config.md, "Mounts"; the defaults are containerd's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pyctrd.errors import InvalidError, NotFoundError
from pyctrd.oci.value import dataclass
from pyctrd.runtime.words import passable

# What a container in the host's network namespace needs to resolve the host's names.
HOST_NETWORK_FILES = ("/etc/hosts", "/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory or file of the host, seen in the container.

    Attributes:
        source: Absolute, on the host.
        destination: Absolute, in the container.
        read_only: Whether writing is refused.
    """

    source: str
    destination: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``SOURCE:DESTINATION[:ro|rw]``; a source that begins with "." is relative to here.

        Raises:
            InvalidError: It does not have this form.
        """
        source, _, rest = text.partition(":")
        destination, _, mode = rest.partition(":")
        if not source.startswith(("/", ".")) or not destination.startswith("/") or mode not in {"", "ro", "rw"}:
            raise InvalidError(
                f"volume: {text}: expected SOURCE:DESTINATION[:ro|rw] with paths", field="volume", value=text
            )
        return cls(str(Path.cwd() / source), destination, mode == "ro")


def default_mounts() -> list[dict[str, Any]]:
    """What every container has mounted."""
    hardened = ("nosuid", "noexec", "nodev")
    shared_memory = (*hardened, "mode=1777", "size=65536k")
    terminals = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    return [
        _mount("/proc", "proc", "proc", hardened),
        _mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        _mount("/dev/pts", "devpts", "devpts", terminals),
        _mount("/dev/shm", "tmpfs", "shm", shared_memory),  # noqa: S108  # a path in the container, mounted anew
        _mount("/dev/mqueue", "mqueue", "mqueue", hardened),
        _mount("/sys", "sysfs", "sysfs", (*hardened, "ro")),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", (*hardened, "relatime", "ro")),
    ]


def _mount(destination: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def network_files(network: str, binds: Sequence[Bind]) -> list[dict[str, Any]]:
    """The host's own, in its network namespace, where no bind stands in their place."""
    if network != "host":
        return []
    taken = {bind.destination for bind in binds}
    return [
        bind_mount(Bind(path, path, read_only=True))
        for path in HOST_NETWORK_FILES
        if path not in taken and Path(path).exists()
    ]


def bind_mount(bind: Bind) -> dict[str, Any]:
    """The spec's entry for a part of the host."""
    for path in (bind.source, bind.destination):
        passable("volume", path)
    if not Path(bind.source).exists():
        raise NotFoundError(
            f"volume: {bind.source}: no such file or directory", kind="file", name=bind.source, hint="create it first"
        )
    return _mount(bind.destination, "bind", bind.source, ("rbind", "rprivate", "ro" if bind.read_only else "rw"))
