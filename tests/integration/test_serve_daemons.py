"""containerd and Docker push to the store as a registry, and pull from it: daemons of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from tests.images import Images
from tests.integration import peers
from tests.integration.peers import Tool
from tests.registry_users import write_users
from tests.serving import ask, put_image


@pytest.fixture(name="ctr")
def _ctr() -> Iterator[Tool]:
    if reason := peers.lacking("containerd", "ctr"):
        pytest.skip(reason)
    with peers.containerd() as ctr:
        yield ctr


@pytest.fixture(name="docker")
def _docker() -> Iterator[Tool]:
    if reason := peers.lacking("dockerd", "docker", "containerd"):
        pytest.skip(reason)
    with peers.docker() as docker:
        yield docker


@pytest.mark.root
@pytest.mark.slow
def test_containerd_pulls_from_it_and_pushes_to_it(engine: pyctrd.Engine, images: Images, ctr: Tool) -> None:
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
def test_docker_signs_in_pushes_and_pulls(engine: pyctrd.Engine, images: Images, docker: Tool, tmp_path: Path) -> None:
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
