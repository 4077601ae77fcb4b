"""Records to store, and what a database has open."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pyctrd.metadata.containers import ContainerRecord
from pyctrd.metadata.images import ImageRecord


def digest(number: int) -> str:
    """A digest, in the numbers' order."""
    return f"sha256:{number:064x}"


def image(name: str, *, namespace: str = "mine", size: int = 1, now: int = 1) -> ImageRecord:
    """An image's record."""
    return ImageRecord(
        namespace=namespace,
        name=name,
        target_digest=digest(1),
        target_media_type="application/vnd.oci.image.index.v1+json",
        target_size=size,
        manifest_digest=digest(2),
        config_digest=digest(3),
        platform="linux/amd64",
        created_ns=now,
        updated_ns=now,
    )


def container(name: str, number: int, *, namespace: str = "mine", created_ns: int = 1) -> ContainerRecord:
    """A container's record, its id made of the number."""
    return ContainerRecord(
        namespace=namespace,
        id=f"{number:064x}",
        name=name,
        image_name="example.com/image:1",
        image_digest=digest(2),
        snapshot_key=f"container-{number:064x}",
        command=("sh", "-c", "exit"),
        labels={"a": "b"},
        created_ns=created_ns,
    )


def open_files(path: Path) -> list[str]:
    """What this process has open of a database."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(str(link.readlink()))
    return sorted(name for name in found if name.startswith(str(path)))
