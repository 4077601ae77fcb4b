"""Images that are saved in each form, by a process that is stopped half-way: what has its name is whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pyctrd

# Of each form, what it is saved as.
SAVED: Mapping[Literal["docker-archive", "oci-archive", "oci"], str] = {
    "docker-archive": "saved-docker.tar",
    "oci-archive": "saved-oci.tar",
    "oci": "saved",
}
_LOADED = "example.com/saved:1"


def judge_saved(engine: pyctrd.Engine, reference: str, layout: Callable[[str], str], said: list[str]) -> None:
    """What has its name is whole; then all of it is saved, over what is there."""
    for again in (False, True):
        for form, name in SAVED.items():
            path = Path(layout(name))
            if again:
                engine.images.save(reference, path, format=form)
            assert path.exists() or form not in said
            if path.exists():
                (image,) = engine.images.load(path, name=_LOADED)
                assert image.config.rootfs == engine.images.get(reference).config.rootfs
                engine.images.remove(_LOADED)
