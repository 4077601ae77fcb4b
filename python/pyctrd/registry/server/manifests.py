"""Manifests, tags and referrers: the handlers.

Spec:
    distribution-spec v1.1, "Pulling manifests", "Pushing Manifests", "Content Discovery", "Content Management".
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiohttp import web

from pyctrd.errors import InvalidError
from pyctrd.oci.document import DOCUMENT_MAX_BYTES
from pyctrd.oci.media_types import OCI_INDEX
from pyctrd.registry.server.answers import VERSION_HEADER, empty_answer, json_answer
from pyctrd.registry.server.bodies import read_limited

if TYPE_CHECKING:
    from pyctrd.registry.server.call import Call
    from pyctrd.registry.server.store import Referrer

# Of tags, repositories and referrers in one answer; who wants more follows its link.
PAGE = 1000
# Of a client's own number; more would be more digits than any number of tags has.
_NUMBER_MAX_CHARS = 9


async def get_manifest(call: Call) -> web.StreamResponse:
    """GET and HEAD of a manifest."""
    name, target = call.route.name, call.route.target
    found = call.store.find_manifest(name, target)
    if found is None:
        found = await call.threads.once(call.store.get_manifest, name, target)
    headers = {**VERSION_HEADER, "Docker-Content-Digest": found.digest, "ETag": f'"{found.digest}"'}
    if found.digest in call.request.headers.get("If-None-Match", ""):
        return empty_answer(HTTPStatus.NOT_MODIFIED, headers)
    headers["Content-Type"] = found.media_type
    if call.is_head:
        return web.Response(headers={**headers, "Content-Length": str(found.size)})
    body = call.store.read_manifest(found.digest)
    call.metrics.sent_bytes += len(body)
    return web.Response(body=body, headers=headers)


async def put_manifest(call: Call) -> web.StreamResponse:
    """PUT of a manifest, by its tag or digest."""
    media_type = call.request.headers.get("Content-Type", "").partition(";")[0].strip()
    async with call.receiving:
        body = await read_limited(call.request, DOCUMENT_MAX_BYTES)
    call.metrics.received_bytes += len(body)
    sent = await call.work(call.store.put_manifest, call.route.name, call.route.target, media_type, body)
    headers = {
        "Location": f"/v2/{call.route.name}/manifests/{sent.digest}",
        "Docker-Content-Digest": sent.digest,
    }
    if sent.subject:
        headers["OCI-Subject"] = sent.subject
    return empty_answer(HTTPStatus.CREATED, headers)


async def delete_manifest(call: Call) -> web.StreamResponse:
    """DELETE of a tag, or of a manifest by its digest."""
    await call.work(call.store.delete_manifest, call.route.name, call.route.target)
    return empty_answer(HTTPStatus.ACCEPTED)


async def list_tags(call: Call) -> web.StreamResponse:
    """GET of a repository's tags."""
    count, after = _page(call)
    tags = await call.work(call.store.list_tags, call.route.name, count + 1, after)
    headers = _link(f"/v2/{call.route.name}/tags/list", tags[:count], n=count) if len(tags) > count else {}
    return json_answer({"name": call.route.name, "tags": list(tags[:count])}, headers=headers)


async def list_repositories(call: Call) -> web.StreamResponse:
    """GET of all repositories, as Docker's registry gives it."""
    count, after = _page(call)
    names = await call.work(call.store.list_repositories, count + 1, after)
    headers = _link("/v2/_catalog", names[:count], n=count) if len(names) > count else {}
    return json_answer({"repositories": list(names[:count])}, headers=headers)


async def list_referrers(call: Call) -> web.StreamResponse:
    """GET of what says something of a digest."""
    query = call.request.query
    wanted = query.get("artifactType", "")
    name, digest = call.route.name, call.route.target
    found = await call.work(call.store.list_referrers, name, digest, wanted, PAGE + 1, query.get("last", ""))
    headers = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
    page: list[dict[str, Any]] = []
    size = 0
    for referrer in found[:PAGE]:
        described = _descriptor(referrer)
        size += 512 + sum(len(key) + len(value) for key, value in referrer.annotations.items())
        if page and size > DOCUMENT_MAX_BYTES // 2:  # who reads it takes no more than a manifest's
            break
        page.append(described)
    if len(page) < len(found):
        more = {"artifactType": wanted} if wanted else {}
        headers |= _link(f"/v2/{name}/referrers/{digest}", [found[len(page) - 1].digest], **more)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page}
    return json_answer(index, headers=headers, media_type=OCI_INDEX)


def _descriptor(referrer: Referrer) -> dict[str, Any]:
    described: dict[str, Any] = {
        "mediaType": referrer.media_type,
        "digest": referrer.digest,
        "size": referrer.size,
    }
    if referrer.artifact_type:
        described["artifactType"] = referrer.artifact_type
    if referrer.annotations:
        described["annotations"] = dict(referrer.annotations)
    return described


def _page(call: Call) -> tuple[int, str]:
    """How many are wanted, and behind which."""
    text = call.request.query.get("n", "")
    if text and not (text.isascii() and text.isdigit() and len(text) <= _NUMBER_MAX_CHARS):
        raise InvalidError(f"invalid n: {text[:20]!r}: expected a number", field="n", value=text[:20])
    return min(int(text), PAGE) if text else PAGE, call.request.query.get("last", "")


def _link(path: str, shown: Any, **more: Any) -> dict[str, str]:
    """Where the next ones are."""
    if not shown:
        return {}  # none was wanted
    return {"Link": f'<{path}?{urlencode({"last": shown[-1], **more})}>; rel="next"'}
