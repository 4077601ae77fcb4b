"""What is to be found after an image of several platforms was brought in, or was not."""

from __future__ import annotations

import pyctrd
from tests.platforms import HOST, NESTED, OTHER, WHOLE, blobs_of, serve
from tests.registry_faults import FaultyRegistry


def serve_platforms(registry: FaultyRegistry, name: str) -> None:
    """Have the image ready to be pulled."""
    serve(registry, WHOLE, name)


def judge_platforms(engine: pyctrd.Engine, name: str, said: list[str]) -> None:
    """The image is there with all its platforms or not at all; then it is brought in, and a collection keeps it."""
    platforms = (HOST, OTHER, NESTED)
    image = engine.images.find(name)
    assert image is not None or "all" not in said, "it was brought in and is gone"
    assert image is None or image.platforms == platforms
    image = engine.images.pull(name, all_platforms=True)
    engine.gc()
    assert image.platforms == platforms
    assert {record.digest for record in engine.content.list()} > set(blobs_of(WHOLE))
    assert engine.images.pull(name, platform=NESTED).read_file("/platform") == NESTED.encode()
    engine.images.pull(name)
