"""Processes in a running container, as users of ``subprocess.Popen`` and of ``docker exec`` expect them."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    ConflictError,
    DeadlineError,
    InvalidError,
    NotFoundError,
    RuncError,
)
from pyctrd.runtime import state as states
from tests.children import Child, until
from tests.images import Images

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 60.0
BIG = bytes(range(256)) * 40_000  # 10 MB: many times all buffers on the way
AT_ONCE = 200
SOAK_AT_ONCE = 1000
ENGINE = """
import sys, pyctrd
with pyctrd.Engine() as engine:
    container = engine.containers.get(sys.argv[1])
    form = sys.argv[2]
    process = container.exec(sys.argv[3:], stdin=True, detach=form == "detach", terminal=form == "terminal")
    print(process.id, process.pid, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def container(engine: pyctrd.Engine, images: Images) -> Iterator[pyctrd.Container]:
    """One that runs, and reaps what is left to its first process."""
    engine.images.pull(images.app.reference)
    made = engine.containers.run(images.app.reference, entrypoint=["sh", "-c", "while :; do sleep 1000; done"])
    yield made
    made.delete(force=True)
    nothing_is_left()


def exec_directory(container: pyctrd.Container) -> Path:
    return Path(os.environ["PYCTRD_STATE"]) / "shims" / container.id / "exec"


def shims_of(container: pyctrd.Container) -> set[int]:
    """The processes whose command line names a container."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if container.id.encode() in path.read_bytes():
                found.add(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def nothing_is_left() -> None:
    assert list((Path(os.environ["PYCTRD_STATE"]) / "shims").iterdir()) == []


def is_alive(pid: int) -> bool:
    return states.process_start_ticks(pid) is not None


def no_exec_is_left(container: pyctrd.Container) -> None:
    """No shim but the container's, and no directory."""
    until(lambda: len(shims_of(container)) == 1 and list(exec_directory(container).iterdir()) == [])
    assert container.execs() == []


def test_output_and_exit_code_are_the_process_own(container: pyctrd.Container) -> None:
    assert container.exec_output(["sh", "-c", "echo out; echo err >&2; exit 7"]) == (7, b"out\n", b"err\n")
    with container.exec(["sh", "-c", "echo one; echo two; kill -9 $$"]) as process:
        assert process.stdin is None
        assert process.stdout is not None
        assert list(process.stdout) == [b"one\n", b"two\n"]
        ended = process.wait(DEADLINE_SECONDS)
    assert (ended.exit_code, ended.signal) == (137, 9)
    assert 0 < ended.started_ns <= ended.exited_ns
    assert process.poll() == ended
    no_exec_is_left(container)


def test_input_goes_in_and_ends(container: pyctrd.Container) -> None:
    assert container.exec_output(["cat"], input=b"one\n").stdout == b"one\n"
    assert container.exec_output(["cat"]).stdout == b""
    with container.exec(["cat"], stdin=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.poll() is None
        process.stdin.write(b"typed\n")
        assert process.stdout.readline() == b"typed\n"
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(DEADLINE_SECONDS).exit_code == 0


def test_much_goes_both_ways_on_all_streams(container: pyctrd.Container) -> None:
    done = container.exec_output(["sh", "-c", "tee /dev/stderr"], input=BIG)
    assert done.exit_code == 0
    assert done.stdout == BIG
    assert done.stderr == BIG


@pytest.mark.parametrize("first", ["stdout", "stderr"])
def test_no_order_of_reading_is_a_deadlock(container: pyctrd.Container, first: str) -> None:
    with container.exec(["sh", "-c", "tee /dev/stderr"], stdin=True) as process:
        streams = {"stdout": process.stdout, "stderr": process.stderr}
        assert process.stdin is not None
        process.stdin.write(BIG)  # nobody reads yet
        process.stdin.close()
        for name in sorted(streams, key=lambda name: name != first):
            stream = streams[name]
            assert stream is not None
            assert stream.read() == BIG
        assert process.wait(DEADLINE_SECONDS).exit_code == 0


def test_threads_may_read_write_and_wait_at_once(container: pyctrd.Container) -> None:
    with container.exec(["sh", "-c", "tee /dev/stderr"], stdin=True) as process, ThreadPoolExecutor(4) as pool:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        reads = [pool.submit(process.stdout.read), pool.submit(process.stderr.read)]
        waits = pool.submit(process.wait, DEADLINE_SECONDS)
        process.stdin.write(BIG)
        process.stdin.close()
        assert [read.result(DEADLINE_SECONDS) == BIG for read in reads] == [True, True]
        assert waits.result().exit_code == 0


def test_a_process_that_ends_before_its_input_is_no_error_of_communicate(container: pyctrd.Container) -> None:
    assert container.exec_output(["true"], input=BIG).exit_code == 0
    with container.exec(["true"], stdin=True) as process:
        process.wait(DEADLINE_SECONDS)
        assert process.stdin is not None
        with pytest.raises(BrokenPipeError):
            process.stdin.write(b"late")


def test_waiting_without_reading_ends_also_where_much_is_written(container: pyctrd.Container) -> None:
    with container.exec(["sh", "-c", "yes | head -c 1000000"]) as process:
        assert process.wait(DEADLINE_SECONDS).exit_code == 0
        assert process.stdout is not None
        assert len(process.stdout.read()) == 1_000_000
    with container.exec(["yes"]) as process:
        with pytest.raises(DeadlineError) as raised:
            process.wait(0.5)
        assert raised.value.operation == "wait"
        process.kill()
        assert process.wait(DEADLINE_SECONDS).signal == 9


def test_communicate_goes_on_after_a_deadline(container: pyctrd.Container) -> None:
    script = "read line; echo $line; cat"
    with container.exec(["sh", "-c", f"while ! [ -e /tmp/go ]; do :; done; {script}"], stdin=True) as process:
        with pytest.raises(DeadlineError):
            process.communicate(b"first\n" + BIG, timeout=0.2)
        assert container.exec_output(["touch", "/tmp/go"]).exit_code == 0
        assert process.communicate(timeout=DEADLINE_SECONDS) == (b"first\n" + BIG, b"")


def test_environment_user_and_directory(container: pyctrd.Container) -> None:
    script = "echo $MODE $EXTRA $HOME; pwd; id -u; id -g; id -G"
    out = container.exec_output(["sh", "-c", script]).stdout.decode().splitlines()
    assert out == ["image /home/app", "/home/app", "1000", "1000", "1000 29"]
    done = container.exec_output(
        ["sh", "-c", script], env={"MODE": "mine", "EXTRA": "more"}, user="root", working_dir="/etc"
    )
    assert done.stdout.decode().splitlines()[:4] == ["mine more /root", "/etc", "0", "0"]
    assert container.exec_output(["id", "-u"], user="7:8").stdout == b"7\n"
    with pytest.raises(NotFoundError, match="user not found: nobody-here"):
        container.exec(["true"], user="nobody-here")
    with pytest.raises(RuncError, match="/nowhere"):
        container.exec(["true"], working_dir="/nowhere")
    no_exec_is_left(container)


def test_capabilities_are_the_containers_unless_asked_for(container: pyctrd.Container) -> None:
    def effective(*, privileged: bool = False, cap_add: tuple[str, ...] = (), cap_drop: tuple[str, ...] = ()) -> int:
        with container.exec(
            ["cat", "/proc/self/status"],
            user="0", privileged=privileged, cap_add=cap_add, cap_drop=cap_drop,
        ) as process:  # fmt: skip
            facts = dict(line.split(":\t") for line in process.communicate()[0].decode().splitlines() if ":\t" in line)
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
        assert facts["CapBnd"] == facts["CapEff"]
        return int(facts["CapEff"], 16)

    usual = 0x00000000A80425FB
    assert effective() == usual
    assert effective(cap_add=("sys_ptrace",)) == usual | 1 << 19
    assert effective(cap_drop=("ALL",), cap_add=("CAP_CHOWN",)) == 1
    own = int(Path("/proc/self/status").read_text().split("CapBnd:\t")[1].split()[0], 16)
    assert effective(privileged=True) == own
    with pytest.raises(InvalidError, match="capability"):
        effective(cap_add=("FLYING",))


def test_a_terminal_is_one_with_a_size(container: pyctrd.Container) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && echo yes; read line; stty size; echo $TERM"
    with container.exec(["sh", "-c", script], terminal=True, stdin=True) as process:
        assert process.stderr is None
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"yes\r\n"
        process.resize(33, 111)
        process.stdin.write(b"\n")
        assert process.communicate()[0].splitlines()[-2:] == [b"33 111", b"xterm"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["nothing-here"], CommandNotFoundError),
        (["/bin/nothing"], CommandNotFoundError),
        (["/etc/passwd"], CommandNotExecutableError),
    ],
)
def test_a_command_that_cannot_run_is_told_apart(
    container: pyctrd.Container, command: list[str], error: type[RuncError]
) -> None:
    with pytest.raises(error, match="cannot exec: exec: ") as raised:
        container.exec(command)
    assert "\n" not in str(raised.value)
    assert raised.value.hint
    no_exec_is_left(container)


def test_wrong_options_are_refused(container: pyctrd.Container) -> None:
    with pytest.raises(InvalidError, match="sequence"):
        container.exec("true")
    with pytest.raises(InvalidError, match="command"):
        container.exec([])
    with pytest.raises(InvalidError, match="NUL"):
        container.exec(["echo", "a\0b"])
    with pytest.raises(InvalidError, match="env"):
        container.exec(["true"], env=["=x"])
    with pytest.raises(InvalidError, match="absolute"):
        container.exec(["true"], working_dir="etc")
    with pytest.raises(InvalidError, match="timeout"):
        container.exec(["true"], timeout=0)
    with pytest.raises(InvalidError, match="timeout"):
        container.exec(["true"], timeout=float("inf"))
    with container.exec(["true"]) as process, pytest.raises(InvalidError, match="input"):
        process.communicate(b"x")


def test_a_container_must_run(engine: pyctrd.Engine, container: pyctrd.Container) -> None:
    container.pause()
    with pytest.raises(ConflictError, match="is paused, must be running") as raised:
        container.exec(["true"])
    assert raised.value.state == "paused"
    container.resume()
    assert container.exec_output(["true"]).exit_code == 0
    made = engine.containers.create(container.image_name)
    with pytest.raises(ConflictError, match="is created, must be running"):
        made.exec(["true"])
    container.kill()
    container.wait(DEADLINE_SECONDS)
    with pytest.raises(ConflictError, match="is stopped, must be running"):
        container.exec(["true"])


def test_a_time_out_kills_all_that_was_started(container: pyctrd.Container) -> None:
    # A child, a grandchild whose parent is gone, one in a process group of its own, and one that hears no SIGTERM.
    script = "sleep 501 & (sleep 502 &) ; set -m; sleep 503 & trap '' TERM; while :; do sleep 504; done"
    process = container.exec(["sh", "-c", script], timeout=0.5)
    with pytest.raises(DeadlineError, match=r"killed after 0\.5 seconds") as raised:
        process.wait(DEADLINE_SECONDS)
    assert (raised.value.operation, raised.value.timeout_seconds) == ("exec", 0.5)
    ended = process.poll()
    assert ended is not None
    assert ended.signal == 9
    left = container.exec_output(["ps", "-o", "args"]).stdout.decode()
    assert "sleep 50" not in left
    with pytest.raises(DeadlineError, match="timed out"):
        container.exec_output(["sleep", "600"], timeout=0.1)
    no_exec_is_left(container)


def test_what_ends_in_time_is_not_killed_later(container: pyctrd.Container) -> None:
    assert container.exec_output(["echo", "quick"], timeout=DEADLINE_SECONDS).stdout == b"quick\n"
    no_exec_is_left(container)


def test_what_a_process_leaves_behind_holds_nobody_up(container: pyctrd.Container) -> None:
    done = container.exec_output(["sh", "-c", "sleep 1000 & echo started"])
    assert done == (0, b"started\n", b"")
    assert container.exec_output(["sh", "-c", "yes & exit 5"]).exit_code == 5
    no_exec_is_left(container)


def test_a_signal_goes_to_the_process_alone(container: pyctrd.Container) -> None:
    script = "trap 'echo heard; exit 3' USR1; echo ready; while :; do sleep 0.1; done"
    with container.exec(["sh", "-c", script]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill("USR1")
        assert process.stdout.readline() == b"heard\n"
        assert process.wait(DEADLINE_SECONDS).exit_code == 3
        process.kill()  # nothing is done any more
    assert container.status.state == "running"
    with pytest.raises(InvalidError, match="signal"):
        process.kill("SIGNOTHING")


def test_a_block_left_by_an_error_kills(container: pyctrd.Container) -> None:
    with pytest.raises(ZeroDivisionError), container.exec(["sleep", "1000"]) as process:
        _ = 1 / 0
    ended = process.poll()
    assert ended is not None
    assert ended.signal == 9
    with container.exec(["sh", "-c", "exit 6"]) as process:
        pass
    assert process.wait().exit_code == 6
    no_exec_is_left(container)


def test_a_detached_process_is_found_by_another_engine(container: pyctrd.Container) -> None:
    started = container.exec(["sh", "-c", "cat; while ! [ -e /tmp/end ]; do sleep 0.01; done; exit 9"], detach=True)
    assert (started.stdin, started.stdout, started.stderr) == (None, None, None)
    with pytest.raises(ConflictError, match="no streams"):
        started.communicate()
    with pyctrd.Engine() as other:
        theirs = other.containers.get(container.id)
        found = theirs.get_exec(started.id)
        assert (found.id, found.pid, found.poll()) == (started.id, started.pid, None)
        assert [process.id for process in theirs.execs()] == [started.id]
        with pytest.raises(DeadlineError):
            found.wait(0.05)
        container.exec_output(["touch", "/tmp/end"])
        assert found.wait(DEADLINE_SECONDS).exit_code == 9
        assert started.wait(DEADLINE_SECONDS) == found.wait() == theirs.get_exec(started.id).poll()
        for wrong in ("", "../lock", "0" * 32, started.id[:12]):
            with pytest.raises(NotFoundError, match="process not found"):
                theirs.get_exec(wrong)


def test_records_of_detached_processes_are_bounded(
    container: pyctrd.Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyctrd.runtime.execs.KEPT_MAX", 4)
    running = container.exec(["sleep", "1000"], detach=True)
    for _ in range(8):
        last = container.exec(["true"], detach=True)
        last.wait(DEADLINE_SECONDS)
    assert len(list(exec_directory(container).iterdir())) <= 5
    assert container.get_exec(running.id).poll() is None
    assert last.poll() is not None


@pytest.mark.parametrize("way", ["kill", "delete", "stop"])
def test_processes_end_with_their_container(engine: pyctrd.Engine, container: pyctrd.Container, way: str) -> None:
    del engine
    attached = container.exec(["sleep", "1000"], stdin=True)
    silent = container.exec(["yes"])  # nobody reads what it writes
    terminal = container.exec(["sh"], terminal=True, stdin=True)
    detached = container.exec(["sleep", "1000"], detach=True)
    shims = shims_of(container)
    assert len(shims) == 5
    waited: list[pyctrd.ExitStatus] = []
    waiter = threading.Thread(target=lambda: waited.append(attached.wait()))
    waiter.start()
    if way == "kill":
        container.kill()
    elif way == "stop":
        container.stop(0.1)
    else:
        container.delete(force=True)
    waiter.join(DEADLINE_SECONDS)
    assert [ended.signal for ended in waited] == [9]
    assert terminal.wait(DEADLINE_SECONDS).signal == 9
    if way != "delete":
        assert detached.wait(DEADLINE_SECONDS).signal == 9
    container.delete(force=True)
    assert not any(is_alive(pid) for pid in shims)
    nothing_is_left()
    for process in (attached, silent, terminal):
        process.close()


def test_a_container_that_starts_again_knows_no_process_of_before(container: pyctrd.Container) -> None:
    before = container.exec(["sleep", "1000"], detach=True)
    container.kill()
    container.wait(DEADLINE_SECONDS)
    assert before.wait(DEADLINE_SECONDS).signal == 9
    container.start()
    assert container.execs() == []
    with pytest.raises(NotFoundError):
        container.get_exec(before.id)
    assert container.exec_output(["true"]).exit_code == 0


@pytest.mark.parametrize("form", ["attach", "detach", "terminal"])
def test_an_engine_that_is_killed_leaves_no_directory(container: pyctrd.Container, form: str) -> None:
    # Input ends with the engine, and a terminal hangs up: so each of them ends, but for the detached one.
    script = "sleep 1000" if form == "detach" else "cat; echo late; sleep 0.1"
    with Child(ENGINE, container.id, form, "sh", "-c", script) as child:
        exec_id, pid = child.hear().split()
        assert is_alive(int(pid))
        os.kill(child.pid, signal.SIGKILL)
        if form == "detach":
            found = container.get_exec(exec_id)
            assert found.poll() is None
            found.kill()
            assert found.wait(DEADLINE_SECONDS).signal == 9
            return
        until(lambda: not is_alive(int(pid)))
    no_exec_is_left(container)


@pytest.mark.parametrize("step", range(12))
def test_an_engine_killed_while_it_starts_a_process_leaves_nothing(container: pyctrd.Container, step: int) -> None:
    with Child(ENGINE, container.id, "attach", "cat") as child:
        until(lambda: exec_directory(container).exists() and any(exec_directory(container).iterdir()))
        end = time.monotonic() + step * 0.005  # wherever it is by then: before, in and after the runtime's work
        until(lambda: time.monotonic() >= end)
        os.kill(child.pid, signal.SIGKILL)
    until(lambda: len(shims_of(container)) == 1)
    until(lambda: all(not states.shim_pid(path) for path in exec_directory(container).iterdir()))
    assert container.execs() == []
    until(lambda: b"cat" not in container.exec_output(["ps", "-o", "args"]).stdout)


@pytest.mark.parametrize("step", range(8))
def test_a_container_killed_while_a_process_starts_leaves_nothing(container: pyctrd.Container, step: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(container.exec_output, ["sleep", "4000"])
        directory = exec_directory(container)
        until(lambda: directory.exists() and any(states.shim_pid(path) for path in directory.iterdir()))
        end = time.monotonic() + step * 0.005
        until(lambda: time.monotonic() >= end)
        container.kill() if step % 2 else container.delete(force=True)
        try:
            assert waited.result(DEADLINE_SECONDS).exit_code == 137
        except (ConflictError, RuncError) as error:
            assert "\n" not in str(error)  # noqa: PT017 - it had not begun
    container.delete(force=True)
    until(lambda: shims_of(container) == set())
    nothing_is_left()


def test_who_writes_to_nobody_is_told(container: pyctrd.Container) -> None:
    process = container.exec(["yes"])
    process.close()
    until(lambda: not is_alive(process.pid))
    no_exec_is_left(container)


def test_a_shim_that_is_killed_hangs_nobody(container: pyctrd.Container) -> None:
    process = container.exec(["sleep", "1000"])
    shim = states.shim_pid(exec_directory(container) / process.id)
    os.kill(shim, signal.SIGKILL)
    assert process.poll() is None
    with pytest.raises(DeadlineError):
        process.wait(0.1)
    assert [found.poll() for found in container.execs()] == [None]
    process.kill()
    ended = process.wait(DEADLINE_SECONDS)
    assert ended.exit_code == 255
    assert "status unknown" in ended.error
    assert process.stdout is not None
    assert process.stdout.read() == b""
    assert not is_alive(process.pid)


@pytest.mark.parametrize("step", range(6))
def test_a_shim_killed_while_it_starts_a_process_is_one_error(container: pyctrd.Container, step: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(container.exec, ["sleep", "2000"])
        directory = exec_directory(container)
        until(lambda: directory.exists() and any(states.shim_pid(path) for path in directory.iterdir()))
        end = time.monotonic() + step * 0.005
        until(lambda: time.monotonic() >= end)
        for path in directory.iterdir():
            os.kill(states.shim_pid(path), signal.SIGKILL)
        try:
            waited.result(DEADLINE_SECONDS).close()  # it was quicker
        except RuncError as error:
            assert "\n" not in str(error)  # noqa: PT017 - one of both is right
    assert container.exec_output(["true"]).exit_code == 0


def many(container: pyctrd.Container, count: int) -> None:
    """So many at once, each with input and output."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    try:
        with ThreadPoolExecutor(32) as pool:
            processes = list(pool.map(lambda _: container.exec(["cat"], stdin=True), range(count)))
            assert len(shims_of(container)) == count + 1
            done = pool.map(lambda pair: pair[1].communicate(b"%d" % pair[0]), enumerate(processes))
            assert [out for out, _ in done] == [b"%d" % number for number in range(count)]
        assert {process.wait().exit_code for process in processes} == {0}
        no_exec_is_left(container)
        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 4  # of the store
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_many_at_once_leave_nothing(container: pyctrd.Container) -> None:
    many(container, AT_ONCE)


@pytest.mark.soak
def test_a_thousand_at_once_leave_nothing(container: pyctrd.Container) -> None:
    many(container, SOAK_AT_ONCE)
