"""containerd and Docker push to the store as a registry, and pull from it: daemons of the tests' own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pyctrd
from tests.images import Images
from tests.registry_users import write_users
from tests.serving import ask, put_image

READY_SECONDS = 60.0
PAUSE_SECONDS = 0.1
_CONTAINERD = """version = 2
root = "{store}/root"
state = "{store}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{store}/socket"
[plugins."io.containerd.internal.v1.opt"]
path = "{store}/opt"
"""

Run = Callable[..., str]


@contextmanager
def daemon(store: Path, client: list[str], *words: str) -> Iterator[Run]:
    """A daemon that answers, and what runs a client of it."""
    with (store / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    environment = os.environ | {"DOCKER_CONFIG": str(store / "docker")}

    def ready() -> bool:
        return subprocess.run([*client, "version"], capture_output=True, check=False).returncode == 0

    def run(*more: str, text: str = "") -> str:
        done = subprocess.run(
            [*client, *more], capture_output=True, text=True, env=environment, check=False, input=text
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            assert process.poll() is None, (store / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(PAUSE_SECONDS)
        yield run
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(name="ctr")
def _ctr(state: Path) -> Iterator[Run]:
    if not (shutil.which("containerd") and shutil.which("ctr")):
        pytest.skip("containerd is not installed")
    store = state / "containerd"
    store.mkdir()
    (store / "config.toml").write_text(_CONTAINERD.format(store=store))
    words = ["containerd", "--config", str(store / "config.toml"), "--log-level", "error"]
    with daemon(store, ["ctr", "--address", f"{store}/socket"], *words) as run:
        yield run


@pytest.fixture(name="docker")
def _docker(state: Path) -> Iterator[Run]:
    if not (shutil.which("dockerd") and shutil.which("docker") and shutil.which("containerd")):
        pytest.skip("docker is not installed")
    store = state / "docker"
    store.mkdir()
    words = ["dockerd", "--data-root", f"{store}/root", "--exec-root", f"{store}/state", "--pidfile", f"{store}/pid"]
    words += ["--host", f"unix://{store}/socket", "--storage-driver", "vfs", "--oom-score-adjust", "0"]
    words += ["--bridge", "none", "--iptables=false", "--ip6tables=false"]
    with daemon(store, ["docker", "--host", f"unix://{store}/socket"], *words) as run:
        yield run


@pytest.mark.root
@pytest.mark.slow
def test_containerd_pulls_from_it_and_pushes_to_it(engine: pyctrd.Engine, images: Images, ctr: Run) -> None:
    built = images.busybox.built
    with engine.serve_registry(listen="127.0.0.1:0", anonymous="push") as server:
        put_image(server.address, "app", built, "1")
        name, copy = f"{server.address}/app:1", f"{server.address}/copy/app:2"
        ctr("images", "pull", "--plain-http", name)
        ctr("images", "tag", name, copy)
        ctr("images", "push", "--plain-http", copy)
        found = ask(server.address, "GET", "/v2/copy/app/manifests/2")
        assert found.headers["docker-content-digest"] == built.digest
    assert engine.check(digests=True) == []


@pytest.mark.root
@pytest.mark.slow
def test_docker_signs_in_pushes_and_pulls(engine: pyctrd.Engine, images: Images, docker: Run, tmp_path: Path) -> None:
    users = write_users(tmp_path / "htpasswd")
    with engine.serve_registry(listen="127.0.0.1:0", htpasswd=users, anonymous="pull") as server:
        docker("pull", "-q", images.busybox.reference)
        name = f"{server.address}/team/busybox:1"
        docker("tag", images.busybox.reference, name)
        docker("login", "-u", "alice", "--password-stdin", server.address, text="secret of alice")
        docker("push", "-q", name)
        docker("rmi", name, images.busybox.reference)
        docker("logout", server.address)
        docker("pull", "-q", name)  # anybody may
        assert name in docker("images", "--format", "{{.Repository}}:{{.Tag}}")
        container = engine.containers.run("localhost/team/busybox:1", ["echo", "here"], network="none")
        assert container.wait(timeout=30).exit_code == 0
    assert engine.check(digests=True) == []
