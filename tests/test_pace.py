"""How many bodies come from one place at once, and whether what carries one is what it waits for."""

from __future__ import annotations

import threading

import pytest

from pyctrd.errors import CancelledError
from pyctrd.flows.bodies import FAST_BYTES, REST_SECONDS, STARVED_BLOCKS, WINDOW_SECONDS, Connections, Pace, Rates
from tests.children import until


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Line:
    """A body whose bytes come as a test says."""

    def __init__(self, connections: Connections | None = None) -> None:
        self.connections = connections or Connections(6)
        self.clock = Clock()
        self.pace = Pace(self.connections, self.clock)

    def bring(self, rate: float, *, backlog: int = 0, others: float = 0.0, carried_by: int = 1) -> Rates | None:
        """Two windows' bytes in ten parts each, of this body and of others beside it: what is told at their end."""
        told: list[Rates | None] = []
        for _ in range(20):
            self.clock.now += WINDOW_SECONDS / 10 + 1e-9
            self.connections.count(int((rate + others) * WINDOW_SECONDS / 10))
            count = int(rate * WINDOW_SECONDS / 10)
            told.append(self.pace.note(count, backlog, carried_by=carried_by))
        assert told[:9] + told[10:-1] == [None] * 18
        return told[-1]


def test_a_body_that_the_stages_wait_for_is_told_with_its_rate_and_that_of_all() -> None:
    rates = Line().bring(20e6, others=40e6)
    assert rates is not None
    assert (round(rates.own / 1e6), round(rates.all / 1e6)) == (20, 60)


def test_where_the_stages_are_slower_nothing_is_told() -> None:
    line = Line()
    assert line.bring(20e6, backlog=STARVED_BLOCKS + 1) is None
    assert line.bring(20e6, backlog=STARVED_BLOCKS) is not None


@pytest.mark.parametrize("carried_by", [1, 3])
def test_a_fast_line_is_left_alone(carried_by: int) -> None:
    line = Line()
    assert line.bring(1.01 * FAST_BYTES * carried_by, carried_by=carried_by) is None
    assert line.bring(0.99 * FAST_BYTES * carried_by, carried_by=carried_by) is not None


def test_of_a_body_that_stands_still_nothing_is_told() -> None:
    assert Line().bring(0.0) is None


def test_rates_of_different_numbers_of_bodies_are_not_compared() -> None:
    line = Line()
    line.connections.take_spare()
    assert line.bring(20e6) is None
    assert line.bring(20e6) is not None
    line.connections.give_back()
    assert line.bring(20e6) is None


def test_one_window_in_which_nothing_moved_is_not_its_rate() -> None:
    line = Line()
    assert line.bring(80e6) is not None
    line.clock.now += 2 * WINDOW_SECONDS
    rates = line.pace.note(1, 0)
    assert rates is not None
    assert round(rates.own / 1e6) == 80


def test_what_gained_nothing_is_tried_again_after_ever_longer_rests() -> None:
    line = Line()
    for rest in (REST_SECONDS, 2 * REST_SECONDS, 4 * REST_SECONDS):
        line.pace.rest()
        begun, told = line.clock.now, None
        while told is None:
            told = line.bring(20e6)
        assert rest <= line.clock.now - begun < rest + 4 * WINDOW_SECONDS


def test_what_is_lent_is_not_lent_twice() -> None:
    connections = Connections(2)
    assert [connections.take_spare() for _ in range(3)] == [True, True, False]
    connections.give_back()
    assert connections.take_spare()


def test_who_waits_for_a_turn_gets_what_is_given_back_before_it_is_lent_again() -> None:
    connections, got, stopped = Connections(1), threading.Event(), threading.Event()
    assert connections.take_spare()

    def carry() -> None:
        with connections.turn(stopped):
            got.set()

    waiting = threading.Thread(target=carry)
    waiting.start()
    until(lambda: connections.is_wanted)
    connections.give_back()
    assert got.is_set() or not connections.take_spare()
    assert got.wait(60)
    waiting.join()
    assert connections.take_spare()


def test_who_waits_for_a_turn_can_be_stopped() -> None:
    connections, stopped = Connections(1), threading.Event()
    connections.take_spare()
    stopped.set()
    with pytest.raises(CancelledError), connections.turn(stopped):
        pass
    assert not connections.is_wanted


def test_one_at_a_time_tries() -> None:
    connections = Connections(6)
    first, second = object(), object()
    assert connections.try_alone(first)
    assert connections.try_alone(first)
    assert not connections.try_alone(second)
    connections.end_trial(second)
    assert not connections.try_alone(second)
    connections.end_trial(first)
    assert connections.try_alone(second)
