"""What a registry needs of what keeps its content: a tenant's repositories, as values and protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO, Protocol

from pyctrd.oci.value import NamedTuple


class StoredManifest(NamedTuple):
    """A manifest or index that a repository has.

    Attributes:
        digest: Of its bytes.
        media_type: What it is.
        size: Bytes.
    """

    digest: str
    media_type: str
    size: int


class StoredBlob(NamedTuple):
    """A blob that a repository has.

    Attributes:
        digest: Of its bytes.
        size: Bytes.
    """

    digest: str
    size: int


class SentManifest(NamedTuple):
    """A manifest that was taken in.

    Attributes:
        digest: Of its bytes.
        subject: The digest that it says something of, "" for none.
    """

    digest: str
    subject: str


class Referrer(NamedTuple):
    """A manifest that says something of another.

    Attributes:
        digest: Its own.
        media_type: What it is.
        size: Bytes.
        artifact_type: "" where it does not say.
        annotations: Its own.
    """

    digest: str
    media_type: str
    size: int
    artifact_type: str
    annotations: Mapping[str, str]


class Upload(Protocol):
    """A blob on its way in, held by one request at a time. Every call may wait for the disk."""

    @property
    def size(self) -> int:
        """Bytes that are there."""
        ...

    def expect(self, count: int) -> None:
        """Make sure that so many more bytes may come.

        Raises:
            QuotaError: They may not.
        """
        ...

    def write(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            QuotaError: There are more than may be.
        """
        ...

    def commit(self, digest: str) -> None:
        """Make it a blob of the repository; then it is over.

        Raises:
            DigestMismatchError: It is another one; it is over as well.
        """
        ...

    def cancel(self) -> None:
        """Give it up; then it is over."""
        ...

    def release(self) -> None:
        """Let another request go on with it; after its end a no-op."""
        ...


class Store(Protocol):
    """One tenant's repositories, by the names that clients use.

    ``find_…`` answers at once, from what is known; all else may wait, for the disk or for another registry.

    Raises (all that look something up):
        NotFoundError: ``kind`` is "repository", "manifest", "blob", "upload", or "reference" for what a manifest names.
        InvalidError: What was sent cannot be right; ``field`` is "repository", "digest", or what of a manifest.
    """

    def find_manifest(self, name: str, target: str) -> StoredManifest | None:
        """By tag or digest; None where a longer look is needed."""
        ...

    def get_manifest(self, name: str, target: str) -> StoredManifest:
        """As ``find_manifest``, after a longer look."""
        ...

    def read_manifest(self, digest: str) -> bytes:
        """The bytes of one that was found."""
        ...

    def find_blob(self, name: str, digest: str) -> StoredBlob | None:
        """One whose bytes are on disk; None where a longer look is needed."""
        ...

    def fetch_blob(self, name: str, digest: str) -> None:
        """Have one that is not here fetched from where it can be had; a no-op where that is nowhere."""
        ...

    def get_blob(self, name: str, digest: str) -> BinaryIO:
        """As ``open_blob``, of one that was not found before; it may be made again."""
        ...

    def open_blob(self, digest: str) -> BinaryIO:
        """The bytes of one that was found."""
        ...

    def put_manifest(self, name: str, target: str, media_type: str, body: bytes) -> SentManifest:
        """Take one in, by tag or digest."""
        ...

    def delete_manifest(self, name: str, target: str) -> None:
        """Take a tag away, or by its digest a manifest with all its tags."""
        ...

    def delete_blob(self, name: str, digest: str) -> None:
        """Take a blob from a repository."""
        ...

    def list_tags(self, name: str, limit: int, after: str) -> Sequence[str]:
        """At most so many tags behind another, in their order."""
        ...

    def list_repositories(self, limit: int, after: str) -> Sequence[str]:
        """At most so many repositories behind another, in their order."""
        ...

    def list_referrers(self, name: str, digest: str, artifact_type: str, limit: int, after: str) -> Sequence[Referrer]:
        """At most so many referrers behind a digest, in the order of theirs; "" for every type."""
        ...

    def begin_upload(self, name: str, algorithm: str) -> str:
        """Begin one: its id."""
        ...

    def open_upload(self, name: str, upload_id: str) -> Upload:
        """Go on with one.

        Raises:
            ConflictError: Another request is at it.
        """
        ...

    def mount_blob(self, name: str, digest: str, source: str | None) -> bool:
        """Let a blob of another repository (None: of any) be seen in this one; False where that has none."""
        ...


class Tenants(Protocol):
    """The stores behind a registry."""

    def store(self, namespace: str) -> Store:
        """A tenant's."""
        ...

    def is_upstream(self, registry: str) -> bool:
        """Whether what is called after another registry is fetched from there when it is asked for."""
        ...
