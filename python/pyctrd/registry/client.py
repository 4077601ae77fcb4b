"""The distribution API: manifests and blobs of any registry."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyctrd._core import digest_bytes
from pyctrd.errors import (
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
from pyctrd.oci.hold import waiting
from pyctrd.oci.index import detect
from pyctrd.oci.media_types import ACCEPT, INDEXES, MANIFESTS
from pyctrd.oci.value import NamedTuple
from pyctrd.registry.access import Access
from pyctrd.registry.body import BlobBody, Ranges, body_offset, check_range, read_limited
from pyctrd.registry.transport import redacted

if TYPE_CHECKING:
    from pyctrd.oci.hold import Hold
    from pyctrd.oci.reference import Reference
    from pyctrd.registry.connection import Answer
    from pyctrd.registry.credentials import Keychain
    from pyctrd.registry.repository import Repository
    from pyctrd.registry.upload import Uploads


class FetchedManifest(NamedTuple):
    """A manifest or index as it was served, its digest computed from its bytes."""

    descriptor: Descriptor
    body: bytes


class Client:
    """Talks to registries; one connection pool for each host. Thread-safe.

    Its arguments are those of ``Access``.

    Attributes:
        access: What it asks through.
    """

    def __init__(
        self,
        *,
        ca: Path | None = None,
        plain_http: Collection[str] = (),
        insecure: Collection[str] = (),
        credentials: Keychain | None = None,
        hosts: Sequence[Path] = (),
    ) -> None:
        self.access = Access(ca=ca, plain_http=plain_http, insecure=insecure, credentials=credentials, hosts=hosts)
        self._without_ranges: set[str] = set()

    def manifest(self, reference: Reference) -> FetchedManifest:
        """Get the manifest or index of a reference, by its digest where it has one, else by its tag.

        Raises:
            NotFoundError: The registry has none.
            RegistryError: It refused, or could not be reached.
            IntegrityError: The bytes are not those that a digest names.
            InvalidError: They are no manifest, or say two different things about themselves.

        Spec:
            distribution-spec v1.1, "Pulling manifests".
        """
        body, headers = self._read_manifest(reference)
        _check_manifest_digest(reference, headers.get("docker-content-digest"), body)
        media_type = detect(body)
        announced = headers.get("content-type", "").partition(";")[0].strip()
        if announced in INDEXES | MANIFESTS and announced != media_type:
            raise InvalidError(
                f"invalid manifest: {reference}: served as {announced}, reads as {media_type}",
                field="mediaType",
                value=media_type,
            )
        digest = reference.digest or digest_of(body)
        return FetchedManifest(Descriptor(media_type=media_type, digest=digest, size=len(body)), body)

    def _read_manifest(self, reference: Reference) -> tuple[bytes, Mapping[str, str]]:
        """A manifest's bytes and what is said of them; of the next host where one breaks off."""
        path = f"/v2/{reference.repository}/manifests/{reference.target}"
        while True:
            with self._get(reference, path, "manifest", {"Accept": ", ".join(ACCEPT)}) as answer:
                try:
                    return read_limited(answer, DOCUMENT_MAX_BYTES, f"manifest {reference}"), answer.headers
                except UnavailableError:
                    if answer.broke is None or not answer.broke():
                        raise

    def open_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        *,
        offset: int = 0,
        retry: bool = True,
        hold: Hold | None = None,
    ) -> BlobBody:
        """Ask for a blob's bytes from ``offset`` on. Nothing of them is verified here.

        Args:
            reference: Whose registry and repository.
            descriptor: Which blob.
            offset: Its first byte that is wanted.
            retry: Whether passing faults are tried again here; a caller that goes on by itself where a body broke
                off says no, and can be interrupted between tries.
            hold: Ends the wait for the answer.

        Returns:
            The body; its ``offset`` tells where it really starts.

        Raises:
            NotFoundError: The registry has no such blob.
            RegistryError: It refused, or could not be reached.

        Spec:
            distribution-spec v1.1, "Pulling blobs"; RFC 9110, section 14 (ranges).
        """
        try:
            span = f"bytes={offset}-" if offset else ""
            answer = self._ask_blob(reference, descriptor, span, retry=retry, hold=hold)
        except RegistryError as error:
            if offset and error.status == 416:  # it has no such range: from the start, then
                return self.open_blob(reference, descriptor, retry=retry, hold=hold)
            raise
        url = redacted(answer.url or str(descriptor.digest))
        try:
            _check_not_encoded(answer, url)
            place = body_offset(answer, offset, url)
        except BaseException:
            answer.close()
            raise
        if place is None:
            answer.close()
            return self.open_blob(reference, descriptor, retry=retry, hold=hold)
        start, length = place
        return BlobBody(answer, offset=start, length=length, url=url, ranges=self._ranges_of(reference, descriptor))

    def open_range(self, reference: Reference, descriptor: Descriptor, start: int, end: int) -> BlobBody:
        """Ask for a part of a blob, and for no more than that. Nothing of it is verified here.

        Args:
            reference: Whose registry and repository.
            descriptor: Which blob.
            start: Its first byte that is wanted.
            end: The one behind the last.

        Raises:
            NotFoundError: The registry has no such blob.
            RegistryError: It refused, could not be reached, or has another part or all of the blob to give.

        Spec:
            RFC 9110, section 14 (ranges).
        """
        answer = self._ask_blob(reference, descriptor, f"bytes={start}-{end - 1}")
        url = redacted(answer.url or str(descriptor.digest))
        try:
            _check_not_encoded(answer, url)
            check_range(answer, start, end, url)
        except BaseException:
            answer.close()
            raise
        return BlobBody(
            answer, offset=start, length=end - start, url=url, ranges=self._ranges_of(reference, descriptor)
        )

    def _ranges_of(self, reference: Reference, descriptor: Descriptor) -> Ranges:
        return Ranges(partial(self._ask_blob, reference, descriptor), reference.registry, self._without_ranges)

    def _ask_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        span: str = "",
        *,
        retry: bool = False,
        hold: Hold | None = None,
    ) -> Answer:
        """The answer to a request for a blob, or for what the header ``Range`` says of it."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": span} if span else {})
        path = f"/v2/{reference.repository}/blobs/{descriptor.digest}"
        return self._get(reference, path, "blob", headers, subject=str(descriptor.digest), retry=retry, hold=hold)

    def has_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        *,
        at: Literal["own", "push"] = "own",
        hold: Hold | None = None,
    ) -> bool:
        """Whether the registry says, to these credentials, that it has a blob of these many bytes in a repository.

        Whatever else it says, or fails to, is a no: who asks for the bytes, or sends them, then is told what is wrong.

        Args:
            reference: Whose registry and repository.
            descriptor: Which blob.
            at: Its own server, or whoever takes what is sent; never a mirror.
            hold: Ends the wait for the answer.

        Spec:
            distribution-spec v1.1, "Checking if content exists in the registry".
        """
        path = f"/v2/{reference.repository}/blobs/{descriptor.digest}"
        headers = {"Accept-Encoding": "identity"}
        try:
            answer = self.access.ask(
                "HEAD", reference, path, "blob", headers, subject=str(descriptor.digest), retry=False, hold=hold, at=at
            )
        except (RegistryError, NotFoundError, UnsupportedError):
            return False
        answer.drain()
        length = answer.headers.get("content-length", "")
        return answer.status == 200 and length in ("", str(descriptor.size))

    def read_blob(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """Get a small blob whole: a config.

        Raises:
            InvalidError: Its descriptor says that it is larger than a document may be.
            IntegrityError: The bytes are not those of the descriptor.
            RegistryError, NotFoundError: As ``open_blob``.
        """
        if descriptor.size > DOCUMENT_MAX_BYTES:
            raise InvalidError(
                f"invalid size: {descriptor.digest}: {descriptor.size} bytes: expected at most {DOCUMENT_MAX_BYTES}",
                field="size",
                value=descriptor.size,
            )
        content = bytearray(descriptor.size + 1)
        came = 0
        with self.open_blob(reference, descriptor) as body, waiting(body.close), memoryview(content) as view:
            while came < len(content) and (count := body.readinto(view[came:])):
                came += count
        if came != descriptor.size:
            raise SizeMismatchError(
                f"size mismatch: {descriptor.digest}: expected {descriptor.size} bytes, got {came}",
                subject=str(descriptor.digest),
                expected=descriptor.size,
                actual=came,
            )
        found = bytes(content[:came])
        descriptor.digest.match(digest_of(found, descriptor.digest.algorithm), subject=str(descriptor.digest))
        return found

    def repository(self, reference: Reference) -> Repository:
        """What a repository has beyond an image's documents and blobs, and how it is changed."""
        from pyctrd.registry.repository import Repository

        return Repository(self.access, reference)

    def uploads(self, reference: Reference, hold: Hold | None = None) -> Uploads:
        """How a blob gets into a repository."""
        from pyctrd.registry.upload import Uploads

        return Uploads(self.access, reference, hold)

    def close(self) -> None:
        """Close the connections; idempotent."""
        self.access.close()

    def _get(
        self,
        reference: Reference,
        path: str,
        kind: str,
        headers: Mapping[str, str],
        *,
        subject: str = "",
        retry: bool = True,
        hold: Hold | None = None,
    ) -> Answer:
        return self.access.ask("GET", reference, path, kind, headers, subject=subject, retry=retry, hold=hold)


def digest_of(content: bytes, algorithm: str = "sha256") -> Digest:
    """As ``Digest.of``; for the usual algorithm without ``hashlib``, which loads OpenSSL: 3 ms."""
    return Digest(digest_bytes(content)) if algorithm == "sha256" else Digest.of(content, algorithm)


def _check_not_encoded(answer: Answer, url: str) -> None:
    encoding = answer.headers.get("content-encoding", "identity")
    if encoding not in ("", "identity"):
        raise RegistryError(f"encoded blob: {url}: Content-Encoding: {encoding[:40]}", method="GET", url=url)


def _check_manifest_digest(reference: Reference, announced: str | None, body: bytes) -> None:
    """What was asked for by digest must hash to it; what the registry announces must be true as well."""
    if reference.digest is not None:
        reference.digest.match(digest_of(body, reference.digest.algorithm), subject=f"manifest {reference}")
    elif announced is not None:
        try:
            digest = Digest.parse(announced, field="Docker-Content-Digest")
        except InvalidError as error:
            raise IntegrityError(
                f"wrong digest header: manifest {reference}: {announced[:80]!r}", subject=str(reference)
            ) from error
        digest.match(digest_of(body, digest.algorithm), subject=f"manifest {reference}")
