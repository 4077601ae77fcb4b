"""Layers in another form, beside skopeo and buildah. ``python -m benches.convert [LAYOUT]`` (root).

The image is the one tagged ``latest`` of an OCI layout; without one, an image of this machine's own programs is made,
of two layers in gzip. Each tool writes all layers anew: we into our store, skopeo from layout to layout, buildah from
its own store to a layout. CPU seconds are of all threads and children.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.images import build_image

PACKINGS = ("zstd", "zstd:chunked", "gzip")
ROUNDS = 3
# What the image is made of where none is given.
SOURCES = ("/usr/bin", "/usr/lib/python3", "/usr/share/doc")
GIGA = 1e9
STORED = "localhost/source:latest"  # in buildah's store


class Run(NamedTuple):
    """What a command took."""

    wall: float
    cpu: float
    peak_mib: float


def measure(words: list[str], environment: Mapping[str, str]) -> Run:
    """Run a command to its end."""
    begun = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(words, env=dict(environment), stdout=subprocess.DEVNULL, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{words}: {errors.read().decode()}")
    return Run(time.monotonic() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def make_layout(directory: Path) -> Path:
    """An image of this machine's own programs."""
    words = ["tar", "--sort=name", "-c", "-C", "/"]
    tars = [
        subprocess.run([*words, *(path.lstrip("/") for path in paths)], check=True, capture_output=True).stdout
        for paths in (SOURCES[:1], SOURCES[1:])
    ]
    build_image(tars).write_layout(directory / "layout")
    return directory / "layout"


def tools(work: Path, layout: Path, packing: str) -> Iterator[tuple[str, list[str], Mapping[str, str], Path]]:
    """Each tool's command, its environment, and where the new layers are then."""
    pyctrd = [str(Path(sys.executable).with_name("pyctrd")), "--root", f"{work}/root", "--state", f"{work}/state"]
    level = ["--level", "6" if packing == "gzip" else "3"]  # named, so that no layer is left as it is
    target = f"local/new:{packing.replace(':', '-')}"
    blobs = work / "root/content/blobs/sha256"
    yield (
        "pyctrd",
        [*pyctrd, "convert", "-q", "--compression", packing, *level, "source:latest", target],
        os.environ,
        blobs,
    )
    out = work / "out"
    skopeo = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-compress-format", packing]
    if packing != "gzip":  # it leaves a layer in gzip as it is
        yield "skopeo", [*skopeo, f"oci:{layout}:latest", f"oci:{out}:new"], os.environ, out / "blobs/sha256"
    environment = os.environ | {"CONTAINERS_STORAGE_CONF": f"{work}/storage.conf"}
    buildah = ["buildah", "push", "-q", "--compression-format", packing, STORED, f"oci:{out}:new"]
    yield "buildah", buildah, environment, out / "blobs/sha256"


def prepare(work: Path, layout: Path) -> float:
    """Bring the image into both stores; gigabytes of its tars."""
    import pyctrd

    with pyctrd.Engine(root=work / "root", state=work / "state") as engine:
        image = engine.images.load(layout, name="source:latest")[0]
        plain = engine.images.convert(image.name, "local/plain:1", compression="none")
        size = sum(layer.size for layer in plain.manifest.layers)
        engine.images.remove(plain.name)
    storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{work}/buildah"\nrunroot = "{work}/run"\n'
    (work / "storage.conf").write_text(storage)
    environment = os.environ | {"CONTAINERS_STORAGE_CONF": f"{work}/storage.conf"}
    copy = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:latest", f"containers-storage:{STORED}"]
    subprocess.run(copy, env=environment, check=True)
    return size / GIGA


def sizes(blobs: Path) -> dict[str, int]:
    """Bytes of each blob."""
    return {path.name: path.stat().st_size for path in blobs.iterdir()} if blobs.exists() else {}


def main() -> None:
    """Print a line for each tool and form: the median round."""
    work = Path(tempfile.mkdtemp(prefix="convert-", dir="/var/tmp"))
    try:
        layout = Path(sys.argv[1]) if len(sys.argv) > 1 else make_layout(work)
        giga = prepare(work, layout)
        print(f"{giga:.2f} GB of tar; seconds for each GB")
        for packing in PACKINGS:
            for name, words, environment, blobs in tools(work, layout, packing):
                runs = []
                for _ in range(ROUNDS):
                    shutil.rmtree(work / "out", ignore_errors=True)
                    before = sizes(blobs)
                    runs.append(measure(words, environment))
                    written = sum(size for digest, size in sizes(blobs).items() if digest not in before)
                    if name == "pyctrd":
                        # What it made is there; the next round must make it again.
                        target = words[-1]
                        subprocess.run([*words[:5], "rmi", target], check=True, capture_output=True)
                wall, cpu, peak = sorted(runs)[len(runs) // 2]
                told = {"tool": name, "form": packing, "wall": round(wall / giga, 2), "cpu": round(cpu / giga, 2)}
                print(json.dumps(told | {"peak_mib": round(peak), "mb": round(written / 1e6)}), flush=True)
    finally:
        subprocess.run(["umount", f"{work}/buildah/overlay"], capture_output=True, check=False)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
