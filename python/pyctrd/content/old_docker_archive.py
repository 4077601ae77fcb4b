"""What ``docker save`` wrote before Docker 1.10: a directory for each layer, an image of its own over its parent."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
from typing import TYPE_CHECKING, NamedTuple

from pyctrd.content.docker_archive import HASH_BYTES, OLD_LIST_FILE, DockerArchive, compression_of
from pyctrd.content.members import Slice, read_document, shown
from pyctrd.errors import InvalidError, NotFoundError, UnsafeArchiveError, UnsupportedError
from pyctrd.oci.config import DIFF_IDS_MAX
from pyctrd.oci.derived import OldImage, config_of_old
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.document import Fields, invalid
from pyctrd.oci.media_types import OCI_CONFIG, layer_media_type

if TYPE_CHECKING:
    from pyctrd.content.archive import Archive
    from pyctrd.content.limits import Limits
    from pyctrd.content.offered import Offered

_ID = re.compile(r"[0-9a-f]{64}")
_DOCUMENT = re.compile(r"([0-9a-f]{64})/json")
# Configs and manifests that are made of an archive's documents stay in memory: of a thousand images it is a tenth.
MADE_MAX_BYTES = 64 << 20


class _Layer(NamedTuple):
    """What is kept of a layer: what stands below it, what it says of how it was made, and its tar."""

    parent: str
    history: dict[str, str]
    blob: Descriptor
    diff_id: Digest


def is_old(archive: Archive) -> bool:
    """Whether an archive is of this form: it has a list of names, or layers alone, of images that had none."""
    return archive.has(OLD_LIST_FILE) or any(_DOCUMENT.fullmatch(name) for name in archive.names())


class OldDockerArchive(DockerArchive):
    """The images of an archive of the first form, each under a config and a manifest that are made here.

    Nothing in such an archive says what its layers hash to: they are what they are. An image's config is its top
    layer's document, as Docker from 1.10 on takes it over; what the layers below it say becomes its history.

    Args:
        archive: Its files.
        limits: ``bytes`` of a layer that is compressed.

    Raises:
        InvalidError: A document is wrong, or layers are one another's parents.
        NotFoundError: A file that is named is not there.
        UnsupportedError: A layer is compressed otherwise than by gzip.

    Spec:
        Docker's image-spec v1.0, "Combined Image JSON + Filesystem Changeset Format".
    """

    def __init__(self, archive: Archive, *, limits: Limits) -> None:
        self._limits = limits
        self._layers: dict[str, _Layer] = {}
        self._kept_bytes = 0
        super().__init__(archive)

    def _list(self) -> list[Offered]:
        named = self._read_names() if self._archive.has(OLD_LIST_FILE) else {}
        tops: dict[str, tuple[str, ...]] = named or dict.fromkeys(self._tops(), ())
        return [self._assemble(layer_id, names) for layer_id, names in tops.items()]

    def _read_names(self) -> dict[str, tuple[str, ...]]:
        """Of each top layer, what its image is called."""
        found: dict[str, tuple[str, ...]] = {}
        listed = Fields.parse(read_document(self._archive, OLD_LIST_FILE), kind=OLD_LIST_FILE)
        for repository in listed.values:
            for tag, layer_id in listed.table(repository).items():
                _check_id(layer_id, f"{repository}.{tag}")
                found[layer_id] = (*found.get(layer_id, ()), f"{repository}:{tag}")
        return found

    def _tops(self) -> list[str]:
        """Layers that are nobody's parents."""
        ids = [match[1] for name in self._archive.names() if (match := _DOCUMENT.fullmatch(name))]
        parents = {self._read_document(layer_id).parent for layer_id in ids}
        return [layer_id for layer_id in ids if layer_id not in parents]

    def _assemble(self, top: str, names: tuple[str, ...]) -> Offered:
        layers = self._stack(top)
        diff_ids = [layer.diff_id for layer in layers]
        body = config_of_old(self._read_document(top), [layer.history for layer in layers], diff_ids)
        config = Descriptor(OCI_CONFIG, Digest.of(body), len(body))
        self._made[config.digest] = body
        self._charge(len(body))
        return self._offer(config, [layer.blob for layer in layers], names)

    def _charge(self, count: int) -> None:
        self._kept_bytes += count
        if self._kept_bytes > MADE_MAX_BYTES:
            raise InvalidError(
                f"invalid image archive: {self.source}: too many images, or too much is said of them: more than "
                f"{MADE_MAX_BYTES} bytes",
                field=OLD_LIST_FILE,
                value=self._kept_bytes,
            )

    def _stack(self, top: str) -> list[_Layer]:
        """An image's layers, lowest first."""
        found: list[_Layer] = []
        seen: set[str] = set()
        layer_id = top
        while layer_id:
            if layer_id in seen or len(seen) == DIFF_IDS_MAX:
                raise invalid(f"{shown(layer_id)}.parent", layer_id, f"at most {DIFF_IDS_MAX} layers, each once")
            seen.add(layer_id)
            if layer_id not in self._layers:
                self._layers[layer_id] = self._read_layer(layer_id)
            found.append(self._layers[layer_id])
            layer_id = found[-1].parent
        return found[::-1]

    def _read_layer(self, layer_id: str) -> _Layer:
        image = self._read_document(layer_id)
        file_name, tar = self._open_layer(f"{layer_id}/layer.tar", layer_id)
        with tar:
            compression = compression_of(tar)
        blob = self._hash(file_name)
        self._files.setdefault(blob, file_name)
        diff_id = blob if compression == "none" else self._hash_inflated(file_name, compression)
        history = image.history
        self._charge(sum(map(len, history.values())))
        return _Layer(image.parent, history, Descriptor(layer_media_type(compression), blob, tar.size), diff_id)

    def _read_document(self, layer_id: str) -> OldImage:
        try:
            image = OldImage.parse(read_document(self._archive, f"{layer_id}/json"))
        except NotFoundError as error:
            raise NotFoundError(
                f"layer not found: {layer_id}: {self.source} has no {layer_id}/json", kind="layer", name=layer_id
            ) from error
        if image.id != layer_id:
            raise invalid(f"{layer_id}.id", image.id, f"{layer_id}, as its directory is called")
        if image.parent:
            _check_id(image.parent, f"{layer_id}.parent")
        return image

    def _hash_inflated(self, file_name: str, compression: str) -> Digest:
        """The digest of a compressed layer's tar. The form is older than zstd."""
        if compression != "gzip":
            raise UnsupportedError(
                f"unsupported image archive: {self.source}: {shown(file_name)}: compressed by {compression}",
                feature=f"{compression} in archives of Docker before 1.10",
                needs="gzip, or none",
            )
        hasher = hashlib.sha256()
        total = 0
        with self._archive.open(file_name) as found, gzip.GzipFile(fileobj=_Reader(found)) as tar:
            try:
                while block := tar.read(HASH_BYTES):
                    hasher.update(block)
                    total += len(block)
                    if total > self._limits.bytes:
                        raise _refused(file_name, f"over the limit bytes={self._limits.bytes}", limit="bytes")
            except (OSError, EOFError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise _refused(file_name, f"no gzip: {error}") from error
        return Digest(f"sha256:{hasher.hexdigest()}")


class _Reader(io.RawIOBase):
    """A slice as a file to be read."""

    def __init__(self, found: Slice) -> None:
        self._found = found

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override] # it is given nothing else
        with memoryview(buffer) as view:
            return self._found.readinto(view)


def _refused(file_name: str, reason: str, *, limit: str = "") -> UnsafeArchiveError:
    return UnsafeArchiveError(
        f"unsafe archive: {shown(file_name)}: {reason}", entry=file_name.encode(), reason=reason, limit=limit
    )


def _check_id(layer_id: str, field: str) -> None:
    if _ID.fullmatch(layer_id) is None:
        raise invalid(field, layer_id, "64 lower-case hex digits")
