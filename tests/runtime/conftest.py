"""A busybox root file system, and containers of it under the real runc, gone at the end whatever happened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyctrd.oci.config import ImageConfig, RootFS
from pyctrd.oci.platform import Platform
from pyctrd.runtime.resources import ResourceLimits
from pyctrd.runtime.runtime import Runtime
from pyctrd.runtime.spec import RunOptions, build_spec
from pyctrd.runtime.state import ExitStatus
from pyctrd.runtime.users import find_user

BUSYBOX = Path("/bin/busybox")
APPLETS = "sh true false cat sleep echo id env pwd ls stty head tail seq yes printf wc grep mount touch dd tr sync"
WAIT_SECONDS = 60.0
IMAGE = ImageConfig(platform=Platform("linux", "amd64"), rootfs=RootFS(()))


def make_rootfs(path: Path) -> Path:
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev"):
        (path / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, path / "bin" / "busybox")
    for applet in APPLETS.split():
        (path / "bin" / applet).symlink_to("busybox")
    (path / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/srv:/bin/sh\n")
    (path / "etc" / "group").write_text("root:x:0:\nweb:x:1001:\nlogs:x:2000:web,root\n")
    return path


def run_options(command: tuple[str, ...], **options: Any) -> RunOptions:
    """Options, with limits among them."""
    limits = {name: options.pop(name) for name in ResourceLimits.__dataclass_fields__ if name in options}
    return RunOptions(command=command, limits=ResourceLimits(**limits), **options)


@dataclass
class Host:
    """A runtime, and what was started by it."""

    runtime: Runtime
    rootfs: Path
    containers: Path
    state: Path
    started: dict[str, Path] = field(default_factory=dict)

    def prepare(self, name: str, *command: str, image: ImageConfig = IMAGE, **options: Any) -> Path:
        bundle = self.containers / name
        wanted = run_options(command, **options)
        user = find_user(self.rootfs, wanted.user or image.user)
        spec = build_spec(image, wanted, container_id=name, rootfs=self.rootfs, user=user)
        self.runtime.create_bundle(bundle, spec)
        self.started[name] = bundle
        return bundle

    def run(self, name: str, *command: str, **options: Any) -> tuple[ExitStatus, str]:
        """Run to its end, detached: its exit, and all that it wrote."""
        bundle = self.prepare(name, *command, **options)
        self.runtime.start(name, bundle, terminal=bool(options.get("terminal")))
        ended = self.runtime.wait(name, bundle, timeout=WAIT_SECONDS)
        return ended, self.output(name)

    def output(self, name: str) -> str:
        return "".join(line.text for line in self.runtime.logs(name, self.started[name]))

    def shim_directory(self, name: str) -> Path:
        return self.state / "shims" / name


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    if os.geteuid() != 0 or shutil.which("runc") is None or not BUSYBOX.exists():
        pytest.skip("needs root, runc and busybox-static")
    state = tmp_path / "state"
    made = Host(Runtime("runc", state=state), make_rootfs(tmp_path / "rootfs"), tmp_path / "containers", state)
    try:
        yield made
    finally:
        for name, bundle in made.started.items():
            made.runtime.delete(name, bundle, force=True)
