"""Seed corpora for the fuzz targets: the forms of tar that tests know, real gzip, zstd and index files.

``python -m tests.layers.seeds DIR`` writes a folder for each target.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.toc import find_table
from pyctrd.snapshots.protocol import LayerRef
from tests.archives import BLOCK, compress_gzip
from tests.layers.forms import FORMS
from tests.layers.ways import ingest
from tests.tocs import go_tar, zstd_chunked

TABLED = go_tar({"d/": b"", "d/a": b"a" * 900, "d/b": b"b" * 99})
# In front of a frame's only block, as `tocs.zstd_frame` makes it.
FRAME_BYTES = 9


def main() -> int:
    """Write a folder for each target."""
    directory = Path(sys.argv[1])
    for name, make in FORMS.items():
        tar = make().build()
        if len(tar) > 1 << 16:
            continue
        for target in ("archive", "apply"):
            _keep(directory, target, f"{name}-raw", b"\1" + tar)
            _keep(directory, target, name, b"\0" + _parts(tar))
        _keep(directory, "gzip", name, b"\0" + compress_gzip(tar)[3:])
        _keep(directory, "zstd", name, b"\0" + _zstd(tar)[4:])
        _keep(directory, "index", name, _index(tar))
    for number, body in enumerate((b"20 path=some/longer\n", b"30 mtime=1700000000.123456789\n", b"12 size=17\n")):
        _keep(directory, "pax", str(number), b"\0" + body)
    for name, layer in (("zstd-chunked", zstd_chunked(TABLED)), ("frames", zstd_chunked(TABLED, split=False))):
        table = find_table(Descriptor("a/b", Digest.of(b""), len(layer.content), annotations=dict(layer.annotations)))
        assert table is not None
        assert table.place is not None
        text = layer.content[slice(*table.place)][FRAME_BYTES:]
        split = layer.content[slice(*table.split)][FRAME_BYTES:] if table.split is not None else b""
        _keep(directory, "toc", name, len(text).to_bytes(2, "little") + text + split)
    _keep(directory, "gzip", "members", b"\0" + (gzip.compress(b"one") + gzip.compress(b"two"))[3:])
    return 0


def _parts(tar: bytes) -> bytes:
    """As the targets read it: each header, the length of what follows it, and that."""
    parts, at = b"", 0
    while at + BLOCK <= len(tar):
        header = tar[at : at + BLOCK]
        try:
            size = int(header[124:136].strip(b"\0 ") or b"0", 8)
        except ValueError:
            size = 0
        size = min(size, len(tar) - at - BLOCK, (1 << 16) - 1)
        parts += header + size.to_bytes(2, "little") + tar[at + BLOCK : at + BLOCK + size]
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return parts


def _zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=content, stdout=subprocess.PIPE, check=True).stdout


def _index(tar: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as root:
        layer: LayerRef = ingest(Path(root), tar)
        return (layer.path / "index").read_bytes()[:-32]


def _keep(directory: Path, target: str, name: str, content: bytes) -> None:
    (directory / target).mkdir(parents=True, exist_ok=True)
    (directory / target / name).write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
