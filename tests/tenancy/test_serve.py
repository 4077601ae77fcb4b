"""Two tenants of one registry: neither learns of the other by what it is answered."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from tests.archives import Tar
from tests.images import BuiltImage, build_image
from tests.registry_users import write_users
from tests.serving import ask, begin, put_blob, put_image, put_manifest, sha256

ROUNDS = 300


def header(user: str) -> dict[str, str]:
    """Of a user of the file."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:secret of {user}".encode()).decode()}


ALICE, BOB = header("alice"), header("bob")


@pytest.fixture(name="server")
def _server(a: pyctrd.Engine, tmp_path: Path) -> Iterator[pyctrd.RegistryServer]:
    with a.serve_registry(
        listen="127.0.0.1:0",
        htpasswd=write_users(tmp_path / "htpasswd"),
        anonymous="none",
        namespaces={"alice": "a", "bob": "b"},
    ) as running:
        yield running


@pytest.fixture(name="built")
def _built() -> BuiltImage:
    return build_image([Tar().file("hello", b"secret").build()])


def test_each_sees_its_own_alone(
    a: pyctrd.Engine, b: pyctrd.Engine, server: pyctrd.RegistryServer, built: BuiltImage
) -> None:
    put_image(server.address, "app", built, "1", headers=ALICE)
    for method, path in (
        ("GET", "/v2/app/manifests/1"),
        ("GET", f"/v2/app/manifests/{built.digest}"),
        ("GET", f"/v2/app/blobs/{built.layers[0].digest}"),
        ("HEAD", f"/v2/app/blobs/{built.layers[0].digest}"),
        ("DELETE", f"/v2/app/blobs/{built.layers[0].digest}"),
        ("DELETE", "/v2/app/manifests/1"),
        ("GET", "/v2/app/tags/list"),
    ):
        mine = ask(server.address, method, path, headers=BOB)
        absent = ask(server.address, method, path.replace("/app/", "/nothing/"), headers=BOB)
        assert mine.status == absent.status == 404
        assert mine.body.replace(b"app", b"") == absent.body.replace(b"nothing", b"")
    assert ask(server.address, "GET", "/v2/_catalog", headers=BOB).document == {"repositories": []}
    assert b.images.list() == []
    assert [image.name for image in a.images.list()] == ["localhost/app:1"]


def test_naming_a_digest_gives_nobody_its_bytes(
    a: pyctrd.Engine, b: pyctrd.Engine, server: pyctrd.RegistryServer, built: BuiltImage
) -> None:
    put_image(server.address, "app", built, "1", headers=ALICE)
    layer = built.layers[0].digest
    for source in ("app", "a/app", "../a/app", ""):
        path = f"/v2/app/blobs/uploads/?mount={layer}" + (f"&from={source}" if source else "")
        assert ask(server.address, "POST", path, headers=BOB).status == 202
    assert put_manifest(server.address, "app", "1", built.manifest, BOB).codes == ["MANIFEST_BLOB_UNKNOWN"]
    # Who sends the bytes has them, and the store has them once.
    put_image(server.address, "app", built, "1", headers=BOB)
    assert [blob.digest for blob in b.content.list()] == [blob.digest for blob in a.content.list()]
    assert b.content.usage() == a.content.usage()
    assert ask(server.address, "DELETE", f"/v2/app/manifests/{built.digest}", headers=ALICE).status == 202
    for blob in built.blobs:
        ask(server.address, "DELETE", f"/v2/app/blobs/{blob.digest}", headers=ALICE)
    a.gc()
    assert a.content.list() == []
    assert ask(server.address, "GET", f"/v2/app/blobs/{layer}", headers=BOB).body == built.layers[0].content
    assert b.check(digests=True) == []


def test_an_upload_is_its_tenants(server: pyctrd.RegistryServer) -> None:
    path = begin(server.address, "app", ALICE)
    for method in ("GET", "PATCH", "DELETE"):
        assert ask(server.address, method, path, headers=BOB).codes == ["BLOB_UPLOAD_UNKNOWN"]
    assert ask(server.address, "PUT", f"{path}?digest={sha256(b'')}", headers=BOB).codes == ["BLOB_UPLOAD_UNKNOWN"]
    assert ask(server.address, "GET", path, headers=ALICE).status == 204


def test_a_full_tenant_hinders_no_other(a: pyctrd.Engine, b: pyctrd.Engine, server: pyctrd.RegistryServer) -> None:
    a.namespaces.set("b", quota=1000)
    refused = ask(server.address, "POST", f"/v2/app/blobs/uploads/?digest={sha256(b'x' * 2000)}", b"x" * 2000, BOB)
    assert (refused.status, refused.codes) == (403, ["DENIED"])
    assert b"1000" in refused.body
    put_blob(server.address, "app", b"x" * 2000, ALICE)
    assert (a.content.usage().charged_bytes, b.content.usage().charged_bytes) == (2000, 0)
    assert b.content.usage().reserved_bytes == 0


@pytest.mark.slow
def test_the_time_of_an_answer_says_nothing(server: pyctrd.RegistryServer) -> None:
    theirs = put_blob(server.address, "app", b"theirs" * 1000, ALICE)
    times: dict[str, list[float]] = {theirs: [], sha256(b"nobody has this"): []}
    ask(server.address, "HEAD", f"/v2/app/blobs/{theirs}", headers=BOB)
    for _ in range(ROUNDS):
        for digest, found in times.items():
            began = time.perf_counter()
            assert ask(server.address, "HEAD", f"/v2/app/blobs/{digest}", headers=BOB).status == 404
            found.append(time.perf_counter() - began)
    one, other = (sorted(found)[ROUNDS // 2] for found in times.values())
    assert 0.7 < one / other < 1.4


def test_removing_a_tenant_removes_what_it_was_sent(
    a: pyctrd.Engine, b: pyctrd.Engine, server: pyctrd.RegistryServer, built: BuiltImage
) -> None:
    put_image(server.address, "app", built, "1", headers=BOB)
    begin(server.address, "app", BOB)
    b.close()
    a.namespaces.remove("b", force=True)
    database = a._rooms.database
    for table in ("manifests", "refs", "tags", "blobs"):
        assert database._run(f"SELECT * FROM repository_{table}") == []  # noqa: S608 - the names stand above
    assert database.uploads.list() == []
    assert ask(server.address, "GET", "/v2/app/manifests/1", headers=BOB).status == 404
    assert a.check(digests=True) == []
