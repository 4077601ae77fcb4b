"""Platforms: operating system, architecture, variant; and which of several fits a host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from pyctrd.errors import InvalidError
from pyctrd.oci.document import Fields
from pyctrd.oci.value import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

# What `uname -m` and people say → (architecture, variant) as Go says it.
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5l": ("arm", "v5"),
    "loongarch64": ("loong64", ""),
    "mips64el": ("mips64le", ""),
}
_PART = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
# The variants of an architecture, best first: a host of one runs all that follow it.
_VARIANTS = {
    "arm": ("v8", "v7", "v6", "v5"),
    "amd64": ("v4", "v3", "v2", "v1"),
    "arm64": ("v9", "v8"),
}
_DEFAULT_VARIANTS = {"arm": "v7", "amd64": "v1", "arm64": "v8"}


@dataclass(frozen=True, slots=True)
class Platform:
    """Whom an image is for.

    Attributes:
        os: As Go's GOOS: "linux".
        architecture: As Go's GOARCH: "amd64".
        variant: "v7" and the like, "" where the architecture says it all or nothing was said.
        os_version: Windows' build, "" elsewhere.

    Spec:
        image-spec v1.1 image-index.md, "platform".
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """``os/architecture[/variant]``, or an architecture alone, in any of the usual spellings.

        Raises:
            InvalidError: It is none.
        """
        parts = text.split("/")
        if not 1 <= len(parts) <= 3 or not all(part and _PART.issuperset(part) for part in parts):
            raise InvalidError(
                f"invalid platform: {text!r}: expected os/architecture[/variant]",
                field="platform",
                value=text,
            )
        if len(parts) == 1:
            parts = ["linux", parts[0]]
        return cls._normal(parts[0], parts[1], parts[2] if len(parts) == 3 else "")

    @classmethod
    def parse_all(cls, texts: str | Sequence[str] | None) -> list[Self]:
        """Those that a caller names, one or several; none where that is left to a default.

        Raises:
            InvalidError: One is none.
        """
        return [cls.parse(text) for text in ([texts] if isinstance(texts, str) else texts or ()) if text]

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From a document.

        Raises:
            InvalidError: A field is missing or wrong.
        """
        return cls._normal(
            fields.text("os", ""),
            fields.text("architecture", ""),
            fields.text("variant", ""),
            fields.text("os.version", ""),
        )

    @classmethod
    def host(cls) -> Self:
        """This machine's."""
        machine = os.uname()
        return cls._normal("linux", machine.machine, "")

    @classmethod
    def _normal(cls, system: str, architecture: str, variant: str, version: str = "") -> Self:
        architecture, variant = architecture.lower(), variant.lower()
        known = _ARCHITECTURES.get(architecture)
        if known is not None:
            architecture, variant = known[0], variant or known[1]
        if variant.isdigit():
            variant = f"v{variant}"
        # The plain form of an architecture is its default variant: containerd drops it, except for arm.
        if architecture in ("amd64", "arm64") and variant == _DEFAULT_VARIANTS[architecture]:
            variant = ""
        if architecture == "arm" and not variant:
            variant = "v7"
        return cls(system.lower(), architecture, variant, version)

    def rank(self, offered: Platform) -> int | None:
        """How well something made for ``offered`` runs on this platform: 0 is best, None is not at all."""
        if (offered.os, offered.architecture) != (self.os, self.architecture):
            return None
        known = _VARIANTS.get(self.architecture)
        default = _DEFAULT_VARIANTS.get(self.architecture, "")
        mine, theirs = self.variant or default, offered.variant or default
        if mine == theirs:
            return 0
        if known is None or mine not in known or theirs not in known:
            return None
        distance = known.index(theirs) - known.index(mine)
        return distance if distance > 0 else None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)
