"""Output, input, terminals and signals of containers, and the log."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path

import pytest

from pyctrd.runtime.shim import Connection, Kind, Mode
from pyctrd.runtime.state import ExitStatus
from pyctrd.runtime.streams import forward_signals
from tests.runtime.conftest import WAIT_SECONDS, Host

pytestmark = pytest.mark.root

MIB = 1 << 20


@contextmanager
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Both ends as files, because a file may be closed twice and a number may not."""
    read, write = os.pipe()
    with FileIO(read, "r") as reader, FileIO(write, "w") as writer:
        yield reader, writer


def start_reader(file: FileIO, into: bytearray, on_data: threading.Event | None = None) -> threading.Thread:
    def read() -> None:
        while data := file.read(MIB):
            into.extend(data)
            if on_data is not None:
                on_data.set()

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def start_feeder(file: FileIO, data: bytes) -> threading.Thread:
    def feed() -> None:
        with suppress(BrokenPipeError), file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]

    thread = threading.Thread(target=feed)
    thread.start()
    return thread


def run_attached(host: Host, name: str, *command: str, stdin: bytes | None = None) -> tuple[ExitStatus, bytes, bytes]:
    bundle = host.prepare(name, *command)
    host.runtime.start(name, bundle, stdin=stdin is not None, attached=True)
    out, err = bytearray(), bytearray()
    with pipe() as (in_r, in_w), pipe() as (out_r, out_w), pipe() as (err_r, err_w):
        threads = [start_reader(out_r, out), start_reader(err_r, err)]
        if stdin is not None:
            threads.append(start_feeder(in_w, stdin))
        source = None if stdin is None else in_r.fileno()
        ended = host.runtime.attach(name, bundle, stdin=source, stdout=out_w.fileno(), stderr=err_w.fileno())
        for file in (in_r, out_w, err_w):
            file.close()
        for thread in threads:
            thread.join(WAIT_SECONDS)
    return ended, bytes(out), bytes(err)


def test_foreground_keeps_streams_apart_and_loses_nothing(host: Host) -> None:
    script = "seq 300000; echo oops >&2; exit 5"
    ended, out, err = run_attached(host, "all", "sh", "-c", script)
    assert ended.exit_code == 5
    assert out == b"".join(b"%d\n" % n for n in range(1, 300001))
    assert err == b"oops\n"


def test_input_and_output_may_both_be_large(host: Host) -> None:
    data = os.urandom(MIB) * 4
    ended, out, _ = run_attached(host, "echo", "cat", stdin=data)
    assert ended.exit_code == 0
    assert out == data


def test_input_ends_with_the_users(host: Host) -> None:
    assert run_attached(host, "empty", "sh", "-c", "cat; echo done", stdin=b"")[1] == b"done\n"
    assert run_attached(host, "line", "sh", "-c", "cat; echo done", stdin=b"line\n")[1] == b"line\ndone\n"


def test_input_that_nobody_reads_holds_nothing_up(host: Host) -> None:
    ended, out, _ = run_attached(host, "deaf", "sh", "-c", "echo over", stdin=b"x" * MIB)
    assert (ended.exit_code, out) == (0, b"over\n")


def test_container_without_input_reads_an_end(host: Host) -> None:
    assert run_attached(host, "mute", "cat")[1] == b""


def test_slow_onlooker_never_blocks_a_detached_container(host: Host) -> None:
    bundle = host.prepare("loud", "sh", "-c", "cat; seq 500000; echo over")
    host.runtime.start("loud", bundle, stdin=True, attached=True)
    first = host.runtime._waiting.pop("loud")
    onlooker = Connection.open(host.shim_directory("loud"), Mode.STREAMS)
    assert onlooker is not None
    with onlooker:
        first.close()  # its end is the input's: the container goes on, and nobody reads
        ended = host.runtime.wait("loud", bundle, timeout=WAIT_SECONDS)
    assert ended.exit_code == 0
    assert host.output("loud").endswith("500000\nover\n")


def test_slow_foreground_holds_the_container_up_and_loses_nothing(host: Host) -> None:
    bundle = host.prepare("patient", "seq", "300000")
    host.runtime.start("patient", bundle, attached=True)
    with pytest.raises(TimeoutError):
        host.runtime.wait("patient", bundle, timeout=0.2)
    out = bytearray()
    with pipe() as (out_r, out_w):
        thread = start_reader(out_r, out)
        ended = host.runtime.attach("patient", bundle, stdin=None, stdout=out_w.fileno(), stderr=out_w.fileno())
        out_w.close()
        thread.join(WAIT_SECONDS)
    assert ended.exit_code == 0
    assert out.endswith(b"\n300000\n")
    assert out.count(b"\n") == 300000


def test_signals_are_passed_on_in_the_foreground(host: Host) -> None:
    script = "trap 'echo got; exit 5' TERM; echo ready; sleep 1000 & wait"
    bundle = host.prepare("signalled", "sh", "-c", script)
    host.runtime.start("signalled", bundle, attached=True)
    out, ready = bytearray(), threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    with pipe() as (out_r, out_w):
        thread = start_reader(out_r, out, ready)

        def send() -> None:
            assert ready.wait(WAIT_SECONDS)
            os.kill(os.getpid(), signal.SIGTERM)

        sender = threading.Thread(target=send)
        sender.start()
        ended = host.runtime.attach("signalled", bundle, stdin=None, stdout=out_w.fileno(), stderr=out_w.fileno())
        out_w.close()
        thread.join(WAIT_SECONDS)
        sender.join(WAIT_SECONDS)
    assert (ended.exit_code, bytes(out)) == (5, b"ready\ngot\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_third_interrupt_lets_the_user_go() -> None:
    ours, theirs = socket.socketpair()
    before = signal.getsignal(signal.SIGINT)
    with Connection(ours) as control, Connection(theirs) as shim:
        with forward_signals(control, size_of=None):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert shim.receive()
        assert list(shim.frames()) == [(Kind.SIGNAL, bytes((signal.SIGINT,)))] * 2
    assert signal.getsignal(signal.SIGINT) is before


def test_terminal_has_the_users_size_and_is_put_back(host: Host) -> None:
    bundle = host.prepare("tty", "sh", "-c", "test -t 0 && test -t 1 && read x && stty size && echo $x", terminal=True)
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        before = termios.tcgetattr(slave)
        host.runtime.start("tty", bundle, terminal=True, stdin=True, attached=True)
        os.write(master, b"word\n")
        ended = host.runtime.attach("tty", bundle, stdin=slave, stdout=slave, stderr=slave, terminal=True)
        assert ended.exit_code == 0
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)
    assert "33 99\r\nword\r\n" in host.output("tty")


def test_a_thread_gives_the_terminals_size_too(host: Host) -> None:
    bundle = host.prepare("tty", "sh", "-c", "read x && stty size", terminal=True)
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        host.runtime.start("tty", bundle, terminal=True, stdin=True, attached=True)
        os.write(master, b"word\n")
        joined = partial(host.runtime.attach, "tty", bundle, stdin=slave, stdout=slave, stderr=slave, terminal=True)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(joined).result(WAIT_SECONDS).exit_code == 0
    finally:
        os.close(master)
        os.close(slave)
    assert "33 99" in host.output("tty")


def test_terminal_size_of_the_spec_is_there_at_the_start(host: Host) -> None:
    ended, output = host.run("sized", "stty", "size", terminal=True, console_size=(40, 100))
    assert (ended.exit_code, output) == (0, "40 100\r\n")


def test_log_is_json_whatever_the_container_writes(host: Host) -> None:
    script = r"""printf 'quote " back \\ tab \t bell \a bad \377\376 good \303\251\n'; printf 'no newline'"""
    _, output = host.run("bytes", "sh", "-c", script)
    assert output == 'quote " back \\ tab \t bell \a bad \ufffd\ufffd good é\nno newline'


def test_log_splits_long_lines_between_characters(host: Host) -> None:
    script = "printf x; yes é | head -n 20000 | tr -d '\\n'; echo"
    _, output = host.run("wide", "sh", "-c", script)
    lines = [line.text for line in host.runtime.logs("wide", host.started["wide"])]
    assert output == "x" + "é" * 20000 + "\n"
    assert len(lines) == 3
    assert all(len(line.encode()) <= 16 << 10 for line in lines)


def test_log_is_followed_until_the_end(host: Host) -> None:
    bundle = host.prepare("followed", "sh", "-c", "echo one; cat; echo two >&2")
    host.runtime.start("followed", bundle, stdin=True, attached=True)
    lines = host.runtime.logs("followed", bundle, follow=True)
    assert next(lines).text == "one\n"
    host.runtime._waiting.pop("followed").close()
    assert [(line.text, line.stream) for line in lines] == [("two\n", "stderr")]


def test_log_can_be_cut_by_time_and_count(host: Host) -> None:
    host.run("cut", "seq", "5")
    bundle = host.started["cut"]
    assert [line.text for line in host.runtime.logs("cut", bundle, tail=2)] == ["4\n", "5\n"]
    ended = host.runtime.wait("cut", bundle)
    assert list(host.runtime.logs("cut", bundle, since_ns=ended.exited_ns + 10**9)) == []
    assert len(list(host.runtime.logs("cut", bundle, since_ns=ended.started_ns - 10**9))) == 5


def test_torn_line_of_a_killed_shim_is_left_out(host: Host) -> None:
    host.run("torn", "echo", "one")
    bundle: Path = host.started["torn"]
    with (bundle / "log").open("ab") as file:
        file.write(b'{"log":"hal')
    assert host.run("torn", "echo", "two")[1] == "one\ntwo\n"


def test_client_that_speaks_something_else_is_dropped(host: Host) -> None:
    bundle = host.prepare("rude", "cat")
    host.runtime.start("rude", bundle, stdin=True)
    connection = Connection.open(host.shim_directory("rude"), Mode.CONTROL)
    assert connection is not None
    with connection:
        connection._socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
        connection.wait_closed(WAIT_SECONDS)
    assert host.runtime.status("rude", bundle).state == "running"
