"""Whose turn it is among the hosts of many pulls."""

from __future__ import annotations

from pyctrd.flows.many import Turns


def take(turns: Turns[int], count: int) -> list[str]:
    """The hosts of the next few that begin."""
    return [taken[0] for _ in range(count) if (taken := turns.take()) is not None]


def waiting(**counts: int) -> Turns[int]:
    """Hosts with so many items each, in this order."""
    turns: Turns[int] = Turns(3)
    for host, count in counts.items():
        for number in range(count):
            turns.add(host, number)
    return turns


def test_hosts_take_turns_however_many_of_one_wait_first() -> None:
    assert take(waiting(a=100, b=2, c=2), 6) == ["a", "b", "c", "a", "b", "c"]


def test_one_host_alone_has_no_more_than_its_bound() -> None:
    turns = waiting(a=100)
    assert take(turns, 10) == ["a"] * 3
    assert turns.find() is None
    turns.end("a")
    assert take(turns, 10) == ["a"]


def test_the_host_with_the_fewest_under_way_is_next() -> None:
    turns = waiting(slow=100, fast=100)
    assert take(turns, 4) == ["slow", "fast", "slow", "fast"]
    for _ in range(5):  # what ends of the fast one is its own again, and the slow one gets no more than it had
        turns.end("fast")
        assert take(turns, 1) == ["fast"]


def test_the_items_of_a_host_keep_their_order_and_no_host_is_remembered() -> None:
    turns = waiting(a=3)
    assert [turns.take() for _ in range(4)] == [("a", 0), ("a", 1), ("a", 2), None]
    for _ in range(3):
        turns.end("a")
    assert (len(turns), turns._waiting, turns._under_way) == (0, {}, {})
