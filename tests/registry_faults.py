"""A registry that misbehaves on demand. For lies only: what works is tested against docker-registry."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import socket
import ssl
import subprocess
import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from tests.images import Blob, BuiltImage


@dataclass(frozen=True)
class Answer:
    """What the registry says instead of the truth.

    Attributes:
        status: HTTP status.
        body: Sent after the headers; None sends the true body.
        headers: Beside, or instead of, the true ones.
        announced: Content-Length, where it is not the body's.
        cut: Close the connection after so many bytes of the body.
        chunked: Send without a Content-Length.
        garbled: Send other bytes, as many.
        of_parts: Where bytes from one to another are asked for; what else is asked for meanwhile is told the truth.
        stall: Send half of the body, set ``stalled``, and go on when this is set (or the registry closes).
        stall_after: Bytes of the body before it stands still, where they are not its half.
    """

    status: int = 200
    body: bytes | None = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    announced: int | None = None
    cut: int | None = None
    chunked: bool = False
    garbled: bool = False
    of_parts: bool = False
    stall: threading.Event | None = None
    stall_after: int | None = None


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


class FaultyRegistry:
    """Serves images and tells lies about them when told to.

    Args:
        tls: Certificate and key to serve with; plain HTTP without.

    Attributes:
        host: ``127.0.0.1:port``.
        seen: All requests, in order.
        basic: ``(user, password)`` that every request must show, or None.
        tokens: Valid bearer tokens; None where none are asked for.
        token_fields: What the token endpoint adds to its answers.
        stalled: Set when an answer stands still.
    """

    def __init__(self, *, tls: tuple[Path, Path] | None = None) -> None:
        self.seen: list[Seen] = []
        self.basic: tuple[str, str] | None = None
        self.tokens: set[str] | None = None
        self.token_fields: dict[str, Any] = {}
        self.stalled = threading.Event()
        self._stalls: list[threading.Event] = []
        self._blobs: dict[str, Blob] = {}
        self._faults: dict[str, deque[Answer]] = defaultdict(deque)
        self._issued = 0
        self._tls = tls is not None
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.context = context
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="faulty registry")
        self._thread.start()

    @property
    def base(self) -> str:
        """Its URL."""
        return f"http{'s' if self._tls else ''}://{self.host}"

    def add(self, image: BuiltImage, repository: str, *, tag: str = "latest") -> str:
        """Serve an image; returns its reference."""
        self.add_manifest(image.manifest, repository, tag=tag)
        for blob in image.blobs:
            self._blobs[f"/v2/{repository}/blobs/{blob.digest}"] = blob
        return f"{self.host}/{repository}:{tag}"

    def add_manifest(self, manifest: Blob, repository: str, *, tag: str = "latest") -> str:
        """Serve a document as a manifest, whatever it is."""
        for target in (tag, manifest.digest):
            self._blobs[f"/v2/{repository}/manifests/{target}"] = manifest
        return f"{self.host}/{repository}:{tag}"

    def lie(self, path: str, *answers: Answer) -> None:
        """Give these answers, once each, to the next requests for a path (or for what ends with it)."""
        with self._lock:
            self._faults[path].extend(answers)
            self._stalls += [answer.stall for answer in answers if answer.stall is not None]

    def require_tokens(self) -> None:
        """From now on ask for a bearer token."""
        self.tokens = set()

    def requests(self, part: str) -> list[Seen]:
        """Those whose path has ``part`` in it."""
        return [request for request in self.seen if part in request.path]

    def close(self) -> None:
        """Stop, and end every connection; idempotent."""
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            for stall in self._stalls:
                stall.set()
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        registry = self

        class Handler(_Handler):
            owner = registry

        return Handler

    def _next_fault(self, request: Seen) -> Answer | None:
        is_part = request.headers.get("range", "-")[-1] != "-"
        with self._lock:
            for suffix, answers in self._faults.items():
                if answers and request.path.endswith(suffix) and (is_part or not answers[0].of_parts):
                    return answers.popleft()
        return None

    def _true_answer(self, request: Seen) -> Answer:
        if request.path == "/token":
            return self._issue_token()
        if (refusal := self._refusal(request)) is not None:
            return refusal
        blob = self._blobs.get(request.path)
        if blob is None:
            body = {"errors": [{"code": "NAME_UNKNOWN", "message": "repository name not known to registry"}]}
            return Answer(404, json.dumps(body).encode(), {"Content-Type": "application/json"})
        headers = {"Content-Type": blob.media_type, "Docker-Content-Digest": blob.digest}
        wanted = request.headers.get("range", "")
        if wanted:
            size = len(blob.content)
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else size
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            return Answer(206, blob.content[start:end], headers)
        return Answer(200, blob.content, headers)

    def _issue_token(self) -> Answer:
        with self._lock:
            self._issued += 1
            token = f"token-{self._issued}"
            if self.tokens is not None:
                self.tokens.add(token)
        return Answer(200, json.dumps({"token": token} | self.token_fields).encode())

    def _refusal(self, request: Seen) -> Answer | None:
        shown = request.headers.get("authorization", "")
        if self.basic is not None:
            pair = base64.b64encode(":".join(self.basic).encode()).decode()
            if shown != f"Basic {pair}":
                return Answer(401, headers={"WWW-Authenticate": 'Basic realm="faulty"'})
        if self.tokens is not None and shown.removeprefix("Bearer ") not in self.tokens:
            repository = request.path.split("/")[2]
            challenge = (
                f'Bearer realm="{self.base}/token",service="faulty",scope="repository:{repository}:pull"'
                f',error="invalid_token"'
            )
            return Answer(401, headers={"WWW-Authenticate": challenge})
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    context: ssl.SSLContext | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is what half of the tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultyRegistry

    def setup(self) -> None:
        if (context := self.server.context) is not None:  # type: ignore[attr-defined] # always a _Server
            # Here and not at accept: a client that does not shake hands must not stop the others.
            self.request = context.wrap_socket(self.request, server_side=True)
        super().setup()
        with self.owner._lock:
            self.owner._connections.add(self.request)

    def finish(self) -> None:
        super().finish()
        with self.owner._lock:
            self.owner._connections.discard(self.request)
        self.request.close()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Seen(self.command, parts.path, dict(parse_qsl(parts.query)), headers, body)
        self.owner.seen.append(request)
        truth = self.owner._true_answer(request)
        self._send(self.owner._next_fault(request) or truth, truth)

    def _send(self, answer: Answer, truth: Answer) -> None:
        body = (truth.body if answer.body is None else answer.body) or b""
        if answer.garbled:
            body = bytes(len(body))
        headers = dict(answer.headers) if answer.body is not None else {**truth.headers, **answer.headers}
        if answer.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body) if answer.announced is None else answer.announced)
        # The true body may be a part only: then that is said.
        self.send_response(truth.status if answer.body is None and answer.status == 200 else answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        sent = body if answer.cut is None else body[: answer.cut]
        if answer.chunked:
            sent = b"%x\r\n%s\r\n" % (len(body), sent) + (b"" if answer.cut is not None else b"0\r\n\r\n")
        if self.command != "HEAD":
            self._write(sent, answer)
        if answer.cut is not None:
            self.close_connection = True

    def _write(self, content: bytes, answer: Answer) -> None:
        if answer.stall is None:
            self.wfile.write(content)
            return
        half = len(content) // 2 if answer.stall_after is None else answer.stall_after
        self.wfile.write(content[:half])
        self.wfile.flush()
        self.owner.stalled.set()
        answer.stall.wait()
        self.wfile.write(content[half:])

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815 - http.server looks methods up by these names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the overridden method's name
        """Say nothing."""


def make_certificates(directory: Path) -> tuple[Path, tuple[Path, Path]]:
    """An authority of its own, and a certificate of 127.0.0.1 that it signed: ``(ca, (certificate, key))``."""
    directory.mkdir(parents=True, exist_ok=True)
    ca, ca_key, key, request, certificate, extensions = (
        directory / name for name in ("ca.pem", "ca.key", "server.key", "server.csr", "server.pem", "extensions")
    )
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    # What Python 3.13 looks for in an authority (RFC 5280, section 4.2.1).
    authority = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for arguments in (
        [
            "req",
            "-x509",
            *curve,
            *authority,
            "-keyout",
            ca_key,
            "-out",
            ca,
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
        ],
        ["req", *curve, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1"],
        [
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            ca,
            "-CAkey",
            ca_key,
            "-CAcreateserial",
            "-out",
            certificate,
            "-days",
            "2",
            "-extfile",
            extensions,
        ],
    ):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=directory)
    return ca, (certificate, key)
