"""Connections that stand still, or are too many, are closed; those at work are not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from pyctrd.registry.server import bodies, connections
from pyctrd.registry.server.answers import RefusedError
from pyctrd.registry.server.connections import Listener

Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    """What the server's own handler does around each request."""
    request.protocol.begin()  # type: ignore[attr-defined] # it is one of ours
    try:
        if request.method == "PUT":
            try:
                body = await bodies.read_limited(request, 1000)
            except RefusedError as error:
                return web.Response(status=error.status)
            return web.Response(body=body)
        await asyncio.sleep(0.2)
        return web.Response(text="here")
    finally:
        request.protocol.end()  # type: ignore[attr-defined]


def play(*clients: Client, most: int = 10) -> None:
    """Let clients meet a server."""

    async def meet() -> None:
        loop = asyncio.get_running_loop()
        listener = Listener(answer, most=most, loop=loop)
        server = await loop.create_server(listener, "127.0.0.1", 0)
        try:
            for client in clients:
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                async with asyncio.timeout(20):
                    await client(reader, writer)
                writer.close()
        finally:
            server.close()
            await listener.shutdown(1.0)

    asyncio.run(meet())


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "KEEP_ALIVE_SECONDS", 0.5)
    monkeypatch.setattr(bodies, "PROGRESS_SECONDS", 0.3)


async def ends(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is closed."""
    found = b""
    try:
        while came := await reader.read(65536):
            found += came
    except ConnectionResetError:
        pass
    return found


def test_who_says_nothing_is_let_go() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        assert await ends(reader) == b""

    play(silent)


def test_a_head_that_comes_byte_by_byte_is_cut_off() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended = asyncio.ensure_future(ends(reader))
        for byte in REQUEST:
            if ended.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)
        assert await ended == b""

    play(slow)


def test_an_answer_may_take_its_time_and_the_next_request_may_come() -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            writer.write(REQUEST)
            assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.2)
        assert await ends(reader) == b""  # it was kept for a while, and is closed then

    play(twice)


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nsome")
        assert (await ends(reader)).startswith(b"HTTP/1.1 408")

    play(stuck)


@pytest.mark.parametrize(("size", "status"), [(1000, b"200"), (1001, b"413")])
def test_a_document_has_its_limit(size: int, status: bytes) -> None:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"x" * size))
        assert (await ends(reader)).startswith(b"HTTP/1.1 " + status)

    play(send)


def test_connections_that_are_too_many_are_closed_at_once() -> None:
    async def one_too_many(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        assert await ends(reader) == b""

    play(one_too_many, most=0)
