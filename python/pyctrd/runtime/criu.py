"""CRIU, by which runtimes write processes to files: whether it is here, and works with this kernel.

Spec:
    criu(8); runc-checkpoint(8), runc-restore(8).
"""

from __future__ import annotations

import shutil
import subprocess

from pyctrd.errors import UnsupportedError

CHECK_SECONDS = 30.0
_LINE_CHARS = 120


def check_criu() -> None:
    """Refuse where processes cannot be written to files.

    Raises:
        UnsupportedError: criu is not installed, or says that this kernel cannot do it.
    """
    path = shutil.which("criu")
    if path is None:
        raise _missing("criu is not installed", "criu", "install it (Debian: apt-get install criu)")
    try:
        done = subprocess.run([path, "check"], capture_output=True, check=False, timeout=CHECK_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _missing(f"{path} check: {error}", "a criu that works", "") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        told = lines[-1].strip()[:_LINE_CHARS] if lines else f"status {done.returncode}"
        raise _missing(f"{path} check: {told}", "a kernel that criu can use", "see criu check --all")


def _missing(why: str, needs: str, hint: str) -> UnsupportedError:
    return UnsupportedError(
        f"unsupported: checkpoint and restore: {why}", feature="checkpoint and restore", needs=needs, hint=hint
    )
