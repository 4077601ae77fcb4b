"""What a blob's body has, and what an image's manifest names."""

from __future__ import annotations

from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.manifest import Manifest
from pyctrd.registry.body import BlobBody
from tests.images import BuiltImage


def drain(body: BlobBody, block_bytes: int = 1000) -> bytes:
    """Read to the end through a buffer, as the pipeline does."""
    content, block = bytearray(), bytearray(block_bytes)
    with body, memoryview(block) as view:
        while count := body.readinto(view):
            content += view[:count]
    return bytes(content)


def layer_of(image: BuiltImage) -> Descriptor:
    """Its lowest layer."""
    return Manifest.parse(image.manifest.content).layers[0]
