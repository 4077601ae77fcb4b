"""Ingest: bytes on their way into the store, guilty until they are hashed."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pyctrd import _core
from pyctrd.errors import (
    AlreadyExistsError,
    CancelledError,
    ConflictError,
    DiffIDMismatchError,
    DigestMismatchError,
    IntegrityError,
    InvalidError,
    SizeMismatchError,
    UnsafeArchiveError,
)
from tests.archives import Tar, compress_gzip, compress_zstd
from tests.content.stores import NewIngest, files_below, put, sha256, sha512

CONTENT = b"some bytes\n" * 1000
TAR = Tar().directory("d").file("d/f", b"content").build()


def staged(root: Path) -> list[str]:
    """The ingests that have a directory."""
    directory = root / "content" / "ingest"
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def test_ingest_tells_what_the_bytes_were(new_ingest: NewIngest) -> None:
    done = put(new_ingest(CONTENT), CONTENT)
    assert (done.digest, done.size) == (sha256(CONTENT), len(CONTENT))
    assert (done.compression, done.diff_id) == ("none", None)
    assert (done.layer_bytes, done.layer_entries) == (0, 0)


def test_ingest_of_no_bytes_is_a_blob(new_ingest: NewIngest) -> None:
    assert new_ingest(b"").finish().digest == sha256(b"")


def test_ingest_need_not_know_the_size(new_ingest: NewIngest) -> None:
    assert put(new_ingest(CONTENT, size=None), CONTENT).size == len(CONTENT)


def test_ingest_takes_sha512(new_ingest: NewIngest) -> None:
    assert put(new_ingest(CONTENT, digest=sha512(CONTENT)), CONTENT).digest == sha512(CONTENT)


def test_ingest_counts_what_it_received(new_ingest: NewIngest) -> None:
    ingest = new_ingest(CONTENT)
    assert ingest.received == 0
    ingest.write(CONTENT[:10])
    ingest.write(b"")
    assert ingest.received == 10
    ingest.write(CONTENT[10:])
    assert ingest.received == len(CONTENT)
    stages = {name: times.bytes for name, times in ingest.stages().items()}
    ingest.finish()
    assert stages["receive"] == len(CONTENT)
    assert set(stages) == {"receive", "store", "inflate", "diff", "apply"}
    assert ingest.stages()["store"].bytes == len(CONTENT)


# wrong bytes


@pytest.mark.parametrize("digest", [sha256, sha512])
def test_other_bytes_are_a_digest_mismatch(new_ingest: NewIngest, root: Path, digest: Callable[[bytes], str]) -> None:
    expected = digest(CONTENT)
    ingest = new_ingest(CONTENT, digest=expected)
    with pytest.raises(DigestMismatchError) as caught:
        put(ingest, CONTENT[:-1] + b"!")
    assert caught.value.expected == expected
    assert caught.value.actual == digest(CONTENT[:-1] + b"!")
    assert expected in str(caught.value)
    ingest.abort()
    assert staged(root) == []


def test_a_byte_too_few_is_a_size_mismatch(new_ingest: NewIngest) -> None:
    ingest = new_ingest(CONTENT)
    with pytest.raises(SizeMismatchError) as caught:
        put(ingest, CONTENT[:-1])
    assert (caught.value.expected, caught.value.actual) == (len(CONTENT), len(CONTENT) - 1)


def test_a_byte_too_many_is_a_size_mismatch_before_the_rest_is_read(new_ingest: NewIngest) -> None:
    ingest = new_ingest(CONTENT)
    ingest.write(CONTENT)
    with pytest.raises(SizeMismatchError) as caught:
        ingest.write(b"!")
    assert (caught.value.expected, caught.value.actual) == (len(CONTENT), len(CONTENT) + 1)
    with pytest.raises(SizeMismatchError):
        ingest.finish()


def test_the_first_cause_stays_the_cause(new_ingest: NewIngest) -> None:
    ingest = new_ingest(CONTENT)
    for _ in range(2):
        with pytest.raises(SizeMismatchError):
            ingest.finish()
    with pytest.raises(SizeMismatchError):
        ingest.write(CONTENT)
    with pytest.raises(SizeMismatchError):
        ingest.buffer()


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../../outside",
        f"sha256:{'0' * 63}",
        f"sha256:{'0' * 65}",
        f"sha256:{'A' * 64}",
        f"md5:{'0' * 32}",
        f"sha256+b64:{'0' * 64}",
        "sha256",
        "",
    ],
)
def test_what_is_no_digest_is_refused_before_anything_is_made(root: Path, new_ingest: NewIngest, digest: str) -> None:
    with pytest.raises(InvalidError):
        new_ingest(b"", digest=digest)
    with pytest.raises(InvalidError):
        new_ingest(b"", diff_id=digest)
    assert staged(root) == []


@pytest.mark.parametrize("ingest_id", ["", ".", "..", "../x", "a/b", "a\0b", "a.b", "ä"])
def test_an_id_that_is_no_plain_name_is_refused(root: Path, ingest_id: str) -> None:
    with pytest.raises(InvalidError):
        _core.Ingest(root, ingest_id, digest=sha256(b""))
    assert staged(root) == []


def test_an_id_is_used_once_at_a_time(root: Path) -> None:
    first = _core.Ingest(root, "same", digest=sha256(b""))
    with pytest.raises(AlreadyExistsError) as caught:
        _core.Ingest(root, "same", digest=sha256(b""))
    assert (caught.value.kind, caught.value.name) == ("ingest", "same")
    assert staged(root) == ["same"]
    first.abort()
    _core.Ingest(root, "same", digest=sha256(b"")).abort()


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        _core.Ingest(tmp_path / "absent", "x", digest=sha256(b""))
    assert caught.value.filename == str(tmp_path / "absent")


# buffers


def test_a_buffer_is_filled_and_handed_over(new_ingest: NewIngest) -> None:
    content = bytes(range(256)) * (3 * _core.BLOCK_BYTES // 256) + b"tail"
    ingest = new_ingest(content)
    sent = 0
    while sent < len(content):
        with ingest.buffer() as view:
            assert len(view) == _core.BLOCK_BYTES
            assert not view.readonly
            part = content[sent : sent + len(view)]
            view[: len(part)] = part
        ingest.commit(len(part))
        sent += len(part)
    assert ingest.finish().digest == sha256(content)


def test_the_buffer_is_the_same_until_it_is_handed_over(new_ingest: NewIngest) -> None:
    ingest = new_ingest(b"ab")
    with ingest.buffer() as view:
        view[0:1] = b"a"
    with ingest.buffer() as view:
        view[1:2] = b"b"
    ingest.commit(2)
    assert ingest.finish().size == 2


@pytest.mark.parametrize("hold", [lambda view: view, lambda view: view[10:], memoryview])
def test_a_buffer_that_python_still_holds_is_not_handed_over(
    new_ingest: NewIngest, hold: Callable[[memoryview], memoryview]
) -> None:
    ingest = new_ingest(b"x")
    view = ingest.buffer()
    held = hold(view)
    if held is not view:
        view.release()
    with pytest.raises(BufferError, match="still held"):
        ingest.commit(1)
    held[0:1] = b"x"
    assert ingest.received == 0
    held.release()
    ingest.abort()


def test_a_commit_without_a_buffer_is_a_conflict(new_ingest: NewIngest) -> None:
    ingest = new_ingest(b"x")
    with pytest.raises(ConflictError, match="not taken"):
        ingest.commit(1)
    ingest.buffer().release()
    ingest.commit(0)
    with pytest.raises(ConflictError, match="not taken"):
        ingest.commit(0)


def test_a_commit_of_more_than_a_block_is_refused(new_ingest: NewIngest) -> None:
    ingest = new_ingest(b"")
    ingest.buffer().release()
    with pytest.raises(InvalidError, match=str(_core.BLOCK_BYTES)):
        ingest.commit(_core.BLOCK_BYTES + 1)
    with pytest.raises(OverflowError):
        ingest.commit(-1)
    ingest.commit(0)
    ingest.finish()


def test_only_bytes_are_written_since_nothing_else_stays_as_it_is(new_ingest: NewIngest) -> None:
    ingest = new_ingest(b"abc")
    for other in (bytearray(b"abc"), memoryview(b"abc"), "abc"):
        with pytest.raises(TypeError):
            ingest.write(other)  # type: ignore[arg-type] # what is tested
    assert ingest.received == 0


# giving up


def test_an_ingest_that_is_given_up_leaves_nothing(new_ingest: NewIngest, root: Path) -> None:
    ingest = new_ingest(compress_gzip(TAR), diff_id=sha256(TAR), unpack=True)
    ingest.write(compress_gzip(TAR)[:50])
    assert staged(root) == ["ingest-1"]
    ingest.abort()
    ingest.abort()
    assert files_below(root) == []
    with pytest.raises(CancelledError):
        ingest.buffer()
    with pytest.raises(CancelledError):
        ingest.write(b"x")
    with pytest.raises(CancelledError):
        ingest.finish()


def test_an_ingest_that_nobody_wants_any_more_leaves_nothing(new_ingest: NewIngest, root: Path) -> None:
    ingest = new_ingest(CONTENT)
    ingest.write(CONTENT)
    del ingest
    gc.collect()
    assert files_below(root) == []


def test_giving_up_ends_a_writer_in_another_thread(new_ingest: NewIngest) -> None:
    ingest = new_ingest(b"", size=None)
    begun = threading.Event()
    caught: list[BaseException] = []

    def write() -> None:
        try:
            while True:
                ingest.write(bytes(1 << 20))
                begun.set()
        except CancelledError as error:
            caught.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(30)
    ingest.abort()
    writer.join(30)
    assert not writer.is_alive()
    assert len(caught) == 1


def test_many_ingests_go_on_at_once(root: Path) -> None:
    contents = [bytes([number]) * (700_000 + number) for number in range(40)]
    ingests = [_core.Ingest(root, f"i{n}", digest=sha256(c), size=len(c)) for n, c in enumerate(contents)]
    wrong: list[BaseException] = []

    def carry(ingest: _core.Ingest, content: bytes) -> None:
        try:
            put(ingest, content)
        except BaseException as error:  # noqa: BLE001 - told to the test
            wrong.append(error)

    threads = [threading.Thread(target=carry, args=pair) for pair in zip(ingests, contents, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    _core.publish(root, ingests, durability="none")
    assert len(list((root / "content/blobs/sha256").iterdir())) == len(contents)


# layers


@pytest.mark.parametrize(
    ("name", "content"), [("none", TAR), ("gzip", compress_gzip(TAR)), ("zstd", compress_zstd(TAR))]
)
def test_a_layer_has_a_diff_id_and_the_compression_of_its_first_bytes(
    new_ingest: NewIngest, name: str, content: bytes
) -> None:
    done = put(new_ingest(content, diff_id=sha256(TAR), unpack=True), content)
    assert (done.digest, done.diff_id) == (sha256(content), sha256(TAR))
    assert done.compression == name
    assert (done.layer_entries, done.layer_bytes) == (2, len(b"content"))


def test_a_diff_id_may_be_sha512(new_ingest: NewIngest) -> None:
    content = compress_gzip(TAR)
    assert put(new_ingest(content, diff_id=sha512(TAR)), content).diff_id == sha512(TAR)


def test_another_tar_than_the_config_names_is_a_diff_id_mismatch(new_ingest: NewIngest) -> None:
    content = compress_gzip(TAR)
    with pytest.raises(DiffIDMismatchError) as caught:
        put(new_ingest(content, diff_id=sha256(b"")), content)
    assert (caught.value.expected, caught.value.actual) == (sha256(b""), sha256(TAR))
    assert isinstance(caught.value, IntegrityError)


def test_what_is_no_layer_is_not_decompressed(new_ingest: NewIngest) -> None:
    content = b"\x1f\x8b" + b"no gzip at all"
    assert put(new_ingest(content), content).compression == "none"


def test_a_damaged_layer_is_refused(new_ingest: NewIngest) -> None:
    content = bytearray(compress_gzip(TAR))
    content[-6] ^= 1
    with pytest.raises(UnsafeArchiveError):
        put(new_ingest(bytes(content), diff_id=sha256(TAR)), bytes(content))


def test_other_bytes_than_the_blobs_are_never_blamed_on_the_archive(new_ingest: NewIngest) -> None:
    content = compress_gzip(TAR)
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        with pytest.raises(DigestMismatchError):
            put(new_ingest(content, diff_id=sha256(TAR), unpack=True), bytes(damaged))


def test_a_blob_that_is_not_kept_is_hashed_all_the_same(new_ingest: NewIngest, root: Path) -> None:
    content = compress_gzip(TAR)
    ingest = new_ingest(content, diff_id=sha256(TAR), unpack=True, keep_blob=False)
    assert put(ingest, content).digest == sha256(content)
    _core.publish(root, [ingest])
    assert not (root / "content/blobs/sha256").exists() or files_below(root / "content/blobs") == []
    assert (root / "layers/sha256" / sha256(TAR)[7:] / "tree/d/f").read_bytes() == b"content"
    other = new_ingest(content, digest=sha256(b"x"), diff_id=sha256(TAR), unpack=True, keep_blob=False)
    with pytest.raises(DigestMismatchError):
        put(other, content)


@pytest.mark.parametrize("way", ["abort", "leave"])
def test_one_that_is_given_up_before_its_first_byte_holds_nothing_open(
    new_ingest: NewIngest, root: Path, way: str
) -> None:
    ingest = new_ingest(b"content", resumable=True)
    getattr(ingest, way)()
    opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert [path for path in opened if path.startswith(str(root))] == []


# blocks ahead

AHEAD_BLOCKS = 128  # 32 MiB for all ingests of the process


def test_blocks_that_came_ahead_are_handed_over_in_their_turn(new_ingest: NewIngest) -> None:
    content = os.urandom(2 * _core.BLOCK_BYTES + 10)
    ingest = new_ingest(content)
    parts = [content[at : at + _core.BLOCK_BYTES] for at in range(0, len(content), _core.BLOCK_BYTES)]
    blocks = []
    for part in parts[1:]:
        block = ingest.block_ahead()
        assert block is not None
        with block.view() as view:
            view[: len(part)] = part
        blocks.append(block)
    first = ingest.block()
    with first.view() as view:
        view[:] = parts[0]
    for block, part in zip([first, *blocks], parts, strict=True):
        ingest.push(block, len(part))
    assert ingest.finish().digest == sha256(content)


def test_blocks_ahead_are_bounded_for_all_ingests_together(new_ingest: NewIngest) -> None:
    ingests = [new_ingest(CONTENT), new_ingest(CONTENT)]
    blocks = [ingests[at % 2].block_ahead() for at in range(AHEAD_BLOCKS)]
    assert None not in blocks
    assert ingests[0].block_ahead() is None
    for ingest in ingests:  # what stands in front is not kept waiting by it
        put(ingest, CONTENT)
    blocks.pop()
    assert new_ingest(CONTENT).block_ahead() is not None


def test_a_block_is_handed_over_once_and_without_views(new_ingest: NewIngest) -> None:
    ingest = new_ingest(CONTENT)
    block = ingest.block()
    view = block.view()
    with pytest.raises(BufferError):
        ingest.push(block, 1)
    view.release()
    with pytest.raises(InvalidError):
        ingest.push(block, _core.BLOCK_BYTES + 1)
    ingest.push(block, 1)
    with pytest.raises(ConflictError):
        ingest.push(block, 1)
    with pytest.raises(BufferError):
        block.view()


def test_nobody_gets_a_block_of_an_ingest_that_was_given_up(new_ingest: NewIngest) -> None:
    ingest = new_ingest(CONTENT)
    held = ingest.block_ahead()
    assert held is not None
    ingest.abort()
    for call in (ingest.block, ingest.block_ahead, lambda: ingest.push(held, 1)):
        with pytest.raises(CancelledError):
            call()


def test_an_ingest_has_no_backlog_once_its_bytes_were_read(new_ingest: NewIngest) -> None:
    ingest = new_ingest(CONTENT)
    put(ingest, CONTENT)
    assert ingest.backlog == 0
