"""Files sent by threads, to clients who take them without a pause."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import wraps
from pathlib import Path

import pytest

from pyctrd.registry.server.senders import THREADS_MAX, _free, send_without_pause

SIZE = 24 << 20


def in_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """The test, in an event loop of its own."""

    @wraps(test)
    def run(*arguments: object, **more: object) -> None:
        asyncio.run(test(*arguments, **more))

    return run


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.BaseTransport, socket.socket]]:
    """A transport of this loop's, and the client's end."""
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    try:
        yield writer.transport, theirs
    finally:
        theirs.close()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """What ``blob`` in the test's directory has."""
    content = os.urandom(1 << 20) * (SIZE >> 20)
    (tmp_path / "blob").write_bytes(content)
    return content


def take(client: socket.socket, size: int) -> bytes:
    """So many bytes of it."""
    found = bytearray()
    while len(found) < size and (block := client.recv(1 << 20)):
        found += block
    return bytes(found)


def descriptors() -> int:
    """How many this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@in_loop
async def test_whoever_takes_it_gets_all_from_the_thread(content: bytes, tmp_path: Path) -> None:
    async with connected() as (transport, client):
        with (tmp_path / "blob").open("rb") as file:
            before = descriptors()
            sent, start = 0, 1000
            taking = asyncio.create_task(asyncio.to_thread(take, client, SIZE - start))
            while sent < SIZE - start:  # the other end may have had no turn on a busy machine
                sent += await send_without_pause(transport, file, start + sent, SIZE - start - sent)
            assert await taking == content[start:]
            assert descriptors() == before


@in_loop
async def test_whoever_takes_nothing_holds_no_thread(content: bytes, tmp_path: Path) -> None:
    async with connected() as (transport, client):
        with (tmp_path / "blob").open("rb") as file:
            sent = await send_without_pause(transport, file, 0, SIZE)
            assert 0 < sent < SIZE
            assert await send_without_pause(transport, file, sent, SIZE - sent) == 0
            assert take(client, sent) == content[:sent]


@in_loop
async def test_with_all_threads_at_work_the_loop_is_left_to_do_it(content: bytes, tmp_path: Path) -> None:
    del content
    async with connected() as (transport, _):
        with (tmp_path / "blob").open("rb") as file:
            asked = [send_without_pause(transport, file, 0, SIZE) for _ in range(THREADS_MAX + 3)]
            assert (await asyncio.gather(*asked)).count(0) >= 3
            before = descriptors()
            assert await send_without_pause(transport, file, 0, SIZE) == 0  # the first ones filled the line
            assert descriptors() == before


@in_loop
async def test_a_task_that_is_cancelled_leaves_no_descriptor(content: bytes, tmp_path: Path) -> None:
    del content
    before = descriptors()
    async with connected() as (transport, _):
        with (tmp_path / "blob").open("rb") as file:
            sending = asyncio.create_task(send_without_pause(transport, file, 0, SIZE))
            await asyncio.sleep(0)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
    for _ in range(THREADS_MAX):
        assert _free.acquire(timeout=10)
    for _ in range(THREADS_MAX):
        _free.release()
    assert descriptors() <= before


@in_loop
async def test_a_file_that_is_too_short_ends_it(content: bytes, tmp_path: Path) -> None:
    del content
    async with connected() as (transport, client):
        with (tmp_path / "blob").open("rb") as file:
            assert await send_without_pause(transport, file, SIZE - 10, 1000) == 10
            assert len(take(client, 10)) == 10
