"""Uploads: to registries that break off, lose what came, take little at once, or say what is not true."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctrd.errors import (
    CancelledError,
    DigestMismatchError,
    IntegrityError,
    InvalidError,
    RegistryError,
    UnavailableError,
)
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.hold import Hold
from pyctrd.oci.media_types import OCI_MANIFEST
from pyctrd.oci.reference import Reference
from pyctrd.registry.client import Client
from pyctrd.registry.connection import Payload
from pyctrd.registry.payload import FilePayload
from pyctrd.registry.transport import ATTEMPTS_MAX
from pyctrd.registry.upload import CHUNK_BYTES, MakePayload
from tests.upload_faults import UploadRegistry

CONTENT = os.urandom(6_000_001)


@pytest.fixture
def uploads() -> Iterator[UploadRegistry]:
    """A registry that takes uploads."""
    with UploadRegistry() as registry:
        yield registry


@pytest.fixture
def reference(uploads: UploadRegistry) -> Reference:
    """A repository of it."""
    return Reference.parse(f"{uploads.host}/app:1")


def blob_of(content: bytes, algorithm: str = "sha256") -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=Digest.of(content, algorithm), size=len(content))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakePayload]:
    """What is sent: a file."""
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    with path.open("rb", buffering=0) as file:
        yield lambda offset, length: FilePayload(file, offset=offset, length=length)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_is_sent_in_one_request(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload, algorithm: str
) -> None:
    blob = blob_of(CONTENT, algorithm)
    client.uploads(reference).send(blob, make)
    assert uploads.blobs[blob.digest] == CONTENT
    assert [request.split()[0] for request in uploads.seen] == ["POST", "PUT"]


def test_a_location_elsewhere_gets_no_credentials(make: MakePayload) -> None:
    with UploadRegistry() as one, UploadRegistry() as other:
        named = Client(credentials={one.host: ("ada", "secret")}, plain_http=[other.host])
        one.basic = True
        one.base = f"http://{other.host}"
        blob = blob_of(CONTENT)
        session = named.uploads(Reference.parse(f"{one.host}/app")).begin(blob)
        assert session is not None
        other.uploads.update(one.uploads)
        named.uploads(Reference.parse(f"{one.host}/app")).send(blob, make, session=session)
        named.close()
        assert other.blobs[blob.digest] == CONTENT
        assert one.authorizations[-1] is not None
        assert set(other.authorizations) == {None}


def test_an_empty_blob_is_sent(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload
) -> None:
    blob = blob_of(b"")
    client.uploads(reference).send(blob, make)
    assert uploads.blobs[blob.digest] == b""


@pytest.mark.parametrize("size", [1_000_000, len(CONTENT), 10 * len(CONTENT)])
def test_a_blob_is_sent_in_chunks(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload, size: int
) -> None:
    blob = blob_of(CONTENT)
    client.uploads(reference).send(blob, make, chunk_bytes=size)
    assert uploads.blobs[blob.digest] == CONTENT
    assert len(uploads.requests("PATCH")) == -(-len(CONTENT) // size)


def test_chunks_are_as_large_as_the_registry_wants(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload
) -> None:
    uploads.chunk_min = 4_000_000
    client.uploads(reference).send(blob_of(CONTENT), make, chunk_bytes=1)
    assert len(uploads.requests("PATCH")) == 2


def test_what_is_too_large_for_one_request_is_sent_in_chunks(
    uploads: UploadRegistry, client: Client, reference: Reference, tmp_path: Path
) -> None:
    uploads.body_max = CHUNK_BYTES
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(CHUNK_BYTES + 5)
    blob = blob_of(path.read_bytes())
    with path.open("rb", buffering=0) as file:
        client.uploads(reference).send(blob, lambda offset, length: FilePayload(file, offset=offset, length=length))
    assert uploads.blobs[blob.digest] == path.read_bytes()
    assert len(uploads.requests("PATCH")) == 2


def test_an_upload_goes_on_where_it_broke_off(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload
) -> None:
    uploads.cuts.extend([1_000_000, 2_000_000])
    blob = blob_of(CONTENT)
    client.uploads(reference).send(blob, make)
    assert uploads.blobs[blob.digest] == CONTENT
    assert len(uploads.requests("POST")) == 1
    assert len(uploads.requests("PATCH")) == 2


@pytest.mark.parametrize("loses", ["bytes", "state"])
def test_an_upload_of_which_nothing_is_known_begins_anew(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload, loses: str
) -> None:
    uploads.cuts.append(1_000_000)
    uploads.keeps = loses != "bytes"
    uploads.hides = loses == "state"
    blob = blob_of(CONTENT)
    client.uploads(reference).send(blob, make)
    assert uploads.blobs[blob.digest] == CONTENT
    assert len(uploads.requests("POST")) == 2


def test_a_registry_that_breaks_off_each_time_is_given_up(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload
) -> None:
    uploads.hides = True
    uploads.cuts.extend([1000] * (ATTEMPTS_MAX + 2))
    with pytest.raises(UnavailableError):
        client.uploads(reference).send(blob_of(CONTENT), make)
    assert len(uploads.requests("PUT")) == ATTEMPTS_MAX


def test_a_failing_registry_is_tried_again(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload
) -> None:
    session = client.uploads(reference).begin(blob_of(CONTENT))
    uploads.statuses.extend([503, 500])
    client.uploads(reference).send(blob_of(CONTENT), make, session=session)
    assert uploads.blobs[blob_of(CONTENT).digest] == CONTENT


@pytest.mark.parametrize("status", [400, 403, 409])
def test_a_refusal_is_final(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload, status: int
) -> None:
    session = client.uploads(reference).begin(blob_of(CONTENT))
    uploads.statuses.append(status)
    with pytest.raises(RegistryError) as caught:
        client.uploads(reference).send(blob_of(CONTENT), make, session=session)
    assert caught.value.status == status
    assert len(uploads.requests("PUT")) == 1


def test_other_bytes_than_the_digest_says_are_refused_and_not_sent_again(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload
) -> None:
    wrong = Descriptor(media_type="a/b", digest=Digest.of(b"other"), size=len(CONTENT))
    with pytest.raises(DigestMismatchError, match="got other bytes"):
        client.uploads(reference).send(wrong, make)
    assert len(uploads.requests("PUT")) == 1
    assert uploads.blobs == {}


def test_a_registry_that_says_it_stored_something_else_is_not_believed(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload
) -> None:
    uploads.says = str(Digest.of(b"something else"))
    with pytest.raises(DigestMismatchError, match="stored"):
        client.uploads(reference).send(blob_of(CONTENT), make)
    with pytest.raises(IntegrityError, match="wrong digest"):
        client.repository(reference).put_manifest("1", OCI_MANIFEST, b"{}")


def test_a_blob_is_mounted_from_another_repository(
    uploads: UploadRegistry, client: Client, reference: Reference
) -> None:
    uploads.repositories.add("team/base")
    assert client.uploads(reference).begin(blob_of(CONTENT), mount_from="team/base") is None
    assert uploads.requests("PUT") == []


def test_a_mount_that_is_refused_becomes_an_upload(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload
) -> None:
    session = client.uploads(reference).begin(blob_of(CONTENT), mount_from="team/base")
    assert session is not None
    client.uploads(reference).send(blob_of(CONTENT), make, session=session)
    assert uploads.blobs[blob_of(CONTENT).digest] == CONTENT
    assert len(uploads.requests("POST")) == 1


def test_an_upload_that_is_given_up_is_not_tried_again(
    uploads: UploadRegistry, client: Client, reference: Reference, make: MakePayload
) -> None:
    uploads.cuts.append(1000)
    hold = Hold()

    def breaking(offset: int, length: int) -> Payload:
        hold.stop()
        return make(offset, length)

    with pytest.raises(CancelledError):
        client.uploads(reference, hold).send(blob_of(CONTENT), breaking)
    assert uploads.requests("PUT") == []


def test_a_file_that_became_shorter_is_told(
    uploads: UploadRegistry, client: Client, reference: Reference, tmp_path: Path
) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * 10)
    with path.open("rb", buffering=0) as file, pytest.raises(RegistryError, match="fewer bytes"):
        client.uploads(reference).send(
            blob_of(CONTENT), lambda offset, length: FilePayload(file, offset=offset, length=length)
        )
    assert uploads.blobs == {}


def test_a_document_that_no_registry_takes_is_not_sent(
    uploads: UploadRegistry, client: Client, reference: Reference
) -> None:
    with pytest.raises(InvalidError, match="too large"):
        client.repository(reference).put_manifest("1", OCI_MANIFEST, bytes(5_000_000))
    assert uploads.seen == []
