"""What an OCI runtime can do, as it says itself: ``runc features``; one that has no such command is an old one.

Spec:
    runtime-spec v1.1 features.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyctrd.errors import UnsupportedError

FEATURES_SECONDS = 20.0
_RECURSIVE = "rro"


def read_features(path: str) -> Mapping[str, Any]:
    """What the program says; {} of an old one. Asked once for as long as the file is the same.

    Args:
        path: Absolute, of the program.
    """
    found = Path(path).stat()
    return _ask(path, found.st_mtime_ns, found.st_size)


def check_recursive_read_only(path: str) -> None:
    """Refuse recursive read-only mounts where the runtime would make others of them.

    Raises:
        UnsupportedError: It cannot make them.
    """
    if _RECURSIVE not in (read_features(path).get("mountOptions") or ()):
        raise UnsupportedError(
            f"unsupported: rro: {path} makes no recursive read-only mounts",
            feature="recursive read-only mounts",
            needs="runc 1.1 and Linux 5.12",
            hint="use ro, by which what is mounted beneath stays writable",
        )


@lru_cache(maxsize=16)
def _ask(path: str, mtime_ns: int, size: int) -> Mapping[str, Any]:
    del mtime_ns, size  # they tell one program from another at the same path
    import subprocess

    import orjson

    try:
        done = subprocess.run(
            [path, "features"], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=FEATURES_SECONDS
        )
        told = orjson.loads(done.stdout) if done.returncode == 0 else {}
    except (subprocess.TimeoutExpired, orjson.JSONDecodeError):
        return {}
    return told if isinstance(told, dict) else {}


def summarize(path: str) -> dict[str, Any]:
    """The features that decide what containers can be asked of it; {} where it does not say.

    Args:
        path: Absolute, of the program.
    """
    told = read_features(path)
    if not told:
        return {}
    linux = told.get("linux") or {}
    groups = linux.get("cgroup") or {}
    extensions = linux.get("mountExtensions") or {}
    return {
        "spec": f"{told.get('ociVersionMin', '?')} to {told.get('ociVersionMax', '?')}",
        "cgroup": [name for name in ("v1", "v2", "systemd", "rdma") if groups.get(name)],
        "namespaces": list(linux.get("namespaces") or ()),
        "hooks": list(told.get("hooks") or ()),
        "seccomp": bool((linux.get("seccomp") or {}).get("enabled")),
        "apparmor": bool((linux.get("apparmor") or {}).get("enabled")),
        "selinux": bool((linux.get("selinux") or {}).get("enabled")),
        "recursive_read_only": _RECURSIVE in (told.get("mountOptions") or ()),
        # runtime-spec v1.2; runc 1.2 and crun 1.9 say it, older ones do not.
        "idmapped_mounts": bool((extensions.get("idmap") or {}).get("enabled")),
    }
