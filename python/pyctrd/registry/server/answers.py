"""Answers: the error codes of the distribution API, and what of ours becomes which."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from http import HTTPStatus

import orjson
from aiohttp import web

from pyctrd.errors import (
    AlreadyExistsError,
    CancelledError,
    ConflictError,
    DeadlineError,
    DeniedError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    PyctrdError,
    QuotaError,
    RegistryError,
    UnsupportedError,
)

VERSION_HEADER = {"Docker-Distribution-API-Version": "registry/2.0", "Server": "pyctrd"}
JSON = "application/json"
# A disk that is full is nobody's mistake, and may have room later.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MESSAGE_MAX_CHARS = 400

_NOT_FOUND = {
    "repository": "NAME_UNKNOWN",
    "manifest": "MANIFEST_UNKNOWN",
    "blob": "BLOB_UNKNOWN",
    "upload": "BLOB_UPLOAD_UNKNOWN",
    "reference": "MANIFEST_BLOB_UNKNOWN",
}
_INVALID = {
    "repository": "NAME_INVALID",
    "digest": "DIGEST_INVALID",
    "tag": "TAG_INVALID",
    "range": "BLOB_UPLOAD_INVALID",
    "size": "SIZE_INVALID",
    "n": "PAGINATION_NUMBER_INVALID",
}


class RefusedError(Exception):
    """A request is answered with an error.

    Attributes:
        status: HTTP status.
        code: Of the distribution specification, or of Docker's.
        headers: What else is in the answer.

    Spec:
        distribution-spec v1.1, "Error Codes".
    """

    def __init__(self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


def refusal_of(error: Exception) -> RefusedError | None:
    """What a client is told of an error; None of one that is not expected here: its words are not for clients."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, OSError) and not isinstance(error, PyctrdError):
        return _of_disk(error)
    status, code = _status_of(error)
    return RefusedError(status, code, _told(error)) if status else None


def _status_of(error: Exception) -> tuple[int, str]:
    if isinstance(error, NotFoundError):
        return HTTPStatus.NOT_FOUND, _NOT_FOUND.get(error.kind, "NAME_UNKNOWN")
    if isinstance(error, InvalidError):
        return HTTPStatus.BAD_REQUEST, _INVALID.get(error.field, "MANIFEST_INVALID")
    for known, status, code in _KNOWN:
        if isinstance(error, known):
            return status, code
    return 0, ""


_KNOWN: tuple[tuple[type[PyctrdError], int, str], ...] = (
    (IntegrityError, HTTPStatus.BAD_REQUEST, "DIGEST_INVALID"),
    (QuotaError, HTTPStatus.FORBIDDEN, "DENIED"),
    (DeniedError, HTTPStatus.FORBIDDEN, "DENIED"),
    (RegistryError, HTTPStatus.BAD_GATEWAY, "UNAVAILABLE"),
    (ConflictError, HTTPStatus.CONFLICT, "BLOB_UPLOAD_INVALID"),
    (AlreadyExistsError, HTTPStatus.CONFLICT, "BLOB_UPLOAD_INVALID"),
    (UnsupportedError, HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED"),
    (DeadlineError, HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    (CancelledError, HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"),
)


def _of_disk(error: OSError) -> RefusedError | None:
    if error.errno in _FULL:
        return RefusedError(HTTPStatus.INSUFFICIENT_STORAGE, "UNAVAILABLE", "the registry has no room left")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return RefusedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "UNAVAILABLE",
            "the registry has too much open",
            headers={"Retry-After": "5"},
        )
    return None


def _told(error: Exception) -> str:
    """What an error says: of a quota not whose it is, since a client knows its tenant by another name."""
    if isinstance(error, QuotaError):
        return f"quota exceeded: {error.need_bytes} bytes more than the {error.use_bytes} in use of {error.limit_bytes}"
    return str(error)[:_MESSAGE_MAX_CHARS]


def error_answer(refused: RefusedError) -> web.Response:
    """An error as a client reads it."""
    body = {"errors": [{"code": refused.code, "message": str(refused), "detail": None}]}
    return json_answer(body, status=refused.status, headers=refused.headers)


def json_answer(
    value: object, *, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None, media_type: str = JSON
) -> web.Response:
    """A document."""
    return web.Response(
        body=orjson.dumps(value),
        status=status,
        headers={**VERSION_HEADER, "Content-Type": media_type, **(headers or {})},
    )


def empty_answer(status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer that is its headers."""
    return web.Response(status=status, headers={**VERSION_HEADER, **(headers or {})})
