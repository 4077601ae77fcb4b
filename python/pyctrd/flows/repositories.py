"""Repositories: manifests and blobs of one namespace as a registry shows them, and what is sent to it.

A repository is called as images are, ``registry/path``: what is sent as ``team/app:1`` is the image
``localhost/team/app:1``, and the image ``docker.io/library/alpine:3.20`` is seen in ``docker.io/library/alpine``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import InvalidError, NotFoundError, PyctrdError
from pyctrd.flows.sent import SENT_LOCALLY, Sent, read_sent
from pyctrd.flows.uploads import commit_upload
from pyctrd.metadata.images import ImageRecord
from pyctrd.metadata.repositories import Ref, manifest_row
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.digest import Digest
from pyctrd.oci.index import Index
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index, is_manifest
from pyctrd.oci.platform import Platform
from pyctrd.oci.reference import Reference, check_repository, is_tag
from pyctrd.oci.value import NamedTuple
from pyctrd.registry.server.store import SentManifest, StoredBlob, StoredManifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.content import ContentRecord
    from pyctrd.metadata.database import Tables

# Of an index whose entries are indexes, as deep as images are looked for.
_DEPTH = 4


def repository_of(name: str) -> str:
    """The full name of a repository that a client names.

    Raises:
        InvalidError: It is none.
    """
    first, slash, path = name.partition("/")
    if ":" in first and slash:  # a mirror's client said so; no path has a port in it
        check_repository(path)
        return Reference.parse(name).repository_name
    check_repository(name)
    if not slash or ("." not in first and first != SENT_LOCALLY):
        return f"{SENT_LOCALLY}/{name}"
    return Reference.parse(name).repository_name


def shown_name(repository: str) -> str:
    """How clients name a repository."""
    return repository.removeprefix(f"{SENT_LOCALLY}/")


def find_manifest(rooms: Rooms, repository: str, target: str) -> StoredManifest | None:
    """A manifest by tag or digest, from what the database knows."""
    digest = target if ":" in target else _digest_of_tag(rooms, repository, target)
    if digest is None:
        return None
    database, namespace = rooms.database, rooms.namespace
    if (row := database.repositories.find_manifest(namespace, repository, digest)) is not None:
        return StoredManifest(row.digest, row.media_type, row.size)
    if ":" in target and not _is_of_image(rooms, repository, digest):
        return None
    record = database.content.find(namespace, digest)
    if record is None or not record.is_stored or not (is_index(record.media_type) or is_manifest(record.media_type)):
        return None
    return StoredManifest(digest, record.media_type, record.size)


def _is_of_image(rooms: Rooms, repository: str, digest: str) -> bool:
    """Whether an image of a repository's name is it, or needs it."""
    return rooms.database.repositories.is_of_image(rooms.namespace, repository, digest)


def _digest_of_tag(rooms: Rooms, repository: str, tag: str) -> str | None:
    """What a tag names: of what was sent and what was pulled by that name, the later one."""
    sent = rooms.database.repositories.find_tag(rooms.namespace, repository, tag)
    image = rooms.database.images.find(rooms.namespace, f"{repository}:{tag}")
    if sent is None or (image is not None and image.updated_ns > sent.updated_ns):
        return image.target_digest if image is not None else None
    return sent.digest


def find_blob(rooms: Rooms, repository: str, digest: str) -> StoredBlob | None:
    """A blob whose bytes are on disk."""
    record = find_content(rooms, repository, digest)
    return StoredBlob(digest, record.size) if record is not None and record.is_stored else None


def find_content(rooms: Rooms, repository: str, digest: str) -> ContentRecord | None:
    """A blob that the namespace has and that can be seen in a repository."""
    record = rooms.database.content.find(rooms.namespace, digest)
    if record is None or not rooms.database.repositories.shows(rooms.namespace, repository, digest):
        return None
    return record


class _Placed(NamedTuple):
    """What is to be recorded of a manifest beside its bytes."""

    digest: str
    tag: str
    image: ImageRecord | None
    names_image: bool


def put_manifest(
    rooms: Rooms, repository: str, target: str, media_type: str, body: bytes, *, complete: bool = True
) -> SentManifest:
    """Take a manifest in: its bytes, what it names, its tag, and where it is an image's, the image.

    Args:
        rooms: The engine's rooms.
        repository: Its full name.
        target: A tag, or the digest that the bytes must have.
        media_type: What it was sent as, "" where that was not said.
        body: The bytes, kept as they are.
        complete: Whether what it names must be there already, and its tag is an image's name; not for what is fetched
            when it is asked for.

    Raises:
        InvalidError: It is no manifest, or the target is none.
        DigestMismatchError: It is another one than its digest says.
        NotFoundError: Something that it names is not there.
        QuotaError: The namespace may not have so much.
    """
    digest, tag = _target_of(target, body)
    sent = read_sent(body, media_type)
    if complete:
        check_complete(rooms, rooms.database, repository, sent.refs)
    else:
        sent = sent._replace(refs=tuple(ref._replace(required=False) for ref in sent.refs))
    names_image = complete and bool(tag)
    image = _image_of(rooms, f"{repository}:{tag}", digest, sent, body) if names_image else None
    placed = _Placed(digest, tag, image, names_image)

    def record(tx: Tables) -> None:
        if complete:
            check_complete(rooms, tx, repository, sent.refs)
        _record(rooms, tx, repository, sent, placed, len(body))

    store_bytes(rooms, digest, body, sent.media_type, record)
    return SentManifest(digest, sent.subject)


def store_bytes(rooms: Rooms, digest: str, body: bytes, media_type: str, record: Callable[[Tables], None]) -> None:
    """Store a document and record it; see ``commit_upload``."""
    upload_id = os.urandom(16).hex()
    upload = _core.Upload(str(rooms.root), upload_id, algorithm=Digest.parse(digest).algorithm)
    try:
        upload.write(body)
        commit_upload(rooms, upload, upload_id, digest, media_type=media_type, record=record)
    finally:
        upload.abort()


def _target_of(target: str, body: bytes) -> tuple[str, str]:
    """The digest of some bytes and the tag that they are sent by, "" where they are sent by their digest."""
    if ":" in target:
        digest = Digest.parse(target)
        digest.check(body, subject="manifest")
        return str(digest), ""
    if not is_tag(target):
        raise InvalidError(f"invalid tag: {target[:140]!r}", field="tag", value=target[:140])
    return _core.digest_bytes(body), target


def check_complete(rooms: Rooms, tables: Tables, repository: str, refs: Sequence[Ref]) -> None:
    """Raise unless what a manifest must have is in its repository.

    Raises:
        NotFoundError: Something is not.
    """
    for ref in refs:
        if ref.required and not _is_there(rooms, tables, repository, ref):
            raise NotFoundError(
                f"{ref.kind} not found: {ref.name}: the manifest names it: send it first",
                kind="reference",
                name=ref.name,
            )


def _is_there(rooms: Rooms, tables: Tables, repository: str, ref: Ref) -> bool:
    found = tables.repositories
    if ref.kind == "manifest" and found.find_manifest(rooms.namespace, repository, ref.name) is not None:
        return True
    if tables.content.find(rooms.namespace, ref.name) is None:
        return False
    shows = found.is_of_image if ref.kind == "manifest" else found.shows
    return shows(rooms.namespace, repository, ref.name)


def _record(rooms: Rooms, tx: Tables, repository: str, sent: Sent, placed: _Placed, size: int) -> None:
    row = manifest_row(
        rooms.namespace,
        repository,
        digest=placed.digest,
        media_type=sent.media_type,
        size=size,
        subject=sent.subject,
        artifact_type=sent.artifact_type,
        annotations=sent.annotations,
    )
    tx.repositories.put_manifest(row, sent.refs)
    if placed.tag:
        tx.repositories.put_tag(rooms.namespace, repository, placed.tag, placed.digest)
    if placed.image is not None:
        tx.images.put(placed.image, by="push")
    elif placed.names_image and (old := tx.images.find(rooms.namespace, f"{repository}:{placed.tag}")) is not None:
        tx.images.delete(rooms.namespace, old.name)  # the name means something else now, that nobody can run


def _image_of(rooms: Rooms, name: str, digest: str, sent: Sent, body: bytes) -> ImageRecord | None:
    """The image that a user can run by a name, where the manifest is one's, or has one for this host."""
    try:
        chosen = _choose_manifest(rooms, digest, sent.media_type, body)
        if chosen is None:
            return None
        manifest_digest, manifest = chosen
        if not manifest.is_image:
            return None
        manifest.check_layers()
        config = ImageConfig.parse(rooms.blobs.read(manifest.config.digest))
        manifest.check_config(config)
    except (PyctrdError, FileNotFoundError):
        return None  # it can be kept and served as what it is
    now = time.time_ns()
    return ImageRecord(
        namespace=rooms.namespace,
        name=name,
        target_digest=digest,
        target_media_type=sent.media_type,
        target_size=len(body),
        manifest_digest=manifest_digest,
        config_digest=str(manifest.config.digest),
        platform=str(config.platform),
        created_ns=now,
        updated_ns=now,
    )


def _choose_manifest(rooms: Rooms, digest: str, media_type: str, body: bytes) -> tuple[str, Manifest] | None:
    for _ in range(_DEPTH):
        if is_manifest(media_type):
            return digest, Manifest.parse(body)
        child = Index.parse(body).choose(Platform.host())
        if child is None or rooms.database.content.find(rooms.namespace, str(child.digest)) is None:
            return None
        digest, media_type = str(child.digest), child.media_type
        body = rooms.blobs.read(child.digest)
    return None


def delete_manifest(rooms: Rooms, repository: str, target: str) -> None:
    """Take a tag away, or by its digest a manifest with all its tags; an image of that name goes as well.

    Raises:
        NotFoundError: There is none.
    """
    namespace = rooms.namespace
    with rooms.database.write() as tx:
        tables = tx.repositories
        if ":" not in target:
            found = tables.delete_tag(namespace, repository, target)
            names = [f"{repository}:{target}"]
        else:
            tags = tables.tags_of(namespace, repository, target)
            found = tables.delete_manifest(namespace, repository, target)
            names = [f"{repository}:{tag}" for tag in tags]
            names += [
                image.name
                for image in tx.images.list(namespace)
                if image.target_digest == target and image.name.startswith((f"{repository}:", f"{repository}@"))
            ]
        for name in dict.fromkeys(names):
            image = tx.images.find(namespace, name)
            if image is not None and (":" not in target or image.target_digest == target):
                tx.images.delete(namespace, name)
                found = True
        if not found:
            raise unknown_manifest(repository, target)


def delete_blob(rooms: Rooms, repository: str, digest: str) -> None:
    """Take a blob from a repository; its bytes go with the next collection, unless something else needs them.

    Raises:
        NotFoundError: There is none.
    """
    with rooms.database.write() as tx:
        if not tx.repositories.delete_blob(rooms.namespace, repository, digest):
            raise unknown_blob(digest)


def mount_blob(rooms: Rooms, repository: str, digest: str, source: str | None) -> bool:
    """Let a blob that can be seen in one repository of the namespace, None for any, be seen in another."""
    with rooms.database.write() as tx:
        record = tx.content.find(rooms.namespace, digest)
        if record is None or not record.is_stored:
            return False
        if source is not None and not tx.repositories.shows(rooms.namespace, source, digest):
            return False
        if source is None and not tx.repositories.holders(rooms.namespace, digest):
            return False
        tx.repositories.add_blob(rooms.namespace, repository, digest)
    return True


def unknown_manifest(repository: str, target: str) -> NotFoundError:
    """The error for a manifest that is not there."""
    return NotFoundError(
        f"manifest not found: {shown_name(repository)}: {target[:140]}", kind="manifest", name=target[:140]
    )


def unknown_blob(digest: str) -> NotFoundError:
    """The error for a blob that is not there."""
    return NotFoundError(f"blob not found: {digest}", kind="blob", name=digest)
