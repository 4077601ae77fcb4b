"""The tests' own images are what other tools take them for."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.archives import Tar
from tests.images import Images, build_image, tree_tars


def test_python_reads_the_tars_that_the_tests_write() -> None:
    with tarfile.open(fileobj=BytesIO(tree_tars()[0])) as tar:
        members = {member.name: member for member in tar}
    assert members["attributes"].pax_headers["SCHILY.xattr.user.note"].startswith("value ")
    assert members["far-owner"].uid == 3_000_000
    assert members["loop"].devminor == 300
    assert members["nanoseconds"].mtime == pytest.approx(1_700_000_000.123456789)
    assert members["sparse"].size == 1 << 20
    assert any(len(name) > 200 for name in members)


def test_pax_record_counts_its_own_digits() -> None:
    name = "n" * 300
    with tarfile.open(fileobj=BytesIO(Tar().file(name).build())) as tar:
        assert tar.getnames() == [name]


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_a_pushed_image(images: Images) -> None:
    done = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", f"docker://{images.tree.reference}"],
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["Layers"] == [layer.digest for layer in images.tree.built.layers]


@pytest.mark.root
@pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")
def test_umoci_unpacks_a_layout(tmp_path: Path) -> None:
    build_image([Tar().file("hello", b"world").build()]).write_layout(tmp_path / "layout")
    subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path / 'layout'}:latest", str(tmp_path / "bundle")],
        capture_output=True,
        check=True,
    )
    assert (tmp_path / "bundle/rootfs/hello").read_bytes() == b"world"
