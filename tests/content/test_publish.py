"""Publishing: verified ingests get their names, all or nothing of each, and last."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from pyctrd import _core
from pyctrd.errors import ConflictError, InvalidError
from tests import syscalls
from tests.archives import Tar, compress_gzip
from tests.content.stores import NewIngest, blob_path, files_below, put, sha256, sha512
from tests.images import BuiltImage, build_image
from tests.syscalls import Watched

CONTENT = b"some bytes\n" * 1000
WHY_UNWATCHED = syscalls.why_not()
watched = pytest.mark.skipif(bool(WHY_UNWATCHED), reason=WHY_UNWATCHED)
FLUSHES = ("fdatasync", "fsync", "syncfs", "renameat2")

# Publishes as many blobs and layers as its arguments ask for.
PUBLISH = """
import hashlib, sys
from pyctrd import _core
from tests.archives import Tar
root, blobs, layers, durability = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ingests = []
for number in range(blobs + layers):
    content = Tar().file(f"f-{number}").build()
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    layer = {"diff_id": digest, "unpack": True} if number >= blobs else {}
    ingest = _core.Ingest(root, f"i{number}", digest=digest, size=len(content), **layer)
    ingest.write(content)
    ingest.finish()
    ingests.append(ingest)
try:
    _core.publish(root, ingests, durability=durability)
except OSError as error:
    print("failed", error.errno)
"""


def publish_code() -> str:
    """The program above, which has to find the tests' own archives."""
    return f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{PUBLISH}"


def test_a_blob_gets_its_name_and_nobody_may_write_to_it(new_ingest: NewIngest, root: Path) -> None:
    for digest in (sha256(CONTENT), sha512(CONTENT)):
        ingest = new_ingest(CONTENT, digest=digest)
        put(ingest, CONTENT)
        assert not blob_path(root, digest).exists()
        _core.publish(root, [ingest])
        found = blob_path(root, digest).stat()
        assert blob_path(root, digest).read_bytes() == CONTENT
        assert stat.S_IMODE(found.st_mode) == 0o444
        assert (found.st_nlink, found.st_uid) == (1, os.geteuid())
    assert files_below(root / "content" / "ingest") == []
    assert list((root / "content" / "ingest").iterdir()) == []


def test_folders_of_the_store_are_their_owners_own_under_any_umask(new_ingest: NewIngest, root: Path) -> None:
    before = os.umask(0)
    try:
        ingest = new_ingest(CONTENT)
        put(ingest, CONTENT)
        _core.publish(root, [ingest])
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*") if path.is_dir()}
    assert set(modes.values()) == {0o700}, modes
    assert stat.S_IMODE(blob_path(root, sha256(CONTENT)).stat().st_mode) == 0o444


def test_many_are_published_together(new_ingest: NewIngest, root: Path) -> None:
    contents = [b"%d" % number for number in range(20)]
    ingests = [new_ingest(content) for content in contents]
    for ingest, content in zip(ingests, contents, strict=True):
        put(ingest, content)
    _core.publish(root, ingests)
    assert [blob_path(root, sha256(content)).read_bytes() for content in contents] == contents
    assert files_below(root / "content" / "ingest") == []


def test_nothing_is_published_where_one_has_not_finished(new_ingest: NewIngest, root: Path) -> None:
    done, open_still = new_ingest(CONTENT), new_ingest(b"later")
    put(done, CONTENT)
    with pytest.raises(ConflictError, match="not finished") as caught:
        _core.publish(root, [done, open_still])
    assert caught.value.name == sha256(b"later")
    assert not blob_path(root, sha256(CONTENT)).exists()
    put(open_still, b"later")
    _core.publish(root, [done, open_still])
    assert blob_path(root, sha256(CONTENT)).exists()


def test_what_failed_is_never_published(new_ingest: NewIngest, root: Path) -> None:
    ingest = new_ingest(CONTENT)
    with pytest.raises(Exception, match="mismatch"):
        put(ingest, CONTENT[1:])
    with pytest.raises(Exception, match="mismatch"):
        _core.publish(root, [ingest])
    assert not (root / "content/blobs/sha256").is_dir() or files_below(root / "content/blobs") == []


def test_an_ingest_is_published_once(new_ingest: NewIngest, root: Path) -> None:
    ingest = new_ingest(CONTENT)
    put(ingest, CONTENT)
    _core.publish(root, [ingest])
    with pytest.raises(ConflictError):
        _core.publish(root, [ingest])
    with pytest.raises(ConflictError):
        _core.publish(root, [ingest, ingest])
    ingest.abort()
    assert blob_path(root, sha256(CONTENT)).read_bytes() == CONTENT


def test_publishing_nothing_is_done_at_once(root: Path) -> None:
    _core.publish(root, [])


def test_a_durability_that_is_none_is_refused(root: Path) -> None:
    with pytest.raises(InvalidError, match="durability"):
        _core.publish(root, [], durability="perhaps")


# what is there already


def test_a_blob_that_is_there_stays_as_it_is(new_ingest: NewIngest, root: Path) -> None:
    first, second = new_ingest(CONTENT), new_ingest(CONTENT)
    for ingest in (first, second):
        put(ingest, CONTENT)
    _core.publish(root, [first])
    before = blob_path(root, sha256(CONTENT)).stat()
    _core.publish(root, [second])
    after = blob_path(root, sha256(CONTENT)).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert list((root / "content" / "ingest").iterdir()) == []


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], b"!" + CONTENT[1:], CONTENT + b"!"])
def test_a_damaged_blob_in_the_way_gives_way_to_the_verified_one(
    new_ingest: NewIngest, root: Path, damaged: bytes
) -> None:
    ingest = new_ingest(CONTENT)
    put(ingest, CONTENT)
    blob_path(root, sha256(CONTENT)).write_bytes(damaged)
    _core.publish(root, [ingest])
    assert blob_path(root, sha256(CONTENT)).read_bytes() == CONTENT
    assert stat.S_IMODE(blob_path(root, sha256(CONTENT)).stat().st_mode) == 0o444


def test_a_link_in_the_way_is_never_followed(new_ingest: NewIngest, root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(CONTENT)
    ingest = new_ingest(CONTENT)
    put(ingest, CONTENT)
    blob_path(root, sha256(CONTENT)).symlink_to(victim)
    _core.publish(root, [ingest])
    assert not blob_path(root, sha256(CONTENT)).is_symlink()
    assert victim.read_bytes() == CONTENT


def test_a_layer_that_is_there_stays_as_it_is(new_ingest: NewIngest, root: Path) -> None:
    tar = Tar().file("f").build()
    inodes = []
    for content in (tar, compress_gzip(tar)):
        ingest = new_ingest(content, diff_id=sha256(tar), unpack=True)
        put(ingest, content)
        _core.publish(root, [ingest])
        inodes.append((root / "layers/sha256" / sha256(tar)[7:]).stat().st_ino)
    assert inodes[0] == inodes[1]
    assert list((root / "content" / "ingest").iterdir()) == []


def test_a_layer_without_its_index_gives_way(new_ingest: NewIngest, root: Path) -> None:
    tar = Tar().file("f", b"content").build()
    ingest = new_ingest(tar, diff_id=sha256(tar), unpack=True)
    put(ingest, tar)
    half = root / "layers/sha256" / sha256(tar)[7:]
    (half / "tree" / "other").mkdir(parents=True)
    _core.publish(root, [ingest])
    assert (half / "tree/f").read_bytes() == b"content"
    assert not (half / "tree/other").exists()
    assert len(_core.LayerIndex(half)) == 2


# order and flushes


@watched
def test_blobs_are_flushed_before_they_are_named_and_folders_after(root: Path) -> None:
    with Watched(publish_code(), root, "3", "0", "batch", calls=[*FLUSHES, "write"]) as program:
        steps = []
        for call in program:
            steps.append((call.name, call.path))
            call.allow()
        assert program.finish() == (0, "")
    folder = str(root / "content/blobs/sha256")
    names = [name for name, path in steps if path.startswith(str(root / "content/ingest"))]
    assert names == ["write"] * 3 + ["fdatasync"] * 3
    assert [name for name, path in steps if path.startswith(f"{folder}/")] == ["renameat2"] * 3
    last_rename = max(at for at, (name, _) in enumerate(steps) if name == "renameat2")
    last_flush = max(at for at, (name, _) in enumerate(steps) if name == "fdatasync")
    assert last_flush < steps.index(("renameat2", next(p for n, p in steps if n == "renameat2")))
    assert steps[last_rename + 1 :] == [("fsync", folder)]


@watched
def test_folders_that_are_new_are_flushed_into_their_parents(root: Path) -> None:
    with Watched(publish_code(), root, "1", "0", "batch", calls=["mkdirat", "fsync"]) as program:
        steps = []
        for call in program:
            steps.append((call.name, call.path))
            call.allow()
        program.finish()
    for made in (root / "content", root / "content/blobs", root / "content/blobs/sha256"):
        first = steps.index(("mkdirat", str(made)))
        assert ("fsync", str(made.parent)) in steps[first:], made


@watched
@pytest.mark.parametrize(("layers", "durability", "flushes"), [("4", "batch", 1), ("4", "none", 0), ("0", "none", 0)])
def test_many_files_are_flushed_at_once(root: Path, layers: str, durability: str, flushes: int) -> None:
    (root / "content/blobs/sha256").mkdir(parents=True)
    (root / "content/ingest").mkdir(parents=True)
    (root / "layers/sha256").mkdir(parents=True)
    (root / "objects").mkdir()
    (root / "trash").mkdir()
    with Watched(publish_code(), root, "5", layers, durability, calls=["syncfs", "fdatasync", "fsync"]) as program:
        seen = []
        for call in program:
            seen.append(call.name)
            call.allow()
        program.finish()
    assert seen.count("syncfs") == flushes
    assert seen.count("fdatasync") == 0
    assert seen.count("fsync") == 2 * flushes  # each folder that got a name, once


@watched
def test_full_durability_flushes_each_blob_by_itself(root: Path) -> None:
    with Watched(publish_code(), root, "2", "2", "full", calls=["fdatasync", "syncfs"]) as program:
        seen = []
        for call in program:
            seen.append(call.name)
            call.allow()
        program.finish()
    assert seen == ["fdatasync"] * 4 + ["syncfs"]


@watched
@pytest.mark.parametrize(("layers", "call"), [("0", "fdatasync"), ("1", "syncfs"), ("0", "renameat2")])
def test_a_flush_that_fails_publishes_nothing(root: Path, layers: str, call: str) -> None:
    with Watched(publish_code(), root, "2", layers, "batch", calls=[call]) as program:
        next(iter(program)).fail(5)
        status, out = program.finish()
    assert (status, out) == (0, "failed 5\n")
    assert files_below(root / "content" / "blobs") == []
    assert files_below(root / "layers") == []
    assert list((root / "content" / "ingest").iterdir()) == []


# what others read


@pytest.fixture
def image() -> BuiltImage:
    return build_image([Tar().file("one").build(), Tar().file("two").build()])


def test_skopeo_reads_published_blobs(new_ingest: NewIngest, root: Path, tmp_path: Path, image: BuiltImage) -> None:
    ingests = []
    for blob in (image.manifest, *image.blobs):
        ingests.append(new_ingest(blob.content))
        put(ingests[-1], blob.content)
    _core.publish(root, ingests)
    layout = tmp_path / "layout"
    image.write_layout(layout)
    for copied in (layout / "blobs/sha256").iterdir():
        copied.unlink()
    subprocess.run(
        [
            *("skopeo", "--insecure-policy", "copy", "--src-shared-blob-dir", root / "content/blobs"),
            *(f"oci:{layout}:latest", f"dir:{tmp_path / 'copy'}"),
        ],
        check=True,
        capture_output=True,
    )
    for blob in image.blobs:
        assert (tmp_path / "copy" / blob.digest[7:]).read_bytes() == blob.content
