"""``engine.images`` and the image that it gives."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd import image, images, pulls
from pyctrd.aio.face import Face, calls, copies, finds, gives, iterates, lists, transfers, waits
from pyctrd.aio.streams import Stream, Transfer
from pyctrd.aio.threads import in_loop

if TYPE_CHECKING:
    from pyctrd.aio.threads import Threads


class Image(Face[image.Image]):
    """As ``pyctrd.Image``; what is read from the store when it is asked for is awaited: ``await image.config``."""

    read_file = calls(image.Image.read_file)
    open = gives(image.Image.open, lambda file, _: file, discard=lambda file: file.close())
    stat = calls(image.Image.stat)
    lstat = calls(image.Image.lstat)
    walk = iterates(image.Image.walk)
    mount = calls(image.Image.mount)

    @property
    def name(self) -> str:
        """As ``pyctrd.Image.name``."""
        return self._of.name

    @property
    def digest(self) -> str:
        """As ``pyctrd.Image.digest``."""
        return self._of.digest

    @property
    def manifest_digest(self) -> str:
        """As ``pyctrd.Image.manifest_digest``."""
        return self._of.manifest_digest

    @property
    def platform(self) -> str:
        """As ``pyctrd.Image.platform``."""
        return self._of.platform

    @property
    def platforms(self) -> Coroutine[Any, Any, tuple[str, ...]]:
        """As ``pyctrd.Image.platforms``, awaited."""
        return self._threads.call(lambda: self._of.platforms)

    @property
    def created_ns(self) -> int:
        """As ``pyctrd.Image.created_ns``."""
        return self._of.created_ns

    @property
    def manifest(self) -> Coroutine[Any, Any, pyctrd.Manifest]:
        """As ``pyctrd.Image.manifest``, awaited."""
        return self._threads.call(lambda: self._of.manifest)

    @property
    def config(self) -> Coroutine[Any, Any, pyctrd.ImageConfig]:
        """As ``pyctrd.Image.config``, awaited."""
        return self._threads.call(lambda: self._of.config)

    @property
    def size_bytes(self) -> Coroutine[Any, Any, int]:
        """As ``pyctrd.Image.size_bytes``, awaited."""
        return self._threads.call(lambda: self._of.size_bytes)

    def diff(self, other: Image) -> Stream[pyctrd.FileChange]:
        """As ``pyctrd.Image.diff``."""
        return Stream(self._threads, lambda: self._of.diff(other._of))

    @asynccontextmanager
    async def mounted(self, target: str | os.PathLike[str]) -> AsyncIterator[Path]:
        """As ``pyctrd.Image.mounted``."""
        mounted = self._of.mounted(target)
        path = await self._threads.call(mounted.__enter__, discard=lambda _: mounted.__exit__(None, None, None))
        try:
            yield path
        finally:
            await self._threads.call(lambda: mounted.__exit__(None, None, None))


@dataclass(frozen=True, slots=True)
class PullResult:
    """As ``pyctrd.PullResult``, with an image whose calls are awaited.

    Attributes:
        reference: As it was given.
        image: The image; None where there is an error.
        error: What ``pull`` would have raised; None where there is an image.
    """

    reference: str
    image: Image | None = None
    error: Exception | None = None

    def get(self) -> Image:
        """The image.

        Raises:
            Exception: The error, where that is how it ended.
        """
        if self.image is None:
            raise self.error or LookupError(f"no image: {self.reference}")
        return self.image


class PullMany(Stream[PullResult]):
    """As ``pyctrd.PullMany``: results in the order in which pulls end; ``async with`` and ``async for``."""

    def __init__(self, of: pulls.PullMany, threads: Threads) -> None:
        def results() -> Iterator[PullResult]:
            with of:
                for result in of:
                    found = None if result.image is None else Image(result.image, threads)
                    yield PullResult(result.reference, found, result.error)

        super().__init__(threads, results)
        self._of = of

    def progress(self) -> pyctrd.PullManyProgress:
        """As ``pyctrd.PullMany.progress``: a look, which waits for nothing."""
        return self._of.progress()

    async def close(self) -> None:
        """As ``aclose``."""
        await self.aclose()


class Images(Face[images.Images]):
    """As ``pyctrd.Images``.

    ``progress`` is called by the event loop, while the transfer waits for its end; what it raises gives the transfer
    up. Of pulls, pushes, copies and conversions eight are under way at once, others wait for their turns; for very many
    images there is ``pull_many``. A pipe that is loaded from, or saved to by its path, may have nobody at its end.
    """

    pull = transfers(images.Images.pull, Image)
    load = copies(images.Images.load, lambda found, threads: [Image(one, threads) for one in found])
    save = copies(images.Images.save, lambda nothing, _: nothing)
    push = transfers(images.Images.push, lambda digest, _: digest)
    copy = transfers(images.Images.copy, lambda digest, _: digest)
    tag = gives(images.Images.tag, Image)
    convert = transfers(images.Images.convert, Image)
    get = gives(images.Images.get, Image)
    find = finds(images.Images.find, Image)
    list = lists(images.Images.list, Image)
    remove = calls(images.Images.remove)
    unmount = calls(images.Images.unmount)
    close = waits(images.Images.close)

    def follow_pull(
        self,
        reference: str,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        unpack: bool = True,
        keep_blobs: bool | None = None,
    ) -> Transfer[Image]:
        """As ``pyctrd.Images.follow_pull``: ``async for`` over its events, then ``await`` its ``result()``."""
        threads = self._threads

        def pull(progress: pyctrd.ProgressCallback) -> Image:
            found = self._of.pull(
                reference,
                platform=platform,
                all_platforms=all_platforms,
                unpack=unpack,
                keep_blobs=keep_blobs,
                progress=progress,
            )
            return Image(found, threads)

        return Transfer(threads, pull)

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
    ) -> PullMany:
        """As ``pyctrd.Images.pull_many``; references are read in a thread, ``progress`` is called by the event loop."""
        many = self._of.pull_many(
            references,
            concurrency=concurrency,
            per_host=per_host,
            platform=platform,
            all_platforms=all_platforms,
            unpack=unpack,
            keep_blobs=keep_blobs,
            progress=None if progress is None else in_loop(progress),
        )
        return PullMany(many, self._threads)
