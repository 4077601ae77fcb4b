"""Layers' tars as files of their own, for what must know a tar's size before its first byte, or makes it again."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pyctrd import _core
from pyctrd.errors import CancelledError, UnsafeArchiveError
from pyctrd.flows.fetch import of_layer
from pyctrd.flows.progress import PROGRESS_INTERVAL_SECONDS
from pyctrd.flows.selection import Part, blob_missing

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms

# Tars made ahead of the one that is taken: while one is written out the next is inflated. More would be more disk.
AHEAD = 1


class Tars:
    """Tars of some layers, made in a workspace of the store, in their order, a little ahead of who takes them.

    Each is verified when it is there: the blob by its digest, the tar by its diff_id. A context manager: what is under
    way at the end is given up, and all files go.

    Args:
        rooms: The engine's rooms.
        parts: The layers, in the order in which they will be taken; each is in the store or unpacked.
    """

    def __init__(self, rooms: Rooms, parts: Sequence[Part]) -> None:
        self._rooms = rooms
        self._waiting = deque(parts)
        self._workspace: _core.Workspace | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._made: dict[str, Future[Path]] = {}
        self._running: dict[str, _core.Conversion] = {}
        self._lock = threading.Lock()
        self._is_stopped = False

    @contextmanager
    def taken(self, part: Part, told: Callable[[int], None]) -> Iterator[int]:
        """The tar of the next layer, by a descriptor; its file has no name any more.

        Args:
            part: The next of them.
            told: Called while this waits, with the bytes that were read of the layer since the last time.

        Raises:
            IntegrityError, UnsafeArchiveError: The layer is damaged.
            OSError: The disk.
        """
        self._begin()
        future = self._made.pop(part.diff_id)
        read = 0
        while not wait([future], PROGRESS_INTERVAL_SECONDS).done:
            if (conversion := self._running.get(part.diff_id)) is not None:
                now = conversion.bytes_read
                told(now - read)
                read = now
        path = future.result()
        with path.open("rb", buffering=0) as file:
            path.unlink()
            yield file.fileno()

    def _begin(self) -> None:
        if self._pool is None:
            self._workspace = _core.Workspace(str(self._rooms.root), os.urandom(16).hex())
            self._pool = ThreadPoolExecutor(AHEAD + 1, thread_name_prefix="pyctrd-tars")
        while self._waiting and len(self._made) <= AHEAD:
            part = self._waiting.popleft()
            self._made[part.diff_id] = self._pool.submit(self._make, part)

    def _make(self, part: Part) -> Path:
        with self._lock:
            if self._workspace is None or self._is_stopped:
                raise CancelledError("cancelled")
            dest = self._workspace.path / part.diff_id.partition(":")[2]
            conversion = self._running[part.diff_id] = _core.Conversion(
                str(part.path or part.layer),
                dest,
                diff_id=part.diff_id,
                digest=str(part.descriptor.digest) if part.path is not None else None,
                size=part.descriptor.size,
                compression="none",
                limits=self._rooms.settings.limits,
            )
        try:
            conversion.run()
        except FileNotFoundError as error:
            if part.path is None or part.path.exists():
                raise
            raise blob_missing(part.descriptor) from error
        except UnsafeArchiveError as error:
            raise of_layer(error, str(part.descriptor.digest)) from error
        finally:
            with self._lock:
                del self._running[part.diff_id]
        return dest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_stopped = True
            running = list(self._running.values())
        for conversion in running:
            conversion.cancel()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._workspace is not None:
            self._workspace.close()
