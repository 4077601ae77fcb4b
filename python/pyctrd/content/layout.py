"""OCI image layouts, in a directory or a tar: an index of images, and their blobs by digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyctrd.content.members import read_document
from pyctrd.content.offered import Offered, open_sized, read_checked
from pyctrd.errors import NotFoundError, UnsupportedError
from pyctrd.oci.document import Fields
from pyctrd.oci.index import Index, is_attestation
from pyctrd.oci.listings import INDEX_FILE, LAYOUT_FILE, LAYOUT_VERSION, name_of
from pyctrd.oci.media_types import is_index, is_manifest

if TYPE_CHECKING:
    from pyctrd.content.members import Members, Slice
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.oci.platform import Platform


class Layout:
    """The images of an OCI layout.

    Args:
        members: Its files.

    Attributes:
        source: Where it is, for messages.
        index: What it says of its images.

    Raises:
        InvalidError: It is none, or its index is wrong.
        UnsupportedError: It is of another version.

    Spec:
        image-spec v1.1 image-layout.md.
    """

    is_local = True

    def __init__(self, members: Members) -> None:
        self.source = members.source
        self._members = members
        version = Fields.parse(read_document(members, LAYOUT_FILE), kind=LAYOUT_FILE).text("imageLayoutVersion", "")
        if version != LAYOUT_VERSION:
            raise UnsupportedError(
                f"unsupported OCI layout: {members.source}: version {version[:80]!r}: expected {LAYOUT_VERSION}",
                feature=f"OCI layout {version[:80]!r}",
                needs=LAYOUT_VERSION,
            )
        self.index = Index.parse(read_document(members, INDEX_FILE))

    def images(self, platform: Platform) -> list[Offered]:
        """Every image, in the order of the index.

        Where several entries of one name (or of none) are each for a platform, they are one image, and the entry that
        fits best is taken.

        Raises:
            NotFoundError: Of the entries of a name, none fits the platform.
        """
        groups: dict[str, list[Descriptor]] = {}
        for entry in self.index.manifests:
            known = is_index(entry.media_type) or is_manifest(entry.media_type)
            if known and not is_attestation(entry):
                groups.setdefault(name_of(entry), []).append(entry)
        return [_offer(name, entry) for name, entries in groups.items() for entry in self._fit(name, entries, platform)]

    def _fit(self, name: str, entries: list[Descriptor], platform: Platform) -> Sequence[Descriptor]:
        distinct = list({entry.digest: entry for entry in entries}.values())
        if len(distinct) == 1 or any(entry.platform is None for entry in distinct):
            return distinct
        chosen = Index(self.index.media_type, tuple(distinct)).choose(platform)
        if chosen is None:
            known = ", ".join(sorted({str(entry.platform) for entry in distinct}))
            raise NotFoundError(
                f"no matching platform: {name or self._members.source}: wanted {platform}, there are {known}",
                kind="platform",
                name=str(platform),
                hint="choose one with --platform",
            )
        return [chosen]

    def read_manifest(self, descriptor: Descriptor) -> bytes:
        """A manifest or index, checked against its digest and size."""
        return self.read_blob(descriptor)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """A document, checked against its digest and size; one that is too large is not read."""
        return read_checked(self.open_blob(descriptor), descriptor)

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> Slice:
        """A blob's bytes from an offset on.

        Raises:
            NotFoundError: The layout has no such blob.
            SizeMismatchError: It has another size.
            InvalidError: It is no regular file.
        """
        digest = descriptor.digest
        return open_sized(self._members, f"blobs/{digest.algorithm}/{digest.hex}", descriptor, offset)


def _offer(name: str, entry: Descriptor) -> Offered:
    is_full = ":" in name or "/" in name
    return Offered(entry, names=(name,) if is_full else (), tag="" if is_full else name)
