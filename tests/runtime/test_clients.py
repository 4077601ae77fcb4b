"""T13 to T15: the attach socket, and clients that are strangers, rude, silent or many."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pyctrd.errors import PyctrdError
from pyctrd.runtime import state
from pyctrd.runtime.shim import SOCKET, Connection, Kind, Mode, encode
from tests.children import until
from tests.runtime.conftest import WAIT_SECONDS, Host

pytestmark = pytest.mark.root

NOBODY = 65534
CONNECTIONS = 10_000
# Of a shim with 64 clients; one that kept what each of 10,000 sends would have many times that.
SHIM_MAX_BYTES = 16 << 20
# Connects as another user, through a directory that is open already; says hello, and sends SIGKILL.
STRANGER = """
import os, socket, sys
directory, user = int(sys.argv[1]), int(sys.argv[2])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
sock = socket.socket(socket.AF_UNIX)
sock.connect(f"/proc/self/fd/{directory}/attach.sock")
try:
    sock.sendall(bytes([7, 0, 0, 0, 1, 0]) + bytes([5, 0, 0, 0, 1, 9]))
    print(sock.recv(1) == b"")
except ConnectionError:
    print(True)
"""


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many descriptors as this process may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def start(host: Host, name: str, *command: str, stdin: bool = False) -> Path:
    """A container that runs; its bundle."""
    bundle = host.prepare(name, *command)
    host.runtime.start(name, bundle, stdin=stdin)
    return bundle


def connect(host: Host, name: str) -> socket.socket:
    """A client that has said nothing yet."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(WAIT_SECONDS)
    descriptor = os.open(host.shim_directory(name), os.O_PATH)
    try:
        sock.connect(f"/proc/self/fd/{descriptor}/{SOCKET}")
    finally:
        os.close(descriptor)
    return sock


def shim_of(host: Host, name: str) -> int:
    """Its process."""
    pid = state.shim_pid(host.shim_directory(name))
    assert pid
    return pid


def resident_bytes(pid: int) -> int:
    """Memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def send_gigabyte(sock: socket.socket) -> None:
    """One message of that length, and all of it, where it is taken."""
    sock.sendall(bytes((Kind.STDIN,)) + (1 << 30).to_bytes(4, "big"))
    for _ in range(1 << 10):
        sock.sendall(bytes(1 << 20))


def assert_serves(host: Host, name: str) -> None:
    """Another client is heard: the container's end is told to it."""
    with connect(host, name) as sock:
        sock.sendall(encode(Kind.HELLO, bytes((Mode.CONTROL,))) + encode(Kind.SIGNAL, b"\x09"))
        assert sock.recv(1) == bytes((Kind.EXIT,))
    assert host.runtime.wait(name, host.started[name], WAIT_SECONDS).signal == 9


def test_t15_a_message_of_a_gigabyte_is_refused_by_its_length(host: Host) -> None:
    start(host, "large", "cat", stdin=True)
    with connect(host, "large") as sock:
        sock.sendall(encode(Kind.HELLO, bytes((Mode.STREAMS,))))
        with pytest.raises(ConnectionError):
            send_gigabyte(sock)
    assert resident_bytes(shim_of(host, "large")) < SHIM_MAX_BYTES
    assert_serves(host, "large")


def test_t15_half_messages_take_nobodys_place(host: Host) -> None:
    start(host, "half", "sleep", "600")
    halves = [b"", b"\x07", b"\x07\0\0\0\1", encode(Kind.HELLO, b"\0")[:-1], b"\0\0\1\0\0" + bytes(60_000)]
    with ExitStack() as opened:
        for number in range(200):
            sock = opened.enter_context(connect(host, "half"))
            with suppress(ConnectionError):  # it may have had to make room already
                sock.sendall(halves[number % len(halves)])
        assert resident_bytes(shim_of(host, "half")) < SHIM_MAX_BYTES
        assert_serves(host, "half")


def test_t15_ten_thousand_connections_are_bounded_and_others_are_served(host: Host, many_files: None) -> None:
    del many_files
    start(host, "many", "sleep", "600")
    pid = shim_of(host, "many")
    allowed = min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200)
    with ExitStack() as opened:
        for _ in range(allowed):
            opened.enter_context(connect(host, "many"))
        until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) < 100)
        assert resident_bytes(pid) < SHIM_MAX_BYTES
        assert_serves(host, "many")


def test_who_is_not_taken_as_a_client_is_told_the_same_end(host: Host) -> None:
    bundle = start(host, "awaited", "sleep", "600")
    shim = shim_of(host, "awaited")
    running = state.read_running(host.shim_directory("awaited"))
    assert running is not None
    (host.shim_directory("awaited") / SOCKET).unlink()  # as if it had too many
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(host.runtime.wait, "awaited", bundle, WAIT_SECONDS)
        os.kill(shim, signal.SIGSTOP)  # it is late
        try:
            host.runtime.kill("awaited", signal.SIGKILL)
            until(lambda: Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
            with pytest.raises(TimeoutError):
                wait.result(timeout=0.2)
        finally:
            os.kill(shim, signal.SIGCONT)
        assert wait.result(WAIT_SECONDS).signal == signal.SIGKILL


def test_t15_who_never_reads_holds_up_neither_the_container_nor_its_end(host: Host) -> None:
    bundle = start(host, "flood", "sh", "-c", "read go; yes | head -c 20000000; sleep 600", stdin=True)
    with ExitStack() as opened:
        for _ in range(8):
            sock = opened.enter_context(connect(host, "flood"))
            sock.sendall(encode(Kind.HELLO, bytes((Mode.STREAMS,))))
        sock.sendall(encode(Kind.STDIN, b"go\n"))
        until((bundle / "log.2").exists)  # the log is longer than what was written: some 80 bytes a line
        assert resident_bytes(shim_of(host, "flood")) < SHIM_MAX_BYTES
        assert_serves(host, "flood")


def test_t15_what_an_onlooker_does_not_read_keeps_no_container_from_being_deleted(host: Host) -> None:
    bundle = start(host, "unread", "sh", "-c", "read go; yes | head -c 600000; sleep 600", stdin=True)
    with connect(host, "unread") as sock:
        sock.sendall(encode(Kind.HELLO, bytes((Mode.STREAMS,))) + encode(Kind.STDIN, b"go\n"))
        until(lambda: (bundle / "log").stat().st_size > 600_000)
        host.runtime.kill("unread", 9)
        host.runtime.wait("unread", bundle, WAIT_SECONDS)
        before = time.monotonic()
        host.runtime.delete("unread", bundle)
        assert time.monotonic() - before < WAIT_SECONDS / 2
        assert not (host.shim_directory("unread")).exists()


def test_t13_no_socket_has_an_abstract_name(host: Host) -> None:
    start(host, "named", "sleep", "600")
    pid = shim_of(host, "named")
    links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    lines = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    names = [line[7] if len(line) > 7 else "" for line in lines if line[6] in inodes]
    assert names == [SOCKET]  # relative to the shim's directory
    assert (host.shim_directory("named") / SOCKET).is_socket()


@pytest.mark.parametrize("user", [0, NOBODY])
def test_t13_another_users_client_is_not_heard_wherever_it_got_the_way_in(host: Host, user: int) -> None:
    bundle = start(host, "private", "sleep", "600")
    directory = host.shim_directory("private")
    directory.chmod(0o755)
    (directory / SOCKET).chmod(0o666)
    descriptor = os.open(directory, os.O_PATH)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", STRANGER, str(descriptor), str(user)],
            pass_fds=[descriptor],
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=True,
        )
    finally:
        os.close(descriptor)
    if user == 0:
        assert host.runtime.wait("private", bundle, WAIT_SECONDS).signal == 9
    else:
        assert done.stdout == "True\n"
        assert host.runtime.status("private", bundle).state == "running"


def test_t13_a_strangers_shim_is_not_spoken_to(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / SOCKET))
        os.seteuid(NOBODY)  # whoever listens is asked for
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(PyctrdError, match=f"attach socket of a stranger: {tmp_path}.*user {NOBODY}"):
            Connection.open(tmp_path, Mode.CONTROL)


@pytest.mark.parametrize("what", ["symlink", "dangling", "socket", "fifo", "file"])
def test_t14_what_stands_at_the_sockets_name_is_replaced_and_never_followed(
    host: Host, tmp_path: Path, what: str
) -> None:
    bundle = host.prepare("taken", "sleep", "600")
    directory, victim = host.shim_directory("taken"), tmp_path / "victim"
    directory.mkdir(parents=True)
    victim.write_text("kept")
    path = directory / SOCKET
    with socket.socket(socket.AF_UNIX) as stranger:
        if what == "symlink":
            path.symlink_to(victim)
        elif what == "dangling":
            path.symlink_to(tmp_path / "nowhere")
        elif what == "socket":
            stranger.bind(os.fspath(path))
            stranger.listen()
        elif what == "fifo":
            os.mkfifo(path)
        else:
            path.write_text("in the way")
        host.runtime.start("taken", bundle)
        assert path.is_socket()
        assert not path.is_symlink()
        assert victim.read_text() == "kept"
        assert not (tmp_path / "nowhere").exists()
        assert_serves(host, "taken")


def test_t14_a_directory_at_the_sockets_name_is_refused(host: Host) -> None:
    bundle = host.prepare("blocked", "sleep", "600")
    (host.shim_directory("blocked") / SOCKET).mkdir(parents=True)
    with pytest.raises(PyctrdError, match="directory"):
        host.runtime.start("blocked", bundle)
    assert host.runtime.status("blocked", bundle).state == "created"
