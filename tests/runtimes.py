"""The OCI runtimes that tests run containers with, and what they need of the host."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import UnsupportedError
from pyctrd.runtime.cgroup import cgroup_form, check_runtime

RUNTIMES = ("runc", "crun", "youki")
_MNT_DETACH = 2


@contextmanager
def ending(**options: Any) -> Iterator[pyctrd.Engine]:
    """An engine with some options, whose containers end with the block."""
    with pyctrd.Engine(**options) as opened:
        try:
            yield opened
        finally:
            for container in opened.containers.list():
                container.delete(force=True)


@contextmanager
def usable(runtime: str) -> Iterator[str]:
    """A runtime that this host can run; a test is skipped where it is not installed.

    crun refuses a host with version 2's control groups beside version 1's. Tests have a mount namespace of their own:
    what is mounted of version 2 in it is taken away meanwhile, where no limit that tests set is there.
    """
    if shutil.which(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    taken: list[Path] = []
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        check_runtime(runtime, cgroup_form())
    except UnsupportedError as error:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, where, kind, *_ = line.split(" ")
            if kind != "cgroup2":
                continue
            if {"memory", "cpu", "pids"} & set((Path(where) / "cgroup.controllers").read_text().split()):
                pytest.skip(str(error))
            if libc.umount2(os.fsencode(where), _MNT_DETACH):
                raise OSError(ctypes.get_errno(), "umount", where) from error
            taken.append(Path(where))
    try:
        yield runtime
    finally:
        for target in taken:
            if libc.mount(b"cgroup2", os.fsencode(target), b"cgroup2", 0, None):
                raise OSError(ctypes.get_errno(), "mount", str(target))
