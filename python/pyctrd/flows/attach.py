"""Attach: files become an artifact of a registry that tells of an image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pyctrd import _core
from pyctrd.errors import InvalidError
from pyctrd.flows.push import from_file
from pyctrd.flows.send import Sending, Source, put_documents, send_blobs, unlist_referrer
from pyctrd.oci.descriptor import MEDIA_TYPE_MAX_CHARS, Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.media_types import OCI_MANIFEST

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.oci.reference import Reference

# image-spec v1.1 manifest.md, "Guidance for an Empty Descriptor".
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
TITLE = "org.opencontainers.image.title"


def attach(
    rooms: Rooms,
    subject: Reference,
    files: Sequence[tuple[Path, str]],
    *,
    artifact_type: str,
    annotations: Mapping[str, str],
) -> Descriptor:
    """Store files beside an image of a registry, as an artifact whose subject that is.

    Args:
        rooms: The engine's rooms.
        subject: The image; what its tag names now.
        files: Paths, and the media type of each.
        artifact_type: What kind of artifact it is.
        annotations: Of the artifact's manifest.

    Returns:
        The artifact's manifest.

    Raises:
        NotFoundError: There is no such image.
        InvalidError: A media type is none.
        RegistryError: The registry refused, or could not be reached.
        OSError: A file cannot be read.

    Spec:
        distribution-spec v1.1, "Pushing Manifests with Subject"; image-spec v1.1 manifest.md.
    """
    for media_type in (artifact_type, *(kind for _, kind in files)):
        if not 3 <= len(media_type) <= MEDIA_TYPE_MAX_CHARS or "/" not in media_type:
            raise InvalidError(f"invalid media type: {media_type[:80]!r}", field="artifact_type", value=media_type)
    told = rooms.registry.manifest(subject).descriptor
    with ExitStack() as opened:
        sendings: dict[Digest, Sending] = {}
        layers: list[dict[str, Any]] = []
        for path, media_type in files:
            file = opened.enter_context(path.open("rb", buffering=0))
            digest, size = Digest(_core.digest_file(path)), os.fstat(file.fileno()).st_size
            blob = Descriptor(media_type=media_type, digest=digest, size=size, annotations={TITLE: path.name})
            layers.append(_written(blob))
            sendings.setdefault(digest, Sending(blob, partial(Source, from_file(file))))
        empty = Descriptor(media_type=EMPTY_TYPE, digest=Digest.of(EMPTY), size=len(EMPTY))
        blank = opened.enter_context(os.fdopen(os.memfd_create("pyctrd-empty"), "w+b", buffering=0))
        blank.write(EMPTY)
        sendings.setdefault(empty.digest, Sending(empty, partial(Source, from_file(blank))))
        body = orjson.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "artifactType": artifact_type,
                "config": _written(empty),
                "layers": layers or [_written(empty)],
                "subject": _written(told),
                **({"annotations": dict(annotations)} if annotations else {}),
            }
        )
        send_blobs(
            rooms.registry,
            subject,
            list(sendings.values()),
            concurrency=rooms.settings.concurrency,
        )
    digest = Digest.of(body)
    put_documents(rooms.registry, subject, [(str(digest), OCI_MANIFEST, body)])
    return Descriptor(
        media_type=OCI_MANIFEST, digest=digest, size=len(body), artifact_type=artifact_type, annotations=annotations
    )


def delete_remote(rooms: Rooms, reference: Reference) -> None:
    """Delete what a reference names in its registry: a tag, or by a digest a manifest with all its tags.

    Raises:
        NotFoundError: There is none.
        UnsupportedError: The registry does not delete, or not tags.
        RegistryError: It refused, or could not be reached.
    """
    repository = rooms.registry.repository(reference)
    subject = None
    if reference.digest is not None:
        document = orjson.loads(rooms.registry.manifest(reference).body)
        subject = document.get("subject") if isinstance(document, dict) else None
    repository.delete_manifest(reference.target)
    if reference.digest is not None and isinstance(subject, dict):
        of = Digest.parse(str(subject.get("digest", "")), field="subject.digest")
        unlist_referrer(rooms.registry, reference, reference.digest, of)


def _written(blob: Descriptor) -> dict[str, Any]:
    written = {"mediaType": blob.media_type, "digest": str(blob.digest), "size": blob.size}
    return written | ({"annotations": dict(blob.annotations)} if blob.annotations else {})
