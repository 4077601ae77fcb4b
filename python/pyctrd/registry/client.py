"""The distribution API: manifests and blobs of any registry."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlencode, urlsplit

import orjson

from pyctrd._core import digest_bytes
from pyctrd.errors import (
    AuthenticationError,
    DeniedError,
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
from pyctrd.oci.index import detect
from pyctrd.oci.media_types import ACCEPT, INDEXES, MANIFESTS
from pyctrd.oci.value import NamedTuple
from pyctrd.registry.body import BlobBody, Ranges, body_offset, check_range
from pyctrd.registry.challenge import TOKEN_MAX_BYTES, Challenge, Tokens, parse_challenges
from pyctrd.registry.connection import ProtocolError
from pyctrd.registry.hosts import api_host, host_of, is_internal, is_loopback, may_be_plain
from pyctrd.registry.pool import CONNECT_TIMEOUT_SECONDS
from pyctrd.registry.transport import Transport, redacted, retry_after_seconds

if TYPE_CHECKING:
    from pyctrd.oci.reference import Reference
    from pyctrd.registry.connection import Answer
    from pyctrd.registry.credentials import CredentialStore

ERROR_BODY_MAX_BYTES = 64 * 1024
ERROR_MESSAGE_MAX_CHARS = 200
# Types of TLS records (RFC 8446, section 5.1).
_ALERT, _HANDSHAKE = b"\x15", b"\x16"


class FetchedManifest(NamedTuple):
    """A manifest or index as it was served, its digest computed from its bytes."""

    descriptor: Descriptor
    body: bytes


class Client:
    """Talks to registries; one connection pool for each host. Thread-safe.

    Args:
        ca: PEM certificates to trust beside the system's.
        plain_http: ``host`` or ``host:port`` to talk to without TLS. Loopback hosts are tried with TLS first and
            without it second, as Docker does.
        credentials: User and password by registry, before any configuration file.
    """

    def __init__(
        self,
        *,
        ca: Path | None = None,
        plain_http: Collection[str] = (),
        credentials: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self._plain_http = frozenset(plain_http)
        self._given = dict(credentials or {})
        self._transport = Transport(ca=ca)
        self._tokens = Tokens(self._fetch_token)
        self._lock = threading.Lock()
        self._schemes: dict[str, str] = {}
        # What a repository's last request was let in with: (registry, scope) → Authorization.
        self._grants: dict[tuple[str, str], str] = {}
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
        path = f"/v2/{reference.repository}/manifests/{reference.target}"
        with self._get(reference, path, "manifest", {"Accept": ", ".join(ACCEPT)}) as answer:
            body = _read_limited(answer, DOCUMENT_MAX_BYTES, f"manifest {reference}")
            headers = answer.headers
        _check_manifest_digest(reference, headers.get("docker-content-digest"), body)
        media_type = detect(body)
        announced = headers.get("content-type", "").partition(";")[0].strip()
        if announced in INDEXES | MANIFESTS and announced != media_type:
            raise InvalidError(
                f"invalid manifest: {reference}: served as {announced}, reads as {media_type}",
                field="mediaType",
                value=media_type,
            )
        digest = reference.digest or _digest_of(body)
        return FetchedManifest(Descriptor(media_type=media_type, digest=digest, size=len(body)), body)

    def open_blob(
        self, reference: Reference, descriptor: Descriptor, *, offset: int = 0, retry: bool = True
    ) -> BlobBody:
        """Ask for a blob's bytes from ``offset`` on. Nothing of them is verified here.

        Args:
            reference: Whose registry and repository.
            descriptor: Which blob.
            offset: Its first byte that is wanted.
            retry: Whether passing faults are tried again here; a caller that goes on by itself where a body broke
                off says no, and can be interrupted between tries.

        Returns:
            The body; its ``offset`` tells where it really starts.

        Raises:
            NotFoundError: The registry has no such blob.
            RegistryError: It refused, or could not be reached.

        Spec:
            distribution-spec v1.1, "Pulling blobs"; RFC 9110, section 14 (ranges).
        """
        try:
            answer = self._ask_blob(reference, descriptor, f"bytes={offset}-" if offset else "", retry=retry)
        except RegistryError as error:
            if offset and error.status == 416:  # it has no such range: from the start, then
                return self.open_blob(reference, descriptor, retry=retry)
            raise
        url = redacted(answer.url or str(descriptor.digest))
        try:
            _check_not_encoded(answer, url)
            span = body_offset(answer, offset, url)
        except BaseException:
            answer.close()
            raise
        if span is None:
            answer.close()
            return self.open_blob(reference, descriptor, retry=retry)
        start, length = span
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

    def _ask_blob(self, reference: Reference, descriptor: Descriptor, span: str = "", *, retry: bool = False) -> Answer:
        """The answer to a request for a blob, or for what the header ``Range`` says of it."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": span} if span else {})
        path = f"/v2/{reference.repository}/blobs/{descriptor.digest}"
        return self._get(reference, path, "blob", headers, subject=str(descriptor.digest), retry=retry)

    def has_blob(self, reference: Reference, descriptor: Descriptor) -> bool:
        """Whether the registry says, to these credentials, that it has a blob of these many bytes in a repository.

        Whatever else it says, or fails to, is a no: who asks for the bytes then is told what is wrong.

        Spec:
            distribution-spec v1.1, "Checking if content exists in the registry".
        """
        path = f"/v2/{reference.repository}/blobs/{descriptor.digest}"
        headers = {"Accept-Encoding": "identity"}
        try:
            answer = self._ask("HEAD", reference, path, "blob", headers, subject=str(descriptor.digest), retry=False)
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
        with self.open_blob(reference, descriptor) as body, memoryview(content) as view:
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
        descriptor.digest.match(_digest_of(found, descriptor.digest.algorithm), subject=str(descriptor.digest))
        return found

    def close(self) -> None:
        """Close the connections; idempotent."""
        self._transport.close()

    @cached_property
    def _credentials(self) -> CredentialStore:
        """Looked for where a registry asks for them: most pulls need none."""
        from pyctrd.registry.credentials import CredentialStore

        return CredentialStore(self._given)

    def _get(
        self,
        reference: Reference,
        path: str,
        kind: str,
        headers: Mapping[str, str],
        *,
        subject: str = "",
        retry: bool = True,
    ) -> Answer:
        return self._ask("GET", reference, path, kind, headers, subject=subject, retry=retry)

    def _ask(
        self,
        method: Literal["GET", "HEAD"],
        reference: Reference,
        path: str,
        kind: str,
        headers: Mapping[str, str],
        *,
        subject: str = "",
        retry: bool = True,
    ) -> Answer:
        """One answer, with whatever authorization the registry asks for; others than 200 and 206 are raised."""
        registry = reference.registry
        scope = f"repository:{reference.repository}:pull"
        url = f"{self._scheme(registry)}://{api_host(registry)}{path}"
        grant = self._grants.get((registry, scope))
        refreshed = False
        while True:
            sent = {**headers, "Authorization": grant} if grant else dict(headers)
            answer = self._transport.request(
                method, url, headers=sent, plain_hosts=self._plain_hosts(registry), retry=retry
            )
            # A blob server behind a redirect has its own ideas of 401; its challenge is not ours to answer.
            ours = urlsplit(answer.url or url).netloc == urlsplit(url).netloc
            if answer.status != 401 or not ours or refreshed:
                break
            challenges = parse_challenges(answer.headers.get("www-authenticate", ""))
            answer.drain()
            refreshed = grant is None or self._was_token(grant)
            grant = self._answer(challenges, registry, scope, refresh=grant is not None)
            self._grants[registry, scope] = grant
        if answer.status not in (200, 206):
            _raise_status(answer, method, reference, kind, subject or str(reference))
        return answer

    @staticmethod
    def _was_token(grant: str) -> bool:
        return grant.startswith("Bearer ")

    def _answer(self, challenges: list[Challenge], registry: str, scope: str, *, refresh: bool) -> str:
        """The Authorization that answers a 401.

        Raises:
            AuthenticationError: There are no credentials, or the challenge is of no known kind.
        """
        credentials = self._credentials.find(registry)
        for challenge in challenges:
            if challenge.scheme == "bearer":
                token = self._tokens.get(
                    challenge,
                    scope=scope,
                    credentials=credentials,
                    registry=registry,
                    plain_ok=may_be_plain(registry, self._plain_http),
                    refresh=refresh,
                )
                return f"Bearer {token}"
        if any(challenge.scheme == "basic" for challenge in challenges):
            if credentials is None or not credentials.password or refresh:
                raise AuthenticationError(
                    f"credentials refused: {registry}" if refresh else f"credentials needed: {registry}",
                    method="GET",
                    url=registry,
                    status=401,
                    hint=f"log in: docker login {registry}",
                )
            return credentials.basic()
        raise AuthenticationError(
            f"credentials refused: {registry}: no challenge that is known", url=registry, status=401
        )

    def _fetch_token(
        self, method: str, url: str, *, fields: Mapping[str, str], headers: Mapping[str, str], plain_ok: bool
    ) -> tuple[int, bytes]:
        try:
            parts = urlsplit(url)
        except ValueError as error:  # half an IPv6 address
            raise AuthenticationError("token server refused: its realm is no URL") from error
        if not plain_ok and is_internal(parts.hostname or ""):
            raise AuthenticationError(
                f"token server refused: {redacted(url)}: a registry elsewhere names an address of this machine or link",
                url=redacted(url),
            )
        if parts.scheme != "https" and not (parts.scheme == "http" and plain_ok):
            raise AuthenticationError(
                f"token server refused: {redacted(url)}: credentials are sent over HTTPS only", url=redacted(url)
            )
        if method == "POST":
            answer = self._transport.post(url, fields)
        else:
            joined = f"{url}{'&' if parts.query else '?'}{urlencode(fields)}"
            answer = self._transport.request("GET", joined, headers=headers)
        with answer:
            return answer.status, _read_limited(answer, TOKEN_MAX_BYTES, "token")

    def _plain_hosts(self, registry: str) -> frozenset[str]:
        if self._scheme(registry) == "https":
            return self._plain_http
        return self._plain_http | {api_host(registry), host_of(registry)}

    def _scheme(self, registry: str) -> str:
        """TLS, but for hosts that were declared plain, and loopback ones that do not speak it."""
        with self._lock:
            known = self._schemes.get(registry)
        if known is not None:
            return known
        if registry in self._plain_http or host_of(registry) in self._plain_http:
            scheme = "http"
        elif is_loopback(registry):
            scheme = "https" if _speaks_tls(registry) else "http"
        else:
            scheme = "https"
        with self._lock:
            self._schemes[registry] = scheme
        return scheme


def _speaks_tls(registry: str) -> bool:
    """Greet as TLS does, nothing more: who speaks it answers with a record of it, a plain server with what is none.

    Any certificate is passed over: the real connection looks at it. A plain server costs no loading of ``ssl``.
    """
    port = registry.rpartition(":")[2] if ":" in registry.rpartition("]")[2] else "443"
    # As bytes: of a str, the resolver's call would load the codec of names beyond ASCII.
    address: Any = (host_of(registry).encode("ascii"), int(port))
    try:
        with socket.create_connection(address, timeout=CONNECT_TIMEOUT_SECONDS) as plain:
            plain.sendall(_client_hello())
            return plain.recv(1) in (_ALERT, _HANDSHAKE)
    except OSError:
        return False  # the real connection says what is wrong


def _client_hello() -> bytes:
    """A greeting that every server of TLS 1.2 or 1.3 understands (RFC 8446, section 4.1.2)."""
    # For randomness, of which a handshake that goes no further needs none: the end of a head, which makes a plain
    # server answer at once.
    random = b"\r\n\r\n".ljust(32, b"-")
    ciphers = bytes.fromhex("1301 1302 1303 c02b c02f c02c c030 cca9 cca8 009c 009d")
    extensions = bytes.fromhex(
        "000a 0006 0004 001d 0017"  # groups: x25519, P-256
        "000d 000a 0008 0403 0804 0805 0401"  # signatures: ECDSA, RSA-PSS, RSA
        "002b 0005 04 0304 0303"  # versions: 1.3, 1.2
        "0033 0002 0000"  # no key yet: the server asks for one
    )
    body = b"\x03\x03" + random + b"\0" + _sized(ciphers, 2) + b"\1\0" + _sized(extensions, 2)
    return _HANDSHAKE + b"\x03\x01" + _sized(b"\1" + _sized(body, 3), 2)


def _sized(content: bytes, digits: int) -> bytes:
    return len(content).to_bytes(digits, "big") + content


def _digest_of(content: bytes, algorithm: str = "sha256") -> Digest:
    """As ``Digest.of``; for the usual algorithm without ``hashlib``, which loads OpenSSL: 3 ms."""
    return Digest(digest_bytes(content)) if algorithm == "sha256" else Digest.of(content, algorithm)


def _check_not_encoded(answer: Answer, url: str) -> None:
    encoding = answer.headers.get("content-encoding", "identity")
    if encoding not in ("", "identity"):
        raise RegistryError(f"encoded blob: {url}: Content-Encoding: {encoding[:40]}", method="GET", url=url)


def _check_manifest_digest(reference: Reference, announced: str | None, body: bytes) -> None:
    """What was asked for by digest must hash to it; what the registry announces must be true as well."""
    if reference.digest is not None:
        reference.digest.match(_digest_of(body, reference.digest.algorithm), subject=f"manifest {reference}")
    elif announced is not None:
        try:
            digest = Digest.parse(announced, field="Docker-Content-Digest")
        except InvalidError as error:
            raise IntegrityError(
                f"wrong digest header: manifest {reference}: {announced[:80]!r}", subject=str(reference)
            ) from error
        digest.match(_digest_of(body, digest.algorithm), subject=f"manifest {reference}")


def _read_limited(answer: Answer, most: int, what: str) -> bytes:
    """A body of at most ``most`` bytes; a larger one is refused unread where its length is announced."""
    announced = answer.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise InvalidError(
            f"too large: {what}: {announced} bytes: expected at most {most}", field=what, value=announced
        )
    try:
        body = answer.read(most + 1)
    except (ProtocolError, OSError) as error:
        raise UnavailableError(f"connection broke: {what}: {type(error).__name__}") from error
    if len(body) > most:
        raise InvalidError(f"too large: {what}: expected at most {most} bytes", field=what, value=len(body))
    return body


def _raise_status(answer: Answer, method: str, reference: Reference, kind: str, subject: str) -> NoReturn:
    url = redacted(answer.url or "")
    status = answer.status
    retry_after = retry_after_seconds(answer.headers.get("retry-after"))
    codes, message = _read_errors(answer)
    said = f": {message}" if message else ""
    shared: dict[str, Any] = {"method": method, "url": url, "status": status, "codes": codes}
    host = urlsplit(url).netloc
    if status == 401:
        raise AuthenticationError(
            f"credentials refused: {reference.repository_name}{said}",
            **shared,
            hint=f"log in: docker login {reference.registry}",
        )
    if status == 403:
        raise DeniedError(f"access denied: {reference.repository_name}{said}", **shared)
    if status in (404, 410):
        raise NotFoundError(
            f"{kind} not found: {subject}{said}", kind=kind, name=subject, hint="look at the repository's name and tag"
        )
    if status == 429:
        raise UnavailableError(
            f"too many requests: {host}{said}", **shared, retry_after_seconds=retry_after, hint="try again later"
        )
    if status >= 500:
        raise UnavailableError(
            f"registry failed: {host}: status {status}{said}", **shared, retry_after_seconds=retry_after
        )
    if status == 406 or "MANIFEST_SCHEMA1" in "".join(codes):
        raise UnsupportedError(f"no known form: {subject}: the registry has none that was asked for", feature=subject)
    raise RegistryError(f"unexpected answer: {host}: {kind} {subject}: status {status}{said}", **shared)


def _read_errors(answer: Answer) -> tuple[tuple[str, ...], str]:
    """The codes and the first message of a registry's error body; an HTML page says nothing."""
    try:
        body = answer.read(ERROR_BODY_MAX_BYTES)
        document = orjson.loads(body)
        errors = [item for item in document["errors"] if isinstance(item, dict)]
    except Exception:  # noqa: BLE001 - whatever a body is, the status is what counts
        return (), ""
    finally:
        answer.close()
    codes = tuple(str(item.get("code", ""))[:64] for item in errors)
    message = str(errors[0].get("message", "")) if errors else ""
    safe = "".join(c if c.isprintable() else "?" for c in message[:ERROR_MESSAGE_MAX_CHARS])
    return codes, safe
