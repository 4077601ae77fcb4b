"""Sending: blobs and documents into a repository, whatever it has of them left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import orjson

from pyctrd.errors import CancelledError, NotFoundError, PyctrdError
from pyctrd.flows.progress import PROGRESS_INTERVAL_SECONDS, LayerProgress, LayerState, Telling
from pyctrd.oci.digest import Digest
from pyctrd.oci.hold import Hold
from pyctrd.oci.media_types import OCI_INDEX
from pyctrd.oci.value import NamedTuple
from pyctrd.registry.connection import Payload
from pyctrd.registry.repository import fallback_tag

if TYPE_CHECKING:
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.oci.reference import Reference
    from pyctrd.registry.client import Client


class Part(NamedTuple):
    """What of a blob is sent next.

    Attributes:
        offset: The first byte.
        length: How many.
        sent: Told how many more are on their way.
        comes: Told where it is read from, as progress says it.
        hold: Ends the wait for more of it.
    """

    offset: int
    length: int
    sent: Callable[[int], None]
    comes: Callable[[str], None]
    hold: Hold


# Makes what is sent.
Make = Callable[[Part], Payload]


class Source(NamedTuple):
    """Where a blob can be had.

    Attributes:
        make: Makes what is sent; None where nobody here has its bytes.
        mounts: Repositories of the target's registry that may have it.
    """

    make: Make | None
    mounts: tuple[str, ...] = ()


class Sending:
    """One blob on its way.

    Args:
        descriptor: Of the blob.
        find: Where it can be had; asked only if the target does not have it.
    """

    def __init__(self, descriptor: Descriptor, find: Callable[[], Source]) -> None:
        self.descriptor = descriptor
        self.find = find
        self.state: LayerState = "waiting"
        self.sent_bytes = 0
        self.source = ""
        self.hold = Hold()

    def make(self, make: Make, offset: int, length: int) -> Payload:
        """What is sent of it next."""
        self.sent_bytes = offset
        return make(Part(offset, length, self._note, self._comes, self.hold))

    def _note(self, count: int) -> None:
        self.sent_bytes += count

    def _comes(self, source: str) -> None:
        self.source = source

    def progress(self) -> LayerProgress:
        """A look at it from outside."""
        size = self.descriptor.size
        is_there = self.state in ("present", "mounted", "done")
        sent = size if is_there else min(self.sent_bytes, size)
        return LayerProgress(str(self.descriptor.digest), self.state, sent, size, 0, self.source)


def send_blobs(
    client: Client,
    target: Reference,
    sendings: Sequence[Sending],
    *,
    concurrency: int,
    chunk_bytes: int = 0,
    told: Telling | None = None,
) -> None:
    """Send what the target does not have, several at once, the largest first. The first failure ends the others.

    Raises:
        NotFoundError: Nobody has the bytes of a blob.
        RegistryError, IntegrityError: As ``Uploads.send``.
    """

    def send(sending: Sending) -> None:
        _send_one(client, target, sending, chunk_bytes)

    ordered = sorted(sendings, key=lambda sending: -sending.descriptor.size)
    if not ordered:
        return
    with ThreadPoolExecutor(min(len(ordered), concurrency), thread_name_prefix="pyctrd-send") as pool:
        try:
            pending = {pool.submit(send, sending) for sending in ordered}
            while pending:
                done, pending = wait(pending, PROGRESS_INTERVAL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    future.result()
                if told is not None:
                    told.tell()
        except BaseException:  # Ctrl-C lands here, in the main thread
            for sending in ordered:
                sending.hold.stop()
            raise


def put_documents(client: Client, target: Reference, documents: Sequence[tuple[str, str, bytes]]) -> None:
    """Put manifests and indexes, in the order given: each one behind those that it names.

    One that tells of another is listed as such too, where the registry does not do it.

    Args:
        client: Of registries.
        target: Whose repository.
        documents: Tag or digest, media type and bytes of each.

    Raises:
        RegistryError, IntegrityError: As ``Repository.put_manifest``.
    """
    repository = client.repository(target)
    for name, media_type, body in documents:
        is_noted = repository.put_manifest(name, media_type, body)
        if not is_noted and isinstance(subject := orjson.loads(body).get("subject"), dict):
            _list_referrer(client, target, subject, media_type, body)


def _send_one(client: Client, target: Reference, sending: Sending, chunk_bytes: int) -> None:
    descriptor, hold = sending.descriptor, sending.hold
    if client.has_blob(target, descriptor, at="push", hold=hold):
        sending.state = "present"
        return
    source, uploads, session = sending.find(), client.uploads(target, hold), None
    for repository in source.mounts:
        if session is not None:
            uploads.cancel(session)
        session = uploads.begin(descriptor, mount_from=repository)
        if session is None:
            sending.state = "mounted"
            return
    make = source.make
    if make is None:
        if session is not None:
            uploads.cancel(session)
        raise NotFoundError(
            f"blob not stored: {descriptor.digest}",
            kind="blob",
            name=str(descriptor.digest),
            hint="pull the image again with its blobs kept, or convert it: pyctrd convert",
        )
    sending.state = "pushing"
    try:
        uploads.send(
            descriptor,
            lambda offset, length: sending.make(make, offset, length),
            session=session,
            chunk_bytes=chunk_bytes,
        )
    except PyctrdError as error:
        if hold.is_stopped:
            raise CancelledError("cancelled") from error
        raise
    sending.state = "done"


def _list_referrer(client: Client, target: Reference, subject: dict[str, Any], media_type: str, body: bytes) -> None:
    """Add a manifest to the index that clients keep of what tells of another, where a registry keeps none.

    Spec:
        distribution-spec v1.1, "Pushing Manifests with Subject": the fallback.
    """
    repository = client.repository(target)
    of = Digest.parse(str(subject.get("digest", "")), field="subject.digest")
    digest, document = Digest.of(body), orjson.loads(body)
    listed = [dict(entry.raw) for entry in repository.fallback_index(of).manifests]
    if any(entry["digest"] == digest for entry in listed):
        return
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    entry = {"mediaType": media_type, "digest": str(digest), "size": len(body)}
    entry |= {"artifactType": kind} if kind else {}
    entry |= {"annotations": document["annotations"]} if document.get("annotations") else {}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*listed, entry]}
    repository.put_manifest(fallback_tag(of), OCI_INDEX, orjson.dumps(index))


def unlist_referrer(client: Client, target: Reference, digest: Digest, subject: Digest) -> None:
    """Take a manifest from the index of what tells of another, where one is kept by clients."""
    repository = client.repository(target)
    listed = [dict(entry.raw) for entry in repository.fallback_index(subject).manifests]
    left = [entry for entry in listed if entry["digest"] != digest]
    if len(left) == len(listed):
        return
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": left}  # an empty one stays: few delete tags
    repository.put_manifest(fallback_tag(subject), OCI_INDEX, orjson.dumps(index))
