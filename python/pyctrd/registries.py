"""``engine.registry``: what registries have, beyond the images that are pulled and pushed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.oci.reference import Reference

FILE_MEDIA_TYPE = "application/octet-stream"


class Registries:
    """Registries as the engine talks to them: with its credentials, certificates and connections."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def repository(self, reference: str) -> Repository:
        """One repository.

        Args:
            reference: Names it; a tag or digest in it is what the repository's calls mean where they are given none.

        Raises:
            InvalidError: It is no reference.
        """
        from pyctrd.oci.reference import Reference

        return Repository(self._rooms, Reference.parse(reference))

    def login(self, registry: str, user: str, password: str, *, file: str | os.PathLike[str] | None = None) -> Path:
        """Try credentials at a registry, and write them where pyctrd, Docker and Podman find them.

        A credential helper that the file names for the registry gets them; else they stand in the file, encoded and
        not encrypted, which only its owner may read.

        Args:
            registry: ``host[:port]``; ``docker.io`` for Docker Hub.
            user: The user's name.
            password: A password, or a token of the registry's.
            file: Where to; ``$REGISTRY_AUTH_FILE``, else Docker's ``config.json``.

        Returns:
            The file.

        Raises:
            AuthenticationError: The registry does not know them; nothing was written.
            RegistryError: It could not be reached.
            InvalidError: The name is no host; the file is no configuration.
            OSError: The file cannot be written.
        """
        from pyctrd.flows.login import login

        return login(self._rooms, registry, user, password, file=None if file is None else Path(file))

    def logout(self, registry: str, *, file: str | os.PathLike[str] | None = None) -> bool:
        """Take credentials away that ``login`` wrote.

        Returns:
            Whether there were any.

        Raises:
            InvalidError: The file is no configuration.
            OSError: The file cannot be written.
        """
        from pyctrd.flows.login import logout

        return logout(registry, file=None if file is None else Path(file))


class Repository:
    """One repository of a registry. Thread-safe."""

    def __init__(self, rooms: Rooms, reference: Reference) -> None:
        self._rooms = rooms
        self._reference = reference

    @property
    def name(self) -> str:
        """``registry/repository``."""
        return self._reference.repository_name

    def tags(self) -> Iterator[str]:
        """The tags, in the registry's order, asked for page by page as they are read.

        Raises:
            NotFoundError: There is no such repository.
            RegistryError: It refused, could not be reached, or sent what is no list.

        Spec:
            distribution-spec v1.1, "Listing Tags".
        """
        return self._rooms.registry.repository(self._reference).tags()

    def find(self, target: str | None = None) -> pyctrd.Descriptor | None:
        """What a tag or digest names, by the registry's word, unread; None where there is no such thing.

        Args:
            target: A tag or digest; the reference's by default.

        Raises:
            RegistryError: It refused, could not be reached, or does not say.
        """
        return self._rooms.registry.repository(self._reference).find_manifest(self._at(target).target)

    def manifest(self, target: str | None = None) -> tuple[pyctrd.Descriptor, bytes]:
        """A manifest or index: what it is and its bytes, checked against its digest.

        Raises:
            NotFoundError: There is none.
            InvalidError: It is no manifest, or more than 4 MiB.
            IntegrityError: The bytes are not the digest's.
            RegistryError: The registry refused or could not be reached.
        """
        fetched = self._rooms.registry.manifest(self._at(target))
        return fetched.descriptor, fetched.body

    def put_manifest(self, body: bytes, target: str | None = None, *, media_type: str | None = None) -> str:
        """Store a manifest or index; what it names must be there.

        Args:
            body: Its bytes.
            target: A tag; the reference's by default, and its digest where that has none.
            media_type: As it says itself by default.

        Returns:
            Its digest.

        Raises:
            InvalidError: It is no manifest, or more than 4 MiB.
            RegistryError, IntegrityError: The registry refused, or stored something else.

        Spec:
            distribution-spec v1.1, "Pushing Manifests", "Pushing Manifests with Subject".
        """
        from pyctrd.flows.send import put_documents
        from pyctrd.oci.digest import Digest
        from pyctrd.oci.index import detect

        digest = str(Digest.of(body))
        name = target or self._reference.tag or digest
        put_documents(self._rooms.registry, self._reference, [(name, media_type or detect(body), body)])
        return digest

    def referrers(self, target: str | None = None, *, artifact_type: str = "") -> list[pyctrd.Descriptor]:
        """What tells of a manifest: signatures, bills of materials and the like.

        Args:
            target: The manifest's tag or digest; the reference's by default.
            artifact_type: Only these; "" for all.

        Raises:
            NotFoundError: There is no such manifest.
            RegistryError, InvalidError: The registry refused, could not be reached, or sent what is no index.

        Spec:
            distribution-spec v1.1, "Listing Referrers", with the fallback tag.
        """
        at = self._at(target)
        digest = at.digest or self._rooms.registry.manifest(at).descriptor.digest
        return self._rooms.registry.repository(self._reference).referrers(digest, artifact_type=artifact_type)

    def attach(
        self,
        files: Sequence[str | os.PathLike[str] | tuple[str | os.PathLike[str], str]],
        *,
        artifact_type: str,
        target: str | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> str:
        """Store files as an artifact that tells of an image.

        Args:
            files: Paths, each alone or with its media type.
            artifact_type: What kind of artifact it is: ``application/spdx+json``.
            target: The image's tag or digest; the reference's by default.
            annotations: Of the artifact's manifest.

        Returns:
            The digest of the artifact's manifest.

        Raises:
            NotFoundError: There is no such image.
            InvalidError: A media type is none.
            RegistryError: The registry refused or could not be reached.
            OSError: A file cannot be read.

        Spec:
            distribution-spec v1.1, "Pushing Manifests with Subject".
        """
        from pyctrd.flows.attach import attach

        named = [
            (Path(file[0]), file[1]) if isinstance(file, tuple) else (Path(file), FILE_MEDIA_TYPE) for file in files
        ]
        made = attach(
            self._rooms, self._at(target), named, artifact_type=artifact_type, annotations=dict(annotations or {})
        )
        return str(made.digest)

    def delete(self, target: str | None = None) -> None:
        """Delete a tag, or by its digest a manifest with all its tags.

        Args:
            target: A tag or digest; the reference's by default.

        Raises:
            NotFoundError: There is none.
            UnsupportedError: The registry does not delete, or not tags.
            RegistryError: It refused or could not be reached.

        Spec:
            distribution-spec v1.1, "Content Management".
        """
        from pyctrd.flows.attach import delete_remote

        delete_remote(self._rooms, self._at(target))

    def has_blob(self, digest: str, size_bytes: int) -> bool:
        """Whether the repository has a blob of these many bytes.

        Raises:
            InvalidError: The digest is none.
        """
        from pyctrd.oci.descriptor import Descriptor
        from pyctrd.oci.digest import Digest

        blob = Descriptor(media_type=FILE_MEDIA_TYPE, digest=Digest.parse(digest), size=size_bytes)
        return self._rooms.registry.has_blob(self._reference, blob, at="own")

    def read_blob(self, descriptor: pyctrd.Descriptor) -> bytes:
        """A small blob, checked against its digest and size.

        Raises:
            NotFoundError: There is no such blob.
            InvalidError: It is larger than 4 MiB.
            IntegrityError: The bytes are not the descriptor's.
            RegistryError: The registry refused or could not be reached.
        """
        return self._rooms.registry.read_blob(self._reference, descriptor)

    def _at(self, target: str | None) -> Reference:
        """The reference of a tag or digest of this repository."""
        from pyctrd.oci.reference import Reference

        if target is None:
            return self._reference
        return Reference.parse(f"{self.name}{'@' if ':' in target else ':'}{target}")

    def __repr__(self) -> str:
        return f"<Repository {self.name}>"
