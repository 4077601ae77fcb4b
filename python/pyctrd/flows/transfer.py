"""Load: images out of a directory, an archive or a stream, each byte checked as in a pull."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pyctrd import _core
from pyctrd.content.archive import Archive
from pyctrd.content.docker_archive import LIST_FILE, DockerArchive
from pyctrd.content.layout import Layout
from pyctrd.content.members import EXPECTED, Directory
from pyctrd.errors import InvalidError, NotFoundError
from pyctrd.flows.fetch import Fetch
from pyctrd.flows.lease import kept, resources_of
from pyctrd.flows.progress import PROGRESS_INTERVAL_SECONDS, ProgressCallback, Telling, telling
from pyctrd.flows.pull import (
    image_record,
    is_present,
    look_at,
    note_unpacked,
    record_content,
    settle,
    settling,
    swept_after_failure,
    wants_of,
)
from pyctrd.flows.resolve import Document, resolve_top
from pyctrd.flows.share import share
from pyctrd.flows.wants import Want
from pyctrd.oci.index import detect
from pyctrd.oci.listings import INDEX_FILE, LAYOUT_FILE
from pyctrd.oci.reference import DEFAULT_TAG, Reference
from pyctrd.oci.transports import Transport, is_transport

if TYPE_CHECKING:
    from pyctrd.content.offered import Offered
    from pyctrd.flows.platforms import Others
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.oci.digest import Digest
    from pyctrd.oci.platform import Platform

Source = str | os.PathLike[str] | IO[bytes]


def load(
    rooms: Rooms,
    source: Source,
    *,
    platform: Platform,
    others: Others = (),
    name: str | None = None,
    unpack: bool = True,
    keep_blobs: bool | None = None,
    single: bool = False,
    progress: ProgressCallback | None = None,
) -> list[ImageRecord]:
    """Bring in all images of a source: resolve, copy what is missing, publish, record; see ``Images.load``.

    All of them come in, or none: their names are recorded in one transaction, once the last byte was checked.

    Args:
        rooms: The engine's rooms.
        source: A path, a transport, or an open file.
        platform: Whose manifests are taken.
        others: Whose are stored beside them.
        name: What to call the image.
        unpack: Make each layer's tree.
        keep_blobs: Store the blobs of layers that are unpacked too; None as the engine does.
        single: Refuse a source with several images.
        progress: Called a few times a second, in this thread.

    Returns:
        The records, durable, one for each name.

    Spec:
        image-spec v1.1 image-layout.md.
    """
    transport = Transport.parse(source) if isinstance(source, str) and is_transport(source) else None
    with (
        telling(_called(source, transport), progress) as told,
        swept_after_failure(rooms),
        _open_source(rooms, source, transport) as origin,
    ):
        keeps = rooms.settings.keep_blobs if keep_blobs is None else keep_blobs
        loading = _Loading(rooms, origin, platform=platform, others=others, unpack=unpack, keep_blobs=keeps)
        offers = origin.images(platform)
        if transport is not None and transport.name:
            offers = choose(offers, transport.name, called=origin.source)
        if single and len({offered.target.digest for offered in offers}) > 1:
            raise InvalidError(
                f"several images: {origin.source} has {len(offers)}",
                field="reference",
                value=origin.source,
                hint=f"name one: {source}:NAME; or bring all of them in: pyctrd load -i {source}",
            )
        for reference, offered in name_images(offers, name, called=origin.source):
            loading.add(reference, offered.target)
        return loading.run(told)


class _Loading:
    """The images of one source on their way in. Of each no more is kept than what names it and what it wants."""

    def __init__(
        self,
        rooms: Rooms,
        origin: Layout | DockerArchive,
        *,
        platform: Platform,
        others: Others,
        unpack: bool,
        keep_blobs: bool,
    ) -> None:
        self._rooms = rooms
        self._origin = origin
        self._platform = platform
        self._others = others
        self._unpack = unpack
        self._keep_blobs = keep_blobs
        self._wants: dict[tuple[str, str], Want] = {}
        self._records: list[ImageRecord] = []
        self._stacks: list[Sequence[Digest]] = []

    def add(self, reference: Reference, target: Descriptor) -> None:
        """Read an image's documents, and note what is wanted for it."""
        top = Document(target, self._origin.read_manifest(target))
        if (reads_as := detect(top.body)) != target.media_type:
            raise InvalidError(
                f"invalid manifest: {target.digest}: named as {target.media_type}, reads as {reads_as}",
                field="mediaType",
                value=reads_as,
            )
        resolved = resolve_top(self._rooms, self._origin, reference, top, platform=self._platform)
        if self._others:
            from pyctrd.flows.platforms import with_others

            resolved = with_others(self._rooms, self._origin, resolved, self._others)
        if self._unpack:
            resolved.manifest.check_is_image(str(reference))
        for want in wants_of(
            self._rooms,
            resolved,
            self._origin,
            unpack=self._unpack,
            keep_blobs=self._keep_blobs,
        ):
            self._wants.setdefault((str(want.descriptor.digest), want.diff_id or ""), want)
        self._records.append(image_record(self._rooms, resolved))
        if resolved.config is not None:
            self._stacks.append(resolved.config.rootfs.diff_ids)

    def run(self, told: Telling) -> list[ImageRecord]:
        """Bring in all that is wanted, and name the images."""
        rooms, wants = self._rooms, list(self._wants.values())
        targets = {record.target_digest for record in self._records}
        told.begin(targets.pop() if len(targets) == 1 else "", partial(look_at, wants))
        # Kept before it is looked for: whatever is there now stays there.
        stacks = self._stacks if self._unpack else []
        with kept(rooms, "load", resources_of(wants)) as lease:
            Fetch(
                rooms,
                is_present=partial(is_present, rooms),
                record=partial(record_content, rooms, ""),
                share=partial(share, rooms, None),
                watch=told.watch,
                watch_seconds=PROGRESS_INTERVAL_SECONDS,
                flushes=False,
                publishing=partial(settling, rooms, stacks),
            ).run(wants)
            for diff_ids in stacks:
                settle(rooms, diff_ids)
            with rooms.database.write() as tx:
                lease.end(tx)
                note_unpacked(rooms, tx, wants)
                return [tx.images.put(record, by="load") for record in self._records]


@contextmanager
def _open_source(rooms: Rooms, source: Source, transport: Transport | None) -> Iterator[Layout | DockerArchive]:
    """What a source holds, for as long as it is read."""
    if isinstance(source, str | os.PathLike):
        path = Path(source if transport is None else transport.path)
        try:
            is_directory = stat.S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"file not found: {path}", kind="file", name=str(path)) from error
        if transport is not None and is_directory != (transport.form == "oci"):
            raise _unknown(str(path), f"{transport.form} is {'an archive' if is_directory else 'a directory'}")
        if is_directory:
            with closing(Directory(path)) as members:
                yield _read_directory(members)
        else:
            with _open_file(path) as file, closing(_open_archive(rooms, str(path), file)) as members:
                _check_transport(members, transport)
                yield _read_archive(rooms, members)
    else:
        with closing(_open_archive(rooms, _called(source, None), source)) as members:
            yield _read_archive(rooms, members)


def _called(source: Source, transport: Transport | None) -> str:
    """What a source is called, for messages and for who is told of it."""
    if isinstance(source, str | os.PathLike):
        return str(Path(source if transport is None else transport.path))
    return str(getattr(source, "name", "stream"))


def _check_transport(members: Archive, transport: Transport | None) -> None:
    """Raise where a user says what an archive is, and it is not that."""
    if transport is not None and transport.form == "oci-archive" and not members.has(INDEX_FILE):
        raise _unknown(members.source, f"it has no {INDEX_FILE}, as an oci-archive has")
    if transport is not None and transport.form == "docker-archive":
        from pyctrd.content.old_docker_archive import is_old

        if not members.has(LIST_FILE) and not is_old(members):
            raise _unknown(members.source, f"it has no {LIST_FILE}, as a docker-archive has")


def _open_file(path: Path) -> IO[bytes]:
    """Open it for reading; of a named pipe whoever writes it is waited for by who reads, and not here."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(fd, "rb", buffering=0)


def _open_archive(rooms: Rooms, called: str, file: IO[bytes]) -> Archive:
    def make_copies() -> _core.Workspace:
        return _core.Workspace(str(rooms.root), os.urandom(16).hex())

    return Archive(called, file.fileno(), copies=make_copies, limits=rooms.settings.limits)


def _read_directory(members: Directory) -> Layout:
    if not (members.has(INDEX_FILE) or members.has(LAYOUT_FILE)):
        raise _unknown(members.source, f"it has no {INDEX_FILE}")
    return Layout(members)


def _read_archive(rooms: Rooms, members: Archive) -> Layout | DockerArchive:
    """Docker 25 and later write both forms into one archive: the layout has the digests of the registry's."""
    if members.has(INDEX_FILE) or members.has(LAYOUT_FILE):
        return Layout(members)
    if members.has(LIST_FILE):
        return DockerArchive(members)
    from pyctrd.content.old_docker_archive import OldDockerArchive, is_old

    if is_old(members):
        return OldDockerArchive(members, limits=rooms.settings.limits)
    raise _unknown(members.source, f"it has neither {INDEX_FILE} nor {LIST_FILE}")


def _unknown(source: str, why: str) -> InvalidError:
    return InvalidError(
        f"invalid image source: {source}: {why}",
        field="source",
        value=source,
        hint=EXPECTED,
    )


def choose(offered: Sequence[Offered], wanted: str, *, called: str) -> list[Offered]:
    """Those of a source's images that a user means by a tag or a full reference, by that name alone.

    Raises:
        NotFoundError: It has none of the name.
    """
    found = []
    for image in offered:
        names = tuple(name for name in image.names if _is_meant(name, wanted))
        if names or (image.tag and image.tag == wanted):
            found.append(image._replace(names=names))
    if not found:
        known = sorted({name for image in offered for name in (*image.names, image.tag) if name})
        raise NotFoundError(
            f"image not found: {called}: {wanted[:200]!r}: it has {', '.join(known)[:200] or 'no names'}",
            kind="image",
            name=wanted[:200],
        )
    return found


def _is_meant(name: str, wanted: str) -> bool:
    if name == wanted:
        return True
    with suppress(InvalidError):
        reference = Reference.parse(name)
        return reference.tag == wanted or reference == Reference.parse(wanted)
    return False


def name_images(offered: Sequence[Offered], name: str | None, *, called: str) -> list[tuple[Reference, Offered]]:
    """What each image is to be called; an image with several names is there once for each.

    Args:
        offered: What the source has.
        name: A reference in place of the source's names; without a tag, images keep theirs.
        called: What the source is called, for messages.

    Raises:
        NotFoundError: The source has no image.
        InvalidError: An image has no name, or a wrong one; two images would have the same.
    """
    if not offered:
        raise NotFoundError(f"image not found: {called}: it has none", kind="image", name=called)
    found: dict[Reference, Offered] = {}
    for image in offered:
        for reference in _references(image, name, called):
            if reference.digest is not None and reference.digest != image.target.digest:
                raise InvalidError(
                    f"invalid reference: {reference}: the image is {image.target.digest}",
                    field="reference",
                    value=str(reference),
                )
            if found.setdefault(reference, image).target.digest != image.target.digest:
                raise InvalidError(
                    f"ambiguous name: {reference}: {called} has several images that would be called so",
                    field="name",
                    value=str(reference),
                )
    return list(found.items())


def _references(image: Offered, name: str | None, called: str) -> list[Reference]:
    if name is None:
        if not image.names:
            said = f"only the tag {image.tag[:80]!r}" if image.tag else "no name"
            raise InvalidError(
                f"nameless image: {called}: {image.target.digest}: the source says {said}",
                field="name",
                value=image.tag,
                hint="give it one: --name REFERENCE",
            )
        return [Reference.parse(text) for text in image.names]
    wanted = Reference.parse(name)
    if _has_tag(name):
        return [wanted]
    tags = [image.tag] if image.tag else [Reference.parse(text).tag or DEFAULT_TAG for text in image.names]
    return [Reference.parse(f"{name}:{tag}") for tag in tags] or [wanted]


def _has_tag(name: str) -> bool:
    return "@" in name or ":" in name.rpartition("/")[2]
