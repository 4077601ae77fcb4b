"""What was sent as a manifest, read as far as whoever keeps it must know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.metadata.repositories import Ref
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.document import Fields, invalid
from pyctrd.oci.index import Index, detect
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import is_index
from pyctrd.oci.value import NamedTuple

# In front of the path of what was sent under no registry's name.
SENT_LOCALLY = "localhost"
# Layers that may not be passed on: they are at their own addresses, or nowhere.
_NOT_PASSED_ON = (".nondistributable.", ".foreign.")


class Sent(NamedTuple):
    """A manifest or index.

    Attributes:
        media_type: What it is.
        refs: What it names, each once.
        subject: The digest that it says something of, "" for none.
        artifact_type: What it is, for those who look for referrers; "" where it does not say.
        annotations: Its own.
    """

    media_type: str
    refs: tuple[Ref, ...]
    subject: str
    artifact_type: str
    annotations: Mapping[str, str]


def read_sent(body: bytes, media_type: str) -> Sent:
    """Read a manifest.

    Args:
        body: Its bytes.
        media_type: What it was sent as, "" where that was not said.

    Raises:
        InvalidError: It is none, or not what it was sent as.

    Spec:
        distribution-spec v1.1, "Pushing Manifests", "Pushing Manifests with Subject".
    """
    try:
        found = detect(body)
    except UnsupportedError as error:
        raise InvalidError(str(error), field="manifest", value="schemaVersion 1") from error
    if media_type not in ("", found):
        raise invalid("mediaType", found, f"{media_type[:80]!r}, as the request says")
    return _read_index(body, found) if is_index(found) else _read_manifest(body, found)


def _read_manifest(body: bytes, media_type: str) -> Sent:
    manifest = Manifest.parse(body)
    refs = {str(blob.digest): _ref(blob, "blob") for blob in manifest.layers}
    refs[str(manifest.config.digest)] = _ref(manifest.config, "blob")
    artifact_type = _artifact_type(manifest.raw) or manifest.config.media_type
    return Sent(media_type, tuple(refs.values()), _subject(manifest.raw), artifact_type, manifest.annotations)


def _read_index(body: bytes, media_type: str) -> Sent:
    index = Index.parse(body)
    refs = {str(child.digest): _ref(child, "manifest") for child in index.manifests}
    return Sent(media_type, tuple(refs.values()), _subject(index.raw), _artifact_type(index.raw), index.annotations)


def _ref(descriptor: Descriptor, kind: str) -> Ref:
    required = not any(part in descriptor.media_type for part in _NOT_PASSED_ON)
    return Ref(str(descriptor.digest), kind, descriptor.media_type, descriptor.size, required)


def _subject(raw: Mapping[str, Any]) -> str:
    fields = Fields(raw)
    return str(Descriptor.read(fields.object("subject")).digest) if fields.has("subject") else ""


def _artifact_type(raw: Mapping[str, Any]) -> str:
    return Fields(raw).text("artifactType", "")
