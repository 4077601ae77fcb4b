"""The distribution API beyond reading an image: what a repository has, and how it is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, urlencode, urljoin, urlsplit

import orjson

from pyctrd.errors import IntegrityError, InvalidError, NotFoundError, RegistryError, UnsupportedError
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.document import DOCUMENT_MAX_BYTES
from pyctrd.oci.index import Index
from pyctrd.oci.media_types import ACCEPT, OCI_INDEX
from pyctrd.registry.body import read_limited
from pyctrd.registry.client import digest_of
from pyctrd.registry.transport import redacted

if TYPE_CHECKING:
    from pyctrd.oci.reference import Reference
    from pyctrd.registry.access import Access
    from pyctrd.registry.connection import Answer

TAGS_PER_PAGE = 1000
# A registry that answers each page with another one would never end; no repository has a million tags.
PAGES_MAX = 1000
_PULL_PUSH = "pull,push"
# No "<" in either part: looked for at each of thousands of those, the rest would be read as often.
_NEXT = re.compile(r"<([^<>]+)>\s*;[^,<]*\brel=\"?next\"?")


class Repository:
    """One repository of a registry. Thread-safe.

    Args:
        access: How registries are asked.
        reference: Names it; its tag and digest are not used.
    """

    def __init__(self, access: Access, reference: Reference) -> None:
        self._access = access
        self._reference = reference
        self._base = f"/v2/{reference.repository}"

    def find_manifest(self, target: str, *, at: Literal["", "push"] = "") -> Descriptor | None:
        """What a tag or digest names, by the registry's word and unread; None where it has none.

        Args:
            target: A tag or digest.
            at: Whom to ask; "push" is who takes what is sent.

        Raises:
            RegistryError: It refused, could not be reached, or does not say what it has.

        Spec:
            distribution-spec v1.1, "Checking if content exists in the registry".
        """
        answer = self._access.ask(
            "HEAD",
            self._reference,
            f"{self._base}/manifests/{target}",
            "manifest",
            {"Accept": ", ".join(ACCEPT)},
            subject=self._name(target),
            accepts=(200, 404),
            at=at,
        )
        answer.drain()
        if answer.status == 404:
            return None
        size = answer.headers.get("content-length", "")
        digest = answer.headers.get("docker-content-digest") or (target if ":" in target else "")
        if not (size.isascii() and size.isdigit() and digest):
            raise self._nonsense(answer, f"it does not say what {self._name(target)} is")
        return Descriptor(
            media_type=answer.headers.get("content-type", "").partition(";")[0].strip(),
            digest=Digest.parse(digest, field="Docker-Content-Digest"),
            size=int(size),
        )

    def put_manifest(self, target: str, media_type: str, body: bytes) -> bool:
        """Store a manifest or index under a tag or its digest; again is a no-op.

        Args:
            target: A tag, or the digest of ``body``.
            media_type: Of the document.
            body: Its bytes.

        Returns:
            Whether the registry has noted of which subject it tells, where it tells of one.

        Raises:
            InvalidError: It is larger than registries take (4 MiB).
            IntegrityError: The registry stored something else.
            RegistryError: It refused, or could not be reached.

        Spec:
            distribution-spec v1.1, "Pushing Manifests", "Pushing Manifests with Subject".
        """
        if len(body) > DOCUMENT_MAX_BYTES:
            raise InvalidError(
                f"too large: manifest {self._name(target)}: {len(body)} bytes: expected at most {DOCUMENT_MAX_BYTES}",
                field="manifest",
                value=len(body),
            )
        answer = self._access.ask(
            "PUT",
            self._reference,
            f"{self._base}/manifests/{target}",
            "manifest",
            {"Content-Type": media_type},
            subject=self._name(target),
            actions=_PULL_PUSH,
            body=body,
            accepts=(200, 201, 202),
        )
        answer.drain()
        if (said := answer.headers.get("docker-content-digest")) is not None:
            algorithm = said.partition(":")[0]
            if algorithm in ("sha256", "sha512") and said != (sent := digest_of(body, algorithm)):
                raise IntegrityError(
                    f"wrong digest: manifest {self._name(target)}: sent {sent}, stored as {said[:140]}",
                    subject=self._name(target),
                )
        return "oci-subject" in answer.headers

    def delete_manifest(self, target: str) -> None:
        """Delete a tag, or by a digest a manifest with all its tags.

        Raises:
            NotFoundError: There is none.
            UnsupportedError: The registry does not delete, or not tags.
            RegistryError: It refused, or could not be reached.

        Spec:
            distribution-spec v1.1, "Content Management".
        """
        self._delete(f"{self._base}/manifests/{target}", "manifest", self._name(target))

    def delete_blob(self, digest: Digest) -> None:
        """Delete a blob.

        Raises:
            NotFoundError, UnsupportedError, RegistryError: As ``delete_manifest``.
        """
        self._delete(f"{self._base}/blobs/{digest}", "blob", str(digest))

    def tags(self) -> Iterator[str]:
        """The repository's tags, in the registry's order; asked for as they are read.

        Raises:
            NotFoundError: There is no such repository.
            RegistryError: It refused, could not be reached, or sent what is no list.

        Spec:
            distribution-spec v1.1, "Listing Tags".
        """
        for page in self._pages(f"{self._base}/tags/list?n={TAGS_PER_PAGE}", "repository", self._name("")):
            tags = page.get("tags") or []
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise RegistryError(f"no list of tags: {self._name('')}", method="GET", url=self._name(""))
            yield from tags

    def referrers(self, digest: Digest, *, artifact_type: str = "") -> list[Descriptor]:
        """The manifests that tell of a manifest: signatures, bills of materials and the like.

        Where the registry has no such list, the index is read that clients keep under the fallback tag.

        Args:
            digest: Of the manifest or index that they tell of.
            artifact_type: Only these; "" for all.

        Raises:
            RegistryError: It refused, could not be reached, or sent what is no index.
            InvalidError: The index is wrong.

        Spec:
            distribution-spec v1.1, "Listing Referrers".
        """
        query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        found: list[Descriptor] = []
        try:
            for page in self._pages(f"{self._base}/referrers/{digest}{query}", "referrers", str(digest)):
                found += Index.parse(orjson.dumps(page)).manifests
        except NotFoundError:
            found += self.fallback_index(digest).manifests
        return [entry for entry in found if artifact_type in ("", entry.artifact_type)]

    def fallback_index(self, digest: Digest) -> Index:
        """The index under the fallback tag of a digest, empty where there is none.

        Raises:
            RegistryError, InvalidError: As ``referrers``.

        Spec:
            distribution-spec v1.1, "Referrers Tag Schema".
        """
        empty = Index.parse(orjson.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}))
        tag = fallback_tag(digest)
        answer = self._access.ask(
            "GET",
            self._reference,
            f"{self._base}/manifests/{tag}",
            "manifest",
            {"Accept": OCI_INDEX},
            subject=self._name(tag),
            accepts=(200, 404),
        )
        if answer.status == 404:
            answer.drain()
            return empty
        with answer:
            return Index.parse(read_limited(answer, DOCUMENT_MAX_BYTES, self._name(tag)))

    def _delete(self, path: str, kind: str, subject: str) -> None:
        try:
            answer = self._access.ask(
                "DELETE",
                self._reference,
                path,
                kind,
                {},
                subject=subject,
                actions="pull,push,delete",
                accepts=(200, 202, 204),
            )
        except RegistryError as error:
            if error.status not in (400, 405, 501):
                raise
            raise UnsupportedError(
                f"not deleted: {subject}: {self._reference.registry} does not allow it",
                feature="deletion",
                needs="a registry that deletes",
                hint="some delete by digest only, or when they are configured to",
            ) from error
        answer.drain()

    def _pages(self, path: str, kind: str, subject: str) -> Iterator[dict[str, object]]:
        """The documents of a list and of those that it says come next (RFC 8288)."""
        for _ in range(PAGES_MAX):
            answer = self._access.ask(
                "GET", self._reference, path, kind, {"Accept": f"application/json, {OCI_INDEX}"}, subject=subject
            )
            with answer:
                body = read_limited(answer, DOCUMENT_MAX_BYTES, subject)
            try:
                page = orjson.loads(body)
            except orjson.JSONDecodeError:
                page = None
            if not isinstance(page, dict):
                raise self._nonsense(answer, f"no JSON object of {subject}")
            yield page
            link = _NEXT.search(answer.headers.get("link", ""))
            if link is None:
                return
            path = self._next(answer, link[1])
        raise self._nonsense(answer, f"more than {PAGES_MAX} pages of {subject}")

    def _next(self, answer: Answer, link: str) -> str:
        """The next page's path; one of another host is somebody else's."""
        try:
            parts = urlsplit(urljoin(answer.url, link))
        except ValueError as error:
            raise self._nonsense(answer, "its link is no URL") from error
        if parts.netloc != urlsplit(answer.url).netloc or not parts.path.startswith("/v2/"):
            raise self._nonsense(answer, "it links to a page elsewhere")
        return quote(parts.path, safe="/:@%") + (f"?{parts.query}" if parts.query else "")

    def _name(self, target: str) -> str:
        at = "@" if ":" in target else ":"
        return f"{self._reference.repository_name}{at}{target}" if target else self._reference.repository_name

    def _nonsense(self, answer: Answer, what: str) -> RegistryError:
        url = redacted(answer.url)
        return RegistryError(f"unexpected answer: {urlsplit(url).netloc}: {what}", url=url, status=answer.status)


def fallback_tag(digest: Digest) -> str:
    """The tag that stands for what tells of a manifest, where a registry has no list of it.

    Spec:
        distribution-spec v1.1, "Referrers Tag Schema": ``algorithm-hex``, 32 and 64 characters at the most.
    """
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"
