"""Every error that pyctrd raises on purpose.

``except PyctrdError`` together with ``except OSError`` catches everything that is not a bug here. A class
exists because a caller would act differently; detail stands in attributes. The native core raises these
same classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class PyctrdError(Exception):
    """The root of all of pyctrd's own errors.

    Attributes:
        hint: What the user can do about it, one sentence, or "" where the message says it all.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidError(PyctrdError, ValueError):
    """A reference, digest, document or option that no retry could make right.

    Attributes:
        field: Where it is wrong, as a path into the document: ``layers[2].digest``.
        value: What stood there, shortened.
    """

    def __init__(self, message: str, *, field: str = "", value: object = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.value = value


class NotFoundError(PyctrdError, LookupError):
    """There is no such thing.

    Attributes:
        kind: "image", "blob", "container", "snapshot", "manifest", "program", …
        name: Which one.
    """

    def __init__(self, message: str, *, kind: str = "", name: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.name = name


class AlreadyExistsError(PyctrdError):
    """The name is taken.

    Attributes:
        kind: "container", "snapshot", "blob", …
        name: Which one.
    """

    def __init__(self, message: str, *, kind: str = "", name: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.name = name


class ConflictError(PyctrdError):
    """The thing is in a state in which this cannot be done, or is still in use.

    Attributes:
        kind: "container", "image", "snapshot", …
        name: Which one.
        state: Its state.
        allowed: The states in which the request would have been carried out, comma-separated.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "",
        name: str = "",
        state: str = "",
        allowed: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.name = name
        self.state = state
        self.allowed = allowed


class QuotaError(PyctrdError):
    """A namespace's quota is too small for what was to come into it; nothing came.

    Attributes:
        namespace: Whose quota.
        limit_bytes: The quota.
        use_bytes: What the namespace has, and what else is on its way into it.
        need_bytes: What was to come beside that.
    """

    def __init__(
        self,
        message: str,
        *,
        namespace: str = "",
        limit_bytes: int = 0,
        use_bytes: int = 0,
        need_bytes: int = 0,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.namespace = namespace
        self.limit_bytes = limit_bytes
        self.use_bytes = use_bytes
        self.need_bytes = need_bytes


class IntegrityError(PyctrdError):
    """Bytes are not what their descriptor says. Never retried.

    Attributes:
        subject: What was checked: a blob's digest, a path, "blob".
        expected: From the descriptor or the config.
        actual: Of the bytes.
    """

    def __init__(
        self,
        message: str,
        *,
        subject: str = "",
        expected: object = None,
        actual: object = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.subject = subject
        self.expected = expected
        self.actual = actual


class DigestMismatchError(IntegrityError):
    """Stored or received bytes hash to another digest; ``expected`` and ``actual`` are digests."""


class SizeMismatchError(IntegrityError):
    """More or fewer bytes than the descriptor says; ``expected`` and ``actual`` are bytes."""


class DiffIDMismatchError(IntegrityError):
    """The uncompressed tar is not the one that the image config names in ``rootfs.diff_ids``."""


class PolicyError(PyctrdError):
    """An image was refused by a verification policy: it is not signed as it must be, or is not the one that was pinned.

    Attributes:
        reference: The image.
        digest: What it is.
        reason: What the policy missed.
    """

    def __init__(
        self, message: str, *, reference: str = "", digest: str = "", reason: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.reference = reference
        self.digest = digest
        self.reason = reason


class UnsafeArchiveError(PyctrdError):
    """A layer was refused.

    Attributes:
        entry: The entry's name as raw bytes, b"" where none was read yet.
        offset: Byte offset of the entry's header in the uncompressed tar.
        reason: What was wrong.
        limit: The field of ``Limits`` that was exceeded, "" where it was refused for something else.
    """

    def __init__(
        self,
        message: str,
        *,
        entry: bytes = b"",
        offset: int = 0,
        reason: str = "",
        limit: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.entry = entry
        self.offset = offset
        self.reason = reason
        self.limit = limit


class UnsupportedError(PyctrdError):
    """This host, or this version, cannot do it.

    Attributes:
        feature: What was asked for.
        needs: What would have to be there.
    """

    def __init__(self, message: str, *, feature: str = "", needs: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.feature = feature
        self.needs = needs


class RegistryError(PyctrdError):
    """A registry answered with an error, or with something that is no answer.

    Attributes:
        method: HTTP method.
        url: The URL without user, password and query values.
        status: HTTP status, 0 where no answer came.
        codes: Error codes of the answer's body (distribution spec, "Error Codes").
    """

    def __init__(
        self,
        message: str,
        *,
        method: str = "",
        url: str = "",
        status: int = 0,
        codes: Sequence[str] = (),
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.method = method
        self.url = url
        self.status = status
        self.codes = tuple(codes)


class AuthenticationError(RegistryError):
    """No credentials, or wrong ones (401)."""


class DeniedError(RegistryError):
    """The credentials are good and not enough (403)."""


class UnavailableError(RegistryError):
    """Not reachable, overloaded, or cut off: the same request may work later.

    Attributes:
        retry_after_seconds: What the registry asked for, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        method: str = "",
        url: str = "",
        status: int = 0,
        codes: Sequence[str] = (),
        retry_after_seconds: float | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, method=method, url=url, status=status, codes=codes, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class UnreachableError(UnavailableError):
    """No connection at all: the name or the address is wrong, or nothing listens there."""


class RuncError(PyctrdError):
    """The OCI runtime refused or failed.

    Attributes:
        argv: What was run.
        exit_status: Its exit status.
        stderr: Its last lines.
    """

    def __init__(
        self,
        message: str,
        *,
        argv: Sequence[str] = (),
        exit_status: int = 0,
        stderr: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.argv = tuple(argv)
        self.exit_status = exit_status
        self.stderr = stderr


class CommandNotFoundError(RuncError):
    """The container's command does not exist in its root file system (a shell's 127)."""


class CommandNotExecutableError(RuncError):
    """The container's command exists and cannot be executed (a shell's 126)."""


class NetlinkError(PyctrdError, OSError):
    """The kernel refused a network request.

    Attributes:
        request: What was asked for.
        extack: The kernel's own words, where it gave any.
    """

    def __init__(self, message: str, *, request: str = "", extack: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.request = request
        self.extack = extack


class DeadlineError(PyctrdError, TimeoutError):
    """A wait ended before what it waited for.

    Attributes:
        operation: What was waited for.
        timeout_seconds: For how long.
    """

    def __init__(
        self, message: str, *, operation: str = "", timeout_seconds: float | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.operation = operation
        self.timeout_seconds = timeout_seconds


class DetachedError(PyctrdError):
    """The user left a container by the detach keys; it runs on."""


class CancelledError(PyctrdError):
    """The caller gave up. Never the first cause of a failure."""


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give the kernel's refusals the name of a file that Python writes by its descriptor, and so leaves out."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise
