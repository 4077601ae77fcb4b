"""A registry over a store, and one request at a time to it."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.images import Blob, BuiltImage

DEADLINE_SECONDS = 60.0
OCTETS = "application/octet-stream"


@dataclass(frozen=True)
class Answered:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def codes(self) -> list[str]:
        """The codes of an error."""
        return [error["code"] for error in json.loads(self.body)["errors"]]

    @property
    def document(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def ask(
    address: str,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    chunked: bool = False,
    tls: ssl.SSLContext | None = None,
) -> Answered:
    """One request on a connection of its own."""
    if tls is None:
        connection = http.client.HTTPConnection(address, timeout=DEADLINE_SECONDS)
    else:
        connection = http.client.HTTPSConnection(address, timeout=DEADLINE_SECONDS, context=tls)
    try:
        connection.request(method, path, body, dict(headers or {}), encode_chunked=chunked)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answered(answer.status, found, answer.read())
    finally:
        connection.close()


def sha256(content: bytes) -> str:
    """Its digest."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def put_blob(address: str, name: str, content: bytes, headers: Mapping[str, str] | None = None) -> str:
    """Send a blob, whole; its digest."""
    digest = sha256(content)
    found = ask(address, "POST", f"/v2/{name}/blobs/uploads/?digest={digest}", content, headers)
    assert found.status == 201, found.body
    return digest


def put_manifest(
    address: str, name: str, target: str, manifest: Blob, headers: Mapping[str, str] | None = None
) -> Answered:
    """Send a manifest under a tag or its digest."""
    typed = {"Content-Type": manifest.media_type, **(headers or {})}
    return ask(address, "PUT", f"/v2/{name}/manifests/{target}", manifest.content, typed)


def put_image(
    address: str, name: str, image: BuiltImage, tag: str = "", headers: Mapping[str, str] | None = None
) -> str:
    """Send an image, or an index with its images; its digest."""
    for child in image.children:
        put_image(address, name, child, headers=headers)
    for blob in image.blobs:
        put_blob(address, name, blob.content, headers)
    found = put_manifest(address, name, tag or image.digest, image.manifest, headers)
    assert found.status == 201, found.body
    return found.headers["docker-content-digest"]


def begin(address: str, name: str, headers: Mapping[str, str] | None = None) -> str:
    """Begin an upload: its path."""
    found = ask(address, "POST", f"/v2/{name}/blobs/uploads/", headers=headers)
    assert found.status == 202, found.body
    return urlsplit(found.headers["location"]).path
