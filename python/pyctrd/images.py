"""``engine.images``: how images come in, go out, and are found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.errors import InvalidError
from pyctrd.image import Image

if TYPE_CHECKING:
    from pyctrd.flows.follow import Following
    from pyctrd.flows.many import ManyPulls
    from pyctrd.flows.resolve import Resolved
    from pyctrd.flows.rooms import Rooms

# As ``oci.transports`` has them, which a pull from a registry need not load.
_TRANSPORTS = ("oci:", "oci-archive:", "docker-archive:")


class Images:
    """The images of the engine's namespace."""

    def __init__(self, rooms: Rooms, policy: pyctrd.Policy | None = None) -> None:
        self._rooms = rooms
        self._policy = policy
        self._many: list[ManyPulls] = []
        self._followed: list[Following[Image]] = []

    def pull(
        self,
        reference: str,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        unpack: bool = True,
        keep_blobs: bool | None = None,
        progress: pyctrd.ProgressCallback | None = None,
    ) -> Image:
        """Bring an image in from a registry, verified, stored and unpacked.

        Args:
            reference: As Docker reads it: ``alpine``, ``ghcr.io/org/app:1.2``, ``…@sha256:…``. Or an image of a
                layout or an archive, ``oci:PATH[:NAME]``, ``oci-archive:…`` or ``docker-archive:…``, as for ``load``.
            platform: ``os/architecture[/variant]``; the host's by default. Of several, the first is what the image is
                from then on: what is unpacked, run and shown; the others' blobs are stored and verified beside it.
                What came before of the same index stays.
            all_platforms: Store all that the index names beside the one platform: nested indexes, every platform,
                attestations and other artifacts.
            unpack: Make each layer's tree while its bytes arrive. An artifact that is no image (a Helm chart, a
                signature) can only be stored: without.
            keep_blobs: Store the blobs of layers that are unpacked as well; the engine's setting by default. Without,
                they are verified and never written. A later pull finds the image there, unless it wants the blobs: it
                fetches those that are not. A layer that the namespace has unpacked already, from another blob, is then
                taken on the config's word, and nothing of it fetched.
            progress: Called in this thread with a ``PullProgress``: first while the reference is resolved, when no
                layers are known, then about ten times a second, and last when the image is there. What it raises gives
                the pull up, but for the last time.

        Returns:
            The image; it survives a power cut from here on (see ``durability``).

        Raises:
            InvalidError: The reference, or a document of the image; neither blobs nor layers are wanted.
            NotFoundError: No such image, or none for one of the platforms.
            PolicyError: The engine's policy refused it, or one of its other platforms.
            RegistryError: The registry refused or was not reached.
            IntegrityError, UnsafeArchiveError: What arrived is not what was promised.
            QuotaError: The namespace may not have so much; nothing came in.
            OSError: The disk; nothing half-made is left.
        """
        from pyctrd.flows.from_registry import pull_from_registry, read_platforms
        from pyctrd.oci.reference import Reference

        wanted, others = read_platforms(platform, all_platforms=all_platforms)
        keeps = self._keeps(keep_blobs, unpack=unpack)
        if reference.startswith(_TRANSPORTS):
            from pyctrd.flows.transfer import load

            loaded = load(
                self._rooms,
                reference,
                platform=wanted,
                others=others,
                unpack=unpack,
                keep_blobs=keeps,
                single=True,
                progress=progress,
            )
            return Image(self._rooms, loaded[0])
        from pyctrd.flows.progress import telling

        parsed = Reference.parse(reference)
        with telling(str(parsed), progress) as told:
            record = pull_from_registry(
                self._rooms, parsed, wanted, others, told, check=self._check, unpack=unpack, keep_blobs=keeps
            )
        return Image(self._rooms, record)

    def follow_pull(
        self,
        reference: str,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        unpack: bool = True,
        keep_blobs: bool | None = None,
    ) -> pyctrd.Transfer[Image]:
        """As ``pull``, with its events to iterate over in place of a callback.

        ::

            with engine.images.follow_pull("alpine") as events:
                for event in events:
                    print(event.received_bytes, event.size_bytes)
            image = events.result()

        Args:
            reference: As for ``pull``.
            platform: As for ``pull``.
            all_platforms: As for ``pull``.
            unpack: As for ``pull``.
            keep_blobs: As for ``pull``.

        Returns:
            The pull, which has begun: an iterator over its events and a context manager. What ``pull`` would raise, its
            iteration and ``result`` do.
        """
        from pyctrd.flows.follow import Following
        from pyctrd.transfers import Transfer

        def pull(progress: pyctrd.ProgressCallback) -> Image:
            return self.pull(
                reference,
                platform=platform,
                all_platforms=all_platforms,
                unpack=unpack,
                keep_blobs=keep_blobs,
                progress=progress,
            )

        following = Following(pull)
        self._followed = [*(known for known in self._followed if not known.is_over), following]
        return Transfer(following)

    def pull_many(
        self,
        references: Iterable[str],
        *,
        concurrency: int | None = None,
        per_host: int | None = None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        unpack: bool = True,
        keep_blobs: bool | None = None,
        progress: pyctrd.ProgressCallback | None = None,
    ) -> pyctrd.PullMany:
        """Pull images, several at once, and give each as it comes in; one image's error is no other's.

        ::

            with engine.images.pull_many(references) as results:
                for result in results:
                    print(result.reference, result.error or result.image.digest)

        Each image is pulled as ``pull`` does it. All share the process's workers and the engine's connections, of which
        no registry's host has more than of one pull; what two images have in common is downloaded once. Hosts take
        turns: of those with something to do, the one with the fewest images under way is next. Neither threads nor
        memory grow with the number of references, but for their names: a reference that comes again, however it is
        written, is pulled once and gives one result.

        Args:
            references: As ``pull`` takes them. Read in the thread that iterates, when there is room: about
                ``concurrency`` of them ahead, and up to 1,000 past those of hosts that have all that they may have.
            concurrency: Images under way at once, 1 to 80; 8 by default.
            per_host: How many of them of one registry's host; three quarters of ``concurrency`` by default, so that
                one host that is slow never has them all.
            platform: As for ``pull``.
            all_platforms: As for ``pull``.
            unpack: As for ``pull``.
            keep_blobs: As for ``pull``.
            progress: As for ``pull``, and for each image by itself: ``PullProgress.reference`` says which. Called in
                the thread that iterates, while it waits for a result.

        Returns:
            An iterator over ``PullResult``, in the order in which the pulls end, and a context manager. A reference
            that is none is a result with an ``InvalidError``.

        Raises:
            InvalidError: ``concurrency`` or ``per_host`` is not 1 to 80, or ``platform`` is none; neither blobs nor
                layers are wanted.
        """
        from pyctrd.flows.from_registry import read_platforms
        from pyctrd.flows.many import DEFAULT_IMAGES, ManyPulls
        from pyctrd.pulls import PullMany

        wanted, others = read_platforms(platform, all_platforms=all_platforms)
        pulls = ManyPulls(
            self._rooms,
            references,
            platform=wanted,
            others=others,
            unpack=unpack,
            keep_blobs=self._keeps(keep_blobs, unpack=unpack),
            images=DEFAULT_IMAGES if concurrency is None else concurrency,
            per_host=per_host,
            check=self._check,
        )
        self._many = [*(known for known in self._many if not known.is_over), pulls]
        rooms = self._rooms
        return PullMany(pulls, lambda record: Image(rooms, record), progress)

    def _check(self, resolved: Resolved) -> None:
        if self._policy is not None:
            from pyctrd.policies import check

            check(self._rooms, self._policy, resolved)

    def _keeps(self, keep_blobs: bool | None, *, unpack: bool) -> bool:  # noqa: FBT001 - three values
        if keep_blobs is False and not unpack:
            raise InvalidError(
                "invalid keep_blobs: without unpacking, nothing would be kept of a layer",
                field="keep_blobs",
                value=keep_blobs,
            )
        return self._rooms.settings.keep_blobs if keep_blobs is None else keep_blobs

    def close(self) -> None:
        """Stop what ``pull_many`` and ``follow_pull`` have under way, and wait; idempotent; the engine does it too."""
        many, self._many = self._many, []
        followed, self._followed = self._followed, []
        for pulls in many:
            pulls.close()
        for following in followed:
            following.close()

    def load(
        self,
        source: str | os.PathLike[str] | IO[bytes],
        *,
        name: str | None = None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        unpack: bool = True,
        progress: pyctrd.ProgressCallback | None = None,
    ) -> list[Image]:
        """Bring in all images of an OCI layout or an archive, verified as a pull's bytes are; no registry is asked.

        Read are OCI layouts, as a directory or a tar, and what ``docker save`` and ``podman save`` write, Docker before
        1.10 as well; a tar may be compressed by gzip or zstd. Of a plain tar in a file, blobs are read where they are;
        of all else, copies are made in the store while it is read, and removed at the end. An archive without manifests
        (docker's) gets OCI ones, so that its digests are not those that a registry had.

        Args:
            source: A directory, a file, or an open binary file: a pipe or standard input, whose descriptor is read
                from where that stands to its end. A string ``oci:PATH[:NAME]``, ``oci-archive:PATH[:NAME]`` or
                ``docker-archive:PATH[:NAME]`` says what is there, and which image of it is meant: by its tag or full
                reference.
            name: What to call the image, in place of names that the source has. Without a tag, images keep the tags
                that the source gives them.
            platform: Which of several platforms of an image; the host's by default. Several as for ``pull``.
            all_platforms: As for ``pull``: all that the source's indexes name, which must be in it.
            unpack: As for ``pull``; whether blobs are kept of layers that are is the engine's setting.
            progress: As for ``pull``; ``PullProgress.reference`` is the source's name.

        Returns:
            An image for each name, in the source's order. All of them came in, or none did.

        Raises:
            NotFoundError: No such file; no image in it, or none for the platform; a blob is missing.
            InvalidError: It is no layout and no archive, or its documents are wrong; an image has no name; a blob is no
                regular file; a name stands twice or leads out. Documents over 4 MiB are refused unread.
            UnsupportedError: A layout of a version to come.
            IntegrityError, UnsafeArchiveError: A blob is not what its digest, size or diff_id says; a limit.
            QuotaError: The namespace may not have so much; nothing came in.
            OSError: It cannot be read; the disk. Nothing half-made is left.
        """
        from pyctrd.flows.from_registry import read_platforms
        from pyctrd.flows.transfer import load

        wanted, others = read_platforms(platform, all_platforms=all_platforms)
        records = load(self._rooms, source, platform=wanted, others=others, name=name, unpack=unpack, progress=progress)
        return [Image(self._rooms, record) for record in records]

    def save(
        self,
        names: str | Iterable[str],
        dest: str | os.PathLike[str] | IO[bytes],
        *,
        format: Literal["oci-archive", "oci", "docker-archive"] = "oci-archive",  # noqa: A002 - as everywhere
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        progress: pyctrd.ProgressCallback | None = None,
    ) -> None:
        """Write images to a layout or an archive, hashed on the way out; what they have in common goes once.

        "oci-archive" is an OCI layout in a tar, blobs as they came, which Docker from 1.10 on loads too; "oci" one in a
        directory. "docker-archive" is what ``docker save`` writes: layers as plain tars, under which the digest of an
        image is another one. The same images give the same bytes, whatever their order.

        An image's name may mean an index: then it goes as it is, with those of its manifests that are in the store
        whole. Docker, containerd, Podman and skopeo take such a layout, and find their platform's; umoci takes no
        index, and crane none that is not whole: for these choose a platform. A docker-archive has one manifest.

        Args:
            names: One image or several, as ``get`` takes them.
            dest: A path, or an open binary file that is written from where it stands: a pipe, standard output. A file
                is replaced when all of the archive is there. Into a directory that has a layout images are added, in
                place of those that have the same name; its index is replaced last.
            format: What is written.
            platform: Whose manifest goes, alone; of several the index goes, with theirs. What the store has of what the
                name means by default.
            all_platforms: Refuse an index that is not here whole.
            progress: As for ``pull``; ``PullProgress.reference`` is where they go.

        Raises:
            NotFoundError: No such image, or nothing of it in the store for a platform; a blob that was not kept, in
                the OCI forms: what a compressor made of a layer cannot be made again. No such directory.
            InvalidError: No such format; the destination is something else; for a docker-archive, an image that has a
                digest and no tag, or an artifact that is no image.
            IntegrityError: A blob is damaged. A file or directory is left as it was; of a stream the end is missing.
            OSError: The disk; ``BrokenPipeError``: nobody reads any more.

        Spec:
            image-spec v1.1 image-layout.md; Docker's image-spec v1.2.
        """
        from pyctrd.flows.load import get_image
        from pyctrd.flows.save import save
        from pyctrd.oci.platform import Platform

        save(
            self._rooms,
            [get_image(self._rooms, name) for name in ([names] if isinstance(names, str) else names)],
            dest,
            format=format,
            platforms=Platform.parse_all(platform),
            all_platforms=all_platforms,
            progress=progress,
        )

    def push(
        self,
        name: str,
        target: str | None = None,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        reduced: bool = False,
        compression: Literal["gzip", "zstd", "zstd:chunked", "none"] | None = None,
        chunk_bytes: int = 0,
        progress: pyctrd.ProgressCallback | None = None,
    ) -> str:
        """Send an image to a registry; what that has already is not sent.

        A blob that the registry has in another repository, where it came from, is mounted from there. One whose bytes
        were not kept here is handed on from the registry that it came from. A layer that may not be passed on, and says
        where else it is, stays away. Manifests come last: who finds the name finds all of it.

        Args:
            name: The image, as ``get`` takes it.
            target: Where to; the image's own name by default. With a digest it must be the image's. Or a layout or an
                archive, ``oci:PATH[:NAME]``, ``oci-archive:…`` or ``docker-archive:…``, as ``save`` writes them.
            platform: Whose manifest goes, of those in the store; the image's own by default. Of several the index goes,
                with theirs alone; a registry that takes no index which is not whole refuses that.
            all_platforms: The index that was pulled, with every platform, in place of this platform's manifest; what is
                not here of it is handed on from where the image came from, but not to a layout or an archive.
            reduced: In place of the index one that names the manifests for ``platform`` alone, of another digest.
            compression: Layers are sent so, as ``convert`` makes them; as they are by default.
            chunk_bytes: Send blobs in requests of so many bytes; 0 is one request for each, and chunks of 32 MiB where
                a registry takes no larger ones.
            progress: As for ``pull``; every blob is told of, config and all.

        Returns:
            The digest of what the target names now.

        Raises:
            NotFoundError: There is no such image; a platform or a blob is neither here nor where it came from.
            InvalidError: The target is none, or has the digest of something else.
            AuthenticationError, DeniedError: Credentials are missing, or do not suffice.
            RegistryError, IntegrityError: The registry refused, could not be reached, or got other bytes.

        Spec:
            distribution-spec v1.1, "Push".
        """
        from pyctrd.flows.push import push_image

        return push_image(
            self._rooms,
            name,
            target,
            platform=platform,
            all_platforms=all_platforms,
            reduced=reduced,
            compression=compression,
            chunk_bytes=chunk_bytes,
            progress=progress,
        )

    def copy(
        self,
        source: str,
        target: str,
        *,
        platform: str | Sequence[str] | None = None,
        reduced: bool = False,
        referrers: bool = False,
        chunk_bytes: int = 0,
        progress: pyctrd.ProgressCallback | None = None,
    ) -> str:
        """Copy an image, or any other artifact, from one registry to another; nothing is stored or unpacked here.

        All platforms are copied, byte for byte, so that every digest stays. What the target has is not read from the
        source; within one registry blobs are mounted.

        Args:
            source: A reference.
            target: A reference; with a digest it must be the source's.
            platform: ``os/architecture[/variant]``: this manifest alone in place of an index; of several as ``push``.
            reduced: As for ``push``.
            referrers: What tells of the image too, or of any of its parts: signatures, bills of materials.
            chunk_bytes: As for ``push``.
            progress: As for ``push``.

        Returns:
            The digest of what the target names now.

        Raises:
            NotFoundError, InvalidError, RegistryError, IntegrityError: As ``pull`` of the source and ``push`` to the
                target.

        Spec:
            distribution-spec v1.1, "Pull", "Push", "Listing Referrers".
        """
        from pyctrd.flows.copy import copy_image
        from pyctrd.flows.progress import telling
        from pyctrd.oci.platform import Platform
        from pyctrd.oci.reference import Reference

        parsed = Reference.parse(target)
        with telling(str(parsed), progress) as told:
            copied = copy_image(
                self._rooms,
                Reference.parse(source),
                parsed,
                platforms=Platform.parse_all(platform),
                reduced=reduced,
                referrers=referrers,
                told=told,
                chunk_bytes=chunk_bytes,
            )
        return str(copied.digest)

    def tag(self, name: str, target: str) -> Image:
        """Give an image another name; one that exists means this image from then on.

        Args:
            name: As ``get`` takes it.
            target: A reference with a tag.

        Raises:
            NotFoundError: There is no such image.
            InvalidError: The target is none, or has a digest.
        """
        from pyctrd.flows.load import get_image
        from pyctrd.flows.tag import tag_image
        from pyctrd.oci.reference import Reference

        return Image(self._rooms, tag_image(self._rooms, get_image(self._rooms, name), Reference.parse(target)))

    def convert(
        self,
        source: str,
        target: str,
        *,
        compression: Literal["gzip", "zstd", "zstd:chunked", "none"] = "gzip",
        level: int | None = None,
        progress: pyctrd.ProgressCallback | None = None,
    ) -> Image:
        """Make an image of another one's layers, compressed otherwise; nothing is fetched.

        The tars stay what they are, and with them the diff_ids, the config and what is unpacked: blobs, their media
        types and annotations change. A layer that has the form already is left as it is, unless a level is asked for.
        Of a layer whose blob was not kept the tar is put together again from what was unpacked, bit for bit, or
        refused. The same tar, compression and level give the same bytes, wherever and whenever.

        Of an index the platform that is in the store is converted: the new image is that one manifest, and others'
        entries and attestations are not in it. A manifest of Docker schema 2 stays one with "gzip" and "none"; with
        zstd, for which Docker has no media type, it becomes OCI's.

        "zstd:chunked" has a table of contents, by which Podman, CRI-O and others fetch single files, and is zstd to all
        else. A layer that such a table cannot tell in full (a name that is not UTF-8 or stands twice, a sparse file, a
        global header) is written as zstd without one, and its descriptor says nothing of a table.

        Args:
            source: The image, as ``get`` takes it.
            target: The new image's reference, with a tag; one that exists means the new image from then on.
            compression: What the layers' blobs are to be.
            level: 1 (fast) to 9 for gzip, 1 to 19 for zstd; 6 and 3 by default. Above 9, zstd takes up to 90 MB.
            progress: As for ``pull``; layers by their digests in the source.

        Raises:
            NotFoundError: There is no such image, or a layer is neither stored nor unpacked.
            InvalidError: The target, compression or level is none; the source is no image but another artifact.
            IntegrityError, UnsafeArchiveError: A layer is not what its digests say, is no tar, or has too much of
                something.
            QuotaError: The namespace may not have so much.
            OSError: The disk. After any error nothing is left.

        Spec:
            image-spec v1.1 manifest.md, layer.md "+zstd"; RFC 1952; RFC 8878.
        """
        from pyctrd.flows.convert import convert_image
        from pyctrd.flows.load import get_image
        from pyctrd.flows.progress import telling
        from pyctrd.oci.reference import Reference

        record, parsed = get_image(self._rooms, source), Reference.parse(target)
        with telling(record.name, progress) as told:
            made = convert_image(self._rooms, record, parsed, compression=compression, told=told, level=level)
        return Image(self._rooms, made)

    def get(self, name: str) -> Image:
        """The image of a reference, or of a digest (or its first characters, twelve or more).

        Raises:
            NotFoundError: This namespace has no such image.
        """
        from pyctrd.flows.load import get_image

        return Image(self._rooms, get_image(self._rooms, name))

    def find(self, name: str) -> Image | None:
        """As ``get``, but None where there is none."""
        from pyctrd.flows.load import find_image

        record = find_image(self._rooms, name)
        return None if record is None else Image(self._rooms, record)

    def list(self) -> list[Image]:
        """All images of this namespace, by name."""
        return [Image(self._rooms, record) for record in self._rooms.database.images.list(self._rooms.namespace)]

    def remove(self, name: str, *, force: bool = False, collect: bool = True) -> None:
        """Take a name away, and what nothing else needs from the disk.

        Args:
            name: As ``get`` takes it.
            force: Even if a container was made from it; the container keeps its layers until it is deleted.
            collect: Free what nothing needs then; without, ``Engine.gc`` does, or the next removal. It returns within a
                fraction of a second: of very much, the rest goes from disk in the background, and gives way to pulls.

        Raises:
            NotFoundError: There is no such image.
            ConflictError: A container uses it.
        """
        from pyctrd.flows.collect import remove_image

        remove_image(self._rooms, name, force=force, collect_after=collect)

    def unmount(self, target: str | os.PathLike[str]) -> None:
        """Undo ``Image.mount``.

        Raises:
            NotFoundError: No image is mounted there.
        """
        from pyctrd.flows.mount import unmount_image

        unmount_image(self._rooms, Path(target))
