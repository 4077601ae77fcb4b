"""Other people's tools, each over a store of the test's own: what they read of ours, and what we read of theirs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

READY_SECONDS = 60.0
STOP_SECONDS = 30.0

Tool = Callable[..., str]

_CONTAINERD = """version = 2
root = "{store}/root"
state = "{store}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{store}/socket"
[plugins."io.containerd.internal.v1.opt"]
path = "{store}/opt"
"""


def run(*words: str, text: str = "") -> str:
    """A program's output; ``text`` is its input."""
    done = subprocess.run(words, check=False, capture_output=True, text=True, input=text)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def lacking(*programs: str) -> str:
    """Why a test of these programs cannot run; "" where it can."""
    missing = [program for program in programs if not shutil.which(program)]
    return f"{', '.join(missing)}: not installed" if missing else ""


def skopeo(source: str, target: str) -> None:
    """Copy an image from one transport to another."""
    run("skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", source, target)


@contextmanager
def podman() -> Iterator[Tool]:
    """Podman over a store of its own, with a short path."""
    Path(os.environ["REGISTRY_AUTH_FILE"]).write_text("{}")  # it wants the file that is named
    store = Path(tempfile.mkdtemp(prefix="pyctrd-"))
    words = ["podman", "--root", f"{store}/root", "--runroot", f"{store}/run", "--tmpdir", f"{store}/tmp"]
    words += ["--storage-driver", "vfs", "--events-backend", "none"]
    try:
        yield partial(run, *words)
        run(*words, "rmi", "-af")
    finally:
        shutil.rmtree(store)


@contextmanager
def docker() -> Iterator[Tool]:
    """A dockerd of its own, with the containerd that it starts, and no network."""
    with _daemon(
        lambda store: [
            *("dockerd", "--data-root", f"{store}/root", "--exec-root", f"{store}/state", "--pidfile", f"{store}/pid"),
            *("--host", f"unix://{store}/socket", "--storage-driver", "vfs", "--oom-score-adjust", "0"),
            *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
        ],
        lambda store: ["docker", "--host", f"unix://{store}/socket"],
    ) as tool:
        yield tool


@contextmanager
def containerd() -> Iterator[Tool]:
    """A containerd of its own, driven by ctr."""

    def argv(store: Path) -> list[str]:
        (store / "config.toml").write_text(_CONTAINERD.format(store=store))
        return ["containerd", "--config", f"{store}/config.toml", "--log-level", "error"]

    with _daemon(argv, lambda store: ["ctr", "--address", f"{store}/socket"]) as tool:
        yield tool


@contextmanager
def _daemon(argv: Callable[[Path], list[str]], client: Callable[[Path], list[str]]) -> Iterator[Tool]:
    store = Path(tempfile.mkdtemp(prefix="pyctrd-"))
    words = client(store)
    with (store / "log").open("wb") as log:
        process = subprocess.Popen(argv(store), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while subprocess.run([*words, "version"], capture_output=True, check=False).returncode != 0:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{words[0]}: not ready: {(store / 'log').read_text()[-2000:]}")
            time.sleep(0.1)  # nothing tells when its socket answers
        yield partial(run, *words)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(store, ignore_errors=True)
