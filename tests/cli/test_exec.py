"""``pyctrd exec``: joined to the shell's streams, signals and terminal, with the exit codes of a shell."""

from __future__ import annotations

import os
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.runtime import state as states
from tests.children import until
from tests.cli.commands import Terminal, command, environment, is_one_error, run, shell
from tests.images import Images

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 60.0


@pytest.fixture
def name(state: Path, images: Images) -> Iterator[str]:
    """The name of a container that runs."""
    del state
    with pyctrd.Engine() as engine:
        engine.images.pull(images.app.reference)
        container = engine.containers.run(
            images.app.reference, entrypoint=["sh", "-c", "while :; do sleep 1000; done"], name="box"
        )
        yield "box"
        container.delete(force=True)


def test_streams_and_the_exit_code_are_the_commands(name: str) -> None:
    done = run("exec", name, "sh", "-c", "echo out; echo err >&2; cat; exit 7", text="unread")
    assert (done.status, done.out, done.err) == (7, "out\n", "err\n")
    assert run("exec", "-i", name, "cat", text="one\ntwo\n").out == "one\ntwo\n"
    assert run("exec", name, "sh", "-c", "kill -9 $$").status == 137
    big = "0123456789abcdef" * (1 << 16)
    assert run("exec", "-i", name, "cat", text=big).out == big


def test_options_reach_the_command(name: str) -> None:
    options = ("-e", "MODE=mine", "-e", "PASSED", "-u", "root", "-w", "/etc", "--privileged")
    done = run("exec", *options, name, "sh", "-c", "echo $MODE $PASSED; id -u; pwd", env=environment(PASSED="on"))
    assert done.out == "mine on\n0\n/etc\n"
    assert run("exec", name, "echo", "-i", "--help").out == "-i --help\n"


def test_a_command_that_cannot_run_exits_as_a_shells(name: str) -> None:
    for words, status in (
        ((name, "nothing-here"), 127),
        ((name, "/etc/passwd"), 126),
        (("-w", "/nowhere", name, "true"), 125),
        (("-u", "nobody-here", name, "true"), 125),
        (("-it", name, "true"), 125),
        (("nothing", "true"), 125),
    ):
        done = run("exec", *words)
        assert (done.status, done.out) == (status, ""), words
        assert is_one_error(done.err)
    assert run("exec", name).status == 2


def test_a_container_that_does_not_run_is_told(name: str) -> None:
    run("pause", name)
    done = run("exec", name, "true")
    assert (done.status, done.err) == (
        125,
        "pyctrd: container box: is paused, must be running\nhint: let it go on: pyctrd unpause\n",
    )
    run("unpause", name)
    run("kill", name)
    run("wait", name)
    assert "is stopped, must be running" in run("exec", name, "true").err


def test_a_time_out_kills_and_says_so(name: str) -> None:
    done = run("exec", "--timeout", "0.3", name, "sh", "-c", "echo begun; sleep 1000")
    assert (done.status, done.out) == (124, "begun\n")
    assert done.err == "pyctrd: process timed out: killed after 0.3 seconds\n"


def test_detached_it_runs_on(name: str) -> None:
    done = run("--json", "exec", "-d", name, "sleep", "1000")
    (facts,) = done.lines
    assert states.process_start_ticks(facts["pid"]) is not None
    with pyctrd.Engine() as engine:
        process = engine.containers.get(name).get_exec(facts["id"])
        process.kill()
        assert process.wait(DEADLINE_SECONDS).signal == 9
    assert len(run("exec", "-d", name, "true").out.strip()) == 32


def test_signals_are_passed_on(name: str) -> None:
    script = "trap 'echo heard; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(command("exec", name, "sh", "-c", script), stdout=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert output.readline() == b"heard\n"
    assert process.wait(DEADLINE_SECONDS) == 3


def test_a_terminal_is_raw_sized_and_put_back(name: str) -> None:
    script = "trap 'echo interrupted' INT; echo ready; cat; stty size; exit 5"
    with Terminal("exec", "-it", name, "sh", "-c", f"stty size; {script}") as terminal:
        termios.tcsetwinsize(terminal.ours, (21, 87))
        before = termios.tcgetattr(terminal.ours)
        terminal.read_until("ready")
        termios.tcsetwinsize(terminal.ours, (31, 97))
        os.kill(terminal.process.pid, signal.SIGWINCH)
        os.write(terminal.ours, b"typed\n")
        terminal.read_until("typed\r\ntyped")
        os.write(terminal.ours, b"\x03")  # a key as any other: the command there is interrupted, not the one here
        terminal.read_until("interrupted")
        assert terminal.finish() == 5
        assert terminal.seen.startswith("21 87")
        assert "31 97" in terminal.seen
        assert termios.tcgetattr(terminal.ours) == before


def test_a_terminal_hangs_up_with_its_command(name: str) -> None:
    with Terminal("exec", "-it", name, "sh", "-c", "echo $$ ready; sleep 1000; sleep 1000") as terminal:
        terminal.read_until("ready")
        with pyctrd.Engine() as engine:
            (process,) = engine.containers.get(name).execs()
        terminal.process.kill()
        until(lambda: states.process_start_ticks(process.pid) is None)


def test_script_runs_it_on_a_terminal_of_its_own(name: str) -> None:
    done = shell('script -qec "$(printf "%q " "$@")" /dev/null', "exec", "-it", name, "tty")
    assert done.status == 0
    assert "/dev/pts/0\n" in done.out


def test_the_reader_of_its_output_may_leave(name: str) -> None:
    done = shell('"$@" | head -c 4', "exec", name, "yes")
    assert (done.out, done.err) == ("y\ny\n", "")
    with pyctrd.Engine() as engine:  # what writes on is told that nobody reads, as by any pipe
        container = engine.containers.get(name)
        until(lambda: container.execs() == [])
