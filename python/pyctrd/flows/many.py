"""Many pulls at once: a few workers, fair between registries, an end of its own for each reference.

References are read in the thread that asks for ends, and only as they are needed. Workers pull; each pull is what
`pull` does, so that what two images share is claimed by one of them and found there by the other.

A worker is either away, waiting for a registry's documents with nothing held and nothing written, or at work. Whoever
stops the pulls waits for those at work, which end as any pull does that is given up. One that is away is left to
itself, for a registry may take minutes to say nothing; it ends as soon as it comes back.
"""

from __future__ import annotations

import errno
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from pyctrd.errors import CancelledError, InvalidError
from pyctrd.flows.bodies import Connections
from pyctrd.flows.platforms import Others, with_others
from pyctrd.flows.progress import (
    PROGRESS_INTERVAL_SECONDS,
    Phase,
    ProgressCallback,
    PullManyProgress,
    PullProgress,
    telling,
)
from pyctrd.flows.pull import bring
from pyctrd.flows.resolve import Document, RegistryOrigin, Resolved, resolve_top
from pyctrd.flows.threads import Changed
from pyctrd.oci.hold import waiting
from pyctrd.oci.reference import DEFAULT_REGISTRY, OFFICIAL_PREFIX, Reference
from pyctrd.oci.transports import is_transport

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.oci.platform import Platform

# Images under way at once: enough to hide what a registry takes to answer, and a disk to flush, behind others' bytes.
DEFAULT_IMAGES = 8
# Blobs of all images that have locks and files open, at most eight each; each thread has two more for the database.
CLAIMED_MAX = 80
# References that wait because their host has all that it may have; with more, what stands behind them waits as well.
WAITING_MAX = 1000
# Ends that nobody has asked for yet; with more, nothing new is begun, or a reader who is slow would fill the memory.
UNREAD_MAX = 64

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Whose turn it is: of the hosts with something waiting, the one with least under way, and longest without a turn.

    So each host gets what it can use until all that want more have as much as one another. Not thread-safe.

    Args:
        bound: How many of one host may be under way.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._waiting: dict[str, deque[Item]] = {}  # in the order of their last turns
        self._under_way: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, host: str, item: Item) -> None:
        """Let an item wait for its host's turn."""
        self._waiting.setdefault(host, deque()).append(item)

    def find(self) -> str | None:
        """The host whose turn it is; None where nothing waits that may begin."""
        hosts = [host for host in self._waiting if self._under_way.get(host, 0) < self._bound]
        return min(hosts, key=lambda host: self._under_way.get(host, 0), default=None)

    def take(self) -> tuple[str, Item] | None:
        """The next item to begin, with its host; ``end`` is to be called for it."""
        if (host := self.find()) is None:
            return None
        items = self._waiting.pop(host)
        item = items.popleft()
        if items:
            self._waiting[host] = items  # behind all others
        self._under_way[host] = self._under_way.get(host, 0) + 1
        return host, item

    def end(self, host: str) -> None:
        """One of a host is not under way any more."""
        self._under_way[host] -= 1
        if not self._under_way[host]:
            del self._under_way[host]  # of thousands of hosts none is remembered


@dataclass(frozen=True, slots=True)
class Ended:
    """How the pull of one reference ended: with a record, or with an error.

    Attributes:
        given: The reference as it was given.
        record: The image's.
        error: What went wrong.
    """

    given: str
    record: ImageRecord | None = None
    error: Exception | None = None


class ManyPulls:
    """Pulls under way. ``next`` is for one thread; ``stop``, ``close`` and ``progress`` for any.

    Args:
        rooms: The engine's rooms.
        references: What to pull; read as it is needed.
        platform: Whose manifest is taken from an index.
        others: Whose are stored beside it.
        unpack: As for ``pull``.
        keep_blobs: As for ``pull``.
        images: How many images are under way at once.
        per_host: How many of them of one host; None for three quarters of all, so that one host alone, however slow,
            never has them all.
        check: Raises for an image, when it is resolved, that may not come in.

    Raises:
        InvalidError: A bound under 1, or more images than could each have a blob open.
    """

    def __init__(
        self,
        rooms: Rooms,
        references: Iterable[str],
        *,
        platform: Platform,
        others: Others = (),
        unpack: bool,
        keep_blobs: bool,
        images: int,
        per_host: int | None,
        check: Callable[[Resolved], None],
    ) -> None:
        for field, value in (("concurrency", images), ("per_host", per_host)):
            if value is not None and not 1 <= value <= CLAIMED_MAX:
                raise InvalidError(f"invalid {field}: {value}: expected 1 to {CLAIMED_MAX}", field=field, value=value)
        self._rooms = rooms
        self._source: Iterator[str] | None = iter(references)
        self._platform = platform
        self._others = others
        self._unpack = unpack
        self._keep_blobs = keep_blobs
        self._images = images
        self._check = check
        self._turns: Turns[tuple[str, Reference]] = Turns(per_host or max(1, images - images // 4))
        self._seen: set[str] = set()
        # Bodies under way of each host: as many as of one pull alone, whatever the images that they are of.
        self._bodies: dict[str, Connections] = {}
        self._changed = Changed()
        self._workers = 0
        self._idle = 0
        self._at_work = 0
        self._stopped = False
        self._ended: deque[Ended] = deque()
        self._told: dict[str, PullProgress] = {}  # what is under way
        self._news: dict[str, dict[Phase, PullProgress]] = {}  # what a callback has not been told yet
        self._done = 0
        self._failed = 0

    def next(self, progress: ProgressCallback | None = None) -> Ended | None:
        """Wait for the next end; None when there is none any more.

        Args:
            progress: Called in this thread, a few times a second, for each image of which there is news.

        Raises:
            Exception: What the references' source or the callback raised. All pulls are stopped then.
        """
        try:
            while not self._stopped:
                self._read_ahead()
                with waiting(self.stop), self._changed:  # in this order: `stop` takes what is held in the block
                    if not self._ended and not self._is_over():
                        self._changed.wait(PROGRESS_INTERVAL_SECONDS if progress is not None else None)
                    news, self._news = self._news, {}
                    ended = self._ended.popleft() if self._ended else None
                    over = ended is None and self._is_over()
                    self._changed.notify_all()  # there is room for an end
                if progress is not None:
                    for phases in news.values():
                        for told in phases.values():
                            progress(told)
                if ended is not None:
                    return ended
                if over:
                    break
        except BaseException:
            # Ctrl-C lands here; so does what a caller's own code raises, which gives up all of it.
            self.close()
            raise
        self.close()
        return None

    def progress(self) -> PullManyProgress:
        """A look at all of them."""
        with self._changed:
            return PullManyProgress(
                done=self._done, failed=self._failed, waiting=len(self._turns), pulling=tuple(self._told.values())
            )

    def stop(self) -> None:
        """Have everything end, and wait for nothing."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and wait until nothing is at work any more; idempotent."""
        self.stop()
        self._source = None
        with self._changed:
            while self._at_work:
                self._changed.wait()
            self._ended.clear()

    @property
    def is_over(self) -> bool:
        """Whether it was stopped and nothing is at work."""
        with self._changed:
            return self._stopped and not self._at_work

    def _is_over(self) -> bool:
        return self._source is None and not len(self._turns) and not self._told and not self._ended

    def _read_ahead(self) -> None:
        """Read references while a worker could begin one, and one more for each that is busy."""
        while self._source is not None and self._wants_more():
            try:
                given = next(self._source)
            except StopIteration:
                self._source = None
                return
            try:
                reference = _read_reference(given)
            except InvalidError as error:
                self._end(Ended(given, error=error))
                continue
            name = str(reference)
            if name not in self._seen:
                self._seen.add(name)
                with self._changed:
                    self._turns.add(reference.registry, (given, reference))
                    self._start_worker()
                    self._changed.notify_all()

    def _wants_more(self) -> bool:
        with self._changed:
            waiting = len(self._turns)
            if len(self._ended) >= UNREAD_MAX or waiting >= WAITING_MAX:
                return False
            # Of those that wait none may begin, and somebody is free: another host's may stand behind them.
            blocked = self._turns.find() is None and len(self._told) < self._images
            return waiting < self._images or blocked

    def _start_worker(self) -> None:
        if len(self._turns) <= self._idle or self._workers == self._images or self._turns.find() is None:
            return
        # A daemon: the interpreter must not wait for one that nobody closed, nor for a registry that says nothing.
        thread = threading.Thread(target=self._work, name=f"pyctrd-many-{self._workers}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no memory for a stack, or no more processes for this user
            if not self._workers:
                raise OSError(errno.EAGAIN, "no thread can be started", thread.name) from error
            return  # those that there are do it
        self._workers += 1

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            host, (given, reference) = taken
            name = str(reference)
            try:
                ended = Ended(given, record=self._pull(name, reference))
            except Exception as error:  # noqa: BLE001 - one image's error is that image's end, and no other's
                _forget_frames(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
                ended = Ended(given, error=error)
            with self._changed:
                self._turns.end(host)
                del self._told[name]
                self._at_work -= 1
                self._end(ended)
                del ended  # a worker that waits keeps nothing of what it did

    def _take(self) -> tuple[str, tuple[str, Reference]] | None:
        with self._changed:
            self._idle += 1
            try:
                while True:
                    if self._stopped:
                        return None
                    taken = self._turns.take() if len(self._ended) < UNREAD_MAX else None
                    if taken is not None:
                        name = str(taken[1][1])
                        self._note(name, PullProgress(name, (), "resolving"))
                        self._at_work += 1
                        return taken
                    self._changed.wait()
            finally:
                self._idle -= 1

    def _end(self, ended: Ended) -> None:
        with self._changed:
            if not self._stopped:
                self._ended.append(ended)
                self._done += ended.error is None
                self._failed += ended.error is not None
            self._changed.notify_all()

    def _pull(self, name: str, reference: Reference) -> ImageRecord:
        with telling(name, partial(self._tell, name)) as told:
            resolved = self._resolve(reference)
            with self._away():
                for each in (resolved, *resolved.others):
                    self._check(each)
            return bring(
                self._rooms,
                resolved,
                unpack=self._unpack,
                keep_blobs=self._keep_blobs,
                told=told,
                bodies=self._bodies_of(reference.registry),
                claims=CLAIMED_MAX // self._images,
            )

    def _resolve(self, reference: Reference) -> Resolved:
        registry = self._rooms.registry
        with self._away():
            fetched = registry.manifest(reference)
        top = Document(fetched.descriptor, fetched.body)
        origin = _AwayOrigin(self._rooms, reference, self._away)
        resolved = resolve_top(self._rooms, origin, reference, top, platform=self._platform)
        # One document at a time: other images' are asked for beside it.
        return with_others(self._rooms, origin, resolved, self._others) if self._others else resolved

    @contextmanager
    def _away(self) -> Iterator[None]:
        """Around a wait for somebody else: nothing of the rooms is used in it, and none waits for its end."""
        with self._changed:
            self._at_work -= 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._at_work += 1
                self._refuse_stopped()

    def _tell(self, name: str, told: PullProgress) -> None:
        with self._changed:
            self._refuse_stopped()
            self._note(name, told)

    def _note(self, name: str, told: PullProgress) -> None:
        self._told[name] = told
        self._news.setdefault(name, {})[told.phase] = told  # of each phase the last

    def _refuse_stopped(self) -> None:
        if self._stopped:
            raise CancelledError("cancelled")

    def _bodies_of(self, host: str) -> Connections:
        with self._changed:
            found = self._bodies.get(host)
            if found is None:
                found = self._bodies[host] = Connections(self._rooms.settings.concurrency)
            return found


class _AwayOrigin(RegistryOrigin):
    """A repository whose documents are waited for away from the store."""

    def __init__(self, rooms: Rooms, reference: Reference, away: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(rooms, reference)
        self._away = away

    def read_manifest(self, descriptor: Descriptor) -> bytes:
        """See ``Origin``."""
        with self._away():
            return super().read_manifest(descriptor)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """See ``Origin``."""
        with self._away():
            return super().read_blob(descriptor)


def _read_reference(given: str) -> Reference:
    if is_transport(given):
        raise InvalidError(
            f"no registry: {given[:200]!r}: only images of registries are pulled together",
            field="reference",
            value=given[:200],
            hint=f"pull it by itself, or write it in full: {DEFAULT_REGISTRY}/{OFFICIAL_PREFIX}{given[:200]}",
        )
    return Reference.parse(given)


def _forget_frames(error: BaseException) -> None:
    """Let go of what an error's frames hold: each of a thousand would keep its pull's ingests and documents."""
    known: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        if (found := left.pop()) is not None and id(found) not in known:
            known.add(id(found))
            traceback.clear_frames(found.__traceback__)
            left += [found.__cause__, found.__context__]
