"""Verification policies: which images may come in.

A policy is any callable that takes a ``Candidate`` and raises ``PolicyError``, or returns False, for what may not come
in. It is asked when an image's documents are known, and before any of its layers comes. Of an image that is refused
nothing is recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.errors import PolicyError

if TYPE_CHECKING:
    from pyctrd.flows.resolve import Resolved
    from pyctrd.flows.rooms import Rooms


@dataclass(frozen=True)
class Candidate:
    """An image that is about to come in; its documents were checked against their digests.

    Attributes:
        reference: As it was asked for, in full.
        digest: What the reference names in the registry: an index, or a manifest.
        manifest_digest: The manifest of the chosen platform.
        platform: ``os/architecture[/variant]``; "" for an artifact that is no image.
        manifest: The manifest, decoded.
        config: The image's config, decoded; None for an artifact that is no image.
        repository: Where it comes from, to look for what tells of it.
    """

    reference: str
    digest: str
    manifest_digest: str
    platform: str
    manifest: pyctrd.Manifest
    config: pyctrd.ImageConfig | None
    repository: pyctrd.Repository

    def refuse(self, reason: str, *, hint: str = "") -> PolicyError:
        """The error that refuses it, to be raised."""
        return PolicyError(
            f"image refused: {self.reference}: {self.digest}: {reason}",
            reference=self.reference,
            digest=self.digest,
            reason=reason,
            hint=hint,
        )


Policy = Callable[[Candidate], bool | None]


def check(rooms: Rooms, policy: Policy, resolved: Resolved) -> None:
    """Ask a policy of an image that was resolved.

    Raises:
        PolicyError: It may not come in.
    """
    from pyctrd.registries import Repository

    candidate = Candidate(
        reference=str(resolved.reference),
        digest=str(resolved.target.digest),
        manifest_digest=str(resolved.manifest_descriptor.digest),
        platform=str(resolved.config.platform) if resolved.config is not None else "",
        manifest=resolved.manifest,
        config=resolved.config,
        repository=Repository(rooms, resolved.reference),
    )
    if policy(candidate) is False:
        raise candidate.refuse("the policy said no")


def pinned(digests: Mapping[str, str]) -> Policy:
    """Let in what was named, and nothing else.

    Args:
        digests: What a reference must name: an index's digest, or a manifest's, by ``registry/repository:tag`` or by
            ``registry/repository`` for all of its tags.

    Raises:
        InvalidError: A reference or a digest is none.
    """
    from pyctrd.oci.digest import Digest
    from pyctrd.oci.reference import Reference

    known: dict[str, str] = {}
    for name, digest in digests.items():
        reference = Reference.parse(name)
        has_tag = ":" in name.rpartition("/")[2]
        known[str(reference) if has_tag else reference.repository_name] = str(Digest.parse(digest))

    def policy(candidate: Candidate) -> None:
        wanted = known.get(candidate.reference.partition("@")[0], known.get(candidate.repository.name))
        if wanted is None:
            raise candidate.refuse("no digest was pinned for it")
        if wanted not in (candidate.digest, candidate.manifest_digest):
            raise candidate.refuse(f"{wanted} was pinned")

    return policy


def by_repository(policies: Mapping[str, Policy], default: Policy | None = None) -> Policy:
    """Ask the policy of the longest name that an image's repository begins with.

    Args:
        policies: By ``registry``, ``registry/team`` or ``registry/team/app``.
        default: For all others; None refuses them.
    """

    def policy(candidate: Candidate) -> bool | None:
        name = candidate.repository.name
        fitting = [known for known in policies if name == known or name.startswith(f"{known}/")]
        chosen = policies[max(fitting, key=len)] if fitting else default
        if chosen is None:
            raise candidate.refuse("no policy is for its repository")
        return chosen(candidate)

    return policy


def allow(candidate: Candidate) -> None:
    """Let everything in."""


class CosignKey:
    """Let in what is signed by a key, as cosign signs: beside the image, in its own registry.

    Read are signatures under the tag ``sha256-….sig`` and sigstore bundles among the referrers, of the image's index or
    of its manifest. With a key alone, no certificate and no transparency log is looked at: who has the key signs.

    Args:
        key: The public key: PEM, or a file of it. ECDSA, RSA or Ed25519.
        identity: Whether a signature must also name the image's own repository, so that one of another image, copied
            here, is not taken; bundles name none.

    Raises:
        InvalidError: It is no public key.
        UnsupportedError: The package ``cryptography`` is not installed (``pip install pyctrd[verify]``).
        OSError: The file cannot be read.

    Spec:
        cosign's specs/SIGNATURE_SPEC.md; sigstore's bundle v0.3; DSSE v1.
    """

    def __init__(self, key: bytes | str | os.PathLike[str], *, identity: bool = False) -> None:
        from pyctrd.flows.signatures import read_key

        self._key = read_key(key)
        self._identity = identity

    @cached_property
    def _name(self) -> str:
        return f"key {self._key.fingerprint[:16]}"

    def __call__(self, candidate: Candidate) -> None:
        """See ``Policy``.

        Raises:
            PolicyError: There is no good signature of it.
            RegistryError: The registry could not be asked.
        """
        from pyctrd.flows.signatures import find_signature

        repository = candidate.repository
        digests = dict.fromkeys((candidate.digest, candidate.manifest_digest))
        name = repository.name if self._identity else None
        if not any(find_signature(repository, digest, self._key, name=name) for digest in digests):
            raise candidate.refuse(f"no signature by {self._name}", hint="sign it: cosign sign --key …")
