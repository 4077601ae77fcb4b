"""Where an engine keeps things and how it behaves: defaults, environment, options."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pyctrd.content.limits import Limits
from pyctrd.errors import InvalidError
from pyctrd.metadata.namespaces import check_namespace
from pyctrd.oci.value import dataclass

CgroupManager = Literal["cgroupfs", "systemd"]
CGROUP_MANAGERS: tuple[CgroupManager, ...] = ("cgroupfs", "systemd")
Durability = Literal["full", "batch", "none"]
DURABILITIES: tuple[Durability, ...] = ("full", "batch", "none")

ROOT_VARIABLE = "PYCTRD_ROOT"
STATE_VARIABLE = "PYCTRD_STATE"
NAMESPACE_VARIABLE = "PYCTRD_NAMESPACE"
RUNTIME_VARIABLE = "PYCTRD_RUNTIME"
RUNTIMES_VARIABLE = "PYCTRD_RUNTIMES"
CGROUP_MANAGER_VARIABLE = "PYCTRD_CGROUP_MANAGER"
SNAPSHOTTER_VARIABLE = "PYCTRD_SNAPSHOTTER"
DURABILITY_VARIABLE = "PYCTRD_DURABILITY"
CONTENT_DIGESTS_VARIABLE = "PYCTRD_CONTENT_DIGESTS"
KEEP_BLOBS_VARIABLE = "PYCTRD_KEEP_BLOBS"
HOSTS_VARIABLE = "PYCTRD_HOSTS"
INSECURE_VARIABLE = "PYCTRD_INSECURE_REGISTRIES"
# Of our own, then where nodes have it that ran containerd or Docker before.
_HOSTS = (Path("/etc/pyctrd/certs.d"), Path("/etc/containerd/certs.d"), Path("/etc/docker/certs.d"))
VERIFY_KEY_VARIABLE = "PYCTRD_VERIFY_KEY"
LAYER_CONNECTIONS_VARIABLE = "PYCTRD_LAYER_CONNECTIONS"
# User and password by registry, or what gives them for one.
Credentials = Mapping[str, tuple[str, str]] | Callable[[str], tuple[str, str] | None]
_SWITCH = {"0": False, "1": True}

DEFAULT_NAMESPACE = "default"
# Enough requests in flight to hide a registry's latency; Podman uses six, containerd three.
DEFAULT_CONCURRENCY = 6
# As many as of several layers at once; with more, what one connection brings ahead would not fit in the blocks for it.
LAYER_CONNECTIONS_MAX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one engine behaves.

    Attributes:
        root: Holds everything that must survive a reboot.
        state: Holds what a reboot ends: mounts, sockets.
        namespace: The tenant that every operation is scoped by.
        runtime: The OCI runtime's name or path.
        runtimes: Runtimes by names of the caller's: a path, or an object with ``path`` and ``args``.
        runtimes_file: More of them, in the form of Docker's; None for the usual file, where it is there.
        cgroup_manager: Who makes control groups: the runtime ("cgroupfs") or "systemd".
        snapshotter: "overlayfs", "native", "composefs", "erofs", or None for the best that the host can do.
        durability: What a returned pull survives: "full" and "batch" a power cut, "none" a crash of the
            process only. "full" flushes blob by blob, "batch" once for an image.
        concurrency: Layers in flight at once in one pull.
        ca: A file of PEM certificates that registries are checked against, beside the system's.
        plain_http: Hosts (``name`` or ``name:port``) to talk to without TLS; loopback needs no mention.
        insecure: Registries, or networks of them, whose certificates are not looked at.
        credentials: User and password by registry host, or what gives them, before any configuration file.
        hosts: Directories that say where registries' content is to be had.
        limits: What a layer may have.
        content_digests: Whether the index of a layer that is unpacked gets the BLAKE3 of each file's content; of one
            whose contents become objects it has them anyway. The layer also gets a list of them by SHA-256, which a
            table of contents is looked up in.
        keep_blobs: Whether the blob of a layer that is unpacked is stored too.
        layer_connections: Connections that one layer may come over at once, where that is faster; 1 for never more.
    """

    root: Path
    state: Path
    namespace: str = DEFAULT_NAMESPACE
    runtime: str = "runc"
    runtimes: Mapping[str, Any] = field(default_factory=dict)
    runtimes_file: Path | None = None
    cgroup_manager: CgroupManager = "cgroupfs"
    snapshotter: str | None = None
    durability: Durability = "batch"
    concurrency: int = DEFAULT_CONCURRENCY
    ca: Path | None = None
    plain_http: frozenset[str] = frozenset()
    insecure: frozenset[str] = frozenset()
    credentials: Credentials | None = field(default=None, repr=False)
    hosts: tuple[Path, ...] = ()
    limits: Limits = field(default_factory=Limits)
    content_digests: bool = False
    keep_blobs: bool = True
    layer_connections: int = LAYER_CONNECTIONS_MAX


def default_root() -> Path:
    """``$PYCTRD_ROOT``, else ``/var/lib/pyctrd``, for a user ``$XDG_DATA_HOME/pyctrd``."""
    if value := os.environ.get(ROOT_VARIABLE):
        return Path(value)
    if os.geteuid() == 0:
        return Path("/var/lib/pyctrd")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "pyctrd"


def default_state() -> Path:
    """``$PYCTRD_STATE``, else ``/run/pyctrd``, for a user ``$XDG_RUNTIME_DIR/pyctrd``."""
    if value := os.environ.get(STATE_VARIABLE):
        return Path(value)
    if os.geteuid() == 0:
        return Path("/run/pyctrd")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "pyctrd"


def _directory(name: str, path: str | os.PathLike[str]) -> Path:
    """Absolute; and UTF-8, because records and the runtime's ``config.json`` name what is in it."""
    absolute = Path(path).absolute()
    try:
        str(absolute).encode()
    except UnicodeEncodeError as error:
        raise InvalidError(
            f"invalid {name}: {str(absolute)!r}: expected UTF-8", field=name, value=str(absolute)
        ) from error
    return absolute


def _hosts(given: str | os.PathLike[str] | None) -> tuple[Path, ...]:
    """The directories that say where registries' content is to be had; a name that is given must be one, "" is none."""
    if given is None:
        return _HOSTS
    if not os.fspath(given):
        return ()
    directory = Path(given)
    if not directory.is_dir():
        raise InvalidError(f"invalid hosts: {directory}: no such directory", field="hosts", value=str(directory))
    return (directory,)


def _program(name: str) -> str:
    """A name is looked for on PATH; a path is recorded with containers, and must mean the same elsewhere."""
    return str(Path(name).absolute()) if "/" in name else name


def _switch(variable: str, *, default: bool) -> bool:
    value = os.environ.get(variable, "")
    if not value:
        return default
    if value not in _SWITCH:
        raise InvalidError(f"invalid {variable}: {value[:80]!r}: expected 0 or 1", field=variable, value=value[:80])
    return _SWITCH[value]


def _layer_connections(given: int | None) -> int:
    value = os.environ.get(LAYER_CONNECTIONS_VARIABLE, "") if given is None else str(given)
    if not value:
        return LAYER_CONNECTIONS_MAX
    if not (len(value) == 1 and value.isascii() and value.isdigit() and 1 <= int(value) <= LAYER_CONNECTIONS_MAX):
        name = LAYER_CONNECTIONS_VARIABLE if given is None else "layer_connections"
        raise InvalidError(
            f"invalid {name}: {value[:80]!r}: expected 1 to {LAYER_CONNECTIONS_MAX}", field=name, value=value[:80]
        )
    return int(value)


def read_settings(
    *,
    root: str | os.PathLike[str] | None = None,
    state: str | os.PathLike[str] | None = None,
    namespace: str | None = None,
    runtime: str | None = None,
    runtimes: Mapping[str, Any] | None = None,
    cgroup_manager: str | None = None,
    snapshotter: str | None = None,
    durability: str | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
    ca: str | os.PathLike[str] | None = None,
    plain_http: Collection[str] = (),
    insecure: Collection[str] | None = None,
    credentials: Credentials | None = None,
    hosts: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
    content_digests: bool | None = None,
    keep_blobs: bool | None = None,
    layer_connections: int | None = None,
) -> Settings:
    """Options first, then the environment, then the defaults.

    Raises:
        InvalidError: A value is none of those allowed, or a directory's name is not UTF-8.
    """
    environment = os.environ
    wanted = durability or environment.get(DURABILITY_VARIABLE) or "batch"
    chosen = next((known for known in DURABILITIES if known == wanted), None)
    if chosen is None:
        raise InvalidError(
            f"invalid durability: {wanted!r}: expected full, batch or none", field="durability", value=wanted
        )
    asked = cgroup_manager or environment.get(CGROUP_MANAGER_VARIABLE) or "cgroupfs"
    manager = next((known for known in CGROUP_MANAGERS if known == asked), None)
    if manager is None:
        raise InvalidError(
            f"invalid cgroup_manager: {asked!r}: expected cgroupfs or systemd", field="cgroup_manager", value=asked
        )
    runtimes_file = environment.get(RUNTIMES_VARIABLE)
    if concurrency < 1:
        raise InvalidError(
            f"invalid concurrency: {concurrency}: expected at least 1", field="concurrency", value=concurrency
        )
    return Settings(
        root=_directory("root", root or default_root()),
        state=_directory("state", state or default_state()),
        # An empty name that a program gives is no tenant's: it must not become another's.
        namespace=check_namespace(environment.get(NAMESPACE_VARIABLE) or DEFAULT_NAMESPACE)
        if namespace is None
        else check_namespace(namespace),
        runtime=_program(runtime or environment.get(RUNTIME_VARIABLE) or "runc"),
        runtimes=dict(runtimes or {}),
        runtimes_file=Path(runtimes_file).absolute() if runtimes_file else None,
        cgroup_manager=manager,
        snapshotter=snapshotter or environment.get(SNAPSHOTTER_VARIABLE) or None,
        durability=chosen,
        concurrency=concurrency,
        ca=Path(ca) if ca else None,
        plain_http=frozenset(plain_http),
        insecure=frozenset(environment.get(INSECURE_VARIABLE, "").split() if insecure is None else insecure),
        credentials=credentials if credentials is None or callable(credentials) else dict(credentials),
        hosts=_hosts(environment.get(HOSTS_VARIABLE) if hosts is None else hosts),
        limits=limits or Limits(),
        content_digests=_switch(CONTENT_DIGESTS_VARIABLE, default=False)
        if content_digests is None
        else content_digests,
        keep_blobs=_switch(KEEP_BLOBS_VARIABLE, default=True) if keep_blobs is None else keep_blobs,
        layer_connections=_layer_connections(layer_connections),
    )
