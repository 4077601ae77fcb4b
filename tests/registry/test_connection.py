"""HTTP/1.1 from servers that bend it: heads, framing, connections that are used again, and what is never sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pyctrd import _core
from pyctrd.errors import InvalidError, RegistryError, UnavailableError
from pyctrd.registry import pool as pools
from pyctrd.registry.connection import (
    CHUNK_LINE_MAX_BYTES,
    HEAD_MAX_BYTES,
    INTERIM_MAX,
    TRAILERS_MAX_BYTES,
    Answer,
    ProtocolError,
    write_request,
)
from pyctrd.registry.transport import Transport
from tests.registry.raw import RawServer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MOST = 1 << 20


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport()
    yield made
    made.close()


def get(transport: Transport, server: RawServer, *, method: str = "GET") -> Answer:
    return transport.request(method, f"{server.url}/path", headers={}, retry=False)


def body_of(transport: Transport, server: RawServer) -> bytes:
    with get(transport, server) as answer:
        return answer.read(MOST)


# heads


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\n",
        b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200\r\nCONTENT-LENGTH:2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_head_is_read_however_it_comes(transport: Transport, head: bytes, in_pieces: bool) -> None:  # noqa: FBT001 - a parameter
    whole = head + b"ok"
    pieces = tuple(whole[i : i + 1] for i in range(len(whole))) if in_pieces else (whole,)
    with RawServer(pieces) as server:
        answer = get(transport, server)
        assert (answer.status, answer.headers["content-length"], answer.read(MOST)) == (200, "2", b"ok")


def test_fields_of_one_name_are_joined_and_every_byte_is_kept(transport: Transport) -> None:
    fields = b"WWW-Authenticate: Negotiate\r\nWWW-Authenticate: Basic realm=\xe9\r\nContent-Length: 0\r\n"
    with RawServer(b"HTTP/1.1 401 No\r\n" + fields + b"\r\n") as server:
        answer = get(transport, server)
        assert answer.headers["www-authenticate"] == "Negotiate, Basic realm=é"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"220 mail.example ESMTP\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16\n\n",
        b"HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 129 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * (HEAD_MAX_BYTES + 8192),
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * (INTERIM_MAX + 1),
        b"HTTP/1.1 200 O",
        b"",
    ],
)
def test_what_is_no_head_is_refused(transport: Transport, head: bytes) -> None:
    with RawServer(head, close=True) as server, pytest.raises(UnavailableError, match="connection broke"):
        get(transport, server)


# framing


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: 2, 3\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 0x2\r\n",
        b"Content-Length: 2 2\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: \xb2\r\n",
        b"Content-Length: 9999999999999999999\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: identity\r\n",
    ],
)
def test_length_that_can_be_read_in_two_ways_is_refused(transport: Transport, fields: bytes) -> None:
    with (
        RawServer(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\nok", close=True) as server,
        pytest.raises(UnavailableError, match="be relied on"),
    ):
        get(transport, server)


def test_chunks_from_http_1_0_are_refused(transport: Transport) -> None:
    with RawServer(CHUNKED.replace(b"/1.1", b"/1.0"), close=True) as server, pytest.raises(UnavailableError):
        get(transport, server)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (b"0\r\n\r\n", b""),
        (b"2\r\nok\r\n0\r\n\r\n", b"ok"),
        (b"002 ;name=value\r\nok\r\n0;last\r\nTrailer: x\r\nOther: y\r\n\r\n", b"ok"),
        (b"A\r\n0123456789\r\nb\r\n\r\n0\r\n\r\n1\r\n0\r\n00\r\n\r\n", b"0123456789\r\n0\r\n\r\n1\r\n0"),
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_chunks_are_put_together(transport: Transport, chunks: bytes, expected: bytes, in_pieces: bool) -> None:  # noqa: FBT001 - a parameter
    pieces = tuple(chunks[i : i + 1] for i in range(len(chunks))) if in_pieces else (chunks,)
    with RawServer((CHUNKED, *pieces), OK) as server:
        assert body_of(transport, server) == expected
        assert body_of(transport, server) == b"ok"
        assert server.connections == 1


@pytest.mark.parametrize(
    "chunks",
    [
        b"",
        b"2",
        b"2\r\no",
        b"2\r\nok",
        b"2\r\nok\r\n",
        b"2\r\nok\r\n0\r\n",
        b"2\r\nok\r\n0\r\nTrailer: x\r\n",
        b"2\r\nokay\r\n0\r\n\r\n",
        b"2\r\nok0\r\n\r\n",
        b"2\nok\n0\n\n",
        b"\r\nok\r\n0\r\n\r\n",
        b"-2\r\nok\r\n0\r\n\r\n",
        b"+2\r\nok\r\n0\r\n\r\n",
        b"0x2\r\nok\r\n0\r\n\r\n",
        b"1_0\r\nok\r\n0\r\n\r\n",
        b" 2\r\nok\r\n0\r\n\r\n",
        b"\xb2\r\nok\r\n0\r\n\r\n",
        b"f" * 16 + b"\r\nok\r\n0\r\n\r\n",
        b"2;" + b"x" * CHUNK_LINE_MAX_BYTES + b"\r\nok\r\n0\r\n\r\n",
        b"2;" + b"x" * 2 * CHUNK_LINE_MAX_BYTES,
        b"0\r\n" + b"Trailer: x\r\n" * TRAILERS_MAX_BYTES + b"\r\n",
    ],
)
def test_chunks_that_are_none_break_the_body(transport: Transport, chunks: bytes) -> None:
    with RawServer(CHUNKED + chunks, close=True) as server, pytest.raises(ProtocolError):
        body_of(transport, server)


def test_body_without_a_length_ends_with_its_connection(transport: Transport) -> None:
    with RawServer((b"HTTP/1.1 200 OK\r\n\r\n", b"o", b"k"), close=True) as server:
        assert body_of(transport, server) == b"ok"


def test_body_that_ends_before_its_length_is_broken(transport: Transport) -> None:
    with RawServer(OK.replace(b"2", b"3", 1).replace(b": 2", b": 3"), close=True) as server:
        answer = get(transport, server)
        with pytest.raises(ProtocolError, match="closed"):
            answer.read(MOST)
        answer.close()


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", CHUNKED),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ],
)
def test_answers_that_never_have_a_body_have_none(transport: Transport, method: str, head: bytes) -> None:
    with RawServer(head, OK) as server:
        assert get(transport, server, method=method).read(MOST) == b""
        assert body_of(transport, server) == b"ok"
        assert server.connections == 1


# connections that are used again


def test_connection_is_used_again_after_a_whole_body(transport: Transport) -> None:
    with RawServer(OK, OK, OK) as server:
        assert [body_of(transport, server) for _ in range(3)] == [b"ok"] * 3
        assert server.connections == 1


def test_connection_with_an_unread_body_carries_no_other(transport: Transport) -> None:
    with RawServer(OK, OK) as server:
        get(transport, server).close()
        assert body_of(transport, server) == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize(
    "first",
    [
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
        OK.replace(b"200 OK", b"200 OK\r\nConnection: Close"),
        OK.replace(b"200 OK", b"200 OK\r\nConnection: x, close"),
        OK.replace(b"/1.1", b"/1.0"),
    ],
)
def test_connection_that_is_no_good_afterwards_is_not_used_again(transport: Transport, first: bytes) -> None:
    with RawServer(first, OK) as server:
        assert body_of(transport, server) == b"ok"
        assert body_of(transport, server) == b"ok"
        assert server.connections == 2


def test_http_1_0_may_keep_its_connection(transport: Transport) -> None:
    with RawServer(OK.replace(b"1.1 200 OK", b"1.0 200 OK\r\nConnection: keep-alive"), OK) as server:
        assert [body_of(transport, server) for _ in range(2)] == [b"ok"] * 2
        assert server.connections == 1


def test_connection_that_was_closed_while_idle_is_replaced(transport: Transport) -> None:
    with RawServer(OK, OK) as server:
        body_of(transport, server)
        server.hang_up()
        assert body_of(transport, server) == b"ok"
        assert server.connections == 2


def test_request_on_a_connection_that_ends_just_then_is_sent_once_more(transport: Transport) -> None:
    with RawServer(OK, None, OK, None, None) as server:
        body_of(transport, server)
        assert body_of(transport, server) == b"ok"
        assert (len(server.requests), server.connections) == (3, 2)
        with pytest.raises(UnavailableError, match="closed without an answer"):
            body_of(transport, server)
        assert len(server.requests) == 5


def test_form_is_never_sent_twice(transport: Transport) -> None:
    with RawServer(OK, None) as server:
        body_of(transport, server)
        with pytest.raises(UnavailableError):
            transport.post(f"{server.url}/token", {"a": "b c"})
        assert server.requests[1].startswith(b"POST /token HTTP/1.1\r\n")
        assert b"\r\nContent-Length: 5\r\n" in server.requests[1]
        assert (len(server.requests), server.connections) == (2, 2)


def test_closed_transport_keeps_no_connection() -> None:
    transport = Transport()
    with RawServer(OK, OK) as server:
        answer = get(transport, server)
        transport.close()
        assert answer.read(MOST) == b"ok"
        assert body_of(transport, server) == b"ok"
        assert server.connections == 2


# silence and its end


def test_silence_is_told(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "READ_TIMEOUT_SECONDS", 0.05)
    with RawServer(b"HTTP/1.1 200", (OK[:-1],)) as server:
        with pytest.raises(UnavailableError, match=f"no answer: {server.host}: nothing in 0 seconds"):
            get(transport, server)
        answer = get(transport, server)
        with pytest.raises(TimeoutError):
            answer.read(MOST)
        answer.close()


def test_closing_ends_a_read_that_waits(transport: Transport) -> None:
    with RawServer(OK[:-1]) as server:
        answer = get(transport, server)
        block = memoryview(bytearray(1))
        assert answer.readinto(block) == 1
        began = threading.Event()
        caught: list[BaseException] = []

        def read() -> None:
            began.set()
            try:
                answer.readinto(block)
            except (OSError, ProtocolError) as error:
                caught.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        assert began.wait(10)
        answer.close()
        reader.join(10)
        assert not reader.is_alive()
        assert len(caught) == 1
        with pytest.raises(ProtocolError, match="closed"):
            answer.readinto(block)


# what goes out


@pytest.mark.parametrize("bad", ["a\r\nX: y", "a\nb", "a\rb", "a\0b", "a\x7fb", "ä", "a\u2028b"])
def test_what_would_end_a_line_is_never_sent(transport: Transport, bad: str) -> None:
    with pytest.raises(ProtocolError):
        write_request("GET", "/", {"Name": bad})
    with pytest.raises(ProtocolError):
        write_request("GET", "/", {bad: "value"})
    with pytest.raises(ProtocolError):
        write_request("GET", f"/{bad}", {})
    with RawServer(OK) as server:
        with pytest.raises(RegistryError, match="invalid request"):
            transport.request("GET", server.url, headers={"Authorization": bad}, retry=False)
        assert not server.requests


@pytest.mark.parametrize("target", ["", "/a b", " /"])
def test_target_that_would_end_the_request_line_is_never_sent(target: str) -> None:
    with pytest.raises(ProtocolError):
        write_request("GET", target, {})


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        (b"/a%20b?c=%2F&d=e+f", b"/a%20b?c=%2F&d=e+f"),
        (b'/a b"<>?x={y}|z', b"/a%20b%22%3C%3E?x=%7By%7D%7Cz"),
        ("/bücher".encode(), b"/b%C3%BCcher"),
        (b"/b\xfccher", b"/b%C3%BCcher"),
        (b"?only=query#fragment", b"/path?only=query"),
        (b"//user:password@HOST/x", b"/x"),
    ],
)
def test_redirect_is_asked_for_as_a_url_is_written(transport: Transport, location: bytes, asked: bytes) -> None:
    server: RawServer
    with RawServer(OK) as target, RawServer() as server:
        location = location.replace(b"HOST", target.host.encode())
        server._answers.extend([b"HTTP/1.1 307 There\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n", OK])
        plain = [target.host]
        answer = transport.request("GET", f"{server.url}/path", headers={}, plain_hosts=plain, retry=False)
        assert answer.read(MOST) == b"ok"
        last = (server.requests + target.requests)[-1]
        assert last.split(b" ")[1] == asked
        assert b"password" not in last


@pytest.mark.parametrize(
    "url", ["http://a b/", "http://a\x01b/", "http://h/a\x00b", "ftp://h/", "http:///x", "http://h:99999/"]
)
def test_url_that_leads_nowhere_is_refused(transport: Transport, url: str) -> None:
    with pytest.raises(RegistryError, match="invalid URL"):
        transport.request("GET", url, headers={}, retry=False)


def test_host_is_named_as_dns_has_it(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(OK, OK) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        for url in ("http://bücher.example/x", "http://[2001:db8::1]:8080/x"):
            assert transport.request("GET", url, headers={}, retry=False).read(MOST) == b"ok"
        first, second = proxy.requests
        assert first.startswith(b"GET http://xn--bcher-kva.example/x HTTP/1.1\r\nHost: xn--bcher-kva.example\r\n")
        assert second.startswith(b"GET http://[2001:db8::1]:8080/x HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n")


def test_the_native_parser_reads_whole_heads_only() -> None:
    head = _core.parse_response_head(b"HTTP/1.0 404 Not Found\r\nA: b\r\nA:  c \r\n\r\nrest")
    assert head is not None
    assert (head.size, head.minor_version, head.status, head.reason) == (40, 0, 404, "Not Found")
    assert head.fields == [("a", "b"), ("a", "c")]
    assert _core.parse_response_head(b"HTTP/1.1 200 OK\r\nA: b\r\n") is None
    with pytest.raises(InvalidError):
        _core.parse_response_head(b"no HTTP\r\n\r\n")
