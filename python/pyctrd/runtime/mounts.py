"""A container's mounts: those that every one has, parts of the host, and memory.

Spec:
    runtime-spec v1.1 config.md, "Mounts"; the defaults are containerd's. mount(8), tmpfs(5), mount_namespaces(7).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pyctrd.errors import InvalidError, NotFoundError
from pyctrd.oci.value import NamedTuple
from pyctrd.runtime.words import passable

# What a container in the host's network namespace needs to resolve the host's names.
HOST_NETWORK_FILES = ("/etc/hosts", "/etc/resolv.conf")
TTY_GROUP = 5
SHM_BYTES = 64 << 20
PROPAGATIONS = ("rprivate", "private", "rshared", "shared", "rslave", "slave")
TMPFS_FLAGS = ("noexec", "nosuid", "nodev")


class Bind(NamedTuple):
    """A directory or file of the host, seen in the container.

    Attributes:
        source: Absolute, on the host.
        destination: Absolute, in the container.
        read_only: Whether writing is refused.
        recursive_read_only: Also in what is mounted beneath the source.
        propagation: One of ``PROPAGATIONS``: whether later mounts beneath are seen by the other side.
        recursive: What is mounted beneath the source comes too.
        flags: "nosuid", "nodev", "noexec".
    """

    source: str
    destination: str
    read_only: bool = False
    recursive_read_only: bool = False
    propagation: str = "rprivate"
    recursive: bool = True
    flags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``SOURCE:DESTINATION[:OPTION,…]``; a source that begins with "." is relative to here.

        Raises:
            InvalidError: It does not have this form.
        """
        from pyctrd.runtime.mount_options import parse_volume

        found = parse_volume(text)
        if not isinstance(found, Bind):
            raise InvalidError(
                f"volume: {text}: expected SOURCE:DESTINATION[:ro|rw] with paths", field="volume", value=text
            )
        return cls(*found)


class Volume(NamedTuple):
    """A named volume; a flow finds its directory, and puts a ``Bind`` in its place.

    Attributes:
        name: Of the volume; "" is a new one of this container alone.
        destination: Absolute, in the container.
        read_only: Whether writing is refused.
        propagation: As ``Bind``'s.
        flags: As ``Bind``'s.
        copy: A new, empty volume gets what the image has there.
    """

    name: str
    destination: str
    read_only: bool = False
    propagation: str = "rprivate"
    flags: tuple[str, ...] = ()
    copy: bool = True

    def at(self, source: str) -> Bind:
        """The bind of the directory that the volume is."""
        return Bind(source, self.destination, self.read_only, propagation=self.propagation, flags=self.flags)


class ImageMount(NamedTuple):
    """An image's files; a flow mounts them, and puts a ``Bind`` in its place.

    Attributes:
        image: Its name, or the beginning of its digest.
        destination: Absolute, in the container.
        writable: What is written goes to a layer of the container's own, and goes with it.
        subpath: What of it is shown; "" is all.
    """

    image: str
    destination: str
    writable: bool = False
    subpath: str = ""


class Tmpfs(NamedTuple):
    """An empty file system in memory.

    Attributes:
        destination: Absolute, in the container.
        options: As of mount(8) and tmpfs(5): "size=64m", "mode=1777", "exec".
    """

    destination: str
    options: tuple[str, ...] = TMPFS_FLAGS


class MappedSystem(NamedTuple):
    """What a container in a user namespace may mount of the kernel's: that which is of namespaces of its own.

    Attributes:
        host_network: Its network is another's: /sys is the host's.
        host_pids: Its processes are seen by others: /proc is the host's.
        has_tty: It has the group that terminals belong to.
    """

    host_network: bool
    host_pids: bool
    has_tty: bool


Mount = Bind | Tmpfs | Volume | ImageMount


def container_mounts(
    mounts: Sequence[Mount],
    *,
    network: str = "none",
    files: Mapping[str, str] | None = None,
    shm_bytes: int | None = SHM_BYTES,
    host_ipc: bool = False,
    writable_system: bool = False,
    userns: MappedSystem | None = None,
) -> list[dict[str, Any]]:
    """The spec's ``mounts``: what every container has, where the user put nothing else, then the user's, outer first.

    Args:
        mounts: The user's.
        network: As in ``RunOptions``: in the host's, its name files are seen.
        files: Files of the host by their path in the container: what was written for it.
        shm_bytes: Size of /dev/shm; None for none.
        host_ipc: /dev/shm and /dev/mqueue are the host's.
        writable_system: /sys and control groups can be written.
        userns: What it may mount of them in a user namespace of its own.

    Raises:
        InvalidError: Two at one place, or one of them cannot be.
        NotFoundError: The source of a bind is missing.
    """
    taken: set[str] = set()
    for mount in mounts:
        if (place := posixpath.normpath(mount.destination)) in taken:
            raise InvalidError(f"mount: {place}: two mounts at one place", field="mount", value=place)
        taken.add(place)
    made = _default_mounts(shm_bytes, host_ipc=host_ipc, writable=writable_system)
    if userns is not None:
        made = [_in_userns(mount, userns) for mount in made]
    if "/dev" in taken:
        made = [mount for mount in made if not mount["destination"].startswith("/dev/")]
    made = [mount for mount in made if mount["destination"] not in taken]
    made += [
        bind_mount(Bind(source, path, path == source))
        for path, source in _name_files(network, files or {})
        if path not in taken
    ]
    # The outer ones first: else they would hide the inner ones.
    return made + [_user_mount(mount) for mount in sorted(mounts, key=_depth)]


def bind_mount(bind: Bind) -> dict[str, Any]:
    """The spec's entry for a part of the host.

    Raises:
        InvalidError: A path cannot be passed on.
        NotFoundError: The source is missing.
    """
    for path in (bind.source, bind.destination):
        passable("volume", path)
    if not Path(bind.source).exists():
        raise NotFoundError(
            f"volume: {bind.source}: no such file or directory", kind="file", name=bind.source, hint="create it first"
        )
    if bind.propagation.endswith(("shared", "slave")):
        from pyctrd.runtime.mount_options import check_propagation

        check_propagation(bind)
    access = ("rro" if bind.recursive_read_only else "ro") if bind.read_only else "rw"
    how = "rbind" if bind.recursive else "bind"
    return _mount(bind.destination, "bind", bind.source, (how, bind.propagation, access, *bind.flags))


def rootfs_propagation(mounts: Iterable[Mount]) -> str:
    """The spec's ``linux.rootfsPropagation`` for mounts that are to propagate; "" is the runtime's own.

    The runtime makes all mounts of the container's namespace private first; what shall propagate must not be then.
    """
    wanted = {mount.propagation for mount in mounts if isinstance(mount, Bind)}
    if wanted & {"shared", "rshared"}:
        return "rshared"
    return "rslave" if wanted & {"slave", "rslave"} else ""


def _user_mount(mount: Mount) -> dict[str, Any]:
    if isinstance(mount, Bind):
        return bind_mount(mount)
    if isinstance(mount, Tmpfs):
        passable("tmpfs", mount.destination)
        return _mount(mount.destination, "tmpfs", "tmpfs", mount.options)
    name = mount.image if isinstance(mount, ImageMount) else mount.name
    raise InvalidError(f"mount: {name}: no directory was found for it", field="mount", value=name)


def _depth(mount: Mount) -> int:
    return posixpath.normpath(mount.destination).count("/")


def _default_mounts(shm_bytes: int | None, *, host_ipc: bool, writable: bool) -> list[dict[str, Any]]:
    hardened = ("nosuid", "noexec", "nodev")
    terminals = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    access = "rw" if writable else "ro"
    made = [
        _mount("/proc", "proc", "proc", hardened),
        _mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        _mount("/dev/pts", "devpts", "devpts", terminals),
    ]
    if host_ipc:
        made += [_mount(path, "bind", path, ("rbind", "rprivate", "rw", *hardened)) for path in _HOST_IPC if _is(path)]
    else:
        if shm_bytes is not None:
            memory = (
                *hardened,
                "mode=1777",
                f"size={shm_bytes >> 10}k" if not shm_bytes % 1024 else f"size={shm_bytes}",
            )
            made.append(_mount("/dev/shm", "tmpfs", "shm", memory))  # noqa: S108  # a path in the container, mounted anew
        made.append(_mount("/dev/mqueue", "mqueue", "mqueue", hardened))
    made += [
        _mount("/sys", "sysfs", "sysfs", (*hardened, access)),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", (*hardened, "relatime", access)),
    ]
    return made


def _in_userns(mount: dict[str, Any], system: MappedSystem) -> dict[str, Any]:
    place, options = mount["destination"], mount["options"]
    if (place == "/sys" and system.host_network) or (place == "/proc" and system.host_pids):
        return _mount(place, "bind", place, ("rbind", "rprivate", *options))
    if place == "/dev/pts" and not system.has_tty:
        return mount | {"options": [option for option in options if option != f"gid={TTY_GROUP}"]}
    return mount


_HOST_IPC = ("/dev/shm", "/dev/mqueue")  # noqa: S108  # the kernel's, shared on purpose


def _is(path: str) -> bool:
    return Path(path).is_dir()


def _mount(destination: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _name_files(network: str, files: Mapping[str, str]) -> list[tuple[str, str]]:
    """Path in the container, and on the host."""
    found = dict(files)
    if network == "host":
        found = {path: path for path in HOST_NETWORK_FILES if Path(path).exists()} | found
    return list(found.items())
