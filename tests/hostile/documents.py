"""Hostile documents as a registry serves them, and what a refused pull may leave: nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import PyctrdError
from pyctrd.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from pyctrd.oci.platform import Platform
from tests.archives import Tar, compress_gzip
from tests.images import Blob, BuiltImage, build_image
from tests.registry_faults import FaultyRegistry

TAR = Tar().directory("d").file("d/f", b"content").build()
GOOD = build_image([TAR], config={"Cmd": ["true"]})
LAYER = GOOD.layers[0]
CONFIG = GOOD.blobs[0]


def root() -> Path:
    """The root of engines that are made with no other."""
    return Path(os.environ["PYCTRD_ROOT"])


def leftovers(engine: pyctrd.Engine) -> list[str]:
    """All that a refused pull left behind it, however small."""
    found = [f"image {image.name}" for image in engine.images.list()]
    found += [f"record {record.digest}" for record in engine.content.list()]
    found += [f"{finding.kind} {finding.name}: {finding.problem}" for finding in engine.check(digests=True)]
    for part in ("content/blobs", "content/ingest", "layers", "snapshots", "trash"):
        found += [f"file {path}" for path in sorted((root() / part).rglob("*")) if not _is_folder_of_digests(path)]
    return found


def _is_folder_of_digests(path: Path) -> bool:
    return path.is_dir() and path.name in ("sha256", "sha512") and not path.is_symlink()


def dump(document: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(document, separators=(",", ":")).encode()


def manifest(*, body: bytes | None = None, **changes: Any) -> Blob:
    """The good image's manifest with other fields; None takes one away.

    Args:
        body: The document itself, where no JSON encoder would write it so.
        changes: Fields by name.
    """
    fields = json.loads(GOOD.manifest.content) | changes
    made = dump({name: value for name, value in fields.items() if value is not None}) if body is None else body
    return Blob(OCI_MANIFEST, made)


def layer(**changes: Any) -> dict[str, Any]:
    """The good layer's descriptor with other fields."""
    return LAYER.descriptor | changes


def config(**changes: Any) -> Blob:
    """The good image's config with other fields."""
    return Blob(OCI_CONFIG, dump(json.loads(CONFIG.content) | changes))


def index(*entries: Mapping[str, Any], **changes: Any) -> Blob:
    """An index of descriptors."""
    return Blob(OCI_INDEX, dump({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)} | changes))


def described(blob: Blob, *, platform: str | None = "", **changes: Any) -> dict[str, Any]:
    """A descriptor with a platform: the host's by default, None for none."""
    made = blob.descriptor | changes
    if platform is not None:
        wanted = Platform.parse(platform) if platform else Platform.host()
        made["platform"] = {"os": wanted.os, "architecture": wanted.architecture}
        if wanted.variant:
            made["platform"]["variant"] = wanted.variant
    return made


def plain_layer(content: bytes) -> Blob:
    """A gzip layer of a tar with one file."""
    return Blob(LAYER.media_type, compress_gzip(Tar().file("only", content).build()))


@dataclass(frozen=True)
class Served:
    """What a registry has at one reference.

    Attributes:
        top: What the tag names.
        blobs: Blobs beside those of the good image.
        documents: Manifests and indexes beneath the top.
        called: Media type that the registry announces for the top, where it is not the top's.
    """

    top: Blob
    blobs: Sequence[Blob] = ()
    documents: Sequence[Blob] = field(default=())
    called: str = ""

    def add(self, registry: FaultyRegistry, repository: str) -> str:
        """Serve it; returns the reference."""
        top = Blob(self.called, self.top.content) if self.called else self.top
        for document in self.documents:
            registry.add_manifest(document, repository, tag=document.digest)
        return registry.add(BuiltImage(top, (*GOOD.blobs, *self.blobs)), repository)


def strings(document: Any) -> Iterator[str]:
    """All strings in a document."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, Mapping):
        for key, value in document.items():
            yield from (key, *strings(value))
    elif isinstance(document, list):
        for value in document:
            yield from strings(value)


REPOSITORY = "hostile"


ZEROS = "0" * 64


def padded_manifest(size: int) -> Blob:
    """The good manifest, made so large with spaces."""
    return manifest(body=GOOD.manifest.content.ljust(size))


def image_of(platform: str, *, content: bytes = b"") -> Any:
    return build_image([Tar().file("who", content or platform.encode()).build()], platform=platform)


OTHER = image_of("linux/s390x")


def nest(depth: int) -> Served:
    """An index of an index, so deep, and the good manifest at the bottom."""
    documents = [GOOD.manifest]
    for _ in range(depth):
        documents.append(index(described(documents[-1], platform=None)))
    return Served(documents[-1], documents=documents[:-1])


def refuse(
    engine: pyctrd.Engine, registry: FaultyRegistry, served: Served, error: type[PyctrdError], told: str
) -> PyctrdError:
    """Pull what must not come in, and look at what that leaves."""
    reference = served.add(registry, REPOSITORY)
    with pytest.raises(error) as caught:
        engine.images.pull(reference)
    assert told in str(caught.value)
    assert str(caught.value).isprintable(), "control characters of a stranger's"
    assert len(str(caught.value)) < 1000
    assert leftovers(engine) == []
    assert [request.path for request in registry.seen if ".." in request.path] == []
    return caught.value


def pull_good(engine: pyctrd.Engine, registry: FaultyRegistry) -> pyctrd.Image:
    """The same name with a good image: nothing that was refused before stands in its way."""
    image = engine.images.pull(registry.add(GOOD, REPOSITORY))
    assert image.read_file("/d/f") == b"content"
    assert engine.check(digests=True) == []
    return image


def accept(engine: pyctrd.Engine, registry: FaultyRegistry, served: Served) -> pyctrd.Image:
    image = engine.images.pull(served.add(registry, REPOSITORY))
    assert engine.check(digests=True) == []
    return image
