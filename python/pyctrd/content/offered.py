"""What a layout or an archive offers: images by their names, and blobs whose size was looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError, NotFoundError, SizeMismatchError
from pyctrd.oci.document import DOCUMENT_MAX_BYTES
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.content.members import Members, Slice
    from pyctrd.oci.descriptor import Descriptor


class Offered(NamedTuple):
    """An image that a source has.

    Attributes:
        target: Its index or manifest.
        names: Full references that the source calls it by, as they stand there.
        tag: A tag alone, where the source says no more; else "".
    """

    target: Descriptor
    names: tuple[str, ...]
    tag: str = ""


def open_sized(members: Members, name: str, descriptor: Descriptor, offset: int) -> Slice:
    """A blob's bytes from an offset on, out of the file that should be the blob.

    Raises:
        NotFoundError: There is no such file.
        SizeMismatchError: It has another size.
        InvalidError: It is no regular file.
    """
    digest = str(descriptor.digest)
    try:
        found = members.open(name, offset)
    except NotFoundError as error:
        raise NotFoundError(
            f"blob not found: {digest}: {members.source} has no {name}", kind="blob", name=digest
        ) from error
    if found.size != descriptor.size:
        found.close()
        raise SizeMismatchError(
            f"size mismatch: {digest}: expected {descriptor.size} bytes, {members.source}: {name} has {found.size}",
            subject=digest,
            expected=descriptor.size,
            actual=found.size,
        )
    return found


def read_checked(found: Slice, descriptor: Descriptor) -> bytes:
    """A document's bytes, checked against its digest; one that is too large is not read. The slice is closed.

    Raises:
        InvalidError: It is larger than a document may be.
        DigestMismatchError: The bytes are others.
    """
    digest = str(descriptor.digest)
    with found:
        if descriptor.size > DOCUMENT_MAX_BYTES:
            raise InvalidError(
                f"invalid size: {digest}: {descriptor.size} bytes: expected at most {DOCUMENT_MAX_BYTES}",
                field="size",
                value=descriptor.size,
            )
        content = found.read()
    descriptor.digest.check(content, subject=digest)
    return content
