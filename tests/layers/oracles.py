"""What GNU tar and umoci make of layers: the opinions that users have now."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyctrd import _core
from tests.trees import Facts

PROGRAMS = {"gzip": ("gzip", "-dc"), "zstd": ("zstd", "-dcq"), "none": ("cat",)}
_PLAIN = "application/vnd.oci.image.layer.v1.tar"
# What GNU tar must be told to do as root does by default in an image: everything.
EXTRACT = (
    "tar",
    "-x",
    "-p",
    "--same-owner",
    "--numeric-owner",
    "--xattrs",
    "--xattrs-include=*",
    "--warning=none",
    "--delay-directory-restore",
)

EXTRACT_BSD = ("bsdtar", "-x", "-p", "--numeric-owner", "--xattrs", "--same-owner")
# What both say of a hard link to a lower layer's file.
_EXPECTED = ("Cannot hard link", "Exiting", "Hard-link target", "Error exit delayed")


@dataclass(frozen=True)
class PlainImage:
    """An image whose layers were decompressed by the programs made for it.

    Attributes:
        layout: An OCI layout, tag ``latest``, that umoci can read.
        tars: Its layers, lowest first.
    """

    layout: Path
    tars: tuple[Path, ...]

    @property
    def diff_ids(self) -> list[str]:
        return [f"sha256:{tar.name}" for tar in self.tars]

    @property
    def listed(self) -> set[bytes]:
        """Paths that any layer has an entry for."""
        return set().union(*(names_of(tar) for tar in self.tars))


def read_layout(layout: Path, target: Path) -> PlainImage:
    """The image tagged ``latest`` of a layout, with plain layers: umoci 0.4 reads no zstd, and no Docker types."""
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    manifest = _json(layout, json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"])
    tars = tuple(_decompress(_blob(layout, layer["digest"]), layer["mediaType"], blobs) for layer in manifest["layers"])
    config = _json(layout, manifest["config"]["digest"])
    config["rootfs"]["diff_ids"] = [f"sha256:{tar.name}" for tar in tars]
    described = _write(blobs, config, "application/vnd.oci.image.config.v1+json")
    layers = [{"mediaType": _PLAIN, "digest": f"sha256:{tar.name}", "size": tar.stat().st_size} for tar in tars]
    media_type = "application/vnd.oci.image.manifest.v1+json"
    body = {"schemaVersion": 2, "mediaType": media_type, "config": described, "layers": layers}
    entry = _write(blobs, body, media_type) | {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return PlainImage(target, tars)


def unpack_with_umoci(image: PlainImage, target: Path) -> None:
    """The merged root file system, by umoci."""
    words = ["umoci", "raw", "unpack", "--image", f"{image.layout}:latest", str(target)]
    subprocess.run(words, check=True, capture_output=True)


def extract_with_tar(tar: Path, target: Path, *options: str, program: Sequence[str] = EXTRACT) -> None:
    """A layer by itself; whiteouts are files to both programs, and links to lower layers' files are left out."""
    target.mkdir()
    done = subprocess.run(
        [*program, *options, "-C", str(target), "-f", str(tar)],
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = [line for line in done.stderr.splitlines() if not any(words in line for words in _EXPECTED)]
    assert not wrong, wrong


def names_of(tar: Path) -> set[bytes]:
    """The names of a tar's entries, as ``read_tree`` spells them."""
    with tarfile.open(tar, encoding="utf-8", errors="surrogateescape") as opened:
        return {os.path.normpath(os.fsencode(member.name)) for member in opened}


def listed(tar: Path) -> dict[bytes, bytes]:
    """Names and types. Which of a file's names is the file is the writer's choice."""
    with tarfile.open(tar, encoding="utf-8", errors="surrogateescape") as opened:
        return {
            b"" if member.name == "." else os.fsencode(member.name): b"0" if member.islnk() else member.type
            for member in opened
        }


def listed_again(made: Path, index: _core.LayerIndex) -> dict[bytes, bytes]:
    """What a layer lists that was made of an unpacked one, but for directories that the first did not list."""
    implied = {entry.path for entry in index.walk() if entry.implied}
    return {name: kind for name, kind in listed(made).items() if name not in implied}


def as_marks(tar: Path, index: _core.LayerIndex) -> dict[bytes, bytes]:
    """What an unpacked layer's tree can say of what the layer lists.

    Not a link to a lower layer's file: nothing stands in the tree for it. And a directory with a whiteout of its name
    is an opaque one: they say the same.
    """
    foreign = {entry.path for entry in index.walk() if entry.kind == "foreign"}
    names = {name: kind for name, kind in listed(tar).items() if name not in foreign}
    found = {}
    for name, kind in names.items():
        parent, _, base = name.rpartition(b"/")
        hidden = b"/".join(filter(None, (parent, base.removeprefix(b".wh."))))
        hides = base.startswith(b".wh.") and names.get(hidden) == tarfile.DIRTYPE
        found[hidden + b"/.wh..wh..opq" if hides else name] = kind
    return found


def listed_late(tar: Path) -> set[bytes]:
    """Directories that are listed after something in them: bsdtar gives them the time at which it made them."""
    late, made = set(), {b"."}
    with tarfile.open(tar, encoding="utf-8", errors="surrogateescape") as opened:
        for member in opened:
            name = os.path.normpath(os.fsencode(member.name))
            if name in made:
                late.add(name)
            while name not in made:
                made.add(name)
                name = name.rpartition(b"/")[0] or b"."
    return late


def with_times_of(
    expected: dict[bytes, Facts], actual: dict[bytes, Facts], names: Iterable[bytes]
) -> dict[bytes, Facts]:
    """Take the times of some directories for right: each tool gives its own to those that no layer lists."""
    taken = {
        name: replace(expected[name], mtime_ns=actual[name].mtime_ns)
        for name in names
        if name in expected and name in actual and expected[name].type == "directory"
    }
    return expected | taken


def missing_programs(*names: str) -> str:
    """Why a test cannot run here; "" where it can."""
    return ", ".join(f"{name} is not installed" for name in names if shutil.which(name) is None)


def _decompress(blob: Path, media_type: str, blobs: Path) -> Path:
    form = next((form for form in ("gzip", "zstd") if media_type.endswith(form)), "none")
    making = blobs / "making"
    with blob.open("rb") as source, making.open("wb") as target:
        subprocess.run(PROGRAMS[form], stdin=source, stdout=target, check=True)
    with making.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return making.rename(blobs / digest)


def _write(blobs: Path, document: Any, media_type: str) -> dict[str, Any]:
    content = json.dumps(document).encode()
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _json(layout: Path, digest: str) -> Any:
    return json.loads(_blob(layout, digest).read_bytes())


def find_layouts(folder: Path) -> Sequence[Path]:
    """The layouts of a corpus."""
    return sorted(path.parent for path in folder.glob("*/index.json"))
