"""What ``docker save`` writes: a list of images, their configs, and their layers as tars."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyctrd.content.members import Slice, read_document, shown
from pyctrd.content.offered import Offered, open_sized, read_checked
from pyctrd.errors import NotFoundError
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.derived import assemble_manifest
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.document import Fields, invalid
from pyctrd.oci.media_types import OCI_CONFIG, OCI_MANIFEST, layer_media_type

if TYPE_CHECKING:
    from pyctrd.content.archive import Archive
    from pyctrd.oci.platform import Platform

LIST_FILE = "manifest.json"
# An archive of the first form has this instead, and a directory for each layer.
OLD_LIST_FILE = "repositories"
HASH_BYTES = 1 << 20
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_CONFIG_DIGEST = re.compile(r"(?:.*/)?(?:sha256:)?([0-9a-f]{64})(?:\.json)?")


class DockerArchive:
    """The images of a docker-archive, each under an OCI manifest that is made here.

    The archive names its layers by files and its config's ``diff_ids`` says what they must hash to. A layer that is
    compressed, as some builders write them, is read once more, for its digest.

    Args:
        archive: Its files.

    Raises:
        InvalidError: Its list or a config is wrong.
        NotFoundError: A file that the list names is not there.
        DigestMismatchError: A config is not the one that its name says.

    Spec:
        Docker's image-spec v1.2, "Combined Image JSON + Filesystem Changeset Format".
    """

    is_local = True

    def __init__(self, archive: Archive) -> None:
        self.source = archive.source
        self._archive = archive
        # Blob → the file that is to be it; manifests are in no file.
        self._files: dict[Digest, str] = {}
        self._made: dict[Digest, bytes] = {}
        # Of compressed layers: one that is listed a thousand times is hashed once.
        self._hashed: dict[str, Digest] = {}
        self._images = self._list()

    def images(self, _platform: Platform) -> list[Offered]:
        """Every image, in the archive's order; each is for the platform that its config names."""
        return list(self._images)

    def _list(self) -> list[Offered]:
        listed = Fields.parse_list(read_document(self._archive, LIST_FILE), kind=LIST_FILE)
        return [self._read(image) for image in listed]

    def _read(self, image: Fields) -> Offered:
        config_name = image.text("Config")
        body = read_document(self._archive, config_name)
        config = Descriptor(OCI_CONFIG, Digest.of(body), len(body))
        if claimed := _CONFIG_DIGEST.fullmatch(config_name):
            Digest(f"sha256:{claimed[1]}").check(body, subject=f"{self._archive.source}: {config_name}")
        self._files[config.digest] = config_name
        diff_ids = ImageConfig.parse(body).rootfs.diff_ids
        names = image.texts("Layers")
        if len(names) != len(diff_ids):
            raise invalid(image.at("Layers"), len(names), f"{len(diff_ids)} entries, one for each of diff_ids")
        layers = [self._layer(name, diff_id) for name, diff_id in zip(names, diff_ids, strict=True)]
        return self._offer(config, layers, image.texts("RepoTags"))

    def _offer(self, config: Descriptor, layers: Sequence[Descriptor], names: tuple[str, ...]) -> Offered:
        """An image under a manifest that is made of its parts."""
        manifest = assemble_manifest(config, layers)
        target = Descriptor(OCI_MANIFEST, Digest.of(manifest), len(manifest))
        self._made[target.digest] = manifest
        return Offered(target, names=names)

    def _layer(self, name: str, diff_id: Digest) -> Descriptor:
        file_name, found = self._open_layer(name, str(diff_id))
        with found:
            compression = compression_of(found)
        digest = diff_id if compression == "none" else self._hash(file_name)
        self._files.setdefault(digest, file_name)
        return Descriptor(layer_media_type(compression), digest, found.size)

    def _open_layer(self, name: str, called: str) -> tuple[str, Slice]:
        """A layer's file, and where it is: a link among the members is followed."""
        file_name = self._archive.follow(name)
        try:
            return file_name, self._archive.open(file_name)
        except NotFoundError as error:
            raise NotFoundError(
                f"blob not found: {called}: {self._archive.source} has no {shown(file_name)}",
                kind="blob",
                name=called,
            ) from error

    def _hash(self, file_name: str) -> Digest:
        known = self._hashed.get(file_name)
        if known is None:
            with self._archive.open(file_name) as file:
                known = self._hashed[file_name] = _hash(file)
        return known

    def read_manifest(self, descriptor: Descriptor) -> bytes:
        """One of those made here."""
        return self._made[descriptor.digest]

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """A config, checked against its digest and size."""
        return read_checked(self.open_blob(descriptor), descriptor)

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> Slice:
        """A blob's bytes from an offset on; see ``Layout.open_blob``."""
        made = self._made.get(descriptor.digest)
        if made is not None:
            return _in_memory(made, offset)
        return open_sized(self._archive, self._files[descriptor.digest], descriptor, offset)


def _in_memory(content: bytes, offset: int) -> Slice:
    fd = os.memfd_create("manifest")
    os.write(fd, content)
    return Slice(fd, start=0, size=len(content), offset=offset)


def compression_of(found: Slice) -> str:
    """Say "none", "gzip" or "zstd", by a file's first bytes."""
    front = bytearray(4)
    with memoryview(front) as view:
        found.readinto(view)
    return next((name for magic, name in _MAGIC.items() if front.startswith(magic)), "none")


def _hash(found: Slice) -> Digest:
    hasher = hashlib.sha256()
    block = bytearray(HASH_BYTES)
    with memoryview(block) as view:
        while count := found.readinto(view):
            hasher.update(view[:count])
    return Digest(f"sha256:{hasher.hexdigest()}")
