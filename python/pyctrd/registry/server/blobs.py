"""Blobs and their uploads: the handlers.

Spec:
    distribution-spec v1.1, "Pulling blobs", "Pushing blobs", "Content Management".
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO

from aiohttp import web

from pyctrd.errors import ConflictError, InvalidError
from pyctrd.oci.digest import HEX_CHARS, Digest
from pyctrd.registry.server.answers import VERSION_HEADER, RefusedError, empty_answer
from pyctrd.registry.server.bodies import Span, find_span, receive, send_file

if TYPE_CHECKING:
    from pyctrd.registry.server.call import Call
    from pyctrd.registry.server.store import Upload

OCTETS = "application/octet-stream"
# What a client is asked to send at least in a chunk: each costs a request and a look at the database. Nothing is
# refused for being shorter.
CHUNK_MIN_BYTES = 64 << 10
# For so long a request waits for another one that is at the same upload, looking so often.
BUSY_SECONDS = 5.0
BUSY_PAUSE_SECONDS = 0.1
# As the specification writes it, and as RFC 9110 does.
_CHUNK = re.compile(r"(?:bytes[ =])?(\d{1,19})-(\d{1,19})(?:/(?:\d{1,19}|\*))?")


async def get_blob(call: Call) -> web.StreamResponse:
    """GET and HEAD of a blob, or of a part of it."""
    name, digest = call.route.name, call.route.target
    request = call.request
    headers = {
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Content-Type": OCTETS,
        "Cache-Control": "max-age=31536000, immutable",
    }
    found = call.store.find_blob(name, digest)
    if found is not None and digest in request.headers.get("If-None-Match", ""):
        return empty_answer(HTTPStatus.NOT_MODIFIED, headers)
    if found is not None and call.is_head:
        return web.Response(headers={**VERSION_HEADER, **headers, "Content-Length": str(found.size)})
    if found is not None:
        file = call.store.open_blob(digest)
    else:
        await call.threads.once(call.store.fetch_blob, name, digest)
        file = await call.work(call.store.get_blob, name, digest)
    with file:
        return await _send(call, file, headers)


async def _send(call: Call, file: BinaryIO, headers: dict[str, str]) -> web.StreamResponse:
    size = file.seek(0, 2)
    request = call.request
    if call.is_head:
        return web.Response(headers={**VERSION_HEADER, **headers, "Content-Length": str(size)})
    condition = request.headers.get("If-Range")
    wanted = request.headers.get("Range") if condition in (None, headers["ETag"]) else None
    if (span := find_span(wanted, size)) is None:
        span, status = Span(0, size), HTTPStatus.OK
    else:
        status = HTTPStatus.PARTIAL_CONTENT
        headers = {**headers, "Content-Range": f"bytes {span.start}-{span.start + span.length - 1}/{size}"}
    call.metrics.sent_bytes += span.length
    return await send_file(request, file, span, status=status, headers=headers)


async def delete_blob(call: Call) -> web.StreamResponse:
    """DELETE of a blob."""
    await call.work(call.store.delete_blob, call.route.name, call.route.target)
    return empty_answer(HTTPStatus.ACCEPTED)


async def begin_upload(call: Call) -> web.StreamResponse:
    """POST: a mount, a blob in one request, or the beginning of an upload."""
    query, name = call.request.query, call.route.name
    if (mounted := query.get("mount")) is not None:
        digest = str(Digest.parse(mounted))
        if await call.work(call.store.mount_blob, name, digest, query.get("from")):
            return _created(call, digest)
    wanted = query.get("digest", "")
    algorithm = _algorithm(wanted or query.get("mount", "") or query.get("digest-algorithm", ""))
    upload_id = await call.work(call.store.begin_upload, name, algorithm)
    if not wanted:
        return empty_answer(
            HTTPStatus.ACCEPTED,
            {**_place(call, upload_id, 0), "OCI-Chunk-Min-Length": str(CHUNK_MIN_BYTES)},
        )
    async with _held(call, upload_id) as upload:
        try:
            await _receive(call, upload)
        except BaseException:
            await call.work(upload.cancel)  # nobody was told its name
            raise
        await call.work(upload.commit, wanted)
    return _created(call, wanted)


async def get_upload(call: Call) -> web.StreamResponse:
    """GET: how far it is."""
    async with _held(call, call.route.target) as upload:
        return empty_answer(HTTPStatus.NO_CONTENT, _place(call, call.route.target, upload.size))


async def continue_upload(call: Call) -> web.StreamResponse:
    """PATCH: the next bytes."""
    async with _held(call, call.route.target) as upload:
        _check_chunk(call, upload)
        await _receive(call, upload)
        return empty_answer(HTTPStatus.ACCEPTED, _place(call, call.route.target, upload.size))


async def finish_upload(call: Call) -> web.StreamResponse:
    """PUT: its last bytes, if any are left, and its digest."""
    digest = str(Digest.parse(call.request.query.get("digest", "")))
    async with _held(call, call.route.target) as upload:
        _check_chunk(call, upload)
        await _receive(call, upload)
        await call.work(upload.commit, digest)
    return _created(call, digest)


async def cancel_upload(call: Call) -> web.StreamResponse:
    """DELETE: it is given up."""
    async with _held(call, call.route.target) as upload:
        await call.work(upload.cancel)
    return empty_answer(HTTPStatus.NO_CONTENT)


@asynccontextmanager
async def _held(call: Call, upload_id: str) -> AsyncIterator[Upload]:
    upload = await _open(call, upload_id)
    try:
        yield upload
    finally:
        await call.work(upload.release)


async def _open(call: Call, upload_id: str) -> Upload:
    """Wait for whoever is at it: a client whose connection broke comes back before that was seen here."""
    until = asyncio.get_running_loop().time() + BUSY_SECONDS
    while True:
        try:
            return await call.work(call.store.open_upload, call.route.name, upload_id)
        except ConflictError:
            if asyncio.get_running_loop().time() >= until:
                raise
        await asyncio.sleep(BUSY_PAUSE_SECONDS)


async def _receive(call: Call, upload: Upload) -> None:
    request = call.request
    if (length := request.content_length) is not None:
        if length == 0:
            return
        await call.work(upload.expect, length)
    elif not request.can_read_body:
        return

    async def take(data: bytes) -> None:
        await call.work(upload.write, data)
        call.metrics.received_bytes += len(data)

    async with call.receiving:
        call.metrics.receiving += 1
        try:
            await receive(request, take)
        finally:
            call.metrics.receiving -= 1


def _check_chunk(call: Call, upload: Upload) -> None:
    """See that a chunk goes on where the last one ended.

    Raises:
        RefusedError: It does not; the answer says where it would.
    """
    text = call.request.headers.get("Content-Range")
    if text is None:
        return
    match = _CHUNK.fullmatch(text.strip())
    length = call.request.content_length
    if match is None or int(match[2]) + 1 < int(match[1]):
        raise InvalidError(f"invalid Content-Range: {text[:80]!r}", field="range", value=text[:80])
    if int(match[1]) != upload.size:
        raise RefusedError(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            "BLOB_UPLOAD_INVALID",
            f"{upload.size} bytes are here: a chunk must begin there",
            headers=_place(call, call.route.target, upload.size),
        )
    if length is not None and int(match[2]) - int(match[1]) + 1 != length:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "SIZE_INVALID", "Content-Length and Content-Range differ")


def _place(call: Call, upload_id: str, size: int) -> dict[str, str]:
    """Where an upload goes on, and what of it is here. Nothing is told as one byte is: so clients know it."""
    return {
        "Location": f"/v2/{call.route.name}/blobs/uploads/{upload_id}",
        "Range": f"0-{max(0, size - 1)}",
        "Docker-Upload-UUID": upload_id,
    }


def _created(call: Call, digest: str) -> web.Response:
    return empty_answer(
        HTTPStatus.CREATED,
        {"Location": f"/v2/{call.route.name}/blobs/{digest}", "Docker-Content-Digest": digest},
    )


def _algorithm(text: str) -> str:
    """The algorithm of a digest, or by its own name; sha256 where nothing is said."""
    if not text:
        return "sha256"
    return text if text in HEX_CHARS else Digest.parse(text).algorithm
