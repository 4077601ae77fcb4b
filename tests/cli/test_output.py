"""Where output goes, what an error looks like, and what happens when nobody reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pyctrd
from tests.archives import Tar
from tests.cli.commands import DEADLINE_SECONDS, command, environment, is_one_error, run, shell
from tests.images import BuiltImage, Images
from tests.registry_faults import Answer, FaultyRegistry

UNKNOWN = [
    *(["rm"], ["rmi"], ["inspect"], ["start"], ["stop"], ["kill"], ["pause"], ["unpause"], ["wait"], ["logs"]),
    *(["attach"], ["umount"], ["rm", "-f"], ["rmi", "-f"], ["run", "--pull", "never"]),
]
EVIL = "a\x1b[2J\nb\rc\x9b\u202e"


@pytest.mark.parametrize("words", UNKNOWN, ids=" ".join)
def test_an_unknown_thing_is_named_in_one_line(words: list[str]) -> None:
    done = run(*words, "no-such-thing")
    assert done.status == (125 if words[0] == "run" else 1)
    assert done.out == ""
    assert is_one_error(done.err)
    assert "no-such-thing" in done.err.splitlines()[0]


def test_mounting_an_unknown_image_names_it(tmp_path: Path) -> None:
    done = run("mount", "no-such-thing", str(tmp_path))
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert "no-such-thing" in done.err


@pytest.mark.parametrize("words", UNKNOWN, ids=" ".join)
def test_control_characters_in_a_name_are_escaped(words: list[str]) -> None:
    done = run(*words, EVIL)
    assert done.out == ""
    assert is_one_error(done.err)
    assert "\\x1b[2J\\nb\\rc\\x9b\\u202e" in done.err


@pytest.mark.parametrize("words", UNKNOWN, ids=" ".join)
def test_a_name_that_is_not_utf_8_is_escaped_and_no_internal_error(words: list[str]) -> None:
    done = run(*words, "a\udcff")
    assert done.status == (125 if words[0] == "run" else 1)
    assert is_one_error(done.err)
    assert "a\\udcff" in done.err
    assert "internal error" not in done.err


def test_control_characters_from_an_archive_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(Tar().file("\x1b[31m\n" + "x" * 300).build())
    done = run("unpack", str(tmp_path / "layer.tar"), str(tmp_path / "target"))
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert "longer than 255" in done.err


def test_control_characters_from_a_registry_are_escaped(faulty: FaultyRegistry, small: BuiltImage) -> None:
    reference = faulty.add(small, "repository")
    body = b'{"errors":[{"code":"DENIED","message":"no\\nway \\u001b[31m"}]}'
    faulty.lie("/manifests/latest", Answer(403, body))
    done = run("pull", reference)
    assert done.status == 1
    assert is_one_error(done.err)
    assert "way" in done.err


@pytest.mark.root
def test_control_characters_in_a_table_are_escaped(images: Images, state: Path) -> None:
    del state
    with pyctrd.Engine() as engine:
        image = engine.images.pull(images.busybox.reference)
        container = engine.containers.create(image, ["echo", EVIL])
        done = run("ps", "-a")
        container.delete()
    heading, row = done.out.split("\n")[:2]
    assert done.out == f"{heading}\n{row}\n"
    assert "\\x1b[2J\\nb\\rc" in row


def test_a_traceback_is_shown_with_debug_alone() -> None:
    for words in (["rm", "nothing"], ["run", "--pull", "never", "nothing"], ["pull", "Not A Reference"]):
        plain, debug = run(*words), run("--debug", *words)
        assert is_one_error(plain.err)
        assert "Traceback" in debug.err
        assert debug.status != 0
        assert debug.out == ""
        assert plain.err.splitlines()[0].removeprefix("pyctrd: ") in debug.err


def test_results_go_to_standard_output_and_all_else_to_standard_error(images: Images) -> None:
    reference = images.multi_platform.reference
    done = run("pull", "--no-unpack", reference)
    assert done.out == f"{images.multi_platform.built.digest}\n"
    for words in (["images"], ["images", "-q"], ["ps"], ["info"], ["check"], ["inspect", reference]):
        assert run(*words).err == "", words
        assert run(*words).out != "", words


def test_removing_tells_what_was_removed_before_the_first_that_failed(stored: str) -> None:
    done = run("rmi", stored, "no-such-image", stored)
    assert (done.status, done.out) == (1, f"{stored}\n")
    assert is_one_error(done.err)
    assert "no-such-image" in done.err
    assert run("images", "-q").out == ""


WRITERS = (["version"], ["version", "--json"], ["--help"], ["images"], ["images", "-q"], ["info"], ["--json", "info"])


@pytest.mark.parametrize("words", [*WRITERS, ["check"], ["inspect", "IMAGE"]], ids=" ".join)
def test_a_reader_that_has_left_is_no_news(stored: str, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(*(stored if word == "IMAGE" else word for word in words)),
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=DEADLINE_SECONDS,
        check=False,
        env=environment(),
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_head_of_nothing_is_quiet(stored: str) -> None:
    del stored
    assert shell('"$@" | head -0', "images").err == ""
    assert shell('"$@" | head -0', "images").out == ""


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_output_that_cannot_be_written_is_one_error(stored: str, words: list[str], *, buffered: bool) -> None:
    del stored
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command(*words),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
            env=environment() if buffered else environment(PYTHONUNBUFFERED="1"),
        )
    assert done.returncode == 1
    assert is_one_error(done.stderr)
    assert "no space left" in done.stderr


@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_closed_standard_streams_change_nothing(stored: str, words: list[str]) -> None:
    del stored
    done = shell('"$@" >&-', *words)
    assert (done.status, done.err) == (0, "")
    done = shell('"$@" <&- 2>&-', *words)
    assert done.status == 0
    assert done.out != ""
    assert run("check").out == "clean\n"


def test_an_interrupt_ends_a_pull_with_130_and_leaves_nothing(faulty: FaultyRegistry, small: BuiltImage) -> None:
    reference = faulty.add(small, "repository")
    stall = threading.Event()
    faulty.lie(small.layers[0].digest, Answer(body=None, stall=stall))
    process = subprocess.Popen(
        command("pull", "--no-unpack", reference), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert faulty.stalled.wait(DEADLINE_SECONDS)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    stall.set()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert list(Path(os.environ["PYCTRD_ROOT"], "content/ingest").iterdir()) == []
    assert run("check").out == "clean\n"


THROWN_AWAY = """
import time, weakref
from pyctrd.cli.main import keep_interrupts

class Forgotten: pass

def interrupted(_):
    raise KeyboardInterrupt

keep_interrupts()
forgotten = Forgotten()
reference = weakref.ref(forgotten, interrupted)
del forgotten
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("it came again")
"""


def test_an_interrupt_that_comes_in_a_callback_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", THROWN_AWAY], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "it came again\n", "")


def test_an_interrupt_while_modules_are_loaded_is_130_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = run("images", env=environment(PYTHONPATH=str(tmp_path)))
    assert (done.status, done.out, done.err) == (130, "", "")
