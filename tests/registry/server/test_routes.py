"""Paths of requests: what each asks for, and what is refused before anything is looked up."""

from __future__ import annotations

import pytest

from pyctrd.errors import InvalidError
from pyctrd.registry.server.answers import RefusedError, refusal_of
from pyctrd.registry.server.routes import Route, find_route

DIGEST = "sha256:" + "a" * 64
LONG = "sha512:" + "b" * 128
UPLOAD = "0" * 32


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v2/", Route("base")),
        ("GET", "/v2", Route("base")),
        ("GET", "/v2/_catalog?n=3", Route("catalog")),
        ("GET", "/token?scope=repository:a:pull", Route("token")),
        ("GET", "/healthz", Route("health")),
        ("GET", "/metrics", Route("metrics")),
        ("GET", "/v2/a/manifests/1.0", Route("manifests", "a", "1.0")),
        ("PUT", f"/v2/a/b/c/manifests/{LONG}", Route("manifests", "a/b/c", LONG)),
        ("HEAD", f"/v2/a/blobs/{DIGEST}", Route("blobs", "a", DIGEST)),
        ("GET", f"/v2/a/blobs/{DIGEST.replace(':', '%3A')}", Route("blobs", "a", DIGEST)),
        ("POST", "/v2/a/blobs/uploads/?mount=x", Route("uploads", "a")),
        ("PATCH", f"/v2/a/blobs/uploads/{UPLOAD}", Route("upload", "a", UPLOAD)),
        ("GET", f"/v2/a/referrers/{DIGEST}", Route("referrers", "a", DIGEST)),
        ("GET", "/v2/docker.io/library/alpine/tags/list", Route("tags", "docker.io/library/alpine")),
        # Words of the API may be names too.
        ("GET", "/v2/manifests/tags/manifests/list", Route("manifests", "manifests/tags", "list")),
        ("GET", "/v2/blobs/uploads/tags/list", Route("tags", "blobs/uploads")),
    ],
)
def test_a_path_says_what_is_asked_for(method: str, path: str, expected: Route) -> None:
    assert find_route(method, path) == expected


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/", 404, "NAME_UNKNOWN"),
        ("/v1/", 404, "NAME_UNKNOWN"),
        ("/v2/a", 404, "NAME_UNKNOWN"),
        ("/v2//manifests/1", 404, "NAME_UNKNOWN"),
        ("/v2/../manifests/1", 400, "NAME_INVALID"),
        ("/v2/a/../b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a/%2e%2e/%2e%2e/etc/manifests/1", 400, "NAME_INVALID"),
        ("/v2/..%2f..%2fetc/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a%00b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a%0d%0ab/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a%ff/manifests/1", 400, "NAME_INVALID"),
        ("/v2/A/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a//b/manifests/1", 400, "NAME_INVALID"),
        (f"/v2/{'a' * 256}/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a/manifests/..", 400, "TAG_INVALID"),
        ("/v2/a/manifests/-x", 400, "TAG_INVALID"),
        (f"/v2/a/manifests/{'x' * 129}", 400, "TAG_INVALID"),
        ("/v2/a/manifests/sha256:abc", 400, "DIGEST_INVALID"),
        ("/v2/a/manifests/md5:" + "a" * 32, 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/sha256:" + "A" * 64, 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/..", 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/uploads/..", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("/v2/a/blobs/uploads/..%2f..%2fpyctrd.db", 404, "NAME_UNKNOWN"),
        ("/v2/a/blobs/uploads/" + "A" * 32, 404, "BLOB_UPLOAD_UNKNOWN"),
        ("/v2/" + "a/" * 2000, 414, "NAME_INVALID"),
    ],
)
def test_what_is_no_path_is_refused_with_its_code(path: str, status: int, code: str) -> None:
    with pytest.raises((RefusedError, InvalidError)) as caught:
        find_route("GET", path)
    refused = refusal_of(caught.value)
    assert refused is not None
    assert (refused.status, refused.code) == (status, code)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v2/", "GET, HEAD"),
        ("PUT", f"/v2/a/blobs/{DIGEST}", "GET, HEAD, DELETE"),
        ("GET", "/v2/a/blobs/uploads/", "POST"),
        ("POST", f"/v2/a/blobs/uploads/{UPLOAD}", "GET, PATCH, PUT, DELETE"),
        ("TRACE", "/v2/a/tags/list", "GET, HEAD"),
    ],
)
def test_another_method_is_refused_and_told_which_there_are(method: str, path: str, allowed: str) -> None:
    with pytest.raises(RefusedError) as caught:
        find_route(method, path)
    assert (caught.value.status, caught.value.headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("GET", "/v2/a/manifests/1", "pull"),
        ("HEAD", f"/v2/a/blobs/{DIGEST}", "pull"),
        ("PUT", "/v2/a/manifests/1", "push"),
        ("DELETE", "/v2/a/manifests/1", "delete"),
        ("POST", "/v2/a/blobs/uploads/", "push"),
        ("GET", f"/v2/a/blobs/uploads/{UPLOAD}", "push"),
        ("DELETE", f"/v2/a/blobs/uploads/{UPLOAD}", "push"),
    ],
)
def test_a_route_says_what_a_client_must_be_allowed(method: str, path: str, action: str) -> None:
    assert find_route(method, path).action(method) == action
