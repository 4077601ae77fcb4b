"""The client against docker-registry, and against a registry that lies."""

from __future__ import annotations

import json
import threading

import pytest

from pyctrd.errors import (
    AuthenticationError,
    DeniedError,
    DigestMismatchError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    RegistryError,
    SizeMismatchError,
    UnavailableError,
    UnsupportedError,
)
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.document import DOCUMENT_MAX_BYTES
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import OCI_INDEX, OCI_MANIFEST
from pyctrd.oci.reference import Reference
from pyctrd.registry.client import Client
from pyctrd.registry.transport import ATTEMPTS_MAX, REDIRECTS_MAX
from tests.images import Blob, BuiltImage, Images
from tests.registry.bodies import drain, layer_of
from tests.registry_faults import Answer, FaultyRegistry

LATEST = "/manifests/latest"


# docker-registry


def test_manifest_comes_by_tag_with_its_digest(images: Images, client: Client) -> None:
    fetched = client.manifest(Reference.parse(images.tree.reference))
    assert fetched.body == images.tree.built.manifest.content
    assert fetched.descriptor == Descriptor(OCI_MANIFEST, Digest(images.tree.built.digest), len(fetched.body))


def test_manifest_comes_by_digest(images: Images, client: Client) -> None:
    reference = Reference.parse(images.tree.reference).with_digest(Digest(images.tree.built.digest))
    assert client.manifest(reference).body == images.tree.built.manifest.content


def test_index_comes_as_index(images: Images, client: Client) -> None:
    assert client.manifest(Reference.parse(images.multi_platform.reference)).descriptor.media_type == OCI_INDEX


def test_blob_comes_whole(images: Images, client: Client) -> None:
    reference, layer = Reference.parse(images.tree.reference), layer_of(images.tree.built)
    with client.open_blob(reference, layer) as body:
        assert (body.offset, body.length) == (0, layer.size)
        assert drain(body) == images.tree.built.layers[0].content


def test_blob_comes_from_an_offset(images: Images, client: Client) -> None:
    reference, layer = Reference.parse(images.tree.reference), layer_of(images.tree.built)
    with client.open_blob(reference, layer, offset=100) as body:
        assert (body.offset, body.length) == (100, layer.size - 100)
        assert drain(body) == images.tree.built.layers[0].content[100:]


def test_config_is_read_and_verified(images: Images, client: Client) -> None:
    config = Manifest.parse(images.tree.built.manifest.content).config
    content = client.read_blob(Reference.parse(images.tree.reference), config)
    assert content == images.tree.built.blobs[0].content


def test_missing_tag_is_not_found(images: Images, client: Client) -> None:
    reference = Reference.parse(images.tree.reference.replace(":gzip", ":none"))
    with pytest.raises(NotFoundError, match=r"manifest not found: .*:none") as caught:
        client.manifest(reference)
    assert caught.value.kind == "manifest"
    assert caught.value.hint


def test_missing_blob_is_not_found(images: Images, client: Client) -> None:
    absent = Descriptor("application/octet-stream", Digest.of(b"absent"), 6)
    with pytest.raises(NotFoundError, match=r"blob not found: sha256:"):
        client.open_blob(Reference.parse(images.tree.reference), absent)


def test_threads_share_a_client(images: Images, client: Client) -> None:
    reference, layer = Reference.parse(images.tree.reference), layer_of(images.tree.built)
    contents: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: contents.append(drain(client.open_blob(reference, layer)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == [images.tree.built.layers[0].content] * 8


# wrong bytes


def test_manifest_with_another_digest_is_refused(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app")).with_digest(Digest(image.digest))
    faulty.lie(f"/manifests/{image.digest}", Answer(body=image.manifest.content + b"\n"))
    with pytest.raises(DigestMismatchError) as caught:
        client.manifest(reference)
    assert caught.value.expected == image.digest


def test_manifest_that_denies_its_announced_digest_is_refused(
    faulty: FaultyRegistry, client: Client, image: BuiltImage
) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(body=None, headers={"Docker-Content-Digest": Digest.of(b"else")}))
    with pytest.raises(DigestMismatchError):
        client.manifest(reference)


def test_nonsense_in_the_digest_header_is_refused(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(body=None, headers={"Docker-Content-Digest": "md5:00"}))
    with pytest.raises(IntegrityError, match="wrong digest header"):
        client.manifest(reference)


def test_manifest_served_as_another_type_is_refused(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(body=None, headers={"Content-Type": OCI_INDEX}))
    with pytest.raises(InvalidError, match="served as"):
        client.manifest(reference)


def test_huge_manifest_is_refused_unread(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(body=b"{", announced=DOCUMENT_MAX_BYTES + 1, cut=1))
    with pytest.raises(InvalidError, match=f"too large: .*{DOCUMENT_MAX_BYTES + 1} bytes"):
        client.manifest(reference)


def test_huge_manifest_without_length_is_read_up_to_the_limit(
    faulty: FaultyRegistry, client: Client, image: BuiltImage
) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(body=b" " * (DOCUMENT_MAX_BYTES + 2), chunked=True))
    with pytest.raises(InvalidError, match="too large"):
        client.manifest(reference)


def test_html_page_is_no_manifest(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(body=b"<html>log in to the hotel</html>", headers={"Content-Type": "text/html"}))
    with pytest.raises(InvalidError, match="no JSON"):
        client.manifest(reference)


def test_schema_1_manifest_is_named(faulty: FaultyRegistry, client: Client) -> None:
    old = Blob("application/vnd.docker.distribution.manifest.v1+prettyjws", b'{"schemaVersion":1,"fsLayers":[]}')
    reference = Reference.parse(faulty.add_manifest(old, "old"))
    with pytest.raises(UnsupportedError, match="schema 1"):
        client.manifest(reference)


def test_config_longer_than_its_descriptor_is_refused(
    faulty: FaultyRegistry, client: Client, image: BuiltImage
) -> None:
    reference, config = Reference.parse(faulty.add(image, "app")), Manifest.parse(image.manifest.content).config
    faulty.lie(f"/blobs/{config.digest}", Answer(body=image.blobs[0].content + b" "))
    with pytest.raises(SizeMismatchError) as caught:
        client.read_blob(reference, config)
    assert (caught.value.expected, caught.value.actual) == (config.size, config.size + 1)


def test_config_with_other_bytes_is_refused(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference, config = Reference.parse(faulty.add(image, "app")), Manifest.parse(image.manifest.content).config
    faulty.lie(f"/blobs/{config.digest}", Answer(body=bytes(config.size)))
    with pytest.raises(DigestMismatchError):
        client.read_blob(reference, config)


# broken transfers


def test_body_that_ends_early_is_unavailable(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", Answer(body=None, announced=layer.size, cut=10))
    with pytest.raises(UnavailableError, match=f"after 10 of {layer.size} bytes"):
        drain(client.open_blob(reference, layer))


def test_chunked_body_that_ends_early_is_unavailable(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", Answer(body=None, chunked=True, cut=10))
    with pytest.raises(UnavailableError, match="connection broke"):
        drain(client.open_blob(reference, layer))


def test_server_that_ignores_a_range_says_so(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", Answer(200, body=image.layers[0].content))
    with client.open_blob(reference, layer, offset=5) as body:
        assert body.offset == 0
        assert drain(body) == image.layers[0].content


WRONG_RANGES = ["bytes 7-9/10", "bytes */10", "items 5-9/10", "bytes \u00b2-9/10", ""]


@pytest.mark.parametrize("said", WRONG_RANGES)
def test_another_range_than_was_asked_for_starts_over(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, said: str
) -> None:
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", Answer(206, b"xyz", {"Content-Range": said}))
    with client.open_blob(reference, layer, offset=5) as body:
        assert body.offset == 0
        assert drain(body) == image.layers[0].content
    assert [seen.headers.get("range") for seen in faulty.requests("/blobs/")] == ["bytes=5-", None]


def test_a_range_where_all_was_asked_for_is_refused(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", Answer(206, b"xyz", {"Content-Range": "bytes 7-9/10"}))
    with pytest.raises(RegistryError, match="wrong range"):
        client.open_blob(reference, layer)


def test_range_that_the_server_lacks_starts_over(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", Answer(416))
    with client.open_blob(reference, layer, offset=5) as body:
        assert body.offset == 0
        assert drain(body) == image.layers[0].content


def test_encoded_blob_is_refused(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", Answer(200, b"x", {"Content-Encoding": "gzip"}))
    with pytest.raises(RegistryError, match="encoded blob"):
        client.open_blob(reference, layer)


def test_closing_a_body_wakes_its_reader(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    # Announced and never sent: the reader waits until somebody closes.
    faulty.lie(f"/blobs/{layer.digest}", Answer(200, body=b"12345", announced=layer.size))
    body = client.open_blob(reference, layer)
    caught: list[BaseException] = []
    first = threading.Event()

    def read() -> None:
        block = memoryview(bytearray(5))
        assert body.readinto(block) == 5
        first.set()
        try:
            while body.readinto(block):
                pass
        except UnavailableError as error:
            caught.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert first.wait(10)
    body.close()
    body.close()
    reader.join(10)
    assert not reader.is_alive()


# statuses


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_fault_is_retried(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, pauses: list[float], status: int
) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(status), Answer(status))
    assert client.manifest(reference).descriptor.digest == image.digest
    assert len(pauses) == 2


def test_retry_after_is_honoured(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, pauses: list[float]
) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(429, headers={"Retry-After": "7"}))
    client.manifest(reference)
    assert pauses == [7.0]


def test_retry_after_a_day_is_left_to_the_caller(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, pauses: list[float]
) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(429, headers={"Retry-After": "86400"}))
    with pytest.raises(UnavailableError) as caught:
        client.manifest(reference)
    assert caught.value.retry_after_seconds == 86400
    assert not pauses


def test_fault_that_stays_is_unavailable(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, pauses: list[float]
) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, *[Answer(503, b"<html>down for maintenance</html>", {"Retry-After": "3"})] * ATTEMPTS_MAX)
    with pytest.raises(UnavailableError, match="status 503") as caught:
        client.manifest(reference)
    assert (caught.value.status, caught.value.retry_after_seconds) == (503, 3.0)
    assert len(faulty.requests(LATEST)) == ATTEMPTS_MAX


def test_limit_that_stays_is_unavailable(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    body = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "you have reached your\x1b[31m limit"}]})
    faulty.lie(LATEST, *[Answer(429, body.encode())] * ATTEMPTS_MAX)
    with pytest.raises(UnavailableError, match=r"too many requests: .*your\?\[31m limit") as caught:
        client.manifest(reference)
    assert caught.value.codes == ("TOOMANYREQUESTS",)


def test_connection_that_breaks_before_the_answer_is_retried(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, pauses: list[float]
) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    client.manifest(reference)
    faulty.lie(LATEST, Answer(502, cut=0))
    client.manifest(reference)
    assert len(pauses) == 1


def test_403_is_denied(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(403, b'{"errors":[{"code":"DENIED","message":"no"}]}'))
    with pytest.raises(DeniedError, match=r"access denied: .*/app: no") as caught:
        client.manifest(reference)
    assert caught.value.codes == ("DENIED",)
    assert caught.value.url.startswith(faulty.base)


def test_other_status_is_named(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(418, b"x" * 100_000))
    with pytest.raises(RegistryError, match="status 418") as caught:
        client.manifest(reference)
    assert len(str(caught.value)) < 500


# authorization


def test_basic_credentials_are_sent_when_asked_for(faulty: FaultyRegistry, image: BuiltImage) -> None:
    faulty.basic = ("ada", "secret")
    reference = Reference.parse(faulty.add(image, "app"))
    client = Client(credentials={faulty.host: ("ada", "secret")})
    assert client.manifest(reference).descriptor.digest == image.digest
    assert "authorization" not in faulty.seen[0].headers
    client.manifest(reference)
    assert len(faulty.seen) == 3  # the second time the answer is known
    client.close()


def test_wrong_basic_credentials_are_refused_once(faulty: FaultyRegistry, image: BuiltImage) -> None:
    faulty.basic = ("ada", "secret")
    reference = Reference.parse(faulty.add(image, "app"))
    client = Client(credentials={faulty.host: ("ada", "wrong-password")})
    with pytest.raises(AuthenticationError, match="credentials refused") as caught:
        client.manifest(reference)
    assert "wrong-password" not in str(caught.value) + repr(caught.value.__dict__)
    assert len(faulty.seen) == 2
    client.close()


def test_missing_credentials_are_asked_for(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    faulty.basic = ("ada", "secret")
    with pytest.raises(AuthenticationError, match="credentials needed") as caught:
        client.manifest(Reference.parse(faulty.add(image, "app")))
    assert "pyctrd login" in caught.value.hint


def test_anonymous_token_is_fetched_once(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    faulty.require_tokens()
    reference = Reference.parse(faulty.add(image, "app"))
    client.manifest(reference)
    drain(client.open_blob(reference, layer_of(image)))
    asked = faulty.requests("/token")
    assert len(asked) == 1
    assert asked[0].query == {"service": "faulty", "scope": "repository:app:pull"}
    assert "authorization" not in asked[0].headers


def test_token_is_asked_for_with_credentials(faulty: FaultyRegistry, image: BuiltImage) -> None:
    faulty.require_tokens()
    client = Client(credentials={faulty.host: ("ada", "secret")})
    client.manifest(Reference.parse(faulty.add(image, "app")))
    asked = faulty.requests("/token")[0]
    assert asked.headers["authorization"].startswith("Basic ")
    assert asked.query["account"] == "ada"
    client.close()


def test_expired_token_is_replaced(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    faulty.require_tokens()
    reference = Reference.parse(faulty.add(image, "app"))
    client.manifest(reference)
    faulty.require_tokens()  # forgets those that were issued
    assert client.manifest(reference).descriptor.digest == image.digest
    assert len(faulty.requests("/token")) == 2


def test_token_that_never_works_ends(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.require_tokens()
    faulty.lie("/token", *[Answer(body=b'{"token":"worthless"}')] * 5)
    with pytest.raises(AuthenticationError, match="credentials refused"):
        client.manifest(reference)
    assert len(faulty.requests("/token")) <= 2


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"token":7}', b'{"token":"two\\nlines"}', b"[]"])
def test_token_endpoint_that_talks_nonsense_is_refused(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, body: bytes
) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.require_tokens()
    faulty.lie("/token", Answer(body=body))
    with pytest.raises(RegistryError, match="no token"):
        client.manifest(reference)


def test_token_endpoint_without_tls_gets_no_credentials(faulty: FaultyRegistry, image: BuiltImage) -> None:
    with FaultyRegistry() as thief:
        reference = Reference.parse(faulty.add(image, "app"))
        challenge = f'Bearer realm="http://example.invalid:{thief.host.rpartition(":")[2]}/token"'
        faulty.lie(LATEST, Answer(401, headers={"WWW-Authenticate": challenge}))
        client = Client(credentials={faulty.host: ("ada", "secret")})
        with pytest.raises(RegistryError):
            client.manifest(reference)
        client.close()
        assert not thief.seen


def test_token_endpoint_on_this_machine_is_for_local_registries_only(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.require_tokens()
    reference = Reference.parse(faulty.add(image, "app"))
    monkeypatch.setattr("pyctrd.registry.access.Access._may_be_plain", lambda access, endpoint: False)
    with pytest.raises(AuthenticationError, match="token server refused"):
        client.manifest(reference)
    assert not faulty.requests("/token")


@pytest.mark.parametrize(
    "realm", ["http://[half", "https://host:99999/token", "file:///etc/passwd", "https://", "/token"]
)
def test_realm_that_leads_nowhere_is_refused(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, realm: str
) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'}))
    with pytest.raises(RegistryError, match=r"token server refused|invalid URL"):
        client.manifest(reference)


def test_unknown_challenge_is_refused(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, Answer(401, headers={"WWW-Authenticate": "Negotiate"}))
    with pytest.raises(AuthenticationError, match="no challenge that is known"):
        client.manifest(reference)


# redirects


def test_redirect_to_another_host_loses_the_authorization(faulty: FaultyRegistry, image: BuiltImage) -> None:
    faulty.basic = ("ada", "secret")
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    with FaultyRegistry() as store:
        store.add(image, "app")
        path = f"/v2/app/blobs/{layer.digest}"
        faulty.lie(path, Answer(307, headers={"Location": f"{store.base}{path}?signature=s3cret"}))
        client = Client(credentials={faulty.host: ("ada", "secret")}, plain_http=[store.host])
        client.manifest(reference)
        assert drain(client.open_blob(reference, layer)) == image.layers[0].content
        client.close()
        assert "authorization" in faulty.requests(path)[-1].headers
        assert "authorization" not in store.seen[0].headers


def test_redirect_within_the_host_keeps_the_authorization(faulty: FaultyRegistry, image: BuiltImage) -> None:
    faulty.basic = ("ada", "secret")
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    faulty.add(image, "elsewhere")
    client = Client(credentials={faulty.host: ("ada", "secret")})
    client.manifest(reference)
    faulty.lie(f"/app/blobs/{layer.digest}", Answer(307, headers={"Location": f"/v2/elsewhere/blobs/{layer.digest}"}))
    assert drain(client.open_blob(reference, layer)) == image.layers[0].content
    client.close()


def test_redirect_to_plain_http_is_refused(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    target = "http://user:pw@example.invalid/blob?signature=s3cret"
    faulty.lie(f"/blobs/{layer.digest}", Answer(307, headers={"Location": target}))
    with pytest.raises(RegistryError, match="redirect refused") as caught:
        client.open_blob(reference, layer)
    assert "s3cret" not in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "https://host:99999/", "http://[half", "https://"])
def test_redirect_to_nonsense_is_refused(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, target: str
) -> None:
    reference, layer = Reference.parse(faulty.add(image, "app")), layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", Answer(307, headers={"Location": target}))
    with pytest.raises(RegistryError, match="redirect refused"):
        client.open_blob(reference, layer)


def test_redirects_in_a_circle_end(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> None:
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(LATEST, *[Answer(302, headers={"Location": f"/v2/app{LATEST}"})] * (REDIRECTS_MAX + 1))
    with pytest.raises(RegistryError, match="too many redirects"):
        client.manifest(reference)


def test_a_blob_that_is_there_is_said_to_be_and_no_other(images: Images, client: Client) -> None:
    layer = layer_of(images.tree.built)
    reference = Reference.parse(images.tree.reference)
    assert client.has_blob(reference, layer)
    assert not client.has_blob(reference, Descriptor(layer.media_type, layer.digest, layer.size + 1))
    assert not client.has_blob(reference, Descriptor(layer.media_type, Digest(f"sha256:{'0' * 64}"), layer.size))
    assert not client.has_blob(Reference.parse("127.0.0.1:1/refused"), layer)
