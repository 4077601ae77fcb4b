"""Manifests, tags and referrers of the store as a registry: what is taken, what is refused, and how all is listed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import pyctrd
from pyctrd.oci.document import DOCUMENT_MAX_BYTES
from pyctrd.oci.media_types import DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from tests.archives import Tar
from tests.images import Blob, BuiltImage, build_image
from tests.serving import ask, put_blob, put_image, put_manifest, sha256

EMPTY = b"{}"
EMPTY_DESCRIPTOR = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(EMPTY), "size": 2}


@pytest.fixture(name="server")
def _server(engine: pyctrd.Engine) -> Iterator[pyctrd.RegistryServer]:
    with engine.serve_registry(listen="127.0.0.1:0", anonymous="push") as running:
        put_blob(running.address, "app", EMPTY)
        yield running


@pytest.fixture(name="built")
def _built() -> BuiltImage:
    return build_image([Tar().file("hello", b"world").build()])


def document(media_type: str = OCI_MANIFEST, **more: Any) -> Blob:
    """An artifact's manifest of nothing but what is given."""
    body: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type}
    if media_type != OCI_INDEX:
        body |= {"config": EMPTY_DESCRIPTOR, "layers": [EMPTY_DESCRIPTOR]}
    return Blob(media_type, json.dumps(body | more).encode())


def subject_of(blob: Blob) -> Mapping[str, Any]:
    """A descriptor of it."""
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": len(blob.content)}


def test_a_manifest_comes_back_byte_for_byte(server: pyctrd.RegistryServer) -> None:
    odd = Blob(OCI_MANIFEST, b"  " + document().content + b"\n\n")
    sent = put_manifest(server.address, "app", "1", odd)
    assert (sent.status, sent.headers["docker-content-digest"]) == (201, odd.digest)
    assert sent.headers["location"] == f"/v2/app/manifests/{odd.digest}"
    for target in ("1", odd.digest):
        found = ask(server.address, "GET", f"/v2/app/manifests/{target}")
        assert (found.body, found.headers["content-type"]) == (odd.content, OCI_MANIFEST)
        assert found.headers["docker-content-digest"] == odd.digest
        head = ask(server.address, "HEAD", f"/v2/app/manifests/{target}")
        assert (head.body, head.headers["content-length"]) == (b"", str(len(odd.content)))
        tagged = {"If-None-Match": found.headers["etag"]}
        assert ask(server.address, "GET", f"/v2/app/manifests/{target}", headers=tagged).status == 304


@pytest.mark.parametrize(
    ("body", "media_type", "code"),
    [
        (b"", OCI_MANIFEST, "MANIFEST_INVALID"),
        (b"no JSON", OCI_MANIFEST, "MANIFEST_INVALID"),
        (b"[]", OCI_MANIFEST, "MANIFEST_INVALID"),
        (b'{"schemaVersion": 2}', OCI_MANIFEST, "MANIFEST_INVALID"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "", "MANIFEST_INVALID"),
        (document(manifests=[]).content, OCI_MANIFEST, "MANIFEST_INVALID"),
        (document().content, OCI_INDEX, "MANIFEST_INVALID"),
        (document().content, DOCKER_MANIFEST, "MANIFEST_INVALID"),
        (document().content, "text/html", "MANIFEST_INVALID"),
        (document(config={"mediaType": "x/y", "digest": "sha256:short", "size": 1}).content, OCI_MANIFEST, None),
        (document(layers=[{"mediaType": "x/y", "digest": "../../etc", "size": 1}]).content, OCI_MANIFEST, None),
        (document(subject={"mediaType": "x/y", "digest": "x", "size": 1}).content, OCI_MANIFEST, None),
        (document(layers=[EMPTY_DESCRIPTOR | {"size": -1}]).content, OCI_MANIFEST, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"schemaVersion":2,"manifests":[]}', OCI_INDEX, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"manifests":[],"x":' + b"[" * 5000 + b"]" * 5000 + b"}", OCI_INDEX, "MANIFEST_INVALID"),
        ("\ufeff{}".encode("utf-16"), OCI_MANIFEST, "MANIFEST_INVALID"),
    ],
)
def test_what_is_no_manifest_is_refused(
    server: pyctrd.RegistryServer, engine: pyctrd.Engine, body: bytes, media_type: str, code: str | None
) -> None:
    before = engine.content.list()
    refused = put_manifest(server.address, "app", "1", Blob(media_type, body))
    assert refused.status == 400
    assert refused.codes == [code] if code else refused.codes[0] in ("MANIFEST_INVALID", "DIGEST_INVALID")
    assert engine.content.list() == before
    assert ask(server.address, "GET", "/v2/app/manifests/1").codes == ["MANIFEST_UNKNOWN"]


def test_a_manifest_by_another_digest_is_refused(server: pyctrd.RegistryServer) -> None:
    refused = put_manifest(server.address, "app", sha256(b"another"), document())
    assert (refused.status, refused.codes) == (400, ["DIGEST_INVALID"])


@pytest.mark.parametrize("size", [DOCUMENT_MAX_BYTES, DOCUMENT_MAX_BYTES + 1])
def test_a_manifest_has_four_mebibytes_at_most(server: pyctrd.RegistryServer, size: int) -> None:
    short = document(annotations={"a": ""}).content
    long = document(annotations={"a": "x" * (size - len(short))})
    assert len(long.content) == size
    found = put_manifest(server.address, "app", "1", long)
    if size <= DOCUMENT_MAX_BYTES:
        assert found.status == 201
        assert ask(server.address, "GET", "/v2/app/manifests/1").body == long.content
    else:
        assert (found.status, found.codes) == (413, ["SIZE_INVALID"])
        parts = iter([long.content[:1000], long.content[1000:]])
        headers = {"Transfer-Encoding": "chunked", "Content-Type": OCI_MANIFEST}
        streamed = ask(server.address, "PUT", "/v2/app/manifests/1", parts, headers, chunked=True)
        assert streamed.status == 413


def test_what_a_manifest_names_must_be_there(server: pyctrd.RegistryServer, built: BuiltImage) -> None:
    refused = put_manifest(server.address, "app", "1", built.manifest)
    assert (refused.status, refused.codes) == (404, ["MANIFEST_BLOB_UNKNOWN"])
    for blob in built.blobs:
        put_blob(server.address, "elsewhere", blob.content)  # another repository's are not this one's
    assert put_manifest(server.address, "app", "1", built.manifest).status == 404
    child = document()
    entry = {"mediaType": OCI_MANIFEST, "digest": child.digest, "size": len(child.content)}
    index = Blob(OCI_INDEX, json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode())
    assert put_manifest(server.address, "app", "1", index).codes == ["MANIFEST_BLOB_UNKNOWN"]
    assert put_manifest(server.address, "app", child.digest, child).status == 201
    assert put_manifest(server.address, "app", "1", index).status == 201
    foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    away = {"mediaType": foreign, "digest": sha256(b"away"), "size": 4, "urls": ["https://elsewhere.example"]}
    assert put_manifest(server.address, "app", "2", document(layers=[away])).status == 201


def test_a_tag_that_moves_leaves_what_it_named(server: pyctrd.RegistryServer, engine: pyctrd.Engine) -> None:
    first, second = document(annotations={"n": "1"}), document(annotations={"n": "2"})
    for manifest in (first, second):
        put_manifest(server.address, "app", "1", manifest)
    assert ask(server.address, "GET", "/v2/app/manifests/1").body == second.content
    engine.gc()
    assert ask(server.address, "GET", f"/v2/app/manifests/{first.digest}").body == first.content
    assert engine.images.list() == []  # of an artifact that is no image, nothing could be run


def test_tags_and_manifests_are_deleted(
    server: pyctrd.RegistryServer, engine: pyctrd.Engine, built: BuiltImage
) -> None:
    for tag in ("1", "2", "3"):
        put_image(server.address, "app", built, tag)
    assert ask(server.address, "DELETE", "/v2/app/manifests/1").status == 202
    assert ask(server.address, "DELETE", "/v2/app/manifests/1").codes == ["MANIFEST_UNKNOWN"]
    assert [image.name for image in engine.images.list()] == ["localhost/app:2", "localhost/app:3"]
    assert ask(server.address, "DELETE", f"/v2/app/manifests/{built.digest}").status == 202
    assert ask(server.address, "GET", f"/v2/app/manifests/{built.digest}").status == 404
    assert engine.images.list() == []
    assert ask(server.address, "GET", "/v2/app/tags/list").document == {"name": "app", "tags": []}
    layer = built.layers[0].digest
    assert ask(server.address, "DELETE", f"/v2/app/blobs/{layer}").status == 202
    assert ask(server.address, "DELETE", f"/v2/app/blobs/{layer}").codes == ["BLOB_UNKNOWN"]
    assert ask(server.address, "HEAD", f"/v2/app/blobs/{layer}").status == 404


def test_tags_are_listed_in_pages(server: pyctrd.RegistryServer) -> None:
    assert ask(server.address, "GET", "/v2/nothing/tags/list").codes == ["NAME_UNKNOWN"]
    tags = sorted(["a", "B", "b", "10", "9", "_x", "v1.0", "v1.0-rc"])
    for tag in tags:
        put_manifest(server.address, "app", tag, document())
    assert ask(server.address, "GET", "/v2/app/tags/list").document["tags"] == tags
    found: list[str] = []
    path = "/v2/app/tags/list?n=3"
    while path:
        page = ask(server.address, "GET", path)
        assert len(page.document["tags"]) <= 3
        found += page.document["tags"]
        path = page.headers.get("link", "").partition("<")[2].partition(">")[0]
    assert found == tags
    last = ask(server.address, "GET", "/v2/app/tags/list?last=b")
    assert last.document["tags"] == ["v1.0", "v1.0-rc"]
    none = ask(server.address, "GET", "/v2/app/tags/list?n=0")
    assert (none.document["tags"], "link" in none.headers) == ([], False)
    for wrong in ("-1", "x", "1e3", "9" * 30):
        assert ask(server.address, "GET", f"/v2/app/tags/list?n={wrong}").codes == ["PAGINATION_NUMBER_INVALID"]


def test_repositories_are_listed(server: pyctrd.RegistryServer) -> None:
    for name in ("app", "team/app", "registry.example/a"):
        put_blob(server.address, name, EMPTY)
        put_manifest(server.address, name, "1", document())
    assert ask(server.address, "GET", "/v2/_catalog").document["repositories"] == [
        "app",
        "registry.example/a",
        "team/app",
    ]
    page = ask(server.address, "GET", "/v2/_catalog?n=1&last=app")
    assert page.document["repositories"] == ["registry.example/a"]
    assert page.headers["link"] == '</v2/_catalog?last=registry.example%2Fa&n=1>; rel="next"'


def test_what_refers_to_a_manifest_is_listed_by_type(server: pyctrd.RegistryServer, engine: pyctrd.Engine) -> None:
    subject = document(annotations={"it": "self"})
    path = f"/v2/app/referrers/{subject.digest}"
    nothing = ask(server.address, "GET", path)
    assert (nothing.status, nothing.headers["content-type"]) == (200, OCI_INDEX)
    assert nothing.document == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    signature = document(subject=subject_of(subject), artifactType="application/signature", annotations={"by": "me"})
    config = {"mediaType": "application/sbom", "digest": sha256(EMPTY), "size": 2}
    bill = document(subject=subject_of(subject), config=config)
    image = document(subject=subject_of(subject), config=config | {"mediaType": OCI_CONFIG})
    index = document(OCI_INDEX, subject=subject_of(subject), artifactType="application/set", manifests=[])
    for manifest in (signature, bill, image, index):
        sent = put_manifest(server.address, "app", manifest.digest, manifest)
        assert (sent.status, sent.headers["oci-subject"]) == (201, subject.digest)
    found = {entry["digest"]: entry for entry in ask(server.address, "GET", path).document["manifests"]}
    assert {digest: entry.get("artifactType") for digest, entry in found.items()} == {
        signature.digest: "application/signature",
        bill.digest: "application/sbom",
        image.digest: OCI_CONFIG,
        index.digest: "application/set",
    }
    assert found[signature.digest]["annotations"] == {"by": "me"}
    assert found[signature.digest]["size"] == len(signature.content)
    filtered = ask(server.address, "GET", f"{path}?artifactType=application/sbom")
    assert filtered.headers["oci-filters-applied"] == "artifactType"
    assert [entry["digest"] for entry in filtered.document["manifests"]] == [bill.digest]
    assert ask(server.address, "GET", "/v2/app/referrers/sha256:x").codes == ["DIGEST_INVALID"]
    ask(server.address, "DELETE", f"/v2/app/manifests/{bill.digest}")
    engine.gc()
    assert len(ask(server.address, "GET", path).document["manifests"]) == 3


def test_many_referrers_come_in_pages(server: pyctrd.RegistryServer) -> None:
    subject = document(annotations={"it": "self"})
    wanted = set()
    for number in range(30):
        manifest = document(subject=subject_of(subject), annotations={"n": str(number), "long": "x" * 200_000})
        assert put_manifest(server.address, "app", manifest.digest, manifest).status == 201
        wanted.add(manifest.digest)
    found = []
    path = f"/v2/app/referrers/{subject.digest}"
    pages = 0
    while path:
        page = ask(server.address, "GET", path)
        assert len(page.body) <= DOCUMENT_MAX_BYTES
        found += [entry["digest"] for entry in page.document["manifests"]]
        path = page.headers.get("link", "").partition("<")[2].partition(">")[0]
        pages += 1
    assert (sorted(found), pages > 1) == (sorted(wanted), True)


def test_a_blob_and_parts_of_it(server: pyctrd.RegistryServer) -> None:
    content = bytes(range(256)) * 1000
    digest = put_blob(server.address, "app", content)
    path = f"/v2/app/blobs/{digest}"
    whole = ask(server.address, "GET", path)
    assert (whole.status, whole.body, whole.headers["accept-ranges"]) == (200, content, "bytes")
    assert (whole.headers["etag"], whole.headers["docker-content-digest"]) == (f'"{digest}"', digest)
    part = ask(server.address, "GET", path, headers={"Range": "bytes=1000-200999"})
    assert (part.status, part.body) == (206, content[1000:201_000])
    assert part.headers["content-range"] == f"bytes 1000-200999/{len(content)}"
    short = ask(server.address, "GET", path, headers={"Range": "bytes=-5"})
    assert (short.status, short.body) == (206, content[-5:])
    other = ask(server.address, "GET", path, headers={"Range": "bytes=0-4", "If-Range": '"another"'})
    assert (other.status, len(other.body)) == (200, len(content))
    assert ask(server.address, "GET", path, headers={"Range": "bytes=999999-"}).status == 416
    assert ask(server.address, "GET", path, headers={"If-None-Match": f'"{digest}"'}).status == 304
    head = ask(server.address, "HEAD", path)
    assert (head.body, head.headers["content-length"]) == (b"", str(len(content)))
    nothing = put_blob(server.address, "app", b"")
    assert ask(server.address, "GET", f"/v2/app/blobs/{nothing}").body == b""


def test_what_is_damaged_is_found_and_mended(
    server: pyctrd.RegistryServer, engine: pyctrd.Engine, built: BuiltImage
) -> None:
    put_image(server.address, "app", built, "1")
    lost = document(annotations={"will be": "lost"})
    put_manifest(server.address, "app", lost.digest, lost)
    database = engine._rooms.database
    with database.write() as tx:
        tx.content.delete("default", built.layers[0].digest)
    engine._rooms.blobs.delete(lost.digest)
    kinds = {(finding.kind, finding.cause) for finding in engine.check()}
    assert {("manifest", "incomplete"), ("blob", "missing")} <= kinds
    assert all(finding.repaired for finding in engine.check(repair=True))
    assert engine.check(digests=True) == []
    assert ask(server.address, "GET", f"/v2/app/manifests/{lost.digest}").status == 404
    assert ask(server.address, "GET", f"/v2/app/blobs/{built.layers[0].digest}").body == built.layers[0].content
