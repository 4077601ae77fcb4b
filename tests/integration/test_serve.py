"""The store as a registry: other programs push to it and pull from it, and what comes can be run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyctrd
from tests.archives import Tar
from tests.images import BuiltImage, Images, build_image, build_index
from tests.serving import ask, put_image

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
needs_crane = pytest.mark.skipif(shutil.which("crane") is None, reason="crane is not installed")


def run(*words: str) -> str:
    """A program's output."""
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(name="server")
def _server(engine: pyctrd.Engine) -> Iterator[pyctrd.RegistryServer]:
    with engine.serve_registry(listen="127.0.0.1:0", anonymous="push") as running:
        yield running


@pytest.fixture(name="built")
def _built() -> BuiltImage:
    return build_image([Tar().file("hello", b"world" * 1000).build(), Tar().file("more", os.urandom(300_000)).build()])


@pytest.fixture(name="other")
def _other(tmp_path: Path, state: Path) -> Iterator[pyctrd.Engine]:
    """An engine over another store."""
    with pyctrd.Engine(root=tmp_path / "other", state=state / "other") as opened:
        yield opened


@pytest.fixture(name="podman")
def _podman(tmp_path: Path, state: Path) -> Iterator[Callable[..., str]]:
    if not shutil.which("podman"):
        pytest.skip("podman is not installed")
    Path(os.environ["REGISTRY_AUTH_FILE"]).write_text("{}")
    store = ["--root", str(tmp_path / "podman"), "--runroot", str(state / "podman"), "--storage-driver", "vfs"]
    words = ["podman", *store, "--tmpdir", str(tmp_path / "tmp"), "--events-backend", "none"]
    yield lambda *more: run(*words, *more)
    run(*words, "rmi", "-af")


def test_what_is_sent_is_an_image_of_the_engine(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer, built: BuiltImage
) -> None:
    digest = put_image(server.address, "team/app", built, "1")
    (image,) = engine.images.list()
    assert (image.name, image.digest) == ("localhost/team/app:1", digest)
    assert image.read_file("/hello") == b"world" * 1000  # unpacked now, by the first who wants it
    assert engine.check(digests=True) == []


@pytest.mark.root
def test_what_is_sent_can_be_run(engine: pyctrd.Engine, server: pyctrd.RegistryServer, images: Images) -> None:
    put_image(server.address, "tools/busybox", images.busybox.built, "latest")
    container = engine.containers.run("localhost/tools/busybox", ["echo", "here"], network="none")
    assert container.wait(timeout=30).exit_code == 0
    assert container.logs() == "here\n"


def test_another_store_pulls_what_was_sent(
    server: pyctrd.RegistryServer, other: pyctrd.Engine, built: BuiltImage
) -> None:
    digest = put_image(server.address, "app", built, "1")
    image = other.images.pull(f"{server.address}/app:1")
    assert image.digest == digest
    assert image.read_file("/hello") == b"world" * 1000


def test_what_the_engine_pulled_is_seen_by_its_full_name(
    engine: pyctrd.Engine, images: Images, other: pyctrd.Engine
) -> None:
    pulled = engine.images.pull(images.tree.reference)
    # A registry's port cannot be said in the path of another one; so it gets a name that has none.
    record = engine._rooms.database.images.find("default", pulled.name)
    assert record is not None
    with engine._rooms.database.write() as tx:
        tx.images.put(record._replace(name="registry.example/team/tree:1"))
    with engine.serve_registry(listen="127.0.0.1:0") as server:
        path = "registry.example/team/tree"
        assert ask(server.address, "GET", f"/v2/{path}/tags/list").document["tags"] == ["1"]
        assert other.images.pull(f"{server.address}/{path}:1").digest == pulled.digest
        layer = images.tree.built.layers[0].digest
        assert ask(server.address, "HEAD", f"/v2/elsewhere/blobs/{layer}").status == 404


@needs_skopeo
def test_skopeo_copies_to_it_and_from_it(server: pyctrd.RegistryServer, images: Images, tmp_path: Path) -> None:
    copy = ("skopeo", "--insecure-policy", "copy", "-q", "--all")
    there = f"docker://{server.address}/mirror/multi:1"
    plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
    run(*copy, *plain, f"docker://{images.multi_platform.reference}", there)
    run(*copy, *plain, there, f"oci:{tmp_path / 'layout'}:1")
    index = json.loads((tmp_path / "layout" / "index.json").read_text())
    assert index["manifests"][0]["digest"] == images.multi_platform.built.digest
    tags = json.loads(run("skopeo", "list-tags", "--tls-verify=false", f"docker://{server.address}/mirror/multi"))
    assert tags["Tags"] == ["1"]
    run("skopeo", "delete", "--tls-verify=false", there)
    assert ask(server.address, "GET", "/v2/mirror/multi/manifests/1").status == 404


def test_podman_pushes_to_it_and_pulls_from_it(
    server: pyctrd.RegistryServer, images: Images, podman: Callable[..., str]
) -> None:
    name = f"{server.address}/team/busybox:1"
    podman("pull", "-q", "--tls-verify=false", images.busybox.reference)
    podman("tag", images.busybox.reference, name)
    podman("push", "-q", "--tls-verify=false", name)
    podman("rmi", name, images.busybox.reference)
    podman("pull", "-q", "--tls-verify=false", name)
    assert name in podman("images", "--format", "{{.Repository}}:{{.Tag}}")


@needs_crane
def test_crane_copies_lists_and_deletes(server: pyctrd.RegistryServer, images: Images, tmp_path: Path) -> None:
    there = f"{server.address}/mirror/app"
    run("crane", "copy", "--insecure", images.app.reference, f"{there}:1")
    run("crane", "tag", "--insecure", f"{there}:1", "2")
    assert run("crane", "ls", "--insecure", there).split() == ["1", "2"]
    assert run("crane", "catalog", "--insecure", server.address).split() == ["mirror/app"]
    digest = run("crane", "digest", "--insecure", f"{there}:2").strip()
    assert digest == images.app.built.digest
    run("crane", "pull", "--insecure", "--format=oci", f"{there}:2", str(tmp_path / "layout"))
    run("crane", "validate", "--insecure", "--remote", f"{there}:2")
    run("crane", "delete", "--insecure", f"{there}@{digest}")
    assert run("crane", "ls", "--insecure", there).split() == []


def test_an_index_is_kept_whole_and_its_own_platform_can_be_used(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer
) -> None:
    children = {
        name: build_image([Tar().file("platform", name.encode()).build()], platform=name)
        for name in ("linux/amd64", "linux/arm64")
    }
    index = build_index(children)
    put_image(server.address, "multi", index, "1")
    engine.gc()
    for child in children.values():
        found = ask(server.address, "GET", f"/v2/multi/manifests/{child.digest}")
        assert (found.status, found.body) == (200, child.manifest.content)
        for blob in child.blobs:
            assert ask(server.address, "GET", f"/v2/multi/blobs/{blob.digest}").body == blob.content
    image = engine.images.get("localhost/multi:1")
    assert (image.digest, image.read_file("/platform").decode()) == (index.digest, image.platform)
    assert engine.check() == []


def test_removing_the_image_frees_what_was_sent(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer, built: BuiltImage
) -> None:
    put_image(server.address, "app", built, "1")
    put_image(server.address, "app", built, "2")
    engine.images.remove("localhost/app:1")
    assert ask(server.address, "GET", "/v2/app/tags/list").document["tags"] == ["2"]
    assert ask(server.address, "GET", f"/v2/app/blobs/{built.layers[0].digest}").status == 200
    engine.images.remove("localhost/app:2")
    assert ask(server.address, "GET", "/v2/app/manifests/2").status == 404
    # What was sent less than a day ago may be named by a manifest that is to come.
    assert {blob.digest for blob in engine.content.list()} == {blob.digest for blob in built.blobs}
    for blob in built.blobs:
        assert ask(server.address, "DELETE", f"/v2/app/blobs/{blob.digest}").status == 202
    engine.gc()
    assert engine.content.list() == []
    assert engine.check() == []


def test_a_layer_that_was_not_kept_is_served_again_where_it_can_be_made(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer, images: Images
) -> None:
    pushed = images.push(build_image([Tar().file("f", b"x" * 100_000).build()], compression="none"), "plain")
    zipped = images.push(build_image([Tar().file("g", b"y" * 100_000).build()]), "zipped")
    for place, found in (("plain", pushed), ("zipped", zipped)):
        pulled = engine.images.pull(found.reference, keep_blobs=False)
        record = engine._rooms.database.images.find("default", pulled.name)
        assert record is not None
        with engine._rooms.database.write() as tx:
            tx.images.put(record._replace(name=f"registry.example/{place}:1"))
    (plain,) = pushed.built.layers
    made = ask(server.address, "GET", f"/v2/registry.example/plain/blobs/{plain.digest}")
    assert (made.status, made.body) == (200, plain.content)
    head = ask(server.address, "HEAD", f"/v2/registry.example/plain/blobs/{plain.digest}")
    assert (head.status, head.headers["content-length"]) == (200, str(len(plain.content)))
    (gone,) = zipped.built.layers
    refused = ask(server.address, "GET", f"/v2/registry.example/zipped/blobs/{gone.digest}")
    assert (refused.status, refused.codes) == (404, ["BLOB_UNKNOWN"])
