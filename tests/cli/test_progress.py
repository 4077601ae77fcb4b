"""Progress: bars on a terminal, nothing on a pipe or where it is not wanted, JSON where it is."""

from __future__ import annotations

import json
import re
import signal
import termios
import threading
from pathlib import Path

import pytest

from tests.cli.commands import Terminal, environment, is_one_error, run, spoiled
from tests.images import BuiltImage, Images
from tests.registries import Registry
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


# --progress


def test_json_lines_tell_all_of_a_pull_and_end_with_done(images: Images) -> None:
    done = run("pull", "--no-unpack", "--progress", "json", images.tree.reference)
    assert (done.status, done.out) == (0, f"{images.tree.built.digest}\n")
    events = [json.loads(line) for line in done.err.splitlines()]
    assert [events[0]["phase"], events[-1]["phase"]] == ["resolving", "done"]
    assert {event["reference"] for event in events} == {images.tree.reference}
    assert events[0].keys() == events[-1].keys()
    last = events[-1]
    assert last["digest"] == images.tree.built.digest
    assert last["received_bytes"] == last["size_bytes"] == sum(len(layer.content) for layer in images.tree.built.layers)
    assert [layer["digest"] for layer in last["layers"]] == [layer.digest for layer in images.tree.built.layers]
    assert {layer["source"] for layer in last["layers"]} == {images.tree.reference.partition("/")[0]}
    assert last["layers"][0].keys() == {
        *("digest", "state", "source", "received_bytes", "size_bytes", "resumed_bytes"),
        *("unpacked_bytes", "unpacked_entries"),
    }


def test_every_transfer_writes_json_lines_beside_its_own_document(
    images: Images, registry: Registry, tmp_path: Path
) -> None:
    reference, target = images.tree.reference, f"{registry.host}/test/told"
    for words in (
        ["--json", "pull", "--no-unpack", reference],
        ["--json", "push", reference, f"{target}:1"],
        ["--json", "copy", f"{target}:1", f"{target}-copied:1"],
        ["--json", "save", "--format", "oci-archive", "-o", str(tmp_path / "saved"), reference],
        ["--json", "convert", reference, "local/tree:1"],
        ["-n", "other", "--json", "load", "--no-unpack", "-i", str(tmp_path / "saved")],
    ):
        done = run(*words, "--progress", "json")
        assert done.status == 0, done.err
        assert len(done.lines) == 1
        assert json.loads(done.err.splitlines()[-1])["phase"] == "done"


def test_a_failing_pull_has_its_error_in_place_of_the_last_line(images: Images) -> None:
    done = run("pull", "--progress", "json", f"{images.tree.reference}-and-not-there")
    assert done.status == 1
    first, _, last = done.err.partition("\n")
    assert json.loads(first)["phase"] == "resolving"
    assert is_one_error(last)


def test_bars_that_are_asked_for_are_drawn_on_a_pipe(images: Images) -> None:
    done = run("pull", "--no-unpack", "--progress=bars", images.tree.reference, env=environment(**TERMINAL))
    assert (done.status, done.out) == (0, f"{images.tree.built.digest}\n")
    for name in short(images.tree.built):
        assert name in done.err


def test_none_shows_nothing_on_a_terminal(images: Images) -> None:
    words = ("pull", "--no-unpack", "--progress", "none", images.tree.reference)
    with Terminal(*words, env=environment(**TERMINAL)) as terminal:
        assert terminal.finish() == 0
    assert terminal.seen == f"{images.tree.built.digest}\r\n"


def test_auto_is_what_is_done_without(images: Images) -> None:
    done = run("pull", "--no-unpack", "--progress", "auto", images.tree.reference)
    assert (done.status, done.err) == (0, "")
