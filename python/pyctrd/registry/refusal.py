"""What a registry says when it does not do what it was asked for. Loaded when one does so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import orjson

from pyctrd.errors import (
    AuthenticationError,
    DeniedError,
    NotFoundError,
    RegistryError,
    UnavailableError,
    UnsupportedError,
)
from pyctrd.registry.transport import redacted, retry_after_seconds

if TYPE_CHECKING:
    from pyctrd.oci.reference import Reference
    from pyctrd.registry.connection import Answer

ERROR_BODY_MAX_BYTES = 64 * 1024
ERROR_MESSAGE_MAX_CHARS = 200


def raise_status(answer: Answer, method: str, reference: Reference, kind: str, subject: str) -> NoReturn:
    """Raise what an answer's status means; its body is read for the registry's own words, and closed."""
    url = redacted(answer.url or "")
    status = answer.status
    retry_after = retry_after_seconds(answer.headers.get("retry-after"))
    codes, message = _read_errors(answer)
    said = f": {message}" if message else ""
    tried = f" (asked {answer.tries} times)" if answer.tries > 1 else ""
    shared: dict[str, Any] = {"method": method, "url": url, "status": status, "codes": codes}
    host = urlsplit(url).netloc
    if status == 401:
        raise AuthenticationError(
            f"credentials refused: {reference.repository_name}{said}",
            **shared,
            hint=f"log in: pyctrd login {reference.registry}",
        )
    if status == 403:
        raise DeniedError(f"access denied: {reference.repository_name}{said}", **shared)
    if status in (404, 410):
        raise NotFoundError(
            f"{kind} not found: {subject}{said}", kind=kind, name=subject, hint="look at the repository's name and tag"
        )
    if status == 429:
        raise UnavailableError(
            f"too many requests: {host}{tried}{said}", **shared, retry_after_seconds=retry_after, hint="try again later"
        )
    if status >= 500:
        raise UnavailableError(
            f"registry failed: {host}: status {status}{tried}{said}", **shared, retry_after_seconds=retry_after
        )
    if status == 406 or "MANIFEST_SCHEMA1" in "".join(codes):
        raise UnsupportedError(f"no known form: {subject}: the registry has none that was asked for", feature=subject)
    raise RegistryError(f"unexpected answer: {host}: {kind} {subject}: status {status}{said}", **shared)


def _read_errors(answer: Answer) -> tuple[tuple[str, ...], str]:
    """The codes and the first message of a registry's error body; an HTML page says nothing."""
    try:
        body = answer.read(ERROR_BODY_MAX_BYTES)
        document = orjson.loads(body)
        errors = [item for item in document["errors"] if isinstance(item, dict)]
    except Exception:  # noqa: BLE001 - whatever a body is, the status is what counts
        return (), ""
    finally:
        answer.close()
    codes = tuple(str(item.get("code", ""))[:64] for item in errors)
    message = str(errors[0].get("message", "")) if errors else ""
    safe = "".join(c if c.isprintable() else "?" for c in message[:ERROR_MESSAGE_MAX_CHARS])
    return codes, safe
