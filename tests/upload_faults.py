"""A registry that takes uploads, and misbehaves on demand. What works is tested against docker-registry."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

_LISTEN_SECONDS = 0.02


@dataclass
class Upload:
    """What came of one blob."""

    content: bytearray = field(default_factory=bytearray)


class UploadRegistry:
    """Keeps in memory what it is sent.

    Attributes:
        host: ``127.0.0.1:port``.
        seen: ``METHOD path?query`` of every request, in order.
        blobs: Digest → bytes.
        manifests: ``repository:target`` → media type and bytes.
        cuts: Of the next bodies that are longer, after how many bytes the connection is ended.
        keeps: Whether what came of a body that was cut stands in the upload.
        body_max: A larger body is refused unread (413).
        chunk_min: What it says that chunks must have; 0 for nothing.
        statuses: What the next requests that change something are answered with, body unread.
        repositories: Those that a blob may be mounted from.
        says: A digest that it says of what it stored, in place of the true one.
        hides: Whether it knows its uploads' state.
        basic: Whether it asks for credentials, whichever.
        authorizations: What every request showed, None for nothing.
        base: What its locations begin with: a URL, or "" for paths.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.cuts: deque[int] = deque()
        self.keeps = True
        self.body_max: int | None = None
        self.chunk_min = 0
        self.statuses: deque[int] = deque()
        self.repositories: set[str] = set()
        self.says = ""
        self.hides = False
        self.base = ""
        self.basic = False
        self.authorizations: list[str | None] = []
        self.uploads: dict[str, Upload] = {}
        registry = self

        class Handler(_Handler):
            owner = registry

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LISTEN_SECONDS,), name="uploads")
        self._thread.start()

    def requests(self, method: str) -> list[str]:
        """Those of one method."""
        return [request for request in self.seen if request.startswith(f"{method} ")]

    def close(self) -> None:
        """Stop; idempotent."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is what some tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: UploadRegistry

    def _take(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.words = parts.path.strip("/").split("/")
        self.owner.seen.append(f"{self.command} {self.path}")
        self.owner.authorizations.append(self.headers.get("Authorization"))
        if self.owner.basic and self.headers.get("Authorization") is None:
            self._say(401, WWW_Authenticate='Basic realm="here"')
            return
        if self.command not in ("GET", "HEAD") and self.owner.statuses:
            self.close_connection = True
            self._say(self.owner.statuses.popleft())
            return
        getattr(self, f"_{self.command.lower()}")()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _take  # noqa: N815 - http.server looks methods up so

    def _say(self, status: int, body: bytes = b"", /, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, code: str) -> None:
        self._say(status, json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode())

    def _repository(self) -> str:
        at = next(n for n, word in enumerate(self.words) if word in ("blobs", "manifests", "referrers", "tags"))
        return "/".join(self.words[1:at])

    def _head(self) -> None:
        self._get()

    def _get(self) -> None:
        kind, name = self.words[-2:]
        if kind == "uploads":
            upload = self.owner.uploads.get(name)
            if upload is None or self.owner.hides:
                self._fail(404, "BLOB_UPLOAD_UNKNOWN")
            else:
                self._say(204, Location=self.path, Range=f"0-{max(0, len(upload.content) - 1)}")
        elif kind == "blobs" and name in self.owner.blobs:
            self._say(200, self.owner.blobs[name])
        elif kind == "manifests" and (found := self.owner.manifests.get(f"{self._repository()}:{name}")):
            digest = f"sha256:{hashlib.sha256(found[1]).hexdigest()}"
            self._say(200, found[1], Content_Type=found[0], Docker_Content_Digest=digest)
        else:
            self._fail(404, "NAME_UNKNOWN")

    def _post(self) -> None:
        if self.query.get("from") in self.owner.repositories and "mount" in self.query:
            self.owner.blobs.setdefault(self.query["mount"], b"")
            self._say(201, Location=self.path)
            return
        name = f"u{len(self.owner.uploads)}"
        self.owner.uploads[name] = Upload()
        location = f"{self.owner.base}/v2/{self._repository()}/blobs/uploads/{name}?state=s"
        self._say(202, Location=location, OCI_Chunk_Min_Length=str(self.owner.chunk_min))

    def _body(self, upload: Upload) -> bool:
        length = int(self.headers.get("Content-Length", "0"))
        if self.owner.body_max is not None and length > self.owner.body_max:
            self.close_connection = True
            self._fail(413, "SIZE_INVALID")
            return False
        cut = self.owner.cuts.popleft() if self.owner.cuts and length > self.owner.cuts[0] else None
        came = self.rfile.read(length if cut is None else cut)
        if cut is None or self.owner.keeps:
            upload.content += came
        if cut is not None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)
        return cut is None

    def _patch(self) -> None:
        upload = self.owner.uploads.get(self.words[-1])
        if upload is None:
            self._fail(404, "BLOB_UPLOAD_UNKNOWN")
            return
        start = self.headers.get("Content-Range", "0-").partition("-")[0]
        if int(start) != len(upload.content):
            self.rfile.read(int(self.headers["Content-Length"]))
            self._say(416, Range=f"0-{len(upload.content) - 1}")
        elif self._body(upload):
            self._say(202, Location=self.path, Range=f"0-{len(upload.content) - 1}")

    def _put(self) -> None:
        if self.words[-2] == "manifests":
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.owner.manifests[f"{self._repository()}:{self.words[-1]}"] = (self.headers["Content-Type"], body)
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            self.owner.manifests[f"{self._repository()}:{digest}"] = (self.headers["Content-Type"], body)
            self._say(201, Docker_Content_Digest=self.owner.says or digest)
            return
        upload = self.owner.uploads.get(self.words[-1])
        if upload is None:
            self._fail(404, "BLOB_UPLOAD_UNKNOWN")
        elif self._body(upload):
            digest = self.query["digest"]
            if hashlib.new(digest.partition(":")[0], upload.content).hexdigest() != digest.partition(":")[2]:
                self._fail(400, "DIGEST_INVALID")
                return
            self.owner.blobs[digest] = bytes(upload.content)
            self._say(201, Docker_Content_Digest=self.owner.says or digest)

    def _delete(self) -> None:
        self.owner.uploads.pop(self.words[-1], None)
        self._say(204)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the overridden method's name
        """Say nothing."""
