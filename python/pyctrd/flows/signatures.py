"""Signatures beside an image, as cosign and sigstore write them, held against a public key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from pyctrd.errors import InvalidError, NotFoundError, UnsupportedError
from pyctrd.oci.digest import Digest
from pyctrd.oci.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyctrd.oci.descriptor import Descriptor

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
BUNDLE = "application/vnd.dev.sigstore.bundle"
IN_TOTO = "application/vnd.in-toto+json"
# Of one image; who can write beside it could make us read without end.
SIGNATURES_MAX = 64
PAYLOAD_MAX_BYTES = 1024 * 1024


class Key(Protocol):
    """A public key.

    Attributes:
        fingerprint: SHA-256 of it, in hex.
    """

    fingerprint: str

    def verifies(self, signature: bytes, content: bytes) -> bool:
        """Whether the signature is its own, of this content."""
        ...


class Documents(Protocol):
    """A repository, as far as signatures are looked for in it."""

    def manifest(self, target: str) -> tuple[Descriptor, bytes]:
        """A manifest and what it is."""
        ...

    def referrers(self, target: str) -> list[Descriptor]:
        """What tells of a manifest."""
        ...

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, checked."""
        ...


def find_signature(repository: Documents, digest: str, key: Key, *, name: str | None) -> bool:
    """Whether there is a good signature of a manifest or index by a key.

    Args:
        repository: Where it is.
        digest: Of the manifest or index.
        key: Whose signature.
        name: ``registry/repository`` that a signature must name; None for any.

    Raises:
        RegistryError: The registry could not be asked.
    """
    return any(
        key.verifies(signature, content)
        for signature, content in (*_simple(repository, digest, name), *_bundles(repository, digest))
    )


def _simple(repository: Documents, digest: str, name: str | None) -> Iterator[tuple[bytes, bytes]]:
    """Signatures under the tag that cosign keeps them under, of payloads that name the digest."""
    parsed = Digest.parse(digest)
    try:
        manifest = Manifest.parse(repository.manifest(f"{parsed.algorithm}-{parsed.hex}.sig")[1])
    except (NotFoundError, InvalidError):
        return
    for layer in manifest.layers[:SIGNATURES_MAX]:
        signature = _decoded(layer.annotations.get(SIGNATURE))
        if layer.media_type != SIMPLE_SIGNING or signature is None or layer.size > PAYLOAD_MAX_BYTES:
            continue
        content = repository.read_blob(layer)
        if _signs(content, digest, name):
            yield signature, content


def _signs(content: bytes, digest: str, name: str | None) -> bool:
    critical = _at(_json(content), "critical")
    if _at(critical, "image", "docker-manifest-digest") != digest:
        return False
    said = _at(critical, "identity", "docker-reference")
    return name is None or (isinstance(said, str) and said.partition("@")[0] in (name, f"{name}:latest"))


def _bundles(repository: Documents, digest: str) -> Iterator[tuple[bytes, bytes]]:
    """Signatures in sigstore bundles among the referrers, of statements or messages that are of the digest."""
    bundles = [entry for entry in repository.referrers(digest) if entry.artifact_type.startswith(BUNDLE)]
    for entry in bundles[:SIGNATURES_MAX]:
        try:
            manifest = Manifest.parse(repository.manifest(str(entry.digest))[1])
        except (NotFoundError, InvalidError):
            continue
        for layer in manifest.layers[:1]:
            if layer.size <= PAYLOAD_MAX_BYTES:
                yield from _of_bundle(_json(repository.read_blob(layer)), Digest.parse(digest))


def _of_bundle(bundle: Any, digest: Digest) -> Iterator[tuple[bytes, bytes]]:
    envelope = _at(bundle, "dsseEnvelope")
    kind, payload = _at(envelope, "payloadType"), _decoded(_at(envelope, "payload"))
    if kind != IN_TOTO or payload is None:
        return
    subjects = _at(_json(payload), "subject")
    named = [_at(subject, "digest", digest.algorithm) for subject in subjects] if isinstance(subjects, list) else []
    if digest.hex not in named:
        return
    signatures = _at(envelope, "signatures")
    for one in signatures[:SIGNATURES_MAX] if isinstance(signatures, list) else ():
        if (signature := _decoded(_at(one, "sig"))) is not None:
            yield signature, _encoded(kind, payload)


def _encoded(kind: str, payload: bytes) -> bytes:
    """What DSSE signs: type and payload, each behind its length."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None


def _decoded(text: object) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) and text else None
    except (binascii.Error, ValueError):
        return None


def read_key(key: bytes | str | os.PathLike[str]) -> Key:
    """A public key of PEM, or of a file of it.

    Raises:
        InvalidError: It is none.
        UnsupportedError: ``cryptography`` is not installed.
        OSError: The file cannot be read.
    """
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    except ImportError as error:
        raise UnsupportedError(
            "signatures not supported: the package cryptography is not installed",
            feature="signatures",
            needs="cryptography",
            hint="pip install 'pyctrd[verify]'",
        ) from error
    is_text = isinstance(key, bytes) or (isinstance(key, str) and "-----BEGIN" in key)
    content = (key if isinstance(key, bytes) else str(key).encode()) if is_text else Path(os.fsdecode(key)).read_bytes()
    called = "given" if is_text else os.fsdecode(key)
    try:
        public = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidError(f"invalid public key: {called}: no PEM of one", field="key", value=called) from error
    check: Callable[[bytes, bytes], None]
    if isinstance(public, ec.EllipticCurvePublicKey):
        elliptic, signed = public, ec.ECDSA(hashes.SHA256())
        check = lambda signature, content: elliptic.verify(signature, content, signed)  # noqa: E731 - one of three
    elif isinstance(public, rsa.RSAPublicKey):
        numbers = public
        check = lambda signature, content: numbers.verify(  # noqa: E731 - one of three
            signature, content, padding.PKCS1v15(), hashes.SHA256()
        )
    elif isinstance(public, ed25519.Ed25519PublicKey):
        check = public.verify
    else:
        raise InvalidError(f"invalid public key: {called}: expected ECDSA, RSA or Ed25519", field="key", value=called)
    written = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    class PublicKey:
        fingerprint = hashlib.sha256(written).hexdigest()

        @staticmethod
        def verifies(signature: bytes, content: bytes) -> bool:
            try:
                check(signature, content)
            except InvalidSignature:
                return False
            return True

    return PublicKey()
