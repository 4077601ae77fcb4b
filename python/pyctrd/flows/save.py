"""Save: images go out of the store into a layout or an archive, every byte held against its digest on the way."""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pyctrd.content.copies import copy_file, copy_out
from pyctrd.content.layout_directory import LayoutDirectory, flush_directory
from pyctrd.content.new_files import NewFile
from pyctrd.content.outputs import Output, TarOutput, special_output
from pyctrd.errors import InvalidError, NotFoundError, naming
from pyctrd.flows.lease import kept
from pyctrd.flows.progress import (
    PROGRESS_INTERVAL_SECONDS,
    LayerProgress,
    LayerState,
    ProgressCallback,
    Telling,
    telling,
)
from pyctrd.flows.selection import Part, Selected, check_all_here, choose_stored, open_stored, resources_for, select
from pyctrd.flows.tars import Tars
from pyctrd.oci.digest import Digest
from pyctrd.oci.listings import INDEX_FILE, LAYOUT_FILE, describe_named, layout_file, layout_index
from pyctrd.oci.platform import Platform
from pyctrd.oci.reference import Reference
from pyctrd.oci.transports import Form, Transport, check_form
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord

Dest = str | os.PathLike[str] | IO[bytes]

# An archive is a file like any other that a user makes.
_ARCHIVE_MODE = 0o666


class Named(NamedTuple):
    """An image, and what it is called where it goes.

    Attributes:
        image: What goes.
        name: A full reference; "" for none.
        tag: A tag alone; "" for none.
    """

    image: Selected
    name: str
    tag: str


def save(
    rooms: Rooms,
    records: Sequence[ImageRecord],
    dest: Dest,
    *,
    format: str = "oci-archive",  # noqa: A002 - as the engine and the command line call it
    platforms: Sequence[Platform] = (),
    all_platforms: bool = False,
    called: str = "",
    progress: ProgressCallback | None = None,
) -> None:
    """Write images to a layout or an archive; see ``Images.save``.

    Args:
        rooms: The engine's rooms.
        records: The images; one that is there twice is written once.
        dest: A path, or an open binary file.
        format: What is written.
        platforms: As for ``select``.
        all_platforms: As for ``select``.
        called: A tag or full reference in place of a single image's own name.
        progress: Called a few times a second, in this thread.
    """
    wanted = check_form(format)
    _check_dest(dest, wanted)
    distinct = sorted(set(records))
    if not distinct:
        raise InvalidError("no images: name one to save", field="names", value=[])
    if called and len(distinct) > 1:
        raise InvalidError(f"ambiguous name: {called}: for {len(distinct)} images", field="name", value=called)
    if wanted == "docker-archive" and (all_platforms or len(platforms) > 1):
        raise InvalidError(
            "several platforms: a docker-archive has one", field="platform", value=wanted, hint="choose oci-archive"
        )
    # What is looked up inside is kept: whatever is there then stays there until it is written.
    with kept(rooms, "save", resources_for(rooms, distinct)), telling(_called(dest), progress) as told:
        chosen = partial(select, rooms, platforms=platforms, all_platforms=all_platforms)
        images = [_name(chosen(record), called) for record in distinct]
        if wanted == "docker-archive":
            from pyctrd.flows.save_docker import DockerPlan, write_docker_archive

            plan = DockerPlan(images)
            saving = Saving(_called(dest), images, list(plan.layers.values()), told)
            with _open_output(rooms, dest) as output:
                write_docker_archive(rooms, saving, plan, TarOutput(output))
            return
        for named in images:
            check_all_here(named.image)
        layers = [part for named in images for part in named.image.parts if part.is_layer]
        saving = Saving(_called(dest), images, layers, told)
        with Tars(rooms, saving.rebuilt()) as tars:
            if wanted == "oci":
                _write_layout(rooms, saving, tars, Path(os.fspath(dest)))  # type: ignore[arg-type] # checked
            else:
                with _open_output(rooms, dest) as output:
                    _write_archive(rooms, saving, tars, TarOutput(output))


def save_to(
    rooms: Rooms,
    record: ImageRecord,
    target: str,
    *,
    platforms: Sequence[Platform] = (),
    all_platforms: bool = False,
    progress: ProgressCallback | None = None,
) -> Digest:
    """Write one image to where a transport says, and call it as that says: what a push to no registry is.

    Args:
        rooms: The engine's rooms.
        record: The image.
        target: ``oci:PATH[:NAME]``, ``oci-archive:…`` or ``docker-archive:…``.
        platforms: As ``save`` takes them; the image's own by default.
        all_platforms: As ``save`` takes it.
        progress: As ``save`` takes it.

    Returns:
        The digest of what was written.
    """
    transport = Transport.parse(target)
    if not platforms and not all_platforms:
        platforms = Platform.parse_all(record.platform)
    save(
        rooms,
        [record],
        transport.path,
        format=transport.form,
        platforms=platforms,
        all_platforms=all_platforms,
        called=transport.name,
        progress=progress,
    )
    if len(platforms) == 1:
        return choose_stored(rooms, record, platforms[0]).digest
    return Digest(record.target_digest if all_platforms or platforms else record.manifest_digest)


def _check_dest(dest: Dest, form: Form) -> None:
    if isinstance(dest, str | os.PathLike):
        return
    if form == "oci":
        raise InvalidError("invalid dest: a layout is a directory: give a path", field="dest", value=_called(dest))
    written: object = dest  # whose type nobody may have checked
    if isinstance(written, io.TextIOBase):
        raise InvalidError("invalid dest: a text file: expected a binary one", field="dest", value=_called(dest))


def _called(dest: Dest) -> str:
    return os.fspath(dest) if isinstance(dest, str | os.PathLike) else str(getattr(dest, "name", "stream"))


def _name(image: Selected, called: str) -> Named:
    if not called:
        return Named(image, str(image.reference), image.reference.tag or "")
    if Transport("oci", "", called).is_tag:
        # Checked as a tag: a repository's rules for it hold in layouts too.
        return Named(image, "", Reference.parse(f"{image.reference.repository_name}:{called}").tag or "")
    reference = Reference.parse(called)
    if reference.digest is not None and reference.digest != image.target.digest:
        raise InvalidError(
            f"invalid reference: {reference}: the image is {image.target.digest}", field="reference", value=called
        )
    return Named(image, str(reference), reference.tag or "")


class Saving:
    """What is written, and how far it is.

    Args:
        dest: What the target is called.
        images: What goes, by name.
        layers: What of it is told of.
        told: Told a few times a second.
    """

    def __init__(self, dest: str, images: Sequence[Named], layers: Sequence[Part], told: Telling) -> None:
        self.dest = dest
        self.images = images
        self._told = told
        self._next_ns = 0
        self._sizes = {str(part.descriptor.digest): part.descriptor.size for part in layers}
        self._states: dict[str, LayerState] = dict.fromkeys(self._sizes, "waiting")
        self._read = dict.fromkeys(self._sizes, 0)
        targets = {named.image.target.digest for named in images}
        told.begin(str(targets.pop()) if len(targets) == 1 else "", self._look)

    @property
    def parts(self) -> Mapping[str, Part]:
        """All blobs, each once, by the files that they are in a layout."""
        found: dict[str, Part] = {}
        for named in self.images:
            for part in named.image.parts:
                digest = part.descriptor.digest
                found[f"blobs/{digest.algorithm}/{digest.hex}"] = part
        return dict(sorted(found.items()))

    def rebuilt(self) -> list[Part]:
        """Those of them whose tars are made again, in the order in which they are written."""
        return [part for part in self.parts.values() if part.path is None]

    def tell(self, part: Part, count: int) -> None:
        """So many bytes more of a blob were read."""
        digest = str(part.descriptor.digest)
        if digest in self._states:
            self._states[digest] = "saving"
            self._read[digest] = min(self._read[digest] + count, self._sizes[digest])
            self._tell(is_due=time.monotonic_ns() >= self._next_ns)

    def end(self, part: Part) -> None:
        """A blob is written."""
        digest = str(part.descriptor.digest)
        if digest in self._states:
            self._states[digest], self._read[digest] = "done", self._sizes[digest]
            self._tell(is_due=True)

    def _tell(self, *, is_due: bool) -> None:
        if is_due:
            self._next_ns = time.monotonic_ns() + int(PROGRESS_INTERVAL_SECONDS * 1e9)
            self._told.tell()

    def _look(self) -> list[LayerProgress]:
        return [
            LayerProgress(
                digest,
                state,
                received_bytes=self._read[digest],
                size_bytes=self._sizes[digest],
                unpacked_bytes=0,
                source="store",
            )
            for digest, state in self._states.items()
        ]

    def entries(self) -> list[dict[str, Any]]:
        """The images as a layout's index names them."""
        return [describe_named(named.image.target, named.name, named.tag) for named in self.images]


@contextmanager
def opened(rooms: Rooms, part: Part, tars: Tars, saving: Saving) -> Iterator[int]:
    """A blob's file, or the tar that is made again for it; nothing of the file is verified."""
    if part.path is not None:
        with open_stored(rooms, part.descriptor) as stored:
            yield stored
        return
    with tars.taken(part, lambda count: saving.tell(part, count)) as made:
        yield made


def add_blob(rooms: Rooms, saving: Saving, tars: Tars, tar: TarOutput, name: str, part: Part) -> None:
    """Add a blob to an archive, as it is, hashed while it goes."""
    with opened(rooms, part, tars, saving) as fd:
        tar.begin(name, part.descriptor.size)
        copy_out(fd, part.descriptor, tar.write, lambda count: saving.tell(part, count))
        tar.end()
    saving.end(part)


def _write_archive(rooms: Rooms, saving: Saving, tars: Tars, tar: TarOutput) -> None:
    """An OCI layout in a tar, its members by name. Docker from 1.10 on finds its own list in it as well.

    Spec:
        image-spec v1.1 image-layout.md.
    """
    from pyctrd.flows.save_docker import list_for_docker

    parts = saving.parts
    tar.directory("blobs/")
    made: set[str] = set()
    for name, part in parts.items():
        if (directory := name.rpartition("/")[0] + "/") not in made:
            tar.directory(directory)
            made.add(directory)
        add_blob(rooms, saving, tars, tar, name, part)
    tar.file(INDEX_FILE, layout_index(saving.entries()))
    if listed := list_for_docker(saving.images):
        tar.file("manifest.json", listed)
    tar.file(LAYOUT_FILE, layout_file())
    tar.finish()


def _write_layout(rooms: Rooms, saving: Saving, tars: Tars, path: Path) -> None:
    flush = rooms.settings.durability != "none"
    with naming(path):
        layout = LayoutDirectory(path, flush=flush)
    with closing(layout):
        for part in saving.parts.values():
            if not layout.has(part.descriptor):
                _add_to_layout(rooms, saving, tars, layout, part)
            saving.end(part)
        with naming(path):
            layout.finish(saving.entries())


def _add_to_layout(rooms: Rooms, saving: Saving, tars: Tars, layout: LayoutDirectory, part: Part) -> None:
    with opened(rooms, part, tars, saving) as fd, layout.new_blob(part.descriptor.digest) as new:
        copy_file(fd, new.fd, part.descriptor, lambda count: saving.tell(part, count), called=saving.dest)
        layout.add(part.descriptor.digest, new)


@contextmanager
def _open_output(rooms: Rooms, dest: Dest) -> Iterator[Output]:
    """Where an archive goes: to a file that has its name when it is whole, or as it comes to what is no file."""
    if not isinstance(dest, str | os.PathLike):
        yield Output(dest, _called(dest))
        return
    # A symbolic link stays: what it leads to is replaced.
    path = Path(os.path.realpath(dest))
    mode = _ARCHIVE_MODE
    try:
        found = path.stat().st_mode
        mode = stat.S_IMODE(found) & _ARCHIVE_MODE
    except FileNotFoundError:
        found = stat.S_IFREG
    if stat.S_ISDIR(found):
        raise InvalidError(
            f"invalid dest: {path}: it is a directory, and an archive is a file",
            field="dest",
            value=str(path),
            hint="name a file, or choose the format oci",
        )
    if not stat.S_ISREG(found):  # a named pipe, a device
        with special_output(path) as output:
            yield output
        return
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"directory not found: {path.parent}", kind="directory", name=str(path.parent)) from error
    flush = rooms.settings.durability != "none"
    try:
        with naming(path):
            new = NewFile(directory, path.name, mode=mode)
        with new, open(new.fd, "wb", buffering=0, closefd=False) as file:
            yield Output(file, str(path))
            with naming(path):
                new.publish(replace=True, flush=flush)
    finally:
        os.close(directory)
    if flush:
        flush_directory(path.parent)
