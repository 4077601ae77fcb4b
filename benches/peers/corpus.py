"""The images: OCI layouts from a directory, and those that are made here, of Debian packages and of nothing."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyctrd.oci.media_types import OCI_MANIFEST
from tests.archives import Tar, compress_gzip, compress_zstd
from tests.images import Blob, BuiltImage, build_image, busybox_tar

TINY_FILES = 100_000
LINKS = 50_000
REBUILT_LATER_SECONDS = 86400
ZSTD = "-zstd"
REBUILT = "-rebuilt"
# Name to the image that comes after it, where both are in the corpus: it shares all layers but the top.
NEXT_VERSIONS = {"pyapp": "pyapp-v2"}
# Pulled in this order; others of a directory are pulled when they are asked for.
IMAGES = ("tiny", "debian", "pyapp", "torch", "tiny-files", "links")

_REPOSITORY = "corpus"
_FILES_EACH = 100  # in a directory
_TINY_BYTES = (16, 1000)
_LINKED_FILES = 500
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANY_BASE_BYTES = 4 << 20
_MANY_FILES = 20
_MANY_FILE_BYTES = 50_000


@dataclass(frozen=True)
class Layer:
    """A layer of a layout, and what it is."""

    path: Path
    digest: str
    diff_id: str
    media_type: str
    size: int


@dataclass(frozen=True)
class Image:
    """One image in the registry.

    Attributes:
        name: The layout's.
        reference: What the tools pull.
        layout: Where it came from.
        layers: Lowest first.
    """

    name: str
    reference: str
    layout: Path
    layers: tuple[Layer, ...]

    @property
    def compressed_bytes(self) -> int:
        """Of its layers, as they are transferred."""
        return sum(layer.size for layer in self.layers)


def layers_of(layout: Path) -> tuple[Layer, ...]:
    """The layers of a layout's first image."""
    manifest, config = _documents(layout)
    diff_ids = config["rootfs"]["diff_ids"]
    return tuple(
        Layer(_blob(layout, layer["digest"]), layer["digest"], diff_id, layer["mediaType"], layer["size"])
        for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True)
    )


def make_layouts(directory: Path) -> None:
    """Make `tiny` (busybox and its links, as in the corpus) and `debian` (minbase) where nothing better is given."""
    listed = subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    build_image([busybox_tar([name for name in listed if name != "busybox"])]).write_layout(directory / "tiny")
    tree = directory.parent / "debootstrap"
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", tree], check=True, stdout=subprocess.DEVNULL)
    tar = subprocess.run(
        ["tar", "-c", "--numeric-owner", "--exclude=./dev/*", "--exclude=./var/cache/apt/*", "-C", tree, "."],
        check=True,
        capture_output=True,
    ).stdout
    build_image([tar]).write_layout(directory / "debian")


def find_layouts(names: Sequence[str], given: Path, made: Path) -> dict[str, Path]:
    """Where each image is; those that a directory lacks and that can be made are made in another.

    What is there in gzip can be made in zstd (``debian-zstd``) and once more a day later (``debian-rebuilt``). Images
    that are nowhere are left out.
    """
    makers = {"tiny-files": tiny_files_tar, "links": links_tar}
    found: dict[str, Path] = {}
    for name in names:
        base = name.removesuffix(ZSTD).removesuffix(REBUILT)
        if (given / name / "index.json").exists():
            found[name] = given / name
            continue
        if base in makers:
            compression = "zstd" if name.endswith(ZSTD) else "gzip"
            build_image([makers[base]()], compression=compression).write_layout(made / name)
        elif name != base and (given / base / "index.json").exists():
            (recompress if name.endswith(ZSTD) else rebuild)(given / base, made / name)
        else:
            continue
        found[name] = made / name
    return found


def tiny_files_tar() -> bytes:
    """A hundred thousand files of up to a thousand bytes, each another, a hundred in a directory."""
    noise = random.Random(4)
    words = [noise.randbytes(noise.randrange(2, 6)).hex().encode() for _ in range(4096)]
    tar = Tar().directory("files")
    for number in range(TINY_FILES):
        parent = f"files/{number // _FILES_EACH:04}"
        if number % _FILES_EACH == 0:
            tar.directory(parent)
        length = noise.randrange(*_TINY_BYTES)
        text = b" ".join(noise.choices(words, k=length // 8 + 1))
        tar.file(f"{parent}/{number:06}", b"%06d %b" % (number, text[: length - 7] if length > 7 else b""))
    return tar.build()


def links_tar() -> bytes:
    """Fifty thousand links to a few files, hard and symbolic in turn, a hundred in a directory."""
    noise = random.Random(5)
    tar = Tar().directory("targets").directory("links")
    for number in range(_LINKED_FILES):
        tar.file(f"targets/{number:03}", noise.randbytes(2000).hex().encode())
    for number in range(LINKS):
        parent, target = f"links/{number // _FILES_EACH:03}", f"targets/{noise.randrange(_LINKED_FILES):03}"
        if number % _FILES_EACH == 0:
            tar.directory(parent)
        if number % 2 == 0:
            tar.hardlink(f"{parent}/{number:05}", target)
        else:
            tar.symlink(f"{parent}/{number:05}", f"../../{target}")
    return tar.build()


def many_images(count: int) -> list[BuiltImage]:
    """Images that share a base, as a team's do, each with a layer of its own of a megabyte."""
    noise = random.Random(6)
    base = Tar().file("base", noise.randbytes(_MANY_BASE_BYTES)).build()
    found = []
    for _ in range(count):
        own = Tar()
        for number in range(_MANY_FILES):
            own.file(f"own-{number}", noise.randbytes(_MANY_FILE_BYTES))
        found.append(build_image([base, own.build()]))
    return found


def recompress(layout: Path, target: Path) -> None:
    """The same image with its layers in zstd."""
    _rewrite(layout, target, media_type=f"{_LAYER}+zstd", change=lambda tar: tar, compress=compress_zstd)


def rebuild(layout: Path, target: Path) -> None:
    """What building it again a day later with no changes gives: the same files, each with another time."""
    _rewrite(layout, target, media_type=f"{_LAYER}+gzip", change=later, compress=compress_gzip)


def later(layer: bytes) -> bytes:
    """The same files, a day later."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(layer)) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source:
            member.mtime += REBUILT_LATER_SECONDS
            # A time in there would be written in place of the other.
            member.pax_headers = {name: value for name, value in member.pax_headers.items() if name != "mtime"}
            target.addfile(member, source.extractfile(member) if member.isreg() else None)
    return out.getvalue()


def expand(layer: Layer) -> bytes:
    """The layer's tar."""
    if layer.media_type.endswith("gzip"):
        return gzip.decompress(layer.path.read_bytes())
    if layer.media_type.endswith("zstd"):
        return subprocess.run(["zstd", "-dcq", layer.path], check=True, capture_output=True).stdout
    return layer.path.read_bytes()


def push(layouts: Path | dict[str, Path], names: Sequence[str], host: str) -> list[Image]:
    """Copy layouts into the registry."""
    found = []
    for name in names:
        layout = layouts[name] if isinstance(layouts, dict) else layouts / name
        reference = f"{host}/{_REPOSITORY}/{name}:latest"
        copy = ["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false"]
        subprocess.run([*copy, f"oci:{layout}:latest", f"docker://{reference}"], check=True)
        found.append(Image(name, reference, layout, layers_of(layout)))
    return found


def _rewrite(
    layout: Path,
    target: Path,
    *,
    media_type: str,
    change: Callable[[bytes], bytes],
    compress: Callable[[bytes], bytes],
) -> None:
    manifest, config = _documents(layout)
    layers, diff_ids = [], []
    for layer in layers_of(layout):
        tar = change(expand(layer))
        layers.append(Blob(media_type, compress(tar)))
        diff_ids.append(Blob("", tar).digest)
    config["rootfs"]["diff_ids"] = diff_ids
    described = Blob(manifest["config"]["mediaType"], json.dumps(config).encode())
    manifest |= {"config": described.descriptor, "layers": [layer.descriptor for layer in layers]}
    BuiltImage(Blob(OCI_MANIFEST, json.dumps(manifest).encode()), (described, *layers)).write_layout(target)


def _documents(layout: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and config."""
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(_blob(layout, index["manifests"][0]["digest"]).read_bytes())
    return manifest, json.loads(_blob(layout, manifest["config"]["digest"]).read_bytes())


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")
