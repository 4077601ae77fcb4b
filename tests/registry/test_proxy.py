"""Proxies that the environment names: plain requests, tunnels for TLS, TLS within TLS, and what a proxy refuses."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from pyctrd.errors import RegistryError, UnavailableError, UnreachableError
from pyctrd.oci.reference import Reference
from pyctrd.registry import sockets
from pyctrd.registry.client import Client
from pyctrd.registry.transport import Transport
from tests.images import BuiltImage
from tests.registry.bodies import drain, layer_of
from tests.registry.raw import RawServer
from tests.registry_faults import FaultyRegistry

Certificates = tuple[Path, tuple[Path, Path]]
_PIECE_BYTES = 1 << 16


class TunnelProxy:
    """Answers CONNECT, and carries bytes then, for the length of a ``with`` block.

    Args:
        tls: Certificate and key, where it is talked to over TLS itself.

    Attributes:
        heads: The requests that came.
    """

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self._context = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*tls)
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, name="tunnel proxy")]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), name="tunnel proxy")
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(client.close)
            if self._context is not None:
                client = stack.enter_context(self._context.wrap_socket(client, server_side=True))
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.heads.append(head)
            name, _, port = head.split(b" ")[1].decode().rpartition(":")
            server = stack.enter_context(socket.create_connection((name, int(port))))
            client.sendall(b"HTTP/1.1 200 Go on\r\n\r\n")
            self._carry(client, server)

    @staticmethod
    def _carry(client: socket.socket, server: socket.socket) -> None:
        while True:
            ready = [client] if getattr(client, "pending", int)() else select.select([client, server], [], [])[0]
            for source in ready:
                piece = source.recv(_PIECE_BYTES)
                if not piece:
                    return
                (server if source is client else client).sendall(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_tls_goes_through_a_tunnel(
    certificates: Certificates, image: BuiltImage, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    ca, server = certificates
    with TunnelProxy(server if scheme == "https" else None) as proxy, FaultyRegistry(tls=server) as registry:
        monkeypatch.setenv("https_proxy", f"{scheme}://ada:s%20ecret@{proxy.host}")
        client = Client(ca=ca)
        reference = Reference.parse(registry.add(image, "app"))
        assert client.manifest(reference).descriptor.digest == image.digest
        assert drain(client.open_blob(reference, layer_of(image))) == image.layers[0].content
        client.close()
        pair = base64.b64encode(b"ada:s ecret").decode()
        assert [head.decode().splitlines()[:3] for head in proxy.heads] == [
            [f"CONNECT {registry.host} HTTP/1.1", f"Host: {registry.host}", f"Proxy-Authorization: Basic {pair}"]
        ]
        assert all("proxy-authorization" not in seen.headers for seen in registry.seen)


def test_closing_ends_a_read_through_two_layers_of_tls(
    certificates: Certificates, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.registry_faults import Answer

    ca, server = certificates
    with TunnelProxy(server) as proxy, FaultyRegistry(tls=server) as registry:
        monkeypatch.setenv("https_proxy", f"https://{proxy.host}")
        client = Client(ca=ca)
        reference, layer = Reference.parse(registry.add(image, "app")), layer_of(image)
        registry.lie(f"/blobs/{layer.digest}", Answer(200, body=b"12345", announced=layer.size))
        body = client.open_blob(reference, layer)
        assert body.readinto(memoryview(bytearray(5))) == 5
        caught: list[UnavailableError] = []

        def read() -> None:
            try:
                body.readinto(memoryview(bytearray(5)))
            except UnavailableError as error:
                caught.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        body.close()
        reader.join(10)
        assert not reader.is_alive()
        client.close()


def test_plain_requests_name_the_whole_url_to_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyRegistry() as proxy:
        monkeypatch.setenv("http_proxy", proxy.base.replace("http://", "http://ada:secret@"))
        transport = Transport()
        transport.request("GET", "http://u:p@registry.invalid:8080/v2/?a=b#c", headers={}, retry=False).close()
        transport.close()
        assert (proxy.seen[0].path, proxy.seen[0].query) == ("/v2/", {"a": "b"})
        assert proxy.seen[0].headers["host"] == "registry.invalid:8080"
        assert proxy.seen[0].headers["proxy-authorization"].startswith("Basic ")
        assert "authorization" not in proxy.seen[0].headers


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "Tunnel connection failed: 407 Proxy Auth"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "more than an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "invalid answer"),
        (None, "closed without an answer"),
    ],
)
def test_proxy_that_opens_no_tunnel_is_told(monkeypatch: pytest.MonkeyPatch, answer: bytes | None, told: str) -> None:
    with RawServer(answer, close=True) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("http://", "http://ada:s3cret@"))
        transport = Transport()
        with pytest.raises(UnavailableError, match=f"proxy failed: registry.invalid: {told}") as caught:
            transport.request("GET", "https://registry.invalid/v2/", headers={}, retry=False)
        transport.close()
        assert caught.value.hint == "look at HTTPS_PROXY and NO_PROXY"
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("named", ["socks5://127.0.0.1:1080", "http://", "http://host:99999", "http://[half"])
def test_proxy_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("https_proxy", named)
    transport = Transport()
    with pytest.raises(UnavailableError, match=r"proxy failed: registry\.invalid"):
        transport.request("GET", "https://registry.invalid/v2/", headers={}, retry=False)
    transport.close()


def test_proxy_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{port}")
    transport = Transport()
    with pytest.raises(UnavailableError, match=r"proxy failed: registry\.invalid: connection refused") as caught:
        transport.request("GET", "http://registry.invalid/v2/", headers={}, retry=False)
    transport.close()
    assert not isinstance(caught.value, UnreachableError)


def test_target_behind_a_tunnel_must_be_trusted(
    certificates: Certificates, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TunnelProxy() as proxy, FaultyRegistry(tls=certificates[1]) as registry:
        monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
        client = Client()
        with pytest.raises(RegistryError, match="TLS failed") as caught:
            client.manifest(Reference.parse(registry.add(image, "app")))
        client.close()
        assert not isinstance(caught.value, UnavailableError)
        assert not registry.seen


def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = closed.getsockname()
    with RawServer(b"HTTP/1.1 204 No Content\r\n\r\n") as server:
        alive = ("127.0.0.1", int(server.host.rpartition(":")[2]))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (dead, alive)]
        monkeypatch.setattr(sockets, "getaddrinfo", lambda *_: found)
        transport = Transport()
        assert transport.request("GET", "http://two.invalid/", headers={}, retry=False).status == 204
        transport.close()
        assert b"\r\nHost: two.invalid\r\n" in server.requests[0]
