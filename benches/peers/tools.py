"""The tools, each with a store of its own: how it is started, how it pulls, how it runs `true`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from benches.peers.accounting import Group

_READY_SECONDS = 30.0
_STOP_SECONDS = 20.0
_CONTAINERD_CONFIG = """version = 2
root = "{store}/root"
state = "{store}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{store}/socket"
[plugins."io.containerd.internal.v1.opt"]
path = "{store}/opt"
"""


class Tool(Protocol):
    """What is compared.

    Attributes:
        name: In the table.
        store: Where everything of it is kept; empty at the start.
        group: Its processes, a daemon's too.
    """

    name: str
    store: Path
    group: Group

    def start(self) -> None:
        """Make the store, and start a daemon if there is one."""

    def stop(self) -> None:
        """End the daemon."""

    def pull(self, reference: str) -> list[str]:
        """The command that pulls and unpacks."""

    def run_true(self, reference: str, name: str) -> list[str] | None:
        """The command that runs `true` and removes the container; None where the tool cannot run."""


class Pyctrd:
    """This project's command line."""

    name = "pyctrd"
    programs = ("runc",)

    def __init__(self, store: Path, group: Group) -> None:
        self.store, self.group = store, group
        # What pip puts on PATH: `python -m pyctrd` would load runpy first.
        command = str(Path(sys.executable).with_name("pyctrd"))
        self._argv = [command, "--root", f"{store}/root", "--state", f"{store}/state"]

    def start(self) -> None:
        self.store.mkdir()

    def stop(self) -> None:
        """There is no daemon."""

    def pull(self, reference: str) -> list[str]:
        return [*self._argv, "pull", "-q", reference]

    def run_true(self, reference: str, name: str) -> list[str] | None:
        return [*self._argv, "run", "--rm", "--name", name, reference, "/bin/true"]


class PyctrdLibrary:
    """This project as a Python program uses it: a process that runs already, as containerd does."""

    name = "pyctrd-library"
    programs = ("mkfifo",)

    def __init__(self, store: Path, group: Group) -> None:
        self.store, self.group = store, group
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.store.mkdir()
        for name in ("requests", "answers"):
            subprocess.run(["mkfifo", f"{self.store}/{name}"], check=True)
        argv = [sys.executable, "-m", "benches.peers.library", str(self.store)]
        self._process = self.group.popen(argv, log=self.store / "daemon.log")
        ready = ["timeout", str(_READY_SECONDS), "cat", f"{self.store}/answers"]
        if subprocess.run(ready, capture_output=True, check=False).stdout != b"ready":
            raise RuntimeError(f"{self.name} is not ready: see {self.store}/daemon.log")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_STOP_SECONDS)

    def pull(self, reference: str) -> list[str]:
        return ["sh", "-c", f"echo pull {reference} >{self.store}/requests && cat {self.store}/answers"]

    def run_true(self, reference: str, name: str) -> list[str] | None:
        return ["sh", "-c", f"echo run {reference} {name} >{self.store}/requests && cat {self.store}/answers"]


class _Daemon:
    """A tool with a daemon of its own."""

    _daemon: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(_STOP_SECONDS)


class Containerd(_Daemon):
    """A containerd of its own, driven by `ctr`."""

    name = "ctr"
    programs = ("containerd", "ctr", "runc")

    def __init__(self, store: Path, group: Group) -> None:
        self.store, self.group = store, group
        self._argv = ["ctr", "--address", f"{store}/socket"]

    def start(self) -> None:
        self.store.mkdir()
        config = self.store / "config.toml"
        config.write_text(_CONTAINERD_CONFIG.format(store=self.store))
        argv = ["containerd", "--config", str(config), "--log-level", "error"]
        self._daemon = self.group.popen(argv, log=self.store / "daemon.log")
        _wait_until_ready([*self._argv, "version"], self.store / "daemon.log")

    def pull(self, reference: str) -> list[str]:
        return [*self._argv, "images", "pull", "--plain-http", reference]

    def run_true(self, reference: str, name: str) -> list[str] | None:
        return [*self._argv, "run", "--rm", reference, name, "/bin/true"]


class Podman:
    """podman over a store of its own."""

    name = "podman"
    programs = ("podman", "runc")

    def __init__(self, store: Path, group: Group) -> None:
        self.store, self.group = store, group
        self._argv = ["podman", "--root", f"{store}/root", "--runroot", f"{store}/run", "--tmpdir", f"{store}/tmp"]
        self._argv += ["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        self._argv += ["--runtime", "runc"]

    def start(self) -> None:
        self.store.mkdir()
        # It remembers blobs of earlier stores, and would ask the registry about them.
        Path("/var/lib/containers/cache/blob-info-cache-v1.boltdb").unlink(missing_ok=True)
        subprocess.run([*self._argv, "info"], check=True, capture_output=True)

    def stop(self) -> None:
        """There is no daemon."""

    def pull(self, reference: str) -> list[str]:
        return [*self._argv, "pull", "-q", "--tls-verify=false", reference]

    def run_true(self, reference: str, name: str) -> list[str] | None:
        # As containerd's and ours: no network; and its own default limits need CAP_SYS_RESOURCE.
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        return [*self._argv, "run", "--rm", *limits, "--network", "none", "--name", name, reference, "/bin/true"]


class Docker(_Daemon):
    """A dockerd of its own, with the containerd that it starts, and no network."""

    name = "docker"
    programs = ("dockerd", "docker", "containerd", "runc")

    def __init__(self, store: Path, group: Group) -> None:
        self.store, self.group = store, group
        self._argv = ["docker", "--host", f"unix://{store}/socket"]

    def start(self) -> None:
        self.store.mkdir()
        argv = ["dockerd", "--data-root", f"{self.store}/root", "--exec-root", f"{self.store}/state"]
        argv += ["--pidfile", f"{self.store}/pid", "--host", f"unix://{self.store}/socket"]
        argv += ["--storage-driver", "overlay2", "--oom-score-adjust", "0"]
        argv += ["--bridge", "none", "--iptables=false", "--ip6tables=false"]
        self._daemon = self.group.popen(argv, log=self.store / "daemon.log")
        _wait_until_ready([*self._argv, "version"], self.store / "daemon.log")

    def pull(self, reference: str) -> list[str]:
        return [*self._argv, "pull", "-q", reference]

    def run_true(self, reference: str, name: str) -> list[str] | None:
        return [*self._argv, "run", "--rm", "--network", "none", "--name", name, reference, "/bin/true"]


class SkopeoUmoci:
    """skopeo into an OCI layout, umoci out of it."""

    name = "skopeo+umoci"
    programs = ("skopeo", "umoci")

    def __init__(self, store: Path, group: Group) -> None:
        self.store, self.group = store, group

    def start(self) -> None:
        self.store.mkdir()

    def stop(self) -> None:
        """There is no daemon."""

    def pull(self, reference: str) -> list[str]:
        copy = f"skopeo copy -q --preserve-digests --src-tls-verify=false docker://{reference} oci:{self.store}/oci:x"
        return ["sh", "-c", f"{copy} && exec umoci unpack --image {self.store}/oci:x {self.store}/bundle"]

    def run_true(self, reference: str, name: str) -> list[str] | None:
        del reference, name  # umoci unpacks, and leaves running to others
        return None


TOOLS = {tool.name: tool for tool in (Pyctrd, PyctrdLibrary, Containerd, Podman, Docker, SkopeoUmoci)}


def missing_programs(name: str) -> list[str]:
    """What a tool needs and is not on PATH."""
    return [program for program in TOOLS[name].programs if shutil.which(program) is None]


def versions() -> dict[str, str]:
    """The first line that each program says of its version."""
    commands = [[sys.executable, "-m", "pyctrd", "version"]]
    commands += [[name, "--version"] for name in ("containerd", "podman", "dockerd", "skopeo", "umoci", "runc")]
    found = {}
    for argv in commands:
        if shutil.which(argv[0]):
            done = subprocess.run(argv, capture_output=True, text=True, check=True)
            found[argv[0] if len(argv) == 2 else "pyctrd"] = done.stdout.splitlines()[0]
    return found


def _wait_until_ready(argv: list[str], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while subprocess.run(argv, capture_output=True, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{argv[0]} is not ready after {_READY_SECONDS} s: see {log}")
        time.sleep(0.05)  # a daemon that has no other way to say so
