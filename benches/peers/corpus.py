"""The images: OCI layouts from a directory, or small real ones made of Debian packages."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.images import build_image, busybox_tar

_REPOSITORY = "corpus"


@dataclass(frozen=True)
class Image:
    """One image in the registry.

    Attributes:
        name: The layout's.
        reference: What the tools pull.
        compressed_bytes: Of its layers, as they are transferred.
    """

    name: str
    reference: str
    compressed_bytes: int


def make_layouts(directory: Path) -> None:
    """Make `tiny` (busybox) and `debian` (debootstrap's minbase) where nothing better is given."""
    build_image([busybox_tar()]).write_layout(directory / "tiny")
    tree = directory.parent / "debootstrap"
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", tree], check=True, stdout=subprocess.DEVNULL)
    tar = subprocess.run(
        ["tar", "-c", "--numeric-owner", "--exclude=./dev/*", "--exclude=./var/cache/apt/*", "-C", tree, "."],
        check=True,
        capture_output=True,
    ).stdout
    build_image([tar]).write_layout(directory / "debian")


def push(layouts: Path, names: list[str], host: str) -> list[Image]:
    """Copy layouts into the registry."""
    found = []
    for name in names:
        reference = f"{host}/{_REPOSITORY}/{name}:latest"
        source = f"oci:{layouts / name}:latest"
        subprocess.run(
            ["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", source, f"docker://{reference}"],
            check=True,
        )
        found.append(Image(name, reference, _layer_bytes(layouts / name)))
    return found


def _layer_bytes(layout: Path) -> int:
    index = json.loads((layout / "index.json").read_text())
    algorithm, encoded = index["manifests"][0]["digest"].split(":")
    manifest = json.loads((layout / "blobs" / algorithm / encoded).read_text())
    return sum(layer["size"] for layer in manifest["layers"])
