"""Digests: ``algorithm:hex``, checked once and then trusted."""

from __future__ import annotations

from typing import Self

from pyctrd.errors import DigestMismatchError, InvalidError

# Hex digits of each algorithm that the store accepts (image-spec v1.1 descriptor.md, "Registered algorithms").
HEX_CHARS = {"sha256": 64, "sha512": 128}
_HEX = frozenset("0123456789abcdef")


class Digest(str):
    """A string that is known to be a digest: a registered algorithm, lower-case hex of the right length.

    Spec:
        image-spec v1.1 descriptor.md, "Digests".
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str, *, field: str = "digest") -> Self:
        """Check a text.

        Args:
            text: Any string.
            field: Where it stands, for the error.

        Raises:
            InvalidError: It is no digest, or one of another algorithm than sha256 and sha512.
        """
        algorithm, _, hex_digits = text.partition(":")
        expected = HEX_CHARS.get(algorithm)
        if expected is None:
            raise InvalidError(
                f"invalid digest: {field}: {text[:80]!r}: expected sha256:… or sha512:…",
                field=field,
                value=text[:80],
            )
        if len(hex_digits) != expected or not _HEX.issuperset(hex_digits):
            raise InvalidError(
                f"invalid digest: {field}: {text[:80]!r}: expected {expected} lower-case hex digits",
                field=field,
                value=text[:80],
            )
        return cls(text)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Self:
        """The digest of some bytes."""
        import hashlib  # it loads OpenSSL

        return cls(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")

    @property
    def algorithm(self) -> str:
        """The part before the colon."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The part after the colon."""
        return self.partition(":")[2]

    def check(self, content: bytes, *, subject: str) -> None:
        """Raise unless ``content`` hashes to this.

        Raises:
            DigestMismatchError: It does not.
        """
        self.match(Digest.of(content, self.algorithm), subject=subject)

    def match(self, actual: Digest, *, subject: str) -> None:
        """Raise unless this is what content hashed to.

        Raises:
            DigestMismatchError: It is not.
        """
        if actual != self:
            raise DigestMismatchError(
                f"digest mismatch: {subject}: expected {self}, got {actual}",
                subject=subject,
                expected=str(self),
                actual=str(actual),
            )
