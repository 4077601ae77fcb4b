"""Processes in a running container, under each OCI runtime that this host lets run; and what they are told to be."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctrd.errors import CommandNotExecutableError, CommandNotFoundError, ConflictError, InvalidError
from pyctrd.runtime import state
from pyctrd.runtime.exec_spec import ExecOptions, exec_spec
from pyctrd.runtime.execs import Exec
from pyctrd.runtime.joined import Joined, Output
from pyctrd.runtime.runtime import Runtime
from pyctrd.runtime.shim import Connection, Kind, Mode
from pyctrd.runtime.state import ExitStatus
from pyctrd.runtime.users import User
from tests.children import until
from tests.runtime.conftest import BUSYBOX, WAIT_SECONDS, Host, make_rootfs
from tests.runtimes import RUNTIMES, usable

# A shim's own memory, as the issue bounds it: private pages, and its part of those that it shares.
SHIM_MAX_KIB = 2 << 10
CONFIG = {
    "process": {
        "terminal": True,
        "consoleSize": {"height": 1, "width": 1},
        "user": {"uid": 5, "gid": 6, "umask": 18},
        "args": ["init"],
        "env": ["PATH=/bin", "HOME=/srv", "A=1"],
        "cwd": "/spot",
        "capabilities": {name: ["CAP_CHOWN", "CAP_KILL"] for name in ("bounding", "effective", "permitted")},
        "noNewPrivileges": True,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        "oomScoreAdj": 7,
    }
}


def spec(user: User | None = None, **options: Any) -> dict[str, Any]:
    return exec_spec(CONFIG, ExecOptions(command=("run", "it"), **options), user)


def test_a_process_is_as_the_containers_own_where_nothing_is_said() -> None:
    expected = dict(CONFIG["process"], args=["run", "it"], terminal=False)
    del expected["consoleSize"]
    assert spec() == expected
    assert CONFIG["process"]["args"] == ["init"]


def test_what_is_said_replaces_that() -> None:
    made = spec(
        User(8, 9, (10,), "/home/eight"),
        env=("A=2", "B=3"),
        working_dir="/tmp",
        terminal=True,
        console_size=(24, 80),
    )
    assert made["user"] == {"uid": 8, "gid": 9, "additionalGids": [10], "umask": 18}
    assert made["env"] == ["PATH=/bin", "HOME=/home/eight", "A=2", "TERM=xterm", "B=3"]
    assert (made["cwd"], made["terminal"], made["consoleSize"]) == ("/tmp", True, {"height": 24, "width": 80})
    assert spec(User(home="/x"), env=("HOME=/mine",))["env"][1] == "HOME=/mine"


def test_capabilities_are_added_to_the_containers_and_taken_from_them() -> None:
    def sets(**options: Any) -> set[tuple[str, ...]]:
        made = spec(**options)["capabilities"]
        assert set(made) == {"bounding", "effective", "permitted"}
        return {tuple(names) for names in made.values()}

    assert sets(cap_add=("net_admin",)) == {("CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN")}
    assert sets(cap_drop=("KILL",)) == {("CAP_CHOWN",)}
    assert sets(cap_drop=("all",), cap_add=("CAP_SYS_TIME",)) == {("CAP_SYS_TIME",)}
    assert sets(privileged=True) == sets(cap_add=("ALL",))
    assert ("CAP_CHOWN" in next(iter(sets(privileged=True)))) == bool(os.geteuid() == 0)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"command": ()}, "command"),
        ({"command": ("",)}, "command"),
        ({"command": ("a\0",)}, "command"),
        ({"command": ("a\udcff",)}, "command"),
        ({"env": ("=x",)}, "env"),
        ({"env": ("x",)}, "env"),
        ({"working_dir": "here"}, "working_dir"),
        ({"cap_add": ("FLY",)}, "capability"),
    ],
)
def test_what_cannot_be_passed_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as raised:
        exec_spec(CONFIG, ExecOptions(**{"command": ("true",), **options}), None)
    assert raised.value.field == field


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a runtime."""
    if os.geteuid() != 0 or not BUSYBOX.exists():
        pytest.skip("needs root and busybox-static")
    with usable(request.param) as name:
        yield name


@pytest.fixture
def host(runtime: str, tmp_path: Path) -> Iterator[Host]:
    """A container of that runtime that runs, named "box"."""
    directory = tmp_path / "state"
    made = Host(Runtime(runtime, state=directory), make_rootfs(tmp_path / "rootfs"), tmp_path / "containers", directory)
    try:
        bundle = made.prepare("box", "sh", "-c", "while :; do sleep 1000; done")
        made.runtime.start("box", bundle)
        yield made
    finally:
        for name, bundle in made.started.items():
            made.runtime.delete(name, bundle, force=True)
            assert not made.shim_directory(name).exists()


def begin(
    host: Host, *command: str, stdin: bool = False, attached: bool = False, timeout: float | None = None, **options: Any
) -> tuple[Exec, Connection | None]:
    config = {"process": dict(_config(host)["process"])}
    process = exec_spec(config, ExecOptions(command=command, **options), None)
    return host.runtime.execs("box").start(process, stdin=stdin, attached=attached, timeout=timeout)


def _config(host: Host) -> Any:
    import json

    return json.loads((host.started["box"] / "config.json").read_text())


def read(host: Host, *command: str, **options: Any) -> tuple[ExitStatus, bytes]:
    """Run to its end: how it ended, and its output."""
    _, connection = begin(host, *command, attached=True, **options)
    assert connection is not None
    joined = Joined(connection)
    assert joined.wait(None, is_bounded=False)
    assert joined.record is not None
    output = Output(joined, Kind.STDOUT).readall()
    return ExitStatus.parse(joined.record), output or b""


@pytest.mark.root
def test_it_runs_in_the_container_and_ends_with_its_own_status(host: Host) -> None:
    ended, output = read(host, "sh", "-c", "echo $0; kill -TERM $$")
    assert (ended.exit_code, ended.signal, output) == (143, 15, b"sh\n")
    ended, output = read(host, "sh", "-c", "test -t 1 && echo yes; exit 4", terminal=True)
    assert (ended.exit_code, output) == (4, b"yes\r\n")
    until(lambda: list((host.shim_directory("box") / "exec").iterdir()) == [])


@pytest.mark.root
@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("nothing-here", CommandNotFoundError),
        ("/bin/nothing", CommandNotFoundError),
        ("/etc/passwd", CommandNotExecutableError),
    ],
)
def test_what_cannot_run_is_told_apart(host: Host, command: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        begin(host, command)
    assert "\n" not in str(raised.value)
    until(lambda: list((host.shim_directory("box") / "exec").iterdir()) == [])


@pytest.mark.root
def test_a_time_out_is_in_the_record(host: Host) -> None:
    ended, _ = read(host, "sh", "-c", "sleep 1000 & sleep 1000", timeout=0.2)
    assert (ended.signal, ended.error) == (9, "timed out: killed after 0.2 seconds")


@pytest.mark.root
def test_a_detached_one_ends_with_its_container(host: Host) -> None:
    found, connection = begin(host, "sleep", "1000")
    assert connection is None
    again = host.runtime.execs("box").get(found.id)
    waited: list[ExitStatus] = []
    waiter = threading.Thread(target=lambda: waited.append(again.wait(WAIT_SECONDS)))
    waiter.start()
    host.runtime.kill("box", signal.SIGKILL)
    waiter.join(WAIT_SECONDS)
    assert [ended.signal for ended in waited] == [9]
    assert host.runtime.wait("box", host.started["box"], WAIT_SECONDS).signal == 9
    with pytest.raises(ConflictError, match="cannot exec"):
        begin(host, "true")


@pytest.mark.root
def test_a_shim_is_small(host: Host) -> None:
    found, _ = begin(host, "sleep", "1000", timeout=1000.0)
    pid = state.shim_pid(host.shim_directory("box") / "exec" / found.id)
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (proportional,) = (int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    assert proportional < SHIM_MAX_KIB
    found.kill(signal.SIGKILL)
    assert found.wait(WAIT_SECONDS).signal == 9


@pytest.mark.root
def test_a_client_that_reads_nothing_holds_no_deletion_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyctrd.runtime.execs.LAST_SECONDS", 0.5)
    found, connection = begin(host, "yes", attached=True)
    assert connection is not None
    with connection:
        directory = host.shim_directory("box") / "exec" / found.id
        pid = state.shim_pid(directory)
        host.runtime.delete("box", host.started["box"], force=True)
        assert state.process_start_ticks(pid) is None
        assert not directory.exists()


@pytest.mark.root
def test_a_start_that_is_given_up_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(of: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if after:
                of(*arguments)
            raise KeyboardInterrupt

        return call

    for name, after in (("wait_ready", False), ("wait_ready", True), ("wait_started", False), ("wait_started", True)):
        with monkeypatch.context() as patch:
            kind = "pyctrd.runtime.execs.Start"
            from pyctrd.runtime.shim import Start

            patch.setattr(f"{kind}.{name}", interrupted(getattr(Start, name), after=after))
            with pytest.raises(KeyboardInterrupt):
                begin(host, "sleep", "3000", attached=True)
        until(lambda: not any(state.shim_pid(path) for path in (host.shim_directory("box") / "exec").iterdir()))
    _, listed = read(host, "sh", "-c", "cat /proc/[0-9]*/cmdline")
    assert b"3000" not in listed


@pytest.mark.root
def test_an_onlooker_sees_its_output_too(host: Host) -> None:
    found, connection = begin(host, "sh", "-c", "read line; echo $line", stdin=True, attached=True)
    assert connection is not None
    onlooker = Connection.open(host.shim_directory("box") / "exec" / found.id, Mode.STREAMS)
    assert onlooker is not None
    joined, other = Joined(connection), Joined(onlooker)
    joined.send(b"seen\n")
    for one in (joined, other):
        assert one.wait(None, is_bounded=False)
        assert Output(one, Kind.STDOUT).readall() == b"seen\n"
