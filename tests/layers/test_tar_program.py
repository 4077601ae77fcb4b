"""Archives that GNU tar makes of a real tree come out as GNU tar itself extracts them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.images import CAPABILITY
from tests.layers.oracles import extract_with_tar, missing_programs
from tests.layers.ways import WAYS, unpacked
from tests.trees import Facts, differences, read_tree

MISSING = missing_programs("tar")

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(MISSING), reason=MISSING or "complete")]

NS = 123_456_789
FORMATS = {
    "v7": ("--format=v7",),
    "oldgnu": ("--format=oldgnu",),
    "gnu": ("--format=gnu",),
    "gnu-sparse": ("--format=gnu", "--sparse"),
    "ustar": ("--format=ustar",),
    "pax": ("--format=posix",),
    "pax-xattrs": ("--format=posix", "--xattrs", "--xattrs-include=*"),
    "pax-sparse-0.0": ("--format=posix", "--sparse", "--sparse-version=0.0"),
    "pax-sparse-0.1": ("--format=posix", "--sparse", "--sparse-version=0.1"),
    "pax-sparse-1.0": ("--format=posix", "--sparse", "--sparse-version=1.0"),
}
# What a format cannot say: then tar leaves the entry out, or says something else, and so do we.
DEVICES = ("v7",)
LONG_NAMES = ("v7", "ustar")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with something of everything."""
    root = tmp_path_factory.mktemp("source")
    (root / "plain").write_bytes(b"content\n" * 1000)
    (root / "empty").touch()
    (root / "directory" / "inner").mkdir(parents=True)
    (root / "directory" / "inner" / "file").write_bytes(os.urandom(4000))
    (root / "link").symlink_to("directory/inner")
    (root / "absolute").symlink_to("/plain")
    os.link(root / "plain", root / "directory" / "hard")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.mknod(root / "loop", 0o60660, os.makedev(259, 70_000))
    with (root / "sparse").open("wb") as file:
        for offset in range(0, 64 << 20, 1 << 20):
            file.seek(offset)
            file.write(b"data" * 1024)
        file.truncate((64 << 20) + 5)
    with (root / "hole").open("wb") as file:
        file.truncate(10 << 20)
    (root / "set-id").write_bytes(b"x")
    os.chown(root / "set-id", 1000, 1001)
    (root / "set-id").chmod(0o6755)
    (root / "far-owner").write_bytes(b"x")
    os.chown(root / "far-owner", 2_000_000, 3_000_000)
    (root / "attributes").write_bytes(b"x")
    os.setxattr(root / "attributes", "user.note", b"value \0 binary")
    os.setxattr(root / "attributes", "security.capability", CAPABILITY)
    os.setxattr(root / "directory", "trusted.note", b"t")
    long = root / ("d" * 90) / ("e" * 90)
    long.mkdir(parents=True)
    (long / ("f" * 200)).write_bytes(b"long name")
    (root / "long-target").symlink_to("x" * 300)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, (1_600_000_000 + number) * 10**9 + NS), follow_symlinks=False)
    os.utime(root, ns=(0, 1_500_000_000 * 10**9))
    return root


@pytest.fixture(scope="module", params=FORMATS)
def archive(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "layer.tar"
    words = [*FORMATS[request.param], "--numeric-owner", "-C", str(source), "-cf", str(path)]
    name = request.param
    leave_out = ["--exclude=null", "--exclude=loop", "--exclude=fifo"] if name in DEVICES else []
    leave_out += ["--exclude=d*/e*", "--exclude=long-target", "--exclude=far-owner"] if name in LONG_NAMES else []
    subprocess.run(["tar", *words[:1], *leave_out, *words[1:], "."], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def extracted(archive: Path) -> dict[bytes, Facts]:
    target = archive.parent / "extracted"
    extract_with_tar(archive, target)
    return read_tree(target)


@pytest.mark.parametrize("way", WAYS)
def test_an_archive_of_gnu_tar_comes_out_as_gnu_tar_extracts_it(
    way: str, archive: Path, extracted: dict[bytes, Facts], tmp_path: Path
) -> None:
    assert len(extracted) > 10
    with unpacked(way, [archive.read_bytes()], tmp_path) as target:
        assert differences(extracted, read_tree(target)) == []


def test_the_format_with_most_in_it_brings_the_tree_back_as_it_was(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "layer.tar"
    words = [*FORMATS["pax-xattrs"], "--sparse", "--numeric-owner", "-C", str(source), "-cf", str(path), "."]
    subprocess.run(["tar", *words], check=True)
    with unpacked("merge", [path.read_bytes()], tmp_path) as target:
        assert differences(read_tree(source), read_tree(target)) == []
        assert (target / "sparse").stat().st_blocks <= (source / "sparse").stat().st_blocks
