"""What a caller may look at while a transfer runs: one stream of events, whoever reads it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from pyctrd.oci.value import NamedTuple, dataclass

Phase = Literal["resolving", "transferring", "done"]
LayerState = Literal["waiting", "present", "mounted", "pulling", "pushing", "converting", "saving", "done"]

# How often a callback is told.
PROGRESS_INTERVAL_SECONDS = 0.1
# A rate is of so long: bytes come in bursts, and what was a minute ago says nothing of what is left.
RATE_SECONDS = 5.0
# Of less there is none: what the kernel held ready comes at once.
RATE_MIN_SECONDS = 0.3
# What has the size of its blob without a byte having gone.
_STILL = ("waiting", "present", "mounted")


class LayerProgress(NamedTuple):
    """One layer of a pull or push under way.

    Attributes:
        digest: The blob's digest.
        state: "waiting" for its turn or for another process, "present", "mounted" from another repository, "pulling"
            (or "pushing", "converting", "saving") or "done".
        received_bytes: Compressed bytes that arrived, or were sent, or were read of what is converted or saved.
        size_bytes: Compressed bytes in all.
        unpacked_bytes: Bytes of the tar that were unpacked.
        source: Where its bytes come from: a registry's or mirror's ``host[:port]``; "store" for what was there, or is
            read there; "file" for a layout or archive; "" where that is not known yet, or nothing need come.
        unpacked_entries: Entries of the tar that were unpacked, or begun.
        resumed_bytes: Those of ``received_bytes`` that an earlier transfer left.
    """

    digest: str
    state: LayerState
    received_bytes: int
    size_bytes: int
    unpacked_bytes: int
    source: str = ""
    unpacked_entries: int = 0
    resumed_bytes: int = 0


class PullProgress(NamedTuple):
    """A pull under way, every layer of it, lowest first; or a push or copy, every blob of it.

    Attributes:
        reference: What is transferred; for ``load`` and ``save`` the source's or target's name.
        layers: None of them while it is resolved.
        phase: "resolving" at first: what it is, and so what it needs, is being asked. "transferring" for as long as
            bytes go. "done" once, at the end; a transfer that fails has no such event but its error.
        digest: What the reference names, once that is known; "" for several images together.
        bytes_per_second: How fast bytes came, or went, in the last seconds; at the end, in all of the time. None where
            that is not known yet, or none had to.
        eta_seconds: How long what is left takes at that rate; None where that is not known.
    """

    reference: str
    layers: tuple[LayerProgress, ...]
    phase: Phase = "transferring"
    digest: str = ""
    bytes_per_second: float | None = None
    eta_seconds: float | None = None

    @property
    def received_bytes(self) -> int:
        """Those of all layers."""
        return sum(layer.received_bytes for layer in self.layers)

    @property
    def size_bytes(self) -> int:
        """Those of all layers."""
        return sum(layer.size_bytes for layer in self.layers)


@dataclass(frozen=True, slots=True)
class PullManyProgress:
    """Many pulls under way.

    Attributes:
        done: Images that came in, or were there.
        failed: References that ended with an error.
        waiting: References that were read and have not begun.
        pulling: The images under way, each with the layers that are known by now.
    """

    done: int
    failed: int
    waiting: int
    pulling: tuple[PullProgress, ...]


ProgressCallback = Callable[[PullProgress], None]


class Telling:
    """Tells a callback how far one transfer is; see ``telling``. For one thread.

    Args:
        reference: What is transferred.
        callback: Whom to tell; None for nobody, and then nothing is looked at.
        clock: Seconds.
    """

    def __init__(
        self, reference: str, callback: ProgressCallback | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reference = reference
        self._callback = callback
        self._clock = clock
        self._digest = ""
        self._look: Callable[[], Iterable[LayerProgress]] = tuple
        self._seen: deque[tuple[float, int]] = deque()
        self._began = clock()

    @property
    def watch(self) -> Callable[[], None] | None:
        """``tell``, for who would call it often; None where nobody listens."""
        return None if self._callback is None else self.tell

    def begin(self, digest: str, look: Callable[[], Iterable[LayerProgress]]) -> None:
        """It is known what goes.

        Args:
            digest: What the reference names.
            look: Says how far each layer is.
        """
        self._digest = digest
        self._look = look
        self._began = self._clock()
        self._seen = deque([(self._began, 0)])

    def tell(self) -> None:
        """Tell how far it is now; what the callback raises gives the transfer up."""
        self.tell_phase("transferring")

    def tell_phase(self, phase: Phase) -> None:
        """As ``tell``, in a phase."""
        if self._callback is None:
            return
        layers = tuple(self._look())
        rate = self._rate(layers, phase)
        event = PullProgress(self._reference, layers, phase, self._digest, rate)
        if phase == "done":
            event = event._replace(eta_seconds=0.0)
        elif rate:
            event = event._replace(eta_seconds=max(0, event.size_bytes - event.received_bytes) / rate)
        self._callback(event)

    def _rate(self, layers: Iterable[LayerProgress], phase: Phase) -> float | None:
        """Bytes a second: of the last seconds, or at the end of all of them."""
        if phase == "resolving":
            return None
        now = self._clock()
        moved = sum(layer.received_bytes - layer.resumed_bytes for layer in layers if layer.state not in _STILL)
        if phase == "done":
            return moved / (now - self._began) if moved and now > self._began else None
        seen = self._seen
        if seen and moved < seen[-1][1]:
            seen.clear()  # what came was no good, and comes again
        seen.append((now, moved))
        while now - seen[1 if len(seen) > 1 else 0][0] > RATE_SECONDS:
            seen.popleft()
        passed = now - seen[0][0]
        return (moved - seen[0][1]) / passed if passed >= RATE_MIN_SECONDS else None


@contextmanager
def telling(reference: str, callback: ProgressCallback | None) -> Iterator[Telling]:
    """Tell of one transfer, for the length of a ``with`` block: first that it is resolved, last that it is done.

    Args:
        reference: What is transferred.
        callback: Called in this thread; what it raises gives the transfer up, but for the last event: by then all is
            there.
    """
    told = Telling(reference, callback)
    told.tell_phase("resolving")
    yield told
    told.tell_phase("done")
