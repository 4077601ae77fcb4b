"""The store as a registry before clients that mean ill: it stays up, serves others, and its memory stays as it was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctrd.registry.server import bodies, connections
from tests.integration.conftest import command
from tests.serving import ask, begin, put_blob, sha256

# Of many connections, what each may take at the most.
CONNECTION_MAX_KIB = 64
PAUSE_SECONDS = 0.05


class Served:
    """``pyctrd serve registry`` in a process of its own: its memory is nobody else's."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            command("--json", "serve", "registry", "-q", "--listen", "127.0.0.1:0", "--anonymous", "push"),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address: str = json.loads(self._process.stdout.readline())["address"]

    @property
    def resident_kib(self) -> int:
        """Memory that it has now."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def connect(self) -> socket.socket:
        """A connection to it."""
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def say(self, content: bytes) -> bytes:
        """Send something, and read until the connection is closed or nothing comes for a moment."""
        with self.connect() as connection:
            connection.sendall(content)
            connection.settimeout(1.0)
            found = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while came := connection.recv(65536):
                    found += came
            return found

    def end(self) -> int:
        """Its exit status."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=60)
        return self._process.returncode


@pytest.fixture(name="served")
def _served(state: Path) -> Iterator[Served]:
    del state
    served = Served()
    yield served
    assert ask(served.address, "GET", "/healthz").status == 200
    assert served.end() == 0


SMUGGLED = b"GET /v2/smuggled/tags/list HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"X: a\r\n Transfer-Encoding: chunked\r\n",
        b"X: a\nTransfer-Encoding: chunked\r\n",
        b"X: a\0b\r\n",
    ],
)
def test_what_could_be_read_as_two_requests_is_read_as_one_or_none(served: Served, head: bytes) -> None:
    request = b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n0\r\n\r\n" + SMUGGLED
    answers = served.say(request)
    # Nothing answers the second: whoever stands in front took it for the body of the first.
    assert b"smuggled" not in answers
    assert answers.count(b"HTTP/1.1 ") <= 1 or answers.startswith(b"HTTP/1.1 400") or b" 400 " in answers


@pytest.mark.parametrize(
    "chunks",
    [b"5;x=y\r\nabcde\r\n0\r\n\r\n", b"5\r\nabcde\r\n0\r\nTrailer: x\r\n\r\n"],
)
def test_chunks_are_read_as_they_should_be(served: Served, chunks: bytes) -> None:
    path = begin(served.address, "app")
    request = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks
    assert b"HTTP/1.1 202" in served.say(request)
    assert ask(served.address, "GET", path).headers["range"] == "0-4"


@pytest.mark.parametrize(
    "chunks", [b"ffffffffffffffffff\r\nx", b"-1\r\nx", b"5\nabcde", b"0x5\r\nabcde", b"5 \r\nabcdeXX0\r\n"]
)
def test_wrong_chunks_are_refused(served: Served, chunks: bytes) -> None:
    path = begin(served.address, "app")
    request = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks
    assert b"HTTP/1.1 202" not in served.say(request)
    assert ask(served.address, "GET", "/v2/").status == 200


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v2/../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/app/blobs/uploads/../../../pyctrd.db HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/a/%2e%2e/%2e%2e/blobs/sha256:" + b"a" * 64 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/" + b"a" * 9000 + b"/tags/list HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 10_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        os.urandom(4096),
        b"\r\n" * 5000,
    ],
)
def test_what_is_no_request_of_ours_is_refused(served: Served, request_line: bytes) -> None:
    answers = served.say(request_line)
    assert b"HTTP/1.1 200" not in answers
    assert b"root:" not in answers


def test_a_thousand_idle_connections_hold_up_nobody(served: Served) -> None:
    put_blob(served.address, "app", b"content")
    before = served.resident_kib
    with contextlib.ExitStack() as held:
        for number in range(1000):
            connection = held.enter_context(served.connect())
            if number % 2:
                connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ")  # a head that never ends
        began = time.monotonic()
        for _ in range(20):
            assert ask(served.address, "GET", f"/v2/app/blobs/{sha256(b'content')}").body == b"content"
        assert time.monotonic() - began < 10
        assert served.resident_kib - before < 1000 * CONNECTION_MAX_KIB


def test_slow_readers_take_no_memory(served: Served) -> None:
    content = os.urandom(32 << 20)
    digest = put_blob(served.address, "app", content)
    before = served.resident_kib
    request = f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with contextlib.ExitStack() as held:
        for _ in range(50):
            held.enter_context(served.connect()).sendall(request)
        assert ask(served.address, "GET", f"/v2/app/blobs/{digest}").body == content
        assert served.resident_kib - before < 50 * 1024


def test_slow_writers_take_little_memory_and_hold_up_nobody(served: Served) -> None:
    put_blob(served.address, "app", b"content")
    paths = [begin(served.address, f"app-{number}") for number in range(100)]
    before = served.resident_kib
    with contextlib.ExitStack() as held:
        for path in paths:
            connection = held.enter_context(served.connect())
            connection.sendall(
                f"PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".encode() + b"x" * 1000
            )
        assert ask(served.address, "GET", f"/v2/app/blobs/{sha256(b'content')}").body == b"content"
        assert put_blob(served.address, "other", b"other") == sha256(b"other")
        assert served.resident_kib - before < 100 * 512


def test_a_blob_of_many_bytes_is_never_in_memory(served: Served) -> None:
    content = os.urandom(1 << 20) * 200
    put_blob(served.address, "warm", b"warm")
    before = served.resident_kib
    digest = put_blob(served.address, "app", content)
    assert len(ask(served.address, "GET", f"/v2/app/blobs/{digest}").body) == len(content)
    assert served.resident_kib - before < 24 * 1024


def test_a_connection_that_sends_no_request_is_closed(served: Served) -> None:
    # The constants are looked at, not waited for.
    assert connections.HEAD_SECONDS <= 30
    assert connections.KEEP_ALIVE_SECONDS <= 120
    assert bodies.PROGRESS_SECONDS <= 120
    assert ask(served.address, "GET", "/v2/").status == 200


def test_a_body_that_nobody_wants_is_not_read_to_its_end(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"PUT /v2/A/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n")
        connection.settimeout(30)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while True:
                connection.sendall(b"x" * 65536)
                assert time.monotonic() - began < 4 * connections.LINGER_SECONDS
                time.sleep(PAUSE_SECONDS)


def test_a_compressed_body_is_refused(served: Served) -> None:
    path = begin(served.address, "app")
    refused = ask(served.address, "PATCH", path, b"x", {"Content-Encoding": "gzip"})
    assert (refused.status, refused.codes) == (415, ["UNSUPPORTED"])


def test_what_is_sent_under_the_wrong_digest_never_has_its_name(served: Served) -> None:
    content, wrong = b"content", sha256(b"another")
    for method, path in (("POST", "/v2/app/blobs/uploads/"), ("PUT", begin(served.address, "app"))):
        assert ask(served.address, method, f"{path}?digest={wrong}", content).codes == ["DIGEST_INVALID"]
    for digest in (wrong, sha256(content)):
        assert ask(served.address, "HEAD", f"/v2/app/blobs/{digest}").status == 404
