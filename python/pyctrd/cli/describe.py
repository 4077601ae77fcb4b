"""The JSON forms that several commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyctrd.image import Image


def describe_image(image: Image) -> dict[str, Any]:
    """The JSON form of an image."""
    return {
        "name": image.name,
        "digest": image.digest,
        "manifest_digest": image.manifest_digest,
        "platform": image.platform,
        "platforms": list(image.platforms),
        "pulled_ns": image.created_ns,
        "size_bytes": image.size_bytes,
        "layers": [
            {"digest": str(layer.digest), "size_bytes": layer.size, "media_type": layer.media_type}
            for layer in image.manifest.layers
        ],
    }
