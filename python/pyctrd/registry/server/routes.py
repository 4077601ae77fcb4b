"""Routes: what a request's path asks for."""

from __future__ import annotations

import re
from http import HTTPStatus
from urllib.parse import unquote

from pyctrd.errors import InvalidError
from pyctrd.oci.digest import Digest
from pyctrd.oci.reference import check_repository, is_tag
from pyctrd.oci.value import NamedTuple
from pyctrd.registry.server.answers import RefusedError

# Names have 255 characters, digests 135; with every one of them escaped it would be three times as many.
PATH_MAX_CHARS = 2048
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_NAMED = re.compile(
    r"/v2/(?P<name>.+)/(?:(?P<kind>manifests|blobs|referrers)/(?P<last>[^/]+)"
    r"|blobs/(?P<uploads>uploads)/(?P<id>[^/]*)|tags/(?P<tags>list))",
    re.DOTALL,
)
_PLAIN = {"/v2/": "base", "/v2": "base", "/v2/_catalog": "catalog", "/token": "token"}
_OPEN = {"/healthz": "health", "/metrics": "metrics"}
METHODS = {
    "base": ("GET", "HEAD"),
    "catalog": ("GET", "HEAD"),
    "token": ("GET",),
    "health": ("GET", "HEAD"),
    "metrics": ("GET", "HEAD"),
    "manifests": ("GET", "HEAD", "PUT", "DELETE"),
    "blobs": ("GET", "HEAD", "DELETE"),
    "referrers": ("GET", "HEAD"),
    "uploads": ("POST",),
    "upload": ("GET", "PATCH", "PUT", "DELETE"),
    "tags": ("GET", "HEAD"),
}
_READS = ("GET", "HEAD")


class Route(NamedTuple):
    """What is asked for.

    Attributes:
        kind: "base", "catalog", "token", "health", "metrics", "manifests", "blobs", "referrers", "uploads", "upload" or
            "tags".
        name: The repository, "" where it is of none.
        target: A tag, digest or upload's id, "" where there is none.
    """

    kind: str
    name: str = ""
    target: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it is asked of the server, and not of what it keeps."""
        return self.kind in ("health", "metrics")

    def action(self, method: str) -> str:
        """What a client must be allowed for it: "pull", "push" or "delete"."""
        if self.kind in ("uploads", "upload"):
            return "push"
        if method in _READS:
            return "pull"
        return "delete" if method == "DELETE" else "push"


def find_route(method: str, raw_path: str) -> Route:
    """Read a path.

    Raises:
        RefusedError: There is nothing of the kind, it is not to be had by this method, or a part of it is wrong.
    """
    path, _, _ = raw_path.partition("?")
    if len(path) > PATH_MAX_CHARS:
        raise RefusedError(HTTPStatus.REQUEST_URI_TOO_LONG, "NAME_INVALID", "the path is too long")
    path = unquote(path, errors="replace")
    kind = _PLAIN.get(path) or _OPEN.get(path)
    if kind is not None:
        return _allowed(Route(kind), method)
    if (match := _NAMED.fullmatch(path)) is None:
        raise RefusedError(HTTPStatus.NOT_FOUND, "NAME_UNKNOWN", "there is nothing of that path")
    found = match.groupdict()
    if found["uploads"] and not found["id"]:
        route = Route("uploads", found["name"])
    elif found["uploads"]:
        route = Route("upload", found["name"], found["id"])
    elif found["tags"]:
        route = Route("tags", found["name"])
    else:
        route = Route(found["kind"], found["name"], found["last"])
    _check(route)
    return _allowed(route, method)


def _check(route: Route) -> None:
    check_repository(route.name)
    if route.kind == "upload" and _UPLOAD_ID.fullmatch(route.target) is None:
        raise RefusedError(HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "there is no such upload")
    if route.kind in ("blobs", "referrers") or (route.kind == "manifests" and ":" in route.target):
        Digest.parse(route.target)
    elif route.kind == "manifests" and not is_tag(route.target):
        raise InvalidError(f"invalid tag: {route.target[:140]!r}", field="tag", value=route.target[:140])


def _allowed(route: Route, method: str) -> Route:
    methods = METHODS[route.kind]
    if method not in methods:
        raise RefusedError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            f"not to be had by {method[:20]!r}",
            headers={"Allow": ", ".join(methods)},
        )
    return route
