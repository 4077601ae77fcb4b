"""Images of several platforms: an index in an index, a layer that two have in common, an attestation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyctrd
from pyctrd.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from pyctrd.oci.platform import Platform
from tests.archives import Tar
from tests.images import Blob, BuiltImage, build_image
from tests.registry_faults import FaultyRegistry

HOST = str(Platform.host())
OTHER, NESTED = [name for name in ("linux/s390x", "linux/riscv64", "linux/ppc64le") if name != HOST][:2]
SHARED = Tar().file("shared", b"of all platforms").build()


def image_for(platform: str, *tars: bytes) -> BuiltImage:
    """An image with a file that says whom it is for."""
    return build_image([*tars, Tar().file("platform", platform.encode()).build()], platform=platform)


def entry_of(image: BuiltImage, platform: str = "", **fields: Any) -> dict[str, Any]:
    """How an index names an image."""
    system, _, architecture = platform.partition("/")
    named = {"platform": {"os": system, "architecture": architecture}} if platform else {}
    return image.manifest.descriptor | named | fields


def index_of(children: Sequence[BuiltImage], entries: Sequence[dict[str, Any]]) -> BuiltImage:
    """An index of what has been built, in whatever words."""
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}).encode()
    return BuiltImage(Blob(OCI_INDEX, body), children=tuple(children))


def attestation_of(image: BuiltImage) -> BuiltImage:
    """What buildkit hangs into an index beside an image: its config says that it is one."""
    statement = Blob("application/vnd.in-toto+json", json.dumps({"subject": image.digest}).encode())
    body = {
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [statement.digest]},
    }
    config = Blob(OCI_CONFIG, json.dumps(body).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.descriptor,
        "layers": [statement.descriptor],
    }
    return BuiltImage(Blob(OCI_MANIFEST, json.dumps(manifest).encode()), (config, statement))


HOSTS, OTHERS, DEEP = image_for(HOST, SHARED), image_for(OTHER, SHARED), image_for(NESTED)
ATTESTATION = attestation_of(HOSTS)
INNER = index_of([DEEP], [entry_of(DEEP, NESTED)])
_ATTESTED = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": HOSTS.digest}
WHOLE = index_of(
    [OTHERS, INNER, HOSTS, ATTESTATION],
    [
        entry_of(OTHERS, OTHER),
        entry_of(INNER),
        entry_of(HOSTS, HOST),
        entry_of(ATTESTATION, "unknown/unknown", annotations=_ATTESTED),
    ],
)


def blobs_of(image: BuiltImage) -> dict[str, bytes]:
    """All that an image has, by digest."""
    found = {image.digest: image.manifest.content} | {blob.digest: blob.content for blob in image.blobs}
    for child in image.children:
        found |= blobs_of(child)
    return found


def serve(faulty: FaultyRegistry, image: BuiltImage, repository: str) -> str:
    """Serve an image with all that its index names; returns its reference."""
    for child in image.children:
        serve(faulty, child, repository)
    return faulty.add(image, repository)


def here(engine: pyctrd.Engine) -> set[str]:
    """The digests that the namespace has the bytes of."""
    return {record.digest for record in engine.content.list() if record.is_stored}
