"""What a layout or an archive says of the images in it: ``index.json``, ``manifest.json`` and ``repositories``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.media_types import OCI_INDEX
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.oci.config import ImageConfig
    from pyctrd.oci.index import Index

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
LAYOUT_VERSION = "1.0.0"
# A full reference: containerd and Docker write it.
IMAGE_NAME = "io.containerd.image.name"
# A tag by the spec; Podman and others write full references here.
REF_NAME = "org.opencontainers.image.ref.name"

# Of what a config says, what the top layer of Docker's first form has.
_OF_TOP = ("architecture", "author", "config", "container", "container_config", "created", "docker_version", "os")
# A layer of that form has a time; which one nobody knows any more.
_NO_TIME = "1970-01-01T00:00:00Z"
_OPTIONS = orjson.OPT_SORT_KEYS


class ImageEntry(NamedTuple):
    """An image in the list of a docker-archive.

    Attributes:
        config: The config's file.
        tags: ``repository:tag``.
        layers: The layers' files, lowest first.
    """

    config: str
    tags: Sequence[str]
    layers: Sequence[str]


class OldLayer(NamedTuple):
    """A layer as Docker's first form has it: an image of its own, over its parent.

    Attributes:
        id: Its directory.
        diff_id: The digest of its tar.
        body: Its ``json``.
    """

    id: str
    diff_id: Digest
    body: bytes


def layout_file() -> bytes:
    """``oci-layout``.

    Spec:
        image-spec v1.1 image-layout.md, "oci-layout file".
    """
    return orjson.dumps({"imageLayoutVersion": LAYOUT_VERSION})


def name_of(entry: Descriptor) -> str:
    """What an index calls an image: a full reference if it says one, else what stands for a tag, else "".

    A reference with another tag than the entry's own is of the image that it was made from: umoci copies annotations.
    """
    name, tag = entry.annotations.get(IMAGE_NAME, ""), entry.annotations.get(REF_NAME, "")
    named = "" if "@" in name else name.rpartition("/")[2].partition(":")[2]
    if named and tag and named != tag and not any(mark in tag for mark in ":/@"):
        return tag
    return name or tag


def describe_named(target: Descriptor, name: str, tag: str) -> dict[str, Any]:
    """The entry of a layout's index for an image.

    Args:
        target: Its manifest or index.
        name: Its full reference, "" for none.
        tag: Its tag alone, "" for none.
    """
    said = {key: value for key, value in ((IMAGE_NAME, name), (REF_NAME, tag)) if value}
    described: dict[str, Any] = {
        "mediaType": target.media_type,
        "digest": str(target.digest),
        "size": target.size,
        "annotations": said,
    }
    if target.raw.get("platform"):
        described["platform"] = target.raw["platform"]
    return described


def layout_index(entries: Sequence[Mapping[str, Any]], *, before: Index | None = None) -> bytes:
    """``index.json``: the images of a layout.

    Where it has some already, those that would be called like new ones go. A name is a full reference; where an image
    has nothing but a tag, as umoci and skopeo write it, that is its name.

    Spec:
        image-spec v1.1 image-layout.md, "index.json file".
    """
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX}
    kept: list[Any] = []
    if before is not None:
        document |= before.raw
        kept = [entry.raw for entry in before.manifests if not _is_replaced(entry, entries)]
    return orjson.dumps(document | {"manifests": [*kept, *entries]})


def _is_replaced(entry: Descriptor, entries: Sequence[Mapping[str, Any]]) -> bool:
    said = [new["annotations"] for new in entries]
    if (name := name_of(entry)) and any(name == new.get(IMAGE_NAME) for new in said):
        return True
    tag = entry.annotations.get(REF_NAME)
    has_name = name == entry.annotations.get(IMAGE_NAME)
    return tag is not None and any(tag == new.get(REF_NAME) and not (has_name and IMAGE_NAME in new) for new in said)


def image_list(images: Sequence[ImageEntry]) -> bytes:
    """``manifest.json``: the images of a docker-archive.

    Spec:
        Docker's image-spec v1.2, "Combined Image JSON + Filesystem Changeset Format".
    """
    return orjson.dumps(
        [{"Config": image.config, "RepoTags": list(image.tags), "Layers": list(image.layers)} for image in images]
    )


def repositories(tops: Mapping[str, str]) -> bytes:
    """``repositories``: of each ``repository:tag``, the directory of its top layer.

    Spec:
        Docker's image-spec v1.0, "Combined Image JSON + Filesystem Changeset Format".
    """
    found: dict[str, dict[str, str]] = {}
    for name, layer in tops.items():
        repository, _, tag = name.rpartition(":")
        found.setdefault(repository, {})[tag] = layer
    return orjson.dumps(found, option=_OPTIONS)


def old_layers(config: ImageConfig) -> list[OldLayer]:
    """An image's layers in Docker's first form, lowest first. Their ids follow from what they are and stand on.

    Spec:
        Docker's image-spec v1.0, "Image JSON Description".
    """
    made: list[OldLayer] = []
    for position, diff_id in enumerate(config.rootfs.diff_ids):
        said: dict[str, Any] = {"created": _NO_TIME, "os": config.platform.os or "linux"}
        if position == len(config.rootfs.diff_ids) - 1:
            said |= {name: config.raw[name] for name in _OF_TOP if config.raw.get(name) is not None}
        if made:
            said["parent"] = made[-1].id
        seed = orjson.dumps(said | {"layer_id": str(diff_id)}, option=_OPTIONS)
        said["id"] = Digest.of(seed).hex
        made.append(OldLayer(said["id"], diff_id, orjson.dumps(said, option=_OPTIONS)))
    return made
