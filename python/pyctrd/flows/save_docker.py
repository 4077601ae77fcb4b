"""Save as Docker does: what ``docker save`` and ``podman save`` write, in the new form and the old one at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.content.outputs import TarOutput
from pyctrd.errors import InvalidError
from pyctrd.flows.save import Named, Saving, add_blob
from pyctrd.flows.selection import Part, check_is_image, open_stored
from pyctrd.flows.tars import Tars
from pyctrd.oci.digest import Digest
from pyctrd.oci.listings import ImageEntry, OldLayer, image_list, old_layers, repositories
from pyctrd.oci.reference import Reference

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms

LIST_FILE = "manifest.json"
OLD_LIST_FILE = "repositories"
# Of the old form's layers.
_VERSION = b"1.0"
# Bytes that tell how a blob is compressed.
_PREFIX_BYTES = 4


def write_docker_archive(rooms: Rooms, saving: Saving, plan: DockerPlan, tar: TarOutput) -> None:
    """Write images as Docker lists them, with their layers as plain tars, its members by name.

    Beside the list there is what Docker before 1.10 reads: a directory for each layer, over its parent. Its tar is a
    link to the one that the list names, as skopeo and Podman write it.

    Spec:
        Docker's image-spec v1.0 and v1.2, "Combined Image JSON + Filesystem Changeset Format".
    """
    converted = [part for name in sorted(plan.layers) if _is_packed(rooms, part := plan.layers[name])]
    with Tars(rooms, converted) as tars:
        layers = _Layers(rooms, saving, tars, converted)
        members = plan.members()
        for name, part in plan.layers.items():
            members[name] = partial(layers.add, name=name, part=part)
        for name in sorted(members):
            members[name](tar)
        tar.finish()


class DockerPlan:
    """What there is in an archive, each thing once, whatever images have it.

    Args:
        images: What goes, by name.

    Attributes:
        layers: Of each tar's name, the layer.

    Raises:
        InvalidError: One is no image, or has no tag.
        NotFoundError: A layer is neither stored nor unpacked.
    """

    def __init__(self, images: Sequence[Named]) -> None:
        self.layers: dict[str, Part] = {}
        self._configs: dict[str, bytes] = {}
        self._images: dict[str, ImageEntry] = {}
        self._old: dict[str, OldLayer] = {}
        self._tops: dict[str, str] = {}
        self._tagged: dict[str, str] = {}
        for named in images:
            self._add(named)

    def _add(self, named: Named) -> None:
        """Add an image under its name; one that is there already gets one name more."""
        config = check_is_image(named.image)
        tag = _tag_of(named)
        name = f"{Digest.of(named.image.config).hex}.json"
        self._configs[name] = named.image.config
        files = [f"{diff_id.hex}.tar" for diff_id in config.rootfs.diff_ids]
        for file, part in zip(files, named.image.layers, strict=True):
            self.layers.setdefault(file, part)
        if (other := self._tagged.setdefault(tag, name)) != name:
            raise InvalidError(
                f"ambiguous name: {tag}: {name.partition('.')[0]} and {other.partition('.')[0]} would be called so",
                field="name",
                value=tag,
            )
        tags = sorted(tag for tag, image in self._tagged.items() if image == name)
        self._images[name] = ImageEntry(name, tags, files)
        for layer in (old := old_layers(config)):
            self._old[layer.id] = layer
        if old:
            self._tops[tag] = old[-1].id

    def members(self) -> dict[str, Callable[[TarOutput], None]]:
        """All members but the layers' tars, by name."""
        files = dict(self._configs)
        files[LIST_FILE] = image_list([self._images[name] for name in sorted(self._images)])
        files[OLD_LIST_FILE] = repositories(self._tops)
        found: dict[str, Callable[[TarOutput], None]] = {}
        for layer in self._old.values():
            directory, link = f"{layer.id}/", f"{layer.id}/layer.tar"
            files |= {f"{directory}VERSION": _VERSION, f"{directory}json": layer.body}
            found[directory] = partial(TarOutput.directory, name=directory)
            found[link] = partial(TarOutput.symlink, name=link, target=f"../{layer.diff_id.hex}.tar")
        for name, content in files.items():
            found[name] = partial(TarOutput.file, name=name, content=content)
        return found


class _Layers:
    """The layers' tars, as they are in the store or made of what is there."""

    def __init__(self, rooms: Rooms, saving: Saving, tars: Tars, converted: Sequence[Part]) -> None:
        self._rooms = rooms
        self._saving = saving
        self._tars = tars
        self._converted = {part.diff_id for part in converted}

    def add(self, tar: TarOutput, *, name: str, part: Part) -> None:
        """Add a layer to an archive."""
        if part.diff_id not in self._converted:
            add_blob(self._rooms, self._saving, self._tars, tar, name, part)
            return
        with self._tars.taken(part, lambda count: self._saving.tell(part, count)) as made:
            size = os.fstat(made).st_size
            tar.begin(name, size)
            tar.send(made, size)
            tar.end()
        self._saving.end(part)


def _is_packed(rooms: Rooms, part: Part) -> bool:
    """Whether a layer's tar has to be made. A blob is told by its first bytes: a media type may be wrong."""
    if part.path is None or part.descriptor.digest != part.diff_id:
        return True
    with open_stored(rooms, part.descriptor) as fd:
        return _core.detect_compression(os.pread(fd, _PREFIX_BYTES, 0)) != "none"


def _tag_of(named: Named) -> str:
    reference = named.image.reference
    if named.name:
        reference = Reference.parse(named.name)
    elif named.tag:
        reference = Reference(reference.registry, reference.repository, named.tag)
    if reference.tag is None:
        raise InvalidError(
            f"no tag: {reference}: a docker-archive names images by tags alone",
            field="name",
            value=str(reference),
            hint="save it as an oci-archive, or pull it by a tag",
        )
    return f"{reference.repository_name}:{reference.tag}"


def list_for_docker(images: Sequence[Named]) -> bytes:
    """The list by which Docker finds the images of an OCI layout; b"" where it could read none of them."""
    found: dict[Digest, ImageEntry] = {}
    tagged: set[str] = set()
    for named in images:
        manifest = named.image.manifest
        blobs = [manifest.config.digest, *(layer.digest for layer in manifest.layers)]
        try:
            tag = _tag_of(named)
            check_is_image(named.image)
        except InvalidError:
            continue
        if tag in tagged or any(digest.algorithm != "sha256" for digest in blobs):
            continue
        tagged.add(tag)
        files = [f"blobs/{digest.algorithm}/{digest.hex}" for digest in blobs]
        digest = named.image.manifest_descriptor.digest
        known = found.get(digest)
        found[digest] = ImageEntry(files[0], [*(known.tags if known else ()), tag], files[1:])
    return image_list(list(found.values())) if found else b""
