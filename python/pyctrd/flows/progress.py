"""What a caller may look at while a pull runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pyctrd.oci.value import NamedTuple, dataclass

LayerState = Literal["waiting", "present", "mounted", "pulling", "pushing", "converting", "saving", "done"]


class LayerProgress(NamedTuple):
    """One layer of a pull or push under way.

    Attributes:
        digest: The blob's digest.
        state: "waiting" for its turn or for another process, "present", "mounted" from another repository, "pulling"
            (or "pushing", "converting", "saving") or "done".
        received_bytes: Compressed bytes that arrived, or were sent, or were read of what is converted or saved.
        size_bytes: Compressed bytes in all.
        unpacked_bytes: Bytes of the tar that were unpacked.
    """

    digest: str
    state: LayerState
    received_bytes: int
    size_bytes: int
    unpacked_bytes: int


class PullProgress(NamedTuple):
    """A pull under way, every layer of it, lowest first; or a push or copy, every blob of it."""

    reference: str
    layers: tuple[LayerProgress, ...]


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
PROGRESS_INTERVAL_SECONDS = 0.1
