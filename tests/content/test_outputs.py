"""Tars on their way out: what readers make of them, sizes and names that no header holds, ends that come early."""

from __future__ import annotations

import fcntl
import io
import os
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyctrd.content.outputs import Output, TarOutput


def test_other_readers_see_what_was_written() -> None:
    memory = io.BytesIO()
    tar = TarOutput(Output(memory, "memory"))
    tar.directory("blobs/")
    tar.file("blobs/" + "a" * 141, b"long name")
    tar.file("empty", b"")
    tar.file("block", b"x" * 512)
    tar.symlink("link", "../" + "b" * 120)
    tar.finish()
    assert len(memory.getvalue()) % 10240 == 0
    memory.seek(0)
    with tarfile.open(fileobj=memory) as found:
        assert [(member.name, member.type, member.size, member.mode) for member in found] == [
            ("blobs", tarfile.DIRTYPE, 0, 0o755),
            ("blobs/" + "a" * 141, tarfile.REGTYPE, 9, 0o644),
            ("empty", tarfile.REGTYPE, 0, 0o644),
            ("block", tarfile.REGTYPE, 512, 0o644),
            ("link", tarfile.SYMTYPE, 0, 0o777),
        ]
        assert found.getmember("link").linkname == "../" + "b" * 120


@pytest.mark.parametrize("size", [(8 << 30) - 1, 8 << 30, 1 << 40])
def test_a_size_that_no_ustar_header_holds_is_in_a_pax_record(size: int) -> None:
    memory = io.BytesIO()
    TarOutput(Output(memory, "memory")).begin("large", size)
    assert len(memory.getvalue()) == (512 if size < 8 << 30 else 3 * 512)
    with tarfile.open(fileobj=io.BytesIO(memory.getvalue() + bytes(1024))) as found:
        first = next(iter(found))
    assert (first.name, first.size) == ("large", size)


def test_a_file_has_all_of_its_bytes_and_no_more() -> None:
    tar = TarOutput(Output(io.BytesIO(), "memory"))
    tar.begin("file", 3)
    tar.write(b"ab")
    with pytest.raises(ValueError, match="1 bytes are missing"):
        tar.end()
    with pytest.raises(ValueError, match="1 bytes too many"):
        tar.write(b"cd")


@pytest.mark.parametrize("how", ["wb", "ab", "memory"])
def test_a_file_is_passed_on_behind_what_stands_in_a_buffer(tmp_path: Path, how: str) -> None:
    (tmp_path / "source").write_bytes(b"passed on")
    source = os.open(tmp_path / "source", os.O_RDONLY)
    file = io.BytesIO() if how == "memory" else (tmp_path / "target").open(how)
    output = Output(file, "target")
    output.write(b"before ")
    output.send(source, 6)
    output.write(b" after")
    output.finish()
    written = file.getvalue() if isinstance(file, io.BytesIO) else (tmp_path / "target").read_bytes()
    assert written == b"before passed after"
    with pytest.raises(OSError, match="became shorter"):
        output.send(source, 100)
    os.close(source)
    file.close()


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("passed_on", [False, True])
def test_a_reader_that_is_slow_is_waited_for(tmp_path: Path, buffering: int, *, passed_on: bool) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The pipe is full, and a buffer holds the rest.
    content = os.urandom(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) + 4096)
    (tmp_path / "source").write_bytes(content)
    with ThreadPoolExecutor(1) as pool, (tmp_path / "source").open("rb") as source:
        drained = pool.submit(_drain_slowly, reader)
        with os.fdopen(writer, "wb", buffering=buffering) as file:
            output = Output(file, "the pipe")
            output.write(content)
            if passed_on:
                output.send(source.fileno(), len(content))
            output.finish()
        assert drained.result() == content * (1 + passed_on)


def test_a_reader_that_is_gone_is_named() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as raw, pytest.raises(BrokenPipeError) as caught:
        Output(raw, "the pipe").write(b"x")
    assert caught.value.filename == "the pipe"


def _drain_slowly(reader: int) -> bytes:
    """All of a pipe, whose writer finds it full when it has written all and hands over the rest."""
    time.sleep(0.1)
    content = b""
    while chunk := os.read(reader, 16 << 10):
        content += chunk
        time.sleep(0.001)
    os.close(reader)
    return content
