"""What containerd asks of its content stores, asked of ours in our own words.

A writer here is an ``Ingest``: it is told the digest when it is opened, and writes nothing that is visible until it is
published. Cases of containerd's suite, and where each is tested:

====================== ================================================================================================
Writer                 test_a_writer_is_told_a_digest_and_perhaps_a_size
UpdateStatus           test_a_writer_says_how_far_it_is; of a part there is no digest, and no times
CommitExists           test_what_is_there_may_be_published_again
Resume                 test_a_writer_goes_on_from_what_another_left
ResumeTruncate         test_what_was_left_may_be_begun_anew
ResumeDiscard          test_what_was_left_is_gone_on_with, by the rest
ResumeCopy             the same, by a pull whose server knows no ranges
ResumeCopySeeker       the same, by a pull
ResumeCopyReaderAt     none: a body is read in order, and in no other way
SmallBlob              test_more_may_be_read_than_there_is
Labels                 none: a blob has no labels; leases have, and namespaces
CommitErrorState       test_a_writer_that_failed_stays_failed, test_an_id_is_one_writers_at_a_time
CrossNamespaceAppend   test_nobody_writes_behind_what_another_has
CrossNamespaceShare    test_between_namespaces_that_share_a_blob_is_given
CrossNamespaceIsolate  test_of_what_another_has_every_byte_is_asked_for
SharedNamespaceIsolate the same, with one of the two that shares: ours must both
====================== ================================================================================================

Beside them: what is walked, removed, damaged and missing.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.errors import (
    AlreadyExistsError,
    CancelledError,
    ConflictError,
    DigestMismatchError,
    NotFoundError,
    PyctrdError,
    SizeMismatchError,
    UnavailableError,
)
from tests.archives import Tar
from tests.content.stores import blob_path, files_below, put, sha256
from tests.images import BuiltImage, build_image
from tests.registry_faults import Answer, FaultyRegistry

SIZES = (500, 5000, 50_000, 2 * _core.BLOCK_BYTES + 1)
PARTS = (0.0, 0.1, 0.5, 0.9, 1.0)
GONE = Answer(503, headers={"Retry-After": "3600"})


def content(seed: int, size: int = 256) -> bytes:
    """Bytes that are no other's."""
    return random.Random(seed).randbytes(size)


def writer(root: Path, blob: bytes, name: str = "one", *, resumable: bool = False) -> _core.Ingest:
    """One that is to become these bytes."""
    return _core.Ingest(root, name, digest=sha256(blob), size=len(blob), resumable=resumable)


def staged(root: Path) -> list[str]:
    """What is on the way in."""
    return files_below(root / "content/ingest")


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


# writers


@pytest.mark.parametrize("size", [None, 256])
@pytest.mark.parametrize("piece", [1, 32, 255, 256, 1000])
def test_a_writer_is_told_a_digest_and_perhaps_a_size(root: Path, size: int | None, piece: int) -> None:
    blob = content(1)
    one = _core.Ingest(root, "one", digest=sha256(blob), size=size)
    for at in range(0, len(blob), piece):
        one.write(blob[at : at + piece])
    done = one.finish()
    assert (done.digest, done.size) == (sha256(blob), len(blob))
    assert files_below(root / "content/blobs") == []  # finished, and seen by nobody
    _core.publish(root, [one])
    path = blob_path(root, sha256(blob))
    assert path.read_bytes() == blob
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert staged(root) == []


def test_a_writer_says_how_far_it_is(root: Path) -> None:
    blob = content(2)
    one = writer(root, blob)
    assert one.received == 0
    for end, start in ((64, 0), (192, 64), (256, 192)):
        one.write(blob[start:end])
        assert one.received == end
    one.finish()
    assert one.received == 256
    assert one.kept == 0


@pytest.mark.parametrize("resumable", [True, False])
def test_what_is_there_may_be_published_again(root: Path, *, resumable: bool) -> None:
    blob = content(3)
    path = blob_path(root, sha256(blob))
    inodes = set()
    for name in ("one", "two"):
        one = writer(root, blob, name, resumable=resumable)
        put(one, blob)
        _core.publish(root, [one])
        one.abort()
        inodes.add(path.stat().st_ino)
    assert len(inodes) == 1  # the first stays
    assert path.read_bytes() == blob
    assert path.stat().st_nlink == 1
    assert staged(root) == []


@pytest.mark.parametrize("resumable", [True, False])
def test_a_writer_that_failed_stays_failed(root: Path, *, resumable: bool) -> None:
    blob = content(4)
    cases: list[tuple[bytes, type[PyctrdError]]] = [
        (blob[:-1] + b"?", DigestMismatchError),
        (blob[:-1], SizeMismatchError),
        (blob + b"more", SizeMismatchError),
        (b"", SizeMismatchError),
    ]
    for number, (written, failure) in enumerate(cases):
        one = writer(root, blob, f"case-{number}", resumable=resumable)
        with pytest.raises(failure):
            put(one, written)
        for call in (one.finish, lambda one=one: one.write(b"x"), lambda one=one: _core.publish(root, [one])):
            with pytest.raises(failure):
                call()
        one.abort()
        with pytest.raises((ConflictError, failure)):
            _core.publish(root, [one])
        assert staged(root) == []
        again = writer(root, blob, f"case-{number}", resumable=resumable)  # the id is free
        put(again, blob)
        again.abort()
    assert files_below(root / "content/blobs") == []


def test_what_is_not_finished_or_was_published_is_not_published(root: Path) -> None:
    blob = content(5)
    for number, resumable in enumerate((True, False)):
        one = writer(root, blob, f"one-{number}", resumable=resumable)
        one.write(blob)
        with pytest.raises(ConflictError, match="not finished"):
            _core.publish(root, [one])
        one.finish()
        with pytest.raises(ConflictError, match="named twice"):
            _core.publish(root, [one, one])
        _core.publish(root, [one])
        with pytest.raises(ConflictError, match="published"):
            _core.publish(root, [one])
        one.abort()
        one.abort()
        with pytest.raises(ConflictError, match="published"):
            _core.publish(root, [one])


def test_an_id_is_one_writers_at_a_time(root: Path) -> None:
    blob = content(6)
    one = writer(root, blob)
    with pytest.raises(AlreadyExistsError):
        writer(root, blob)
    with pytest.raises(ConflictError, match="being written"):
        writer(root, blob, resumable=True)
    put(one, blob)  # it was not disturbed
    one.abort()
    one = writer(root, blob, resumable=True)
    with pytest.raises(ConflictError, match="being written"):
        writer(root, blob, resumable=True)
    one.leave()
    put(writer(root, blob), blob)  # nothing had come, so nothing was left: the id is free


# going on


def test_a_writer_goes_on_from_what_another_left(root: Path) -> None:
    blob = content(7)
    one = writer(root, blob, resumable=True)
    one.write(blob[:128])
    one.leave()
    for call in (one.finish, lambda: one.write(b"x"), one.buffer):
        with pytest.raises((CancelledError, ConflictError)):
            call()
    assert _core.sweep_ingests(root, keep=["one"]) == []
    two = writer(root, blob, resumable=True)
    assert (two.kept, two.received) == (128, 0)
    two.replay()
    two.replay()
    assert two.received == 128
    two.write(blob[128:])
    assert two.finish().digest == sha256(blob)
    _core.publish(root, [two])
    # Its own bytes stay until it says that they are recorded.
    (root / "content/blobs/sha256" / sha256(blob)[7:]).unlink()
    two.leave()
    three = writer(root, blob, resumable=True)
    assert three.kept == 256
    three.replay()
    three.finish()
    _core.publish(root, [three])
    three.abort()
    assert blob_path(root, sha256(blob)).read_bytes() == blob
    assert staged(root) == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("part", PARTS)
def test_what_was_left_is_gone_on_with(root: Path, size: int, part: float) -> None:
    blob = content(8, size)
    limit = int(size * part)
    one = writer(root, blob, resumable=True)
    one.write(blob[:limit])
    one.leave()
    assert staged(root) == (["one/data", "one/lock"] if limit else [])
    two = writer(root, blob, resumable=True)
    assert two.kept == limit
    two.replay()
    put(two, blob[limit:])
    _core.publish(root, [two])
    two.abort()
    assert blob_path(root, sha256(blob)).read_bytes() == blob


@pytest.mark.parametrize("part", PARTS)
def test_what_was_left_may_be_begun_anew(root: Path, part: float) -> None:
    blob = content(9)
    one = writer(root, blob, resumable=True)
    one.write(blob[: int(len(blob) * part)])
    one.leave()
    two = writer(root, blob, resumable=True)
    two.abort()
    assert staged(root) == []
    three = writer(root, blob, resumable=True)
    assert three.kept == 0
    put(three, blob)
    _core.publish(root, [three])
    three.abort()
    assert blob_path(root, sha256(blob)).read_bytes() == blob


def test_one_that_is_not_resumable_leaves_nothing(root: Path) -> None:
    blob = content(10)
    one = writer(root, blob)
    one.write(blob[:100])
    one.leave()
    assert staged(root) == []


def test_what_was_handed_over_before_a_writer_is_given_up_is_all_there(root: Path) -> None:
    tar = Tar().file("f", content(11, 6 << 20)).build()
    options = {"digest": sha256(tar), "size": len(tar), "diff_id": sha256(tar), "unpack": True, "resumable": True}
    one = _core.Ingest(root, "one", **options)  # type: ignore[arg-type] # of several types
    one.write(tar[: 5 << 20])
    one.suspend()
    one.leave()
    assert (root / "content/ingest/one/data").read_bytes() == tar[: 5 << 20]
    assert staged(root) == ["one/data", "one/lock"]
    two = _core.Ingest(root, "one", **options)  # type: ignore[arg-type]
    two.replay()
    two.write(tar[two.received :])
    assert two.finish().diff_id == sha256(tar)
    _core.publish(root, [two])
    two.abort()
    assert (root / "layers/sha256" / sha256(tar)[7:] / "tree/f").stat().st_size == 6 << 20


def image(seed: int, size: int = 1000) -> BuiltImage:
    """An image of one layer whose bytes are what they are."""
    return build_image([Tar().file("f", content(seed, size)).build()], compression="none")


@pytest.mark.root
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("part", PARTS[1:])
def test_a_pull_goes_on_whether_its_server_knows_ranges_or_not(
    state: Path, faulty: FaultyRegistry, part: float, *, ranges: bool
) -> None:
    del state
    built = image(12, 20_000)
    layer = built.layers[0]
    reference = faulty.add(built, "app")
    limit = int(len(layer.content) * part) - 1
    faulty.lie(f"/blobs/{layer.digest}", Answer(body=None, cut=limit), GONE)
    if not ranges:
        faulty.lie(f"/blobs/{layer.digest}", Answer(200, layer.content))
    with pyctrd.Engine() as engine:
        with pytest.raises(UnavailableError):
            engine.images.pull(reference)
        assert engine.images.pull(reference).read_file("/f") == content(12, 20_000)
        assert engine.check(digests=True) == []
    assert [seen.headers.get("range") for seen in faulty.requests(layer.digest)][-1] == f"bytes={limit}-"


# namespaces


@pytest.fixture
def engines(state: Path) -> Iterator[tuple[pyctrd.Engine, pyctrd.Engine]]:
    """Two namespaces of one store."""
    del state
    with pyctrd.Engine(namespace="one") as one, pyctrd.Engine(namespace="two") as two:
        one.content.list()
        two.content.list()
        yield one, two


def asked(faulty: FaultyRegistry, repository: str, built: BuiltImage) -> list[str | None]:
    """How the bytes of a layer were asked for in a repository: from where on."""
    path = f"/v2/{repository}/blobs/{built.layers[0].digest}"
    return [seen.headers.get("range") for seen in faulty.requests(path) if seen.method == "GET"]


@pytest.mark.root
def test_nobody_writes_behind_what_another_has(
    engines: tuple[pyctrd.Engine, pyctrd.Engine], faulty: FaultyRegistry
) -> None:
    one, two = engines
    for name in ("one", "two"):
        one.namespaces.set(name, policy="shared")
    tar = Tar().file("f", content(13, 1000)).build()
    short, long = (build_image([tar + bytes(extra)], compression="none") for extra in (0, 10_240))
    assert long.layers[0].content.startswith(short.layers[0].content)
    one.images.pull(faulty.add(short, "short"))
    inode = blob_path(Path(os.environ["PYCTRD_ROOT"]), short.layers[0].digest).stat().st_ino
    two.images.pull(faulty.add(long, "long"))
    assert asked(faulty, "long", long) == [None]
    for engine, built in ((one, short), (two, long)):
        with engine.content.open(built.layers[0].digest) as file:
            assert file.read() == built.layers[0].content
    assert blob_path(Path(os.environ["PYCTRD_ROOT"]), short.layers[0].digest).stat().st_ino == inode
    with pytest.raises(NotFoundError):
        one.content.info(long.layers[0].digest)


@pytest.mark.root
def test_between_namespaces_that_share_a_blob_is_given(
    engines: tuple[pyctrd.Engine, pyctrd.Engine], faulty: FaultyRegistry
) -> None:
    one, two = engines
    for name in ("one", "two"):
        one.namespaces.set(name, policy="shared")
    built = image(14)
    one.images.pull(faulty.add(built, "first"))
    two.images.pull(faulty.add(built, "second"))
    assert asked(faulty, "first", built) == [None]
    assert asked(faulty, "second", built) == []
    for engine in engines:
        info = engine.content.info(built.layers[0].digest)
        assert (info.digest, info.size) == (built.layers[0].digest, len(built.layers[0].content))
        with engine.content.open(info.digest) as file:
            assert file.read() == built.layers[0].content


@pytest.mark.root
@pytest.mark.parametrize("shares", [(), ("one",), ("two",)])
def test_of_what_another_has_every_byte_is_asked_for(
    engines: tuple[pyctrd.Engine, pyctrd.Engine], faulty: FaultyRegistry, shares: tuple[str, ...]
) -> None:
    one, two = engines
    for name in shares:
        one.namespaces.set(name, policy="shared")
    built = image(15)
    one.images.pull(faulty.add(built, "first"))
    before = two.stages().get("receive", {}).get("bytes", 0)
    with pytest.raises(NotFoundError):
        two.content.info(built.layers[0].digest)
    two.images.pull(faulty.add(built, "second"))
    assert asked(faulty, "second", built) == [None]
    assert two.stages()["receive"]["bytes"] - before >= len(built.layers[0].content)
    with two.content.open(built.layers[0].digest) as file:
        assert file.read() == built.layers[0].content
    assert len(files_below(Path(os.environ["PYCTRD_ROOT"], "content/blobs"))) == 3  # stored once


# what is there


@pytest.mark.root
def test_more_may_be_read_than_there_is(state: Path, faulty: FaultyRegistry) -> None:
    del state
    built = image(16)
    with pyctrd.Engine() as engine:
        engine.images.pull(faulty.add(built, "app"))
        config = built.blobs[0]
        with engine.content.open(config.digest) as file:
            assert file.read(len(config.content) + 1) == config.content
            assert file.read(1) == b""
            file.seek(3)
            assert file.read() == config.content[3:]
            with pytest.raises(OSError, match="not open for writing"):
                file.write(b"x")


@pytest.mark.root
def test_what_a_namespace_has_is_walked_in_order_and_goes_with_its_last_name(
    engines: tuple[pyctrd.Engine, pyctrd.Engine], faulty: FaultyRegistry
) -> None:
    one, two = engines
    mine, theirs = image(17), image(18)
    name = one.images.pull(faulty.add(mine, "mine")).name
    two.images.pull(faulty.add(theirs, "theirs"))
    found = [item.digest for item in one.content.list()]
    assert found == sorted(blob.digest for blob in (mine.manifest, *mine.blobs))
    assert [item.size for item in one.content.list()] == [
        len(blob.content) for blob in sorted((mine.manifest, *mine.blobs), key=lambda blob: blob.digest)
    ]
    one.images.remove(name)
    assert one.content.list() == []
    assert len(two.content.list()) == 3
    for call in (one.content.info, one.content.open, one.content.check):
        for digest in (*found, theirs.layers[0].digest, f"sha256:{'0' * 64}", "no digest"):
            with pytest.raises(NotFoundError):
                call(digest)


@pytest.mark.root
def test_a_blob_is_hashed_when_it_is_asked_for(state: Path, faulty: FaultyRegistry) -> None:
    del state
    built = image(19)
    with pyctrd.Engine() as engine:
        engine.images.pull(faulty.add(built, "app"))
        digest = built.layers[0].digest
        engine.content.check(digest)
        path = blob_path(Path(os.environ["PYCTRD_ROOT"]), digest)
        path.chmod(0o644)
        path.write_bytes(bytes(len(built.layers[0].content)))
        with pytest.raises(DigestMismatchError) as caught:
            engine.content.check(digest)
        assert caught.value.expected == digest
