"""Blobs on their way into a registry: mounted, in one request, in chunks, and on from where a connection broke."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urljoin

from pyctrd.errors import CancelledError, DigestMismatchError, NotFoundError, RegistryError, UnavailableError
from pyctrd.oci.hold import Hold
from pyctrd.oci.value import NamedTuple
from pyctrd.registry.connection import Payload
from pyctrd.registry.transport import ATTEMPTS_MAX, backoff_seconds, pause

if TYPE_CHECKING:
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.oci.reference import Reference
    from pyctrd.registry.access import Access
    from pyctrd.registry.connection import Answer

# Where a registry, or a proxy before it, takes no request as large as a blob: what Cloudflare allows is 100 MB.
CHUNK_BYTES = 32 * 1024 * 1024
LOOK_SECONDS = 0.1  # how often, between two attempts, it is seen whether they were given up
_PULL_PUSH = "pull,push"
_OCTETS = {"Content-Type": "application/octet-stream"}
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")

# Makes what is sent of a blob: so many bytes from an offset on.
MakePayload = Callable[[int, int], Payload]


class Session(NamedTuple):
    """An upload under way.

    Attributes:
        location: Where its next request goes.
        chunk_min_bytes: The fewest that a chunk may have, but for the last; 0 where the registry does not say.
    """

    location: str
    chunk_min_bytes: int = 0


class Uploads:
    """Sends blobs to one repository. Thread-safe.

    Args:
        access: How registries are asked.
        reference: Whose registry and repository.
        hold: Ends what it waits for.
    """

    def __init__(self, access: Access, reference: Reference, hold: Hold | None = None) -> None:
        self._access = access
        self._reference = reference
        self._hold = hold or Hold()
        self._path = f"/v2/{reference.repository}/blobs/uploads/"

    def begin(self, descriptor: Descriptor, *, mount_from: str = "") -> Session | None:
        """Begin an upload, or have the registry take a blob from another of its repositories.

        Args:
            descriptor: Of the blob.
            mount_from: A repository of the same registry that has it; "" for none.

        Returns:
            None where the blob was mounted: it is there.

        Raises:
            RegistryError: It refused, or could not be reached.

        Spec:
            distribution-spec v1.1, "Mounting a blob from another repository", "POST then PUT".
        """
        query, scope = "", ""
        if mount_from:
            query = "?" + urlencode({"mount": str(descriptor.digest), "from": mount_from})
            scope = f"repository:{mount_from}:pull"
        answer = self._access.ask(
            "POST",
            self._reference,
            self._path + query,
            "repository",
            {},
            subject=str(descriptor.digest),
            actions=_PULL_PUSH,
            scope=scope,
            hold=self._hold,
            accepts=(201, 202),
        )
        answer.drain()
        if answer.status == 201 and mount_from:
            return None
        location = answer.headers.get("location", "")
        if answer.status != 202 or not location:
            raise RegistryError(
                f"unexpected answer: {self._reference.registry}: no place to send {descriptor.digest} to",
                method="POST",
                status=answer.status,
            )
        least = answer.headers.get("oci-chunk-min-length", "")
        return Session(
            urljoin(answer.url, location), int(least) if least.isascii() and least.isdigit() and len(least) < 12 else 0
        )

    def send(
        self,
        descriptor: Descriptor,
        make: MakePayload,
        *,
        session: Session | None = None,
        chunk_bytes: int = 0,
    ) -> None:
        """Send a blob whole; verified by the registry, against the descriptor's digest.

        A connection that breaks is gone on with where the registry says that it stands, where it says so; else the
        blob is sent again.

        Args:
            descriptor: Of the blob.
            make: Makes what is sent.
            session: An upload that was begun for it.
            chunk_bytes: Send it in requests of so many bytes; 0 for one request, but where that is too large.

        Raises:
            CancelledError: It was given up.
            DigestMismatchError: The registry found other bytes than the digest's.
            UnavailableError: It went on failing.
            RegistryError: It refused, or could not be reached.

        Spec:
            distribution-spec v1.1, "Pushing a blob monolithically", "Pushing a blob in chunks".
        """
        attempt, offset = 1, 0
        while True:
            session = session or self.begin(descriptor)
            if session is None:
                return
            try:
                if chunk_bytes or offset:
                    size = max(chunk_bytes or CHUNK_BYTES, session.chunk_min_bytes)
                    session = self._send_chunks(descriptor, make, session, offset=offset, size=size)
                    self._finish(descriptor, session, None)
                else:
                    self._finish(descriptor, session, make(0, descriptor.size))
            except (UnavailableError, NotFoundError, RegistryError) as error:
                if _is_too_large(error) and not chunk_bytes:
                    chunk_bytes, session, offset = max(CHUNK_BYTES, session.chunk_min_bytes), None, 0
                    continue
                if "DIGEST_INVALID" in getattr(error, "codes", ()):
                    raise _other_bytes(descriptor, self._reference) from error
                if not _may_pass(error) or attempt == ATTEMPTS_MAX:
                    raise
                _rest(getattr(error, "retry_after_seconds", None) or backoff_seconds(attempt), self._hold)
                attempt += 1
                session, offset = self._where(descriptor, session)
            else:
                return

    def cancel(self, session: Session) -> None:
        """Have the registry forget an upload; whether it does is its business."""
        try:
            answer = self._access.ask(
                "DELETE",
                self._reference,
                session.location,
                "upload",
                {},
                actions=_PULL_PUSH,
                retry=False,
                hold=self._hold,
                accepts=(200, 202, 204),
            )
        except (RegistryError, NotFoundError):
            return
        answer.drain()

    def _send_chunks(
        self, descriptor: Descriptor, make: MakePayload, session: Session, *, offset: int, size: int
    ) -> Session:
        while offset < descriptor.size:
            count = min(size, descriptor.size - offset)
            answer = self._access.ask(
                "PATCH",
                self._reference,
                session.location,
                "upload",
                {**_OCTETS, "Content-Range": f"{offset}-{offset + count - 1}"},
                subject=str(descriptor.digest),
                retry=False,
                actions=_PULL_PUSH,
                body=make(offset, count),
                hold=self._hold,
                accepts=(201, 202, 204),
            )
            answer.drain()
            offset += count
            session = session._replace(location=_next(answer, session))
        return session

    def _finish(self, descriptor: Descriptor, session: Session, payload: Payload | None) -> None:
        """Name what was sent, with all of it in the same request or with nothing more."""
        join = "&" if "?" in session.location else "?"
        answer = self._access.ask(
            "PUT",
            self._reference,
            f"{session.location}{join}{urlencode({'digest': str(descriptor.digest)})}",
            "upload",
            _OCTETS,
            subject=str(descriptor.digest),
            retry=False,
            actions=_PULL_PUSH,
            body=payload if payload is not None else b"",
            hold=self._hold,
            accepts=(200, 201, 202, 204),
        )
        answer.drain()
        said = answer.headers.get("docker-content-digest", str(descriptor.digest))
        if said.startswith(descriptor.digest.algorithm) and said != str(descriptor.digest):
            raise DigestMismatchError(
                f"digest mismatch: {descriptor.digest}: {self._reference.registry} stored {said[:140]}",
                subject=str(descriptor.digest),
                expected=str(descriptor.digest),
                actual=said,
            )

    def _where(self, descriptor: Descriptor, session: Session) -> tuple[Session | None, int]:
        """Where an upload that broke off stands; none, and so a new one, where the registry does not say."""
        try:
            answer = self._access.ask(
                "GET",
                self._reference,
                session.location,
                "upload",
                {},
                subject=str(descriptor.digest),
                retry=False,
                actions=_PULL_PUSH,
                hold=self._hold,
                accepts=(200, 204),
            )
        except (RegistryError, NotFoundError):
            return None, 0
        answer.drain()
        found = _RANGE.fullmatch(answer.headers.get("range", ""))
        # "0-0" says of some that there is one byte, of others that there is none: then it is begun again.
        end = int(found[1]) + 1 if found is not None else 0
        if not 1 < end <= descriptor.size:
            self.cancel(session)
            return None, 0
        return session._replace(location=_next(answer, session)), end


def _next(answer: Answer, session: Session) -> str:
    """Where an upload's next request goes: a place that is given may be one beside where the last one went."""
    return urljoin(answer.url, answer.headers.get("location") or session.location)


def _rest(seconds: float, hold: Hold) -> None:
    while seconds > 0 and not hold.is_stopped:
        pause(min(seconds, LOOK_SECONDS))
        seconds -= LOOK_SECONDS
    if hold.is_stopped:
        raise CancelledError("cancelled")


def _other_bytes(descriptor: Descriptor, reference: Reference) -> DigestMismatchError:
    return DigestMismatchError(
        f"digest mismatch: {descriptor.digest}: {reference.registry} got other bytes",
        subject=str(descriptor.digest),
        expected=str(descriptor.digest),
        hint="if it came from the store, look at that: pyctrd check --deep",
    )


def _is_too_large(error: Exception) -> bool:
    return isinstance(error, RegistryError) and error.status == 413


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may go better: the registry failed, lost the upload, or has more or less of it."""
    if isinstance(error, UnavailableError | NotFoundError):
        return True
    return isinstance(error, RegistryError) and (error.status == 416 or "BLOB_UPLOAD_UNKNOWN" in error.codes)
