"""A user's terminal that stands for a container's: sized alike, left by keys, and put back on every way out."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

import pyctrd
from tests.children import until
from tests.images import Images
from tests.integration.conftest import command

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 60.0
DETACH = b"\x10\x11"
INTERRUPT = b"\x03"
# Ends by what it is told: a line is its status, and signals have statuses of their own.
OBEDIENT = (
    "trap 'exit 42' INT; trap 'exit 43' TERM; trap 'stty size' WINCH; "
    "stty size; echo ready; while true; do read -r line && { echo heard; exit $line; }; done"
)
WAYS_IN = ("run", "attach", "exec", "start")


class Terminal:
    """A command with a terminal that it controls, as a user's; killed at the end of the ``with`` block, if it is there.

    Args:
        words: Of pyctrd.
        output: Where its output goes instead.
    """

    def __init__(self, *words: str, output: int | None = None) -> None:
        self.ours, self.theirs = os.openpty()
        self.resize(24, 80)
        self.before = self.modes()
        self.seen = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command(*words)],
            stdin=self.theirs,
            stdout=self.theirs if output is None else output,
            stderr=self.theirs,
        )

    def modes(self) -> list[Any]:
        """As ``stty`` shows them."""
        return termios.tcgetattr(self.theirs)

    def is_raw(self) -> bool:
        """Whether keys are passed on as they are."""
        return not self.modes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def resize(self, rows: int, columns: int) -> None:
        """As when a window is drawn larger: the kernel tells the foreground."""
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.ours, keys)

    def read_until(self, wanted: bytes) -> None:
        """Until this was shown."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while wanted not in self.seen:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.ours], [], [], left)[0], f"{wanted!r} was not shown, only {self.seen!r}"
            self.seen += os.read(self.ours, 65536)

    def finish(self) -> int:
        """Wait for its end: the exit status."""
        while self.process.poll() is None:
            if select.select([self.ours], [], [], 0.01)[0]:
                self.seen += os.read(self.ours, 65536)
        while select.select([self.ours], [], [], 0)[0]:
            self.seen += os.read(self.ours, 65536)
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def image(engine: pyctrd.Engine, images: Images) -> str:
    """Something that can be run."""
    return engine.images.pull(images.busybox.reference).name


def open_terminal(way: str, engine: pyctrd.Engine, image: str, script: str = OBEDIENT) -> Terminal:
    """A terminal on which the script runs, by one of the ways to get there."""
    if way == "run":
        return Terminal("run", "-it", "--name", "it", image, "sh", "-c", script)
    if way == "start":
        engine.containers.create(image, ["sh", "-c", script], name="it", terminal=True, stdin=True)
        return Terminal("start", "-ai", "it")
    if way == "attach":
        # It says nothing until somebody is there: what was said before is not shown again.
        waits = f"while [ \"$(stty size 2>/dev/null)\" != '24 80' ]; do sleep 0.05; done; {script}"
        made = engine.containers.create(image, ["sh", "-c", waits], name="it", terminal=True, stdin=True)
        made.start()
        return Terminal("attach", "it")
    engine.containers.run(image, ["sleep", "600"], name="it")
    return Terminal("exec", "-it", "it", "sh", "-c", script)


def shim_pid(container: pyctrd.Container, way: str) -> int:
    directory = Path(os.environ["PYCTRD_STATE"]) / "shims" / container.id
    if way == "exec":
        (directory,) = (directory / "exec").iterdir()
    return int(json.loads((directory / "shim.json").read_text())["shim_pid"])


def kill_inside(container: pyctrd.Container, way: str) -> None:
    if way == "exec":
        container.execs()[0].kill("SIGKILL")
    else:
        container.kill("SIGKILL")


# What is done to it, and with which status that ends.
WAYS_OUT: dict[str, tuple[Callable[[Terminal, pyctrd.Container, str], object], int]] = {
    "it ends": (lambda terminal, *_: terminal.type(b"7\r"), 7),
    "keys": (lambda terminal, *_: terminal.type(DETACH), 0),
    "Ctrl-C": (lambda terminal, *_: terminal.type(INTERRUPT), 42),
    "SIGTERM": (lambda terminal, *_: terminal.process.send_signal(signal.SIGTERM), 43),
    "it is killed": (lambda _, container, way: kill_inside(container, way), 137),
    "its container is killed": (lambda _, container, way: container.kill("SIGKILL"), 137),
}


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("out", WAYS_OUT)
def test_a_terminal_is_raw_while_it_is_the_containers_and_as_it_was_after_every_end(
    engine: pyctrd.Engine, image: str, way: str, out: str
) -> None:
    do, status = WAYS_OUT[out]
    with open_terminal(way, engine, image) as terminal:
        terminal.read_until(b"ready")
        assert terminal.is_raw()
        container = engine.containers.get("it")
        do(terminal, container, way)
        assert terminal.finish() == status, terminal.seen
        assert terminal.modes() == terminal.before
    if out == "keys":
        assert container.status.state == "running"
        if way == "exec":
            (left,) = container.execs()
            left.kill("SIGTERM")
            left.wait(DEADLINE_SECONDS)
        else:
            container.kill("SIGTERM")
            assert container.wait(DEADLINE_SECONDS).exit_code == 43
    elif way != "exec":
        assert (container.status.state, container.wait(DEADLINE_SECONDS).exit_code) == ("stopped", status)
    assert engine.check() == []


@pytest.mark.parametrize("way", WAYS_IN)
def test_a_shim_that_is_killed_gives_the_terminal_back(engine: pyctrd.Engine, image: str, way: str) -> None:
    with open_terminal(way, engine, image) as terminal:
        terminal.read_until(b"ready")
        container = engine.containers.get("it")
        os.kill(shim_pid(container, way), signal.SIGKILL)
        # Of a container it is known that it was killed then; how a process of one ended is known to nobody.
        assert terminal.finish() == (255 if way == "exec" else 137)
        assert terminal.modes() == terminal.before
        if way != "exec":
            status = container.status
            assert status.exit is not None
            assert (status.state, status.exit.error) == ("stopped", "its shim was killed, and then it was")
    assert engine.check() == []


@pytest.mark.parametrize("way", WAYS_IN)
def test_output_that_cannot_be_written_gives_the_terminal_back_in_one_line(
    engine: pyctrd.Engine, image: str, way: str
) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        ready = "touch /ready; while ! [ -e /go ]; do sleep 0.05; done; echo something; read -r x"
        with open_without_output(way, engine, image, ready, full) as terminal:
            until(terminal.is_raw)
            container = engine.containers.get("it")
            container.exec_output(["touch", "/go"])
            assert terminal.finish() == (1 if way in ("attach", "start") else 125)
            assert terminal.modes() == terminal.before
            assert b"no space left on device: standard output" in terminal.seen
    finally:
        os.close(full)


def open_without_output(way: str, engine: pyctrd.Engine, image: str, script: str, output: int) -> Terminal:
    if way == "run":
        return Terminal("run", "-it", "--name", "it", image, "sh", "-c", script, output=output)
    if way == "exec":
        engine.containers.run(image, ["sleep", "600"], name="it")
        return Terminal("exec", "-it", "it", "sh", "-c", script, output=output)
    made = engine.containers.create(image, ["sh", "-c", script], name="it", terminal=True, stdin=True)
    if way == "start":
        return Terminal("start", "-ai", "it", output=output)
    made.start()
    return Terminal("attach", "it", output=output)


@pytest.mark.parametrize("way", WAYS_IN)
def test_the_size_is_the_users_at_once_and_whenever_it_changes(engine: pyctrd.Engine, image: str, way: str) -> None:
    with open_terminal(way, engine, image) as terminal:
        # One that was made without a terminal being there has its size a moment after its start, as Docker's.
        terminal.read_until(b"ready" if way == "start" else b"24 80\r\nready")
        for rows, columns in ((40, 100), (7, 33)):
            terminal.resize(rows, columns)
            # The shell hears of it when its read is over; that one begins another.
            terminal.read_until(f"{rows} {columns}\r\n".encode())
        terminal.type(b"0\r")
        assert terminal.finish() == 0


def test_a_user_who_insists_is_let_go_and_has_the_terminal_back(engine: pyctrd.Engine, image: str) -> None:
    script = "trap '' TERM; echo ready; while true; do sleep 1; done"
    with open_terminal("run", engine, image, script) as terminal:
        terminal.read_until(b"ready")
        for _ in range(3):
            # One by one: signals that wait together are one.
            terminal.process.send_signal(signal.SIGTERM)
            until(lambda: terminal.process.poll() is not None or not has_pending(terminal.process.pid, signal.SIGTERM))
        assert terminal.finish() == 130
        assert terminal.modes() == terminal.before
    assert engine.containers.get("it").status.state == "running"


def has_pending(pid: int, number: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask & 1 << number - 1 for mask in masks)


@pytest.mark.parametrize("way", ["run", "exec"])
def test_what_cannot_be_started_gives_the_terminal_back(engine: pyctrd.Engine, image: str, way: str) -> None:
    engine.containers.run(image, ["sleep", "600"], name="it")
    for program, status in (("/none", 127), ("/bin/not-executable", 126)):
        with Terminal(way, "-it", image if way == "run" else "it", program) as terminal:
            assert terminal.finish() == status
            assert terminal.modes() == terminal.before
            assert terminal.seen.count(b"\n") <= 2
    with Terminal(way, "-it", *(("--name", "it", image) if way == "run" else ("none",)), "true") as terminal:
        assert terminal.finish() == 125
        assert terminal.modes() == terminal.before


def test_other_keys_leave_and_none_do_where_none_are_wanted(engine: pyctrd.Engine, image: str) -> None:
    engine.containers.run(image, ["sleep", "600"], name="it")
    words = ("-it", "it", "sh", "-c", "stty raw; echo ready; dd bs=1 count=3 2>/dev/null | tr '\\020\\021' pq")
    with Terminal("exec", "--detach-keys", "ctrl-a,d", *words) as terminal:
        terminal.read_until(b"ready")
        terminal.type(b"\x01d")
        assert terminal.finish() == 0
    with Terminal("exec", "--detach-keys", "", *words) as terminal:
        terminal.read_until(b"ready")
        terminal.type(DETACH + b"x")
        terminal.read_until(b"pqx")
        assert terminal.finish() == 0


@pytest.mark.parametrize("way", ["run", "exec"])
def test_input_that_is_no_terminal_ends_where_it_ends(engine: pyctrd.Engine, image: str, way: str) -> None:
    engine.containers.run(image, ["sleep", "600"], name="it")
    words = [way, "-i", *(("--rm", image) if way == "run" else ("it",)), "sh", "-c", "wc -c; exit 5"]
    for text, shown in ((b"", "0\n"), (b"x" * 300_000, "300000\n")):
        done = subprocess.run(command(*words), input=text, capture_output=True, timeout=DEADLINE_SECONDS, check=False)
        assert (done.returncode, done.stdout.decode()) == (5, shown)
    closed = f"{shlex.join(command(*words))} <&-"
    done = subprocess.run(["sh", "-c", closed], capture_output=True, timeout=DEADLINE_SECONDS, check=False)
    assert (done.returncode, done.stdout) == (5, b"0\n")


@pytest.mark.parametrize("way", ["run", "exec"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_that_ends_it_is_128_and_its_number(
    engine: pyctrd.Engine, image: str, way: str, number: signal.Signals
) -> None:
    engine.containers.run(image, ["sleep", "600"], name="it")
    # The first process of a container takes no signal that it has no handler for: so its child tells.
    script = f"sh -c 'kill -{int(number)} $$'; exit $?"
    words = [way, *(("--rm", image) if way == "run" else ("it",)), "sh", "-c", script]
    done = subprocess.run(command(*words), capture_output=True, timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode == 128 + number


def test_a_terminal_that_hangs_up_is_told_to_the_container_and_nobody_stays(engine: pyctrd.Engine, image: str) -> None:
    terminal = open_terminal("run", engine, image, "trap 'exit 44' HUP; echo ready; while true; do sleep 0.05; done")
    with terminal:
        terminal.read_until(b"ready")
        os.close(terminal.ours)
        terminal.process.wait(DEADLINE_SECONDS)
        terminal.ours = os.open(os.devnull, os.O_RDONLY)
    assert engine.containers.get("it").wait(DEADLINE_SECONDS).exit_code == 44


@pytest.mark.skipif(shutil.which("script") is None, reason="needs script of util-linux")
@pytest.mark.parametrize("way", ["run", "exec"])
def test_in_a_shell_under_script_the_terminal_is_the_shells_again(
    engine: pyctrd.Engine, image: str, tmp_path: Path, way: str
) -> None:
    """What a user does: a shell, the command, and on with the shell."""
    engine.containers.run(image, ["sleep", "600"], name="it")
    inside = ["-it", *(("--rm", image) if way == "run" else ("it",)), "sh", "-c", "stty -a >/dev/null && tty; exit 9"]
    line = shlex.join(command(way, *inside))
    session = f"stty -g > before; {line}; echo status $?; stty -g > after; cmp before after && echo same"
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", session, "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=tmp_path,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    shown = done.stdout.decode()
    assert done.returncode == 0, shown
    assert "/dev/pts/0\r\nstatus 9\r\nsame" in shown
