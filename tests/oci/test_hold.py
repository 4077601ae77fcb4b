"""Waits that another thread ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pyctrd.errors import CancelledError
from pyctrd.oci.hold import Hold, current_hold, held_by, pause, waiting

DEADLINE_SECONDS = 60.0


def in_thread(work: Callable[[], object], hold: Hold) -> tuple[threading.Thread, list[BaseException]]:
    """What a thread that is held does, and what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            with held_by(hold):
                work()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_a_pause_ends_when_it_is_given_up() -> None:
    hold = Hold()
    thread, raised = in_thread(lambda: pause(DEADLINE_SECONDS), hold)
    hold.stop()
    thread.join(DEADLINE_SECONDS / 2)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [CancelledError]


def test_nothing_begins_after_it_was_given_up() -> None:
    hold = Hold()
    hold.stop()
    hold.stop()
    with held_by(hold), pytest.raises(CancelledError):
        pause(DEADLINE_SECONDS)
    with pytest.raises(CancelledError):
        hold.begin(lambda: None)
    assert hold.is_stopped


def test_what_the_end_of_a_wait_raises_is_not_what_is_told() -> None:
    hold, closed = Hold(), threading.Event()

    def wait() -> None:
        with waiting(closed.set):
            closed.wait(DEADLINE_SECONDS)
            raise OSError("closed")

    thread, raised = in_thread(wait, hold)
    hold.stop()
    thread.join(DEADLINE_SECONDS / 2)
    assert [type(error) for error in raised] == [CancelledError]


def test_an_error_of_its_own_stays_what_it_is_and_what_is_over_is_not_ended() -> None:
    hold, ended = Hold(), threading.Event()
    with held_by(hold), pytest.raises(OSError, match="mine"), waiting(ended.set):
        raise OSError("mine")
    hold.stop()
    assert not ended.is_set()


def test_holds_are_a_threads_own_and_are_put_back() -> None:
    outer, inner = Hold(), Hold()
    assert current_hold() is None
    pause(0)
    with held_by(outer):
        with held_by(inner):
            assert current_hold() is inner
        assert current_hold() is outer
        seen: list[Hold | None] = []
        thread = threading.Thread(target=lambda: seen.append(current_hold()))
        thread.start()
        thread.join()
        assert seen == [None]
    assert current_hold() is None
