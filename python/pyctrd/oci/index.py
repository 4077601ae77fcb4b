"""Indexes: one image for several platforms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Self

from pyctrd.errors import UnsupportedError
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.document import Fields, invalid
from pyctrd.oci.media_types import INDEXES, MANIFESTS, OCI_INDEX, is_index, is_manifest
from pyctrd.oci.platform import Platform
from pyctrd.oci.value import dataclass

MANIFESTS_MAX = 10_000
# buildkit's attestations hang in the index as manifests for a platform that nobody has.
_ATTESTATION = "vnd.docker.reference.type"

# Whom it says that they are for.
NOBODY = Platform("unknown", "unknown")


@dataclass(frozen=True, slots=True)
class Index:
    """An OCI image index or a Docker manifest list.

    Attributes:
        media_type: Which of the two.
        manifests: What it offers, in its order.
        annotations: Free text by key.
        raw: The whole document.

    Spec:
        image-spec v1.1 image-index.md.
    """

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode and check.

        Raises:
            InvalidError: A field is wrong, or the document could be read as a manifest too.
        """
        fields = Fields.parse(body, kind="index")
        media_type = fields.text("mediaType", OCI_INDEX)
        if media_type not in INDEXES:
            raise invalid("mediaType", media_type, "an index's")
        _check_single_reading(fields, ("config", "layers", "fsLayers", "history"))
        if fields.integer("schemaVersion") != 2:
            raise invalid("schemaVersion", fields.values["schemaVersion"], "2")
        return cls(
            media_type=media_type,
            manifests=tuple(Descriptor.read(item) for item in fields.objects("manifests", most=MANIFESTS_MAX)),
            annotations=fields.table("annotations"),
            raw=fields.values,
        )

    def choose(self, platform: Platform) -> Descriptor | None:
        """The entry that fits a platform best; None where none does.

        Of several that fit equally the first is taken (image-spec, "platform"). An entry without a platform is
        taken only when nothing else fits: it may be a nested index, or a single-platform image's manifest.
        """
        best: tuple[int, Descriptor] | None = None
        plain: Descriptor | None = None
        for entry in self.manifests:
            if not (is_index(entry.media_type) or is_manifest(entry.media_type)) or is_attestation(entry):
                continue
            if entry.platform is None:
                plain = plain or entry
                continue
            rank = platform.rank(entry.platform)
            if rank is not None and (best is None or rank < best[0]):
                best = (rank, entry)
        return best[1] if best is not None else plain


def is_attestation(entry: Descriptor) -> bool:
    """Whether an index's entry says something of another entry, and is no image."""
    return _ATTESTATION in entry.annotations


def _check_single_reading(fields: Fields, foreign: tuple[str, ...]) -> None:
    """Refuse a document that another tool could read as another type (CVE-2021-41190)."""
    for name in foreign:
        if name in fields.values:
            raise invalid(name, fields.values[name], "a document of one type only: this is an index")


def detect(body: bytes) -> str:
    """The media type of a manifest or index by what it says of itself.

    Raises:
        InvalidError: It says nothing that is known, or could be read as two types.
        UnsupportedError: It is of Docker's first schema, which has no config.
    """
    fields = Fields.parse(body, kind="manifest")
    named = fields.text("mediaType", "")
    if "fsLayers" in fields.values:
        raise UnsupportedError(
            "unsupported manifest: Docker schema 1",
            feature="Docker schema 1 manifests",
            needs="the image pushed again in schema 2 or OCI form",
            hint="ask the image's owner to push it again with a current tool",
        )
    looks_index, looks_manifest = (
        "manifests" in fields.values,
        "layers" in fields.values or "config" in fields.values,
    )
    if looks_index == looks_manifest:
        raise invalid("manifest", sorted(fields.values)[:8], "either manifests, or config and layers")
    if named and named not in (INDEXES if looks_index else MANIFESTS):
        raise invalid("mediaType", named, "an index's" if looks_index else "an image manifest's")
    if named:
        return named
    from pyctrd.oci.media_types import OCI_MANIFEST

    return OCI_INDEX if looks_index else OCI_MANIFEST
