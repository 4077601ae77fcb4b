"""Documents that are made here: of an image that is made of another one, or that came without a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, Self

import orjson

from pyctrd.oci.changes import ConfigChanges
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.document import Fields
from pyctrd.oci.index import Index
from pyctrd.oci.manifest import Manifest
from pyctrd.oci.media_types import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_MANIFEST,
    layer_compression,
    oci_layer,
    repacked_layer,
)
from pyctrd.oci.value import dataclass

# What Docker's builder adds of the container that a layer came from: of another image it would be wrong.
_STALE = frozenset({"container", "container_config", "docker_version", "id", "parent", "parent_id", "throwaway"})

# What in Docker's first form belongs to a layer, or to the disk that it was on, and to no config.
_OF_LAYER = frozenset({"id", "parent", "parent_id", "layer_id", "throwaway", "Size"})

# What annotations with these beginnings say of a layer is said of the blob's bytes: of other bytes it is wrong.
_OF_BYTES = (
    "io.github.containers.zstd-chunked.",
    "io.containers.zstd-chunked.",
    "io.containers.estargz.",
    "containerd.io/snapshot/stargz/",
)
# Likewise where its bytes were, and they themselves.
_PLACES = frozenset({"data", "urls"})


def derive_config(
    base: ImageConfig,
    diff_id: str | Digest,
    *,
    created: str,
    created_by: str = "",
    author: str = "",
    comment: str = "",
    changes: ConfigChanges | None = None,
) -> bytes:
    """The config of an image with one layer more; fields that are not known here stay as they are.

    Args:
        base: The config of the image without it.
        diff_id: Of the layer's tar.
        created: RFC 3339.
        created_by: What made the layer, for its history.
        author: Who; "" keeps the image's author, and says nothing of the layer's.
        comment: Free text, for its history.
        changes: What else is to be otherwise.

    Spec:
        image-spec v1.1 config.md, "rootfs", "history".
    """
    values = {key: value for key, value in base.raw.items() if key not in _STALE}
    layers = [*map(str, base.rootfs.diff_ids), str(diff_id)]
    entry = {"created": created, "created_by": created_by, "author": author, "comment": comment}
    values |= {
        "created": created,
        "rootfs": {"type": "layers", "diff_ids": layers},
        "history": [*_history(base), {key: value for key, value in entry.items() if value}],
    }
    if author:
        values["author"] = author
    if changes is not None:
        values["config"] = changes.apply(values.get("config") or {})
    return orjson.dumps(values)


def _history(base: ImageConfig) -> list[Any]:
    """As the image has it. Readers count its layers: for those that it says nothing of, something is said."""
    history = base.raw.get("history")
    known: list[Any] = [item for item in history if isinstance(item, dict)] if isinstance(history, list) else []
    said = sum(not item.get("empty_layer") for item in known)
    return [*({"comment": "not recorded"} for _ in range(len(base.rootfs.diff_ids) - said)), *known]


def derive_manifest(base: Manifest, config: Descriptor, layer: Descriptor) -> bytes:
    """The OCI manifest of an image with one layer more; layers under Docker's media types get those of OCI.

    Annotations are not passed on: they were said of the other image.

    Spec:
        image-spec v1.1 manifest.md; media-types.md, "Compatibility Matrix".
    """
    layers = [{**described.raw, "mediaType": oci_layer(described.media_type)} for described in base.layers]
    return _manifest(config, [*layers, _describe(layer)])


def repack_descriptor(
    base: Descriptor, compression: str, digest: str, size: int, annotations: Mapping[str, str], *, docker: bool
) -> Descriptor:
    """The descriptor of a layer whose tar is the same, and whose blob is another.

    Args:
        base: Of the blob before.
        compression: "none", "gzip" or "zstd".
        digest: Of the new blob.
        size: Of the new blob, in bytes.
        annotations: What there is to say of it; what was said of the old blob's bytes is dropped.
        docker: Whether it is for a manifest of Docker schema 2.
    """
    kept = {key: value for key, value in base.annotations.items() if not key.startswith(_OF_BYTES)}
    media_type = repacked_layer(base.media_type, compression, docker=docker)
    described = {"mediaType": media_type, "digest": digest, "size": size}
    gone = {*described, *_PLACES, "annotations"}
    raw = described | {key: value for key, value in base.raw.items() if key not in gone}
    said = kept | dict(annotations)
    return Descriptor(
        media_type=media_type,
        digest=Digest.parse(digest),
        size=size,
        annotations=said,
        raw=raw | ({"annotations": said} if said else {}),
    )


def repack_manifest(base: Manifest, layers: Sequence[Descriptor]) -> tuple[str, bytes]:
    """The manifest of an image whose layers are other blobs of the same tars: its media type and itself.

    All else stays as it is, unless a manifest of Docker schema 2 has a layer in zstd, for which Docker has no type:
    then it and what it names get OCI's types.

    Spec:
        image-spec v1.1 manifest.md; media-types.md, "Compatibility Matrix".
    """
    values = dict(base.raw)
    listed = [dict(layer.raw) for layer in layers]
    media_type = base.media_type
    if media_type == DOCKER_MANIFEST and any(layer_compression(layer.media_type) == "zstd" for layer in layers):
        media_type = values["mediaType"] = OCI_MANIFEST
        values["config"] = {**base.config.raw, "mediaType": OCI_CONFIG}
        listed = [{**layer, "mediaType": oci_layer(layer["mediaType"])} for layer in listed]
    return media_type, orjson.dumps(values | {"layers": listed})


def assemble_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """The OCI manifest of an image that comes without one.

    Spec:
        image-spec v1.1 manifest.md.
    """
    return _manifest(config, [_describe(layer) for layer in layers])


def _manifest(config: Descriptor, layers: Sequence[Mapping[str, Any]]) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _describe(config),
        "layers": layers,
    }
    return orjson.dumps(document)


def _describe(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}


@dataclass(frozen=True, slots=True)
class OldImage:
    """A layer's document in Docker's first form: an image of its own.

    Attributes:
        id: Its name.
        parent: The layer below; "" where there is none.
        raw: The whole document.

    Spec:
        Docker's image-spec v1.0, "Image JSON Description".
    """

    id: str
    parent: str
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode and check.

        Raises:
            InvalidError: A field is missing or wrong.
        """
        fields = Fields.parse(body, kind="json")
        return cls(fields.text("id"), fields.text("parent", ""), fields.values)

    @property
    def history(self) -> dict[str, str]:
        """What it says of how it was made, as an image's config has it of a layer."""
        fields = Fields(self.raw)
        made_by = fields.object("container_config").texts("Cmd") if fields.has("container_config") else ()
        said = {
            "created": fields.text("created", ""),
            "created_by": " ".join(made_by),
            "author": fields.text("author", ""),
            "comment": fields.text("comment", ""),
        }
        return {name: text for name, text in said.items() if text}


def config_of_old(top: OldImage, history: Sequence[Mapping[str, str]], diff_ids: Sequence[Digest]) -> bytes:
    """The config of an image in Docker's first form: its top layer's document, as Docker takes it over.

    Args:
        top: The top layer's document.
        history: Of each layer, lowest first.
        diff_ids: Likewise.

    Raises:
        InvalidError: A field is wrong.

    Spec:
        image-spec v1.1 config.md.
    """
    values = {name: value for name, value in top.raw.items() if name not in _OF_LAYER}
    values.setdefault("architecture", "amd64")  # the only one that Docker had before it said so
    values.setdefault("os", "linux")
    values |= {
        "rootfs": {"type": "layers", "diff_ids": list(map(str, diff_ids))},
        "history": list(history),
    }
    body = orjson.dumps(values)
    ImageConfig.parse(body)
    return body


def reduced_index(index: Index, manifests: Iterable[Descriptor]) -> bytes:
    """An index that names other manifests, and is as it was else."""
    return orjson.dumps({**index.raw, "manifests": [dict(entry.raw) for entry in manifests]})
