"""The tools, each with a store of its own: how it is started, how it pulls, loads and runs `true`."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import pyctrd
from benches.peers.accounting import Group
from pyctrd.flows.choose import SNAPSHOTTERS
from pyctrd.images import Images

OURS = "pyctrd"
LIBRARY = f"{OURS}-library"
LEAN = f"{LIBRARY}-lean"

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
        environment: What its commands need beside this process's own.
    """

    name: str
    store: Path
    group: Group
    environment: Mapping[str, str]

    def start(self) -> None:
        """Make the store, and start a daemon if there is one."""

    def stop(self) -> None:
        """End the daemon."""

    def pull(self, reference: str) -> list[str]:
        """The command that pulls and unpacks."""

    def pull_again(self, reference: str) -> list[str]:
        """The command that pulls what is there: nothing is left to do."""

    def load(self, archive: Path, name: str) -> list[str] | None:
        """The command that brings in an image of a docker archive, unpacked; None where the tool has none."""

    def run_true(self, reference: str, name: str) -> list[str] | None:
        """The command that runs `true` and removes the container; None where the tool cannot run."""


class _Stateless:
    """A tool with no daemon, for which pulling again is pulling."""

    programs: tuple[str, ...] = ()

    def __init__(self, store: Path, group: Group) -> None:
        self.store, self.group = store, group
        self.environment: Mapping[str, str] = {}

    def start(self) -> None:
        self.store.mkdir()

    def stop(self) -> None:
        """There is no daemon."""

    def pull(self, reference: str) -> list[str]:
        raise NotImplementedError

    def pull_again(self, reference: str) -> list[str]:
        return self.pull(reference)

    def load(self, archive: Path, name: str) -> list[str] | None:
        del archive, name
        return None

    def run_true(self, reference: str, name: str) -> list[str] | None:
        del reference, name
        return None


class Pyctrd(_Stateless):
    """This project's command line, with one of the snapshotters."""

    programs = ("runc",)

    def __init__(self, store: Path, group: Group, *, snapshotter: str) -> None:
        super().__init__(store, group)
        self.name = f"{OURS}-{snapshotter}"
        self.environment = {"PYCTRD_SNAPSHOTTER": snapshotter}
        # What pip puts on PATH: `python -m pyctrd` would load runpy first.
        command = str(Path(sys.executable).with_name("pyctrd"))
        self._argv = [command, "--root", f"{store}/root", "--state", f"{store}/state"]

    def pull(self, reference: str) -> list[str]:
        return [*self._argv, "pull", "-q", reference]

    def load(self, archive: Path, name: str) -> list[str] | None:
        del name
        return [*self._argv, "load", "-q", "-i", str(archive)]

    def run_true(self, reference: str, name: str) -> list[str] | None:
        return [*self._argv, "run", "--rm", "--name", name, reference, "/bin/true"]


class PyctrdLibrary(_Stateless):
    """This project as a Python program uses it: a process that runs already, as containerd does."""

    name = LIBRARY
    programs = ("mkfifo",)

    def __init__(self, store: Path, group: Group) -> None:
        super().__init__(store, group)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.store.mkdir()
        for name in ("requests", "answers"):
            subprocess.run(["mkfifo", f"{self.store}/{name}"], check=True)
        argv = [sys.executable, "-m", "benches.peers.library", str(self.store)]
        argv += [json.dumps(options) for options in self.options()]
        self._process = self.group.popen(argv, log=self.store / "daemon.log")
        ready = ["timeout", str(_READY_SECONDS), "cat", f"{self.store}/answers"]
        if subprocess.run(ready, capture_output=True, check=False).stdout != b"ready":
            raise RuntimeError(f"{self.name} is not ready: see {self.store}/daemon.log")

    def options(self) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """What the engine is opened with, and what every pull is called with."""
        return {}, {}

    def stop(self) -> None:
        if self._process is not None:
            _end(self._process)

    def pull(self, reference: str) -> list[str]:
        return self._ask("pull", reference)

    def pull_again(self, reference: str) -> list[str]:
        """Prints how long the call itself took: a shell and two pipes take longer."""
        return self._ask("again", reference)

    def run_true(self, reference: str, name: str) -> list[str] | None:
        return self._ask("run", reference, name)

    def _ask(self, *words: str) -> list[str]:
        return ["sh", "-c", f"echo {' '.join(words)} >{self.store}/requests && cat {self.store}/answers"]


class PyctrdLean(PyctrdLibrary):
    """The same, where compressed layers are not kept."""

    name = LEAN

    def options(self) -> tuple[Mapping[str, object], Mapping[str, object]]:
        lean = {"keep_blobs": False}
        return ({}, lean) if _takes_keep_blobs(Images.pull) else (lean, {})

    @staticmethod
    def is_offered() -> bool:
        """Whether the engine has the option, for a pull or for all."""
        return _takes_keep_blobs(Images.pull) or _takes_keep_blobs(pyctrd.Engine.__init__)


class _Daemon(_Stateless):
    """A tool with a daemon of its own."""

    _daemon: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        if self._daemon is not None:
            _end(self._daemon)


class Containerd(_Daemon):
    """A containerd of its own, driven by `ctr`."""

    name = "ctr"
    programs = ("containerd", "ctr", "runc")

    def __init__(self, store: Path, group: Group) -> None:
        super().__init__(store, group)
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

    def load(self, archive: Path, name: str) -> list[str] | None:
        del name
        return [*self._argv, "images", "import", str(archive)]

    def run_true(self, reference: str, name: str) -> list[str] | None:
        return [*self._argv, "run", "--rm", reference, name, "/bin/true"]


class Podman(_Stateless):
    """podman over a store of its own."""

    name = "podman"
    programs = ("podman", "runc")

    def __init__(self, store: Path, group: Group) -> None:
        super().__init__(store, group)
        self._argv = ["podman", "--root", f"{store}/root", "--runroot", f"{store}/run", "--tmpdir", f"{store}/tmp"]
        self._argv += ["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        self._argv += ["--runtime", "runc"]

    def start(self) -> None:
        self.store.mkdir()
        # It remembers blobs of earlier stores, and would ask the registry about them.
        Path("/var/lib/containers/cache/blob-info-cache-v1.boltdb").unlink(missing_ok=True)
        subprocess.run([*self._argv, "info"], check=True, capture_output=True)

    def pull(self, reference: str) -> list[str]:
        return [*self._argv, "pull", "-q", "--tls-verify=false", reference]

    def load(self, archive: Path, name: str) -> list[str] | None:
        del name
        return [*self._argv, "load", "-q", "-i", str(archive)]

    def run_true(self, reference: str, name: str) -> list[str] | None:
        # As containerd's and ours: no network; and its own default limits need CAP_SYS_RESOURCE.
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        return [*self._argv, "run", "--rm", *limits, "--network", "none", "--name", name, reference, "/bin/true"]


class Docker(_Daemon):
    """A dockerd of its own, with the containerd that it starts, and no network."""

    name = "docker"
    programs = ("dockerd", "docker", "containerd", "runc")

    def __init__(self, store: Path, group: Group) -> None:
        super().__init__(store, group)
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

    def load(self, archive: Path, name: str) -> list[str] | None:
        del name
        return [*self._argv, "load", "-q", "-i", str(archive)]

    def run_true(self, reference: str, name: str) -> list[str] | None:
        return [*self._argv, "run", "--rm", "--network", "none", "--name", name, reference, "/bin/true"]


class SkopeoUmoci(_Stateless):
    """skopeo into an OCI layout, umoci out of it."""

    name = "skopeo+umoci"
    programs = ("skopeo", "umoci")

    def __init__(self, store: Path, group: Group) -> None:
        super().__init__(store, group)
        self._bundles = 0

    def pull(self, reference: str) -> list[str]:
        return self._copy_and_unpack(f"--src-tls-verify=false docker://{reference}")

    def pull_again(self, reference: str) -> list[str]:
        """skopeo's half alone: umoci would unpack everything once more."""
        copy = f"skopeo copy -q --preserve-digests --src-tls-verify=false docker://{reference} oci:{self.store}/oci:x"
        return ["sh", "-c", f"exec {copy}"]

    def load(self, archive: Path, name: str) -> list[str] | None:
        return self._copy_and_unpack(f"docker-archive:{archive}:{name}")

    def _copy_and_unpack(self, source: str) -> list[str]:
        self._bundles += 1
        # An archive's layers are compressed on the way into a layout: no digest of theirs can be preserved.
        preserve = "--preserve-digests " if source.startswith("--") else ""
        copy = f"skopeo copy -q {preserve}{source} oci:{self.store}/oci:x"
        unpack = f"umoci unpack --image {self.store}/oci:x {self.store}/bundle-{self._bundles}"
        return ["sh", "-c", f"{copy} && exec {unpack}"]


def offered_snapshotters() -> tuple[str, dict[str, str]]:
    """What the engine as it is built chooses by itself here, and the form of layers of each that it can use.

    ``native`` is left out: its pull is overlayfs', and what is its own happens when a snapshot is made.
    """
    with (
        tempfile.TemporaryDirectory(prefix="peers-", dir="/var/tmp") as scratch,
        pyctrd.Engine(root=Path(scratch, "root"), state=Path(scratch, "state")) as engine,
    ):
        info = engine.info()
    usable = {name: kind.form for name, kind in SNAPSHOTTERS.items() if name not in info["snapshotters_not_usable"]}
    usable.pop("native", None)
    return info["snapshotter"], {name: str(form) for name, form in usable.items()}


def make_tools(snapshotters: Iterable[str]) -> dict[str, Callable[[Path, Group], Tool]]:
    """Every tool by its name: ours first, with each snapshotter."""
    ours: dict[str, Callable[[Path, Group], Tool]] = {
        f"{OURS}-{name}": partial(Pyctrd, snapshotter=name) for name in snapshotters
    }
    offered = [tool for tool in _OTHERS if not issubclass(tool, PyctrdLean) or tool.is_offered()]
    return ours | {tool.name: tool for tool in offered}


_OTHERS: tuple[type[PyctrdLibrary | Containerd | Podman | Docker | SkopeoUmoci], ...] = (
    PyctrdLibrary,
    PyctrdLean,
    Containerd,
    Podman,
    Docker,
    SkopeoUmoci,
)
_PROGRAMS = {tool.name: tool.programs for tool in _OTHERS}


def missing_programs(name: str) -> list[str]:
    """What a tool needs and is not on PATH."""
    return [program for program in _PROGRAMS.get(name, Pyctrd.programs) if shutil.which(program) is None]


def versions() -> dict[str, str]:
    """The first line that each program says of its version."""
    commands = [[sys.executable, "-m", "pyctrd", "version"]]
    names = ("containerd", "podman", "dockerd", "skopeo", "umoci", "runc", "docker-registry")
    commands += [[name, "--version"] for name in names]
    found = {}
    for argv in commands:
        if shutil.which(argv[0]):
            done = subprocess.run(argv, capture_output=True, text=True, check=True)
            found[argv[0] if len(argv) == 2 else OURS] = done.stdout.splitlines()[0]
    return found


def _takes_keep_blobs(function: Callable[..., object]) -> bool:
    return "keep_blobs" in inspect.signature(function).parameters


def _wait_until_ready(argv: list[str], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while subprocess.run(argv, capture_output=True, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{argv[0]} is not ready after {_READY_SECONDS} s: see {log}")
        time.sleep(0.05)  # a daemon that has no other way to say so


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
