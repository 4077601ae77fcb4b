"""What the store lacks is fetched from upstream when it is asked for: once, verified, and kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.flows import through
from tests.archives import Tar
from tests.images import BuiltImage, Images, build_image
from tests.registry_faults import Answer, FaultyRegistry
from tests.serving import ask, put_image, sha256

LAYER = Tar().file("hello", b"world" * 50_000).build()


@pytest.fixture(name="built")
def _built() -> BuiltImage:
    return build_image([LAYER, Tar().file("more", b"more").build()])


@pytest.fixture(name="server")
def _server(engine: pyctrd.Engine, faulty: FaultyRegistry) -> Iterator[pyctrd.RegistryServer]:
    with engine.serve_registry(listen="127.0.0.1:0", upstreams=[faulty.host]) as running:
        yield running


def asked(faulty: FaultyRegistry, part: str) -> int:
    """How often upstream was asked for the content of something."""
    return len([request for request in faulty.requests(part) if request.method == "GET"])


def test_a_client_gets_what_upstream_has(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer, faulty: FaultyRegistry, built: BuiltImage, state: Path
) -> None:
    faulty.add(built, "team/app", tag="1")
    for number in range(2):
        with pyctrd.Engine(root=state / f"root-{number}", state=state / f"state-{number}") as other:
            image = other.images.pull(f"{server.address}/team/app:1")
            assert (image.digest, image.read_file("/more")) == (built.digest, b"more")
    assert asked(faulty, "/manifests/") == 1
    for blob in built.blobs:
        assert asked(faulty, blob.digest) == 1
    assert engine.check(digests=True) == []
    engine.gc()
    assert ask(server.address, "GET", f"/v2/team/app/blobs/{built.layers[0].digest}").status == 200


def test_any_number_of_clients_wait_for_one_download(
    server: pyctrd.RegistryServer, faulty: FaultyRegistry, built: BuiltImage
) -> None:
    faulty.add(built, "team/app", tag="1")
    layer = built.layers[0]
    gate = threading.Event()
    faulty.lie(layer.digest, Answer(body=layer.content, stall=gate))
    found: list[bytes] = []

    def get() -> None:
        assert ask(server.address, "GET", "/v2/team/app/manifests/1").status == 200
        found.append(ask(server.address, "GET", f"/v2/team/app/blobs/{layer.digest}").body)

    threads = [threading.Thread(target=get) for _ in range(10)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while not asked(faulty, layer.digest):
        assert time.monotonic() < deadline
    gate.set()
    for thread in threads:
        thread.join()
    assert found == [layer.content] * 10
    assert (asked(faulty, "/manifests/"), asked(faulty, layer.digest)) == (1, 1)


def test_wrong_bytes_of_upstream_are_nobodys(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer, faulty: FaultyRegistry, built: BuiltImage
) -> None:
    faulty.add(built, "team/app", tag="1")
    layer = built.layers[0]
    faulty.lie(layer.digest, *[Answer(body=None, garbled=True)] * 5)
    assert ask(server.address, "GET", "/v2/team/app/manifests/1").status == 200
    refused = ask(server.address, "GET", f"/v2/team/app/blobs/{layer.digest}")
    assert refused.status in (400, 502)
    assert engine._rooms.blobs.exists(layer.digest) is False
    assert engine.check(digests=True) == []


def test_a_tag_is_asked_for_again_after_a_while_and_served_while_upstream_is_gone(
    server: pyctrd.RegistryServer, faulty: FaultyRegistry, built: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.add(built, "team/app", tag="1")
    path = "/v2/team/app/manifests/1"
    assert ask(server.address, "GET", path).headers["docker-content-digest"] == built.digest
    newer = build_image([Tar().file("newer", b"newer").build()])
    faulty.add(newer, "team/app", tag="1")
    assert ask(server.address, "GET", path).headers["docker-content-digest"] == built.digest
    monkeypatch.setattr(through, "FRESH_SECONDS", 0.0)
    assert ask(server.address, "GET", path).headers["docker-content-digest"] == newer.digest
    faulty.close()
    assert ask(server.address, "GET", path).headers["docker-content-digest"] == newer.digest
    assert ask(server.address, "GET", "/v2/team/other/manifests/1").status == 502


def test_what_was_sent_here_goes_before_what_upstream_has(
    engine: pyctrd.Engine, faulty: FaultyRegistry, built: BuiltImage
) -> None:
    faulty.add(build_image([Tar().file("theirs", b"theirs").build()]), "team/app", tag="1")
    with engine.serve_registry(listen="127.0.0.1:0", upstreams=[faulty.host], anonymous="push") as server:
        put_image(server.address, "team/app", built, "1")
        assert ask(server.address, "GET", "/v2/team/app/manifests/1").headers["docker-content-digest"] == built.digest
        # A mirror's client says whose it means.
        path = f"/v2/team/app/manifests/1?ns={faulty.host}"
        assert ask(server.address, "GET", path).headers["docker-content-digest"] != built.digest
        elsewhere = ask(server.address, "GET", "/v2/team/app/manifests/1?ns=registry.example")
        assert elsewhere.headers["docker-content-digest"] == built.digest


def test_what_is_fetched_changes_no_image_of_the_engine(
    engine: pyctrd.Engine, faulty: FaultyRegistry, built: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = faulty.add(built, "team/app", tag="1")
    pulled = engine.images.pull(reference)
    newer = build_image([Tar().file("newer", b"newer").build()])
    faulty.add(newer, "team/app", tag="1")
    monkeypatch.setattr(through, "FRESH_SECONDS", 0.0)
    with engine.serve_registry(listen="127.0.0.1:0", upstreams=[faulty.host]) as server:
        path = "/v2/team/app/manifests/1"
        assert ask(server.address, "GET", path).headers["docker-content-digest"] == newer.digest
    (image,) = engine.images.list()
    assert (image.name, image.digest, image.read_file("/more")) == (reference, pulled.digest, b"more")
    assert engine.images.pull(reference).digest == newer.digest


def test_only_blobs_that_a_manifest_names_are_asked_for(
    server: pyctrd.RegistryServer, faulty: FaultyRegistry, built: BuiltImage
) -> None:
    faulty.add(built, "team/app", tag="1")
    layer = built.layers[0].digest
    assert ask(server.address, "GET", f"/v2/team/app/blobs/{layer}").status == 404  # no manifest was asked for yet
    assert ask(server.address, "GET", f"/v2/team/app/blobs/{sha256(b'guess')}").status == 404
    assert ask(server.address, "GET", "/v2/team/app/manifests/nothing").status == 404
    assert asked(faulty, "/blobs/") == 0
    refused = ask(server.address, "GET", "/v2/registry.example/team/app/manifests/1")
    assert refused.status == 404
    assert faulty.requests("registry.example") == []


def test_an_index_and_its_images_come_as_they_are_asked_for(engine: pyctrd.Engine, images: Images, state: Path) -> None:
    index = images.multi_platform
    upstream, _, path = index.reference.partition("/")
    name = path.partition(":")[0].partition("@")[0]
    tag = path.rpartition(":")[2]
    with engine.serve_registry(listen="127.0.0.1:0", upstreams=[upstream]) as server:
        with pyctrd.Engine(root=state / "root-2", state=state / "state-2") as other:
            assert other.images.pull(f"{server.address}/{name}:{tag}").digest == index.built.digest
        for child in index.built.children:
            found = ask(server.address, "GET", f"/v2/{name}/manifests/{child.digest}")
            assert found.body == child.manifest.content
    assert engine.check(digests=True) == []


def test_ending_gives_up_what_is_on_its_way_and_keeps_it(
    engine: pyctrd.Engine, faulty: FaultyRegistry, built: BuiltImage
) -> None:
    faulty.add(built, "team/app", tag="1")
    layer = built.layers[0]
    faulty.lie(layer.digest, Answer(body=layer.content, stall=threading.Event()))
    server = engine.serve_registry(listen="127.0.0.1:0", upstreams=[faulty.host])
    assert ask(server.address, "GET", "/v2/team/app/manifests/1").status == 200
    found: list[int] = []

    def get() -> None:
        try:
            found.append(ask(server.address, "GET", f"/v2/team/app/blobs/{layer.digest}").status)
        except OSError:
            found.append(0)

    client = threading.Thread(target=get)
    client.start()
    deadline = time.monotonic() + 30
    while not asked(faulty, layer.digest):
        assert time.monotonic() < deadline
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 20
    client.join()
    assert found[0] in (0, 503)
    assert engine.check() == []
