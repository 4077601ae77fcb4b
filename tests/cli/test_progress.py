"""Progress: bars on a terminal, nothing on a pipe or where it is not wanted."""

from __future__ import annotations

import re
import signal
import termios
import threading

import pytest

from tests.cli.commands import Terminal, environment, run, spoiled
from tests.images import BuiltImage, Images
from tests.registry_faults import Answer, FaultyRegistry

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")
TERMINAL = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}


def short(image: BuiltImage) -> list[str]:
    """The names that progress gives to an image's layers."""
    return [layer.digest.partition(":")[2][:12] for layer in image.layers]


def test_a_terminal_shows_a_bar_for_each_layer_and_is_left_as_it_was(images: Images) -> None:
    with Terminal("pull", "--no-unpack", images.tree.reference, env=environment(**TERMINAL)) as terminal:
        before = termios.tcgetattr(terminal.ours)
        assert terminal.finish() == 0
        assert termios.tcgetattr(terminal.ours) == before
    for name in short(images.tree.built):
        assert name in terminal.seen
    assert "━" in terminal.seen
    assert terminal.seen.rindex(SHOW_CURSOR) > terminal.seen.rindex(HIDE_CURSOR)
    assert terminal.seen.endswith(f"{images.tree.built.digest}\r\n")  # the result, on a line of its own


def test_an_interrupt_leaves_the_terminal_as_it_was(faulty: FaultyRegistry, small: BuiltImage) -> None:
    reference = faulty.add(small, "repository")
    stall = threading.Event()
    faulty.lie(small.layers[0].digest, Answer(body=None, stall=stall))
    with Terminal("pull", "--no-unpack", reference, env=environment(**TERMINAL)) as terminal:
        before = termios.tcgetattr(terminal.ours)
        terminal.read_until(short(small)[0])
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.finish() == 130
        stall.set()
        assert termios.tcgetattr(terminal.ours) == before
    assert terminal.seen.rindex(SHOW_CURSOR) > terminal.seen.rindex(HIDE_CURSOR)
    assert "Traceback" not in terminal.seen


def test_an_error_stands_below_the_bars(faulty: FaultyRegistry, small: BuiltImage) -> None:
    reference = faulty.add(small, "repository")
    faulty.lie(small.layers[0].digest, Answer(200, spoiled(small.layers[0].content)))
    with Terminal("pull", "--no-unpack", reference, env=environment(**TERMINAL)) as terminal:
        assert terminal.finish() == 1
    last = terminal.seen.rpartition(SHOW_CURSOR)[2]
    assert re.search(r"^pyctrd: digest mismatch[^\x1b]*\r\n$", last, re.MULTILINE)


@pytest.mark.parametrize("setting", ["1", ""])
def test_no_color_is_honoured(images: Images, setting: str) -> None:
    changes = TERMINAL | ({"NO_COLOR": setting} if setting else {})
    with Terminal("pull", "--no-unpack", images.tree.reference, env=environment(**changes)) as terminal:
        assert terminal.finish() == 0
    assert bool(COLOUR.search(terminal.seen)) == (not setting)
    for name in short(images.tree.built):
        assert name in terminal.seen  # and nothing is lost without


def test_a_pipe_gets_a_line_for_each_image_and_no_more(images: Images) -> None:
    done = run("pull", "--no-unpack", images.tree.reference, env=environment(FORCE_COLOR="1", **TERMINAL))
    assert (done.status, done.err) == (0, "")
    assert done.out == f"{images.tree.built.digest}\n"


@pytest.mark.parametrize("words", [["-q"], ["--quiet"], ["--json"]])
def test_nothing_is_shown_when_it_is_not_wanted(images: Images, words: list[str]) -> None:
    done = run("pull", "--no-unpack", *words, images.tree.reference)
    assert (done.status, done.err) == (0, "")
    assert len(done.out.splitlines()) == 1


def test_quiet_is_quiet_on_a_terminal_too(images: Images) -> None:
    with Terminal("pull", "-q", "--no-unpack", images.tree.reference, env=environment(**TERMINAL)) as terminal:
        assert terminal.finish() == 0
    assert terminal.seen == f"{images.tree.built.digest}\r\n"


def test_what_is_there_already_is_shown_as_done(images: Images) -> None:
    assert run("pull", "-q", "--no-unpack", images.tree.reference).status == 0
    with Terminal("pull", "--no-unpack", images.tree.reference, env=environment(**TERMINAL)) as terminal:
        assert terminal.finish() == 0
    assert terminal.seen.endswith(f"{images.tree.built.digest}\r\n")
