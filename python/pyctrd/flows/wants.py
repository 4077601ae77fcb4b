"""Wants: blobs that are to be brought in, and what has become of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING, Literal, Protocol

from pyctrd.flows.progress import LayerProgress, LayerState
from pyctrd.oci.value import dataclass

if TYPE_CHECKING:
    from pyctrd import _core
    from pyctrd.flows.bodies import Body
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.snapshots.protocol import LayerForm

# What of a want the store may give to a namespace that does not have it; see `share`. "layer": the namespace has that,
# and of the blob nothing is needed.
Given = Literal["nothing", "blob", "all", "layer"]


class Closable(Protocol):
    """What brings bytes, and can be ended."""

    def close(self) -> None:
        """End it, from any thread."""
        ...


@dataclass(slots=True, eq=False)
class Want:
    """One blob to be brought in.

    Attributes:
        descriptor: What must arrive.
        opens: Makes a body that starts at or before a byte offset.
        diff_id: For a layer, the digest of its tar.
        unpack: Whether the layer is to be unpacked.
        keep: Whether the blob is stored; if not, what it is unpacked to is all that is left of it.
        form: As what; None as the engine's snapshotter wants it.
        shareable: Its bytes are at its source only, and so worth a look at what the store has for others.
        resumable: They come from afar: what came of them is kept when the rest does not come.
        local: The namespace has the blob already: it is read from the store, and not stored again.
        known: The namespace has the layer, unpacked as it should be, that the blob is said to be.
        given: What the store gave of it; what is read then is read from there as well.
        ranges: Makes a body of a part of it, by its first byte and the one behind its last, where a table of contents
            says which parts are needed; None where the whole is taken.
        rebuilt: Its tar was made from parts, and hashed; nobody has seen all of the blob.
        is_spread: Parts of it came over several connections.
        whole: It is to come over one.
        source: Where its bytes come from, as progress says it.
        body: What is to be closed so that it ends.
    """

    descriptor: Descriptor
    opens: Callable[[int], Body]
    diff_id: str | None = None
    unpack: bool = False
    keep: bool = True
    form: LayerForm | None = None
    shareable: bool = False
    resumable: bool = False
    local: bool = False
    known: bool = False
    given: Given = "nothing"
    ranges: Callable[[int, int], Body] | None = None
    rebuilt: bool = False
    is_spread: bool = False
    whole: bool = False
    ingest: _core.Ingest | None = None
    result: _core.Ingested | None = None
    state: LayerState = "waiting"
    source: str = ""
    body: Closable | None = field(default=None, repr=False)

    @property
    def is_stored(self) -> bool:
        """Whether the store has the blob's bytes, and may read them for this namespace."""
        return self.local or self.given in ("blob", "all")

    def start_again(self) -> None:
        """Forget what came of it: it is as it was wanted first."""
        self.given = "nothing"
        self.known = False
        self.rebuilt = False
        self.ingest = self.result = None
        self.state = "waiting"
        self.source = ""

    def progress(self) -> LayerProgress:
        """A look at it from outside; of what the store gave it says the same as of what came."""
        ingest = self.ingest
        size = self.descriptor.size
        finished = self.state in ("present", "done")
        # What an earlier pull left is there from the start, though it is only now being read.
        received = min(max(ingest.received, ingest.kept), size) if ingest else 0  # a tar that is made again is longer
        return LayerProgress(
            digest=str(self.descriptor.digest),
            state=self.state,
            received_bytes=size if finished else received,
            size_bytes=size,
            unpacked_bytes=ingest.bytes_unpacked if ingest else 0,
            source="store" if self.state == "present" else self.source,
            unpacked_entries=ingest.entries_unpacked if ingest else 0,
            resumed_bytes=min(ingest.kept, size) if ingest else 0,
        )
