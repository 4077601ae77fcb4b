"""How fast a transfer is said to be, and how long it will take: by a clock of the test's own."""

from __future__ import annotations

import pyctrd
from pyctrd.flows.progress import RATE_SECONDS, LayerProgress, LayerState, PullProgress, Telling

SIZE = 1000


class Played:
    """A transfer of one layer."""

    def __init__(self) -> None:
        self.now = 100.0
        self.layer = LayerProgress("sha256:0", "waiting", 0, SIZE, 0)
        self.told: list[PullProgress] = []
        self.telling = Telling("name", self.told.append, clock=lambda: self.now)
        self.telling.begin("sha256:1", lambda: [self.layer])

    def tell(self, seconds: float, received: int, *, state: LayerState = "pulling") -> PullProgress:
        """What is told when so much more time went by."""
        self.now += seconds
        self.layer = self.layer._replace(received_bytes=received, state=state)
        self.telling.tell()
        return self.told[-1]


def test_a_rate_is_told_when_there_was_time_for_one() -> None:
    played = Played()
    assert played.tell(0.1, 100).bytes_per_second is None
    told = played.tell(0.9, 200)
    assert (told.bytes_per_second, told.eta_seconds) == (200, 4)


def test_a_rate_is_that_of_the_last_seconds() -> None:
    played = Played()
    for second in range(1, 11):
        played.tell(1, 10 * second)
    assert played.told[-1].bytes_per_second == 10
    for second in range(1, int(RATE_SECONDS) + 2):
        played.tell(1, 100 + 50 * second)
    assert played.told[-1].bytes_per_second == 50
    for _ in range(int(RATE_SECONDS) + 1):
        told = played.tell(1, 400)
    assert (told.bytes_per_second, told.eta_seconds) == (0, None)


def test_what_was_there_is_not_counted_as_fast() -> None:
    played = Played()
    played.layer = played.layer._replace(resumed_bytes=600)
    told = played.tell(1, 700)
    assert (told.bytes_per_second, told.eta_seconds) == (100, 3)
    assert played.tell(1, SIZE, state="present").bytes_per_second is None


def test_what_comes_again_is_counted_anew() -> None:
    played = Played()
    played.tell(1, 900)
    assert played.tell(0.1, 0).bytes_per_second is None
    assert played.tell(1, 10).bytes_per_second == 10


def test_the_end_tells_of_all_of_the_time() -> None:
    played = Played()
    played.tell(8, 10)
    played.now += 2
    played.layer = played.layer._replace(received_bytes=SIZE, state="done")
    played.telling.tell_phase("done")
    told = played.told[-1]
    assert (told.phase, told.bytes_per_second, told.eta_seconds) == ("done", 100, 0)
    assert (told.received_bytes, told.size_bytes, told.digest) == (SIZE, SIZE, "sha256:1")


def test_nobody_is_told_where_nobody_listens() -> None:
    def look() -> list[LayerProgress]:
        raise AssertionError("nobody wants to know")

    telling = Telling("name", None)
    telling.begin("", look)
    telling.tell()
    assert telling.watch is None


def test_events_made_as_before_have_what_is_new() -> None:
    layer = pyctrd.LayerProgress("sha256:0", "done", 1, 1, 2)
    told = pyctrd.PullProgress("name", (layer,))
    assert (layer.source, layer.unpacked_entries, layer.resumed_bytes) == ("", 0, 0)
    assert (told.phase, told.digest, told.bytes_per_second, told.eta_seconds) == ("transferring", "", None, None)
