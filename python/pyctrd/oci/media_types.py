"""Media types of OCI and of Docker schema 2, and what they are."""

from __future__ import annotations

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"

# What a registry is asked for: the newer form first, as containerd does.
ACCEPT = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

# Layer media type → compression. The non-distributable and foreign forms are read as the plain ones; their
# `urls` are never followed.
_LAYERS = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "none",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "none",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}


def is_index(media_type: str) -> bool:
    """An index, or Docker's manifest list."""
    return media_type in INDEXES


def is_manifest(media_type: str) -> bool:
    """An image manifest of OCI or Docker schema 2."""
    return media_type in MANIFESTS


def is_layer(media_type: str) -> bool:
    """A layer that can be unpacked."""
    return media_type in _LAYERS


def layer_compression(media_type: str) -> str | None:
    """Say "none", "gzip" or "zstd"; None where the type is no layer's."""
    return _LAYERS.get(media_type)


def layer_media_type(compression: str) -> str:
    """OCI's type for a layer compressed by "none", "gzip" or "zstd"."""
    return _OCI_LAYER if compression == "none" else f"{_OCI_LAYER}+{compression}"


def may_not_be_passed_on(media_type: str) -> bool:
    """Whether a layer's licence keeps it from other registries: Docker's "foreign", OCI's "nondistributable"."""
    return ".foreign." in media_type or ".nondistributable." in media_type


def repacked_layer(media_type: str, compression: str, *, docker: bool) -> str:
    """The type, of OCI or of Docker schema 2, of a layer whose tar is compressed by "none", "gzip" or "zstd" now.

    What may not be passed on stays so. Docker has no type for zstd that all its readers know.
    """
    may_pass = not may_not_be_passed_on(media_type)
    if docker:
        plain = f"application/vnd.docker.image.rootfs.{'' if may_pass else 'foreign.'}diff.tar"
        return plain if compression == "none" else f"{plain}.{compression}"
    plain = layer_media_type(compression)
    return plain if may_pass else plain.replace(".layer.", ".layer.nondistributable.")


def oci_layer(media_type: str) -> str:
    """OCI's type for what Docker calls by its own; others as they are."""
    compression = layer_compression(media_type)
    if compression is None or not media_type.startswith("application/vnd.docker."):
        return media_type
    plain = layer_media_type(compression)
    return plain.replace(".layer.", ".layer.nondistributable.") if ".foreign." in media_type else plain
