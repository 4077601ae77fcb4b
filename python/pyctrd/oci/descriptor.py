"""Descriptors: media type, digest and size of some content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Self

from pyctrd.oci.digest import Digest
from pyctrd.oci.document import Fields, invalid
from pyctrd.oci.media_types import may_not_be_passed_on
from pyctrd.oci.platform import Platform
from pyctrd.oci.value import dataclass

# RFC 6838 allows 127 characters on each side of the slash.
MEDIA_TYPE_MAX_CHARS = 255

# The annotations by which a layer tells of a table of contents, and of its digest; see ``toc``.
ZSTD_CHUNKED_DIGEST = "io.github.containers.zstd-chunked.manifest-checksum"
# What it was called before 2023, as buildah 1.28 and Podman 4.3 still do.
OLD_ZSTD_CHUNKED_DIGEST = "io.containers.zstd-chunked.manifest-checksum"
ESTARGZ_DIGEST = "containerd.io/snapshot/stargz/toc.digest"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What some content is, and how to know it.

    Attributes:
        media_type: RFC 6838.
        digest: Of the bytes as they are stored.
        size: Bytes.
        platform: In an index, whom the manifest is for.
        annotations: Free text by key.
        artifact_type: What kind of artifact a manifest is, "" where not said.
        raw: The whole JSON object, with the fields that are not known here.

    Spec:
        image-spec v1.1 descriptor.md.
    """

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From an object of a document.

        Raises:
            InvalidError: A field is missing or wrong; ``.field`` is its path.
        """
        media_type = fields.text("mediaType")
        if not 3 <= len(media_type) <= MEDIA_TYPE_MAX_CHARS or "/" not in media_type:
            raise invalid(fields.at("mediaType"), media_type, "type/subtype")
        digest, size = Digest.parse(fields.text("digest"), field=fields.at("digest")), fields.size("size")
        if fields.has("data"):
            _check_data(fields, digest, size)
        return cls(
            media_type=media_type,
            digest=digest,
            size=size,
            platform=Platform.read(fields.object("platform")) if fields.has("platform") else None,
            annotations=fields.table("annotations"),
            artifact_type=fields.text("artifactType", ""),
            raw=fields.values,
        )

    @property
    def data(self) -> bytes | None:
        """The content itself, where the descriptor has it; it was checked when the descriptor was read.

        Spec:
            image-spec v1.1 descriptor.md, "Embedded Content".
        """
        if "data" not in self.raw:
            return None
        import base64

        return base64.b64decode(self.raw["data"])

    @property
    def stays_away(self) -> bool:
        """Whether it is a layer that may not be passed on, and that says where else it is to be had.

        Spec:
            image-spec v1.0 layer.md, "Non-Distributable Layers".
        """
        return may_not_be_passed_on(self.media_type) and bool(self.raw.get("urls"))

    @property
    def has_table(self) -> bool:
        """Whether it is a layer's with a table of contents, as it says itself."""
        known = (ZSTD_CHUNKED_DIGEST, OLD_ZSTD_CHUNKED_DIGEST, ESTARGZ_DIGEST)
        return not self.annotations.keys().isdisjoint(known)


def _check_data(fields: Fields, digest: Digest, size: int) -> None:
    """Embedded content must be the content: whoever trusts it would read something else than we fetch."""
    import base64
    import binascii

    text = fields.text("data")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(fields.at("data"), text, "base64") from error
    if len(content) != size or Digest.of(content, digest.algorithm) != digest:
        raise invalid(fields.at("data"), text, f"the {size} bytes of {digest}")
