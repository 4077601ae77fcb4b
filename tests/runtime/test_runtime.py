"""Containers from start to end, under the real runc."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyctrd.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    ConflictError,
    DeadlineError,
    NotFoundError,
    RuncError,
)
from pyctrd.oci.config import ImageConfig
from pyctrd.runtime import state
from pyctrd.runtime.limits import Rlimit
from pyctrd.runtime.runtime import Runtime
from pyctrd.runtime.shim import Connection, Mode, Start, wait_readable
from pyctrd.runtime.spec import Bind
from tests.children import until
from tests.runtime.conftest import IMAGE, WAIT_SECONDS, Host

pytestmark = pytest.mark.root


def test_exit_status_is_the_process_own(host: Host) -> None:
    ended, _ = host.run("seven", "sh", "-c", "exit 7")
    assert (ended.exit_code, ended.signal, ended.error) == (7, 0, "")
    assert 0 < ended.started_ns <= ended.exited_ns
    assert host.runtime.status("seven", host.started["seven"]).exit == ended


def test_exit_after_a_signal_is_128_and_its_number(host: Host) -> None:
    bundle = host.prepare("killed", "sleep", "1000")
    host.runtime.start("killed", bundle)
    host.runtime.kill("killed", signal.SIGKILL)
    ended = host.runtime.wait("killed", bundle, timeout=WAIT_SECONDS)
    assert (ended.exit_code, ended.signal) == (137, 9)


def test_container_can_be_started_again_after_its_end(host: Host) -> None:
    assert host.run("again", "sh", "-c", "echo once; exit 3")[0].exit_code == 3
    ended, output = host.run("again", "sh", "-c", "echo twice; exit 4")
    assert (ended.exit_code, output) == (4, "once\ntwice\n")


def test_process_gets_what_image_and_options_say(host: Host) -> None:
    image = ImageConfig(
        platform=IMAGE.platform,
        rootfs=IMAGE.rootfs,
        env=("COLOUR=red", "SHAPE=round"),
        entrypoint=("sh", "-c"),
        cmd=("exit 9",),
        user="web",
        working_dir="/tmp",
    )
    script = "pwd; id -u; id -g; id -G; echo $COLOUR $SHAPE $HOME $HOSTNAME; grep NoNewPrivs /proc/self/status"
    ended, output = host.run("values", script, image=image, env=("COLOUR=blue",), hostname="box")
    assert ended.exit_code == 0
    assert output.split() == [
        "/tmp",
        "1000",
        "1001",
        "1001",
        "2000",
        "blue",
        "round",
        "/srv",
        "box",
        "NoNewPrivs:",
        "1",
    ]
    assert host.run("command", image=image)[0].exit_code == 9


def test_container_is_confined_as_containerd_confines(host: Host) -> None:
    script = """
    exec 2>&1
    grep -E 'CapBnd|Seccomp:' /proc/self/status
    ls /sys/class/net
    cat /sys/class/net/lo/flags
    ls /sys/firmware | wc -l
    echo x > /proc/sys/kernel/domainname
    mount -t tmpfs x /tmp
    """
    ended, output = host.run("confined", "sh", "-c", script)
    assert ended.exit_code != 0
    assert "CapBnd:\t00000000a80425fb\nSeccomp:\t2\nlo\n0x9\n0\n" in output
    assert "/proc/sys/kernel/domainname: Read-only file system" in output
    assert "mount: permission denied" in output


def test_limits_reach_the_container(host: Host) -> None:
    script = "ulimit -n; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
    limits = (Rlimit("nofile", 100, 200),)
    _, output = host.run("limits", "sh", "-c", script, rlimits=limits, memory_bytes=64 << 20, pids=50, cpus=0.5)
    assert output.split() == ["100", str(64 << 20)]


def test_read_only_root_and_binds(host: Host, tmp_path: Path) -> None:
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
    binds = (Bind.parse(f"{tmp_path}/open:/open"), Bind.parse(f"{tmp_path}/shut:/shut:ro"))
    script = "exec 2>&1; touch /open/file; touch /shut/file || touch /file || echo refused"
    for destination in ("open", "shut"):
        (host.rootfs / destination).mkdir()
    _, output = host.run("mounts", "sh", "-c", script, mounts=binds, read_only=True)
    assert (tmp_path / "open" / "file").exists()
    assert not (tmp_path / "shut" / "file").exists()
    assert output.endswith("refused\n")


def test_host_network_has_the_hosts_links(host: Host) -> None:
    _, output = host.run("hostnet", "ls", "/sys/class/net", network="host")
    assert {path.name for path in Path("/sys/class/net").iterdir()} <= set(output.split())


@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        ("nothing-here", CommandNotFoundError, 'exec: "nothing-here": executable file not found in $PATH'),
        ("/bin/nothing", CommandNotFoundError, "/bin/nothing"),
        ("/etc/passwd", CommandNotExecutableError, 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_command_that_cannot_run_is_told_apart(host: Host, command: str, error: type[RuncError], words: str) -> None:
    bundle = host.prepare("wrong", command)
    with pytest.raises(error) as raised:
        host.runtime.start("wrong", bundle)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.hint
    assert host.runtime.status("wrong", bundle).state == "created"
    assert not (host.state / "runtimes/runc" / "wrong").exists()


def test_working_directory_that_is_a_file_is_one_clear_line(host: Host) -> None:
    bundle = host.prepare("cwd", "true", working_dir="/etc/passwd")
    with pytest.raises(RuncError, match=r"container cwd: cannot start: .*/etc/passwd.*not a directory"):
        host.runtime.start("cwd", bundle)


def test_missing_runtime_is_named(tmp_path: Path) -> None:
    runtime = Runtime("no-such-runtime", state=tmp_path / "state")
    runtime.create_bundle(tmp_path / "bundle", {})
    with pytest.raises(NotFoundError, match="no-such-runtime") as raised:
        runtime.start("one", tmp_path / "bundle")
    assert raised.value.kind == "runtime"
    assert "install" in raised.value.hint


def test_running_container_is_neither_started_nor_deleted(host: Host) -> None:
    bundle = host.prepare("busy", "sleep", "1000")
    host.runtime.start("busy", bundle)
    with pytest.raises(ConflictError, match="is running already"):
        host.runtime.start("busy", bundle)
    with pytest.raises(ConflictError, match="must be stopped"):
        host.runtime.delete("busy", bundle)
    status = host.runtime.status("busy", bundle)
    assert status.state == "running"
    # The runtime ends before its child has become the command.
    until(lambda: Path(f"/proc/{status.pid}/cmdline").read_bytes() == b"sleep\x001000\x00")
    host.runtime.delete("busy", bundle, force=True)
    host.runtime.delete("busy", bundle, force=True)
    assert not Path(f"/proc/{status.pid}").exists()
    assert not host.shim_directory("busy").exists()


def test_kill_tells_a_stopped_container_from_an_unknown_one(host: Host) -> None:
    with pytest.raises(NotFoundError):
        host.runtime.kill("nobody", signal.SIGTERM)
    bundle = host.prepare("paused", "sleep", "1000")
    host.runtime.start("paused", bundle)
    with pytest.raises(ConflictError):
        host.runtime.resume("paused")


def test_pause_is_seen_in_the_status(host: Host) -> None:
    bundle = host.prepare("frozen", "sleep", "1000")
    host.runtime.start("frozen", bundle)
    host.runtime.pause("frozen")
    assert host.runtime.status("frozen", bundle).state == "paused"
    host.runtime.resume("frozen")
    assert host.runtime.status("frozen", bundle).state == "running"


def test_wait_gives_up_at_its_deadline(host: Host) -> None:
    bundle = host.prepare("long", "sleep", "1000")
    host.runtime.start("long", bundle)
    with pytest.raises(DeadlineError):
        host.runtime.wait("long", bundle, timeout=0.01)


def test_wait_refuses_what_never_ran(host: Host) -> None:
    bundle = host.prepare("never", "true")
    with pytest.raises(ConflictError, match="was not started"):
        host.runtime.wait("never", bundle, timeout=1)


def test_container_outlives_its_shim(host: Host) -> None:
    bundle = host.prepare("orphan", "sleep", "1000")
    host.runtime.start("orphan", bundle)
    shim = state.shim_pid(host.shim_directory("orphan"))
    with Connection.open(host.shim_directory("orphan"), Mode.CONTROL) or pytest.fail("no shim") as connection:
        os.kill(shim, signal.SIGKILL)
        connection.wait_closed(WAIT_SECONDS)
    assert host.runtime.status("orphan", bundle).state == "running"
    host.runtime.kill("orphan", signal.SIGKILL)
    ended = host.runtime.wait("orphan", bundle, timeout=WAIT_SECONDS)
    assert ended.exit_code == 255
    assert "shim" in ended.error
    assert host.runtime.status("orphan", bundle).state == "stopped"


def test_start_that_is_given_up_leaves_nothing_running(host: Host) -> None:
    bundle = host.prepare("given-up", "sleep", "1000")
    directory = host.runtime._prepare("given-up", bundle)
    argv = host.runtime._argv("given-up", bundle, directory, ["attached"])
    with Start([os.fsencode(word) for word in argv]) as starting:
        starting.wait_ready(WAIT_SECONDS)
        waiting = Connection.open(directory, Mode.CONTROL)
        assert waiting is not None
    with waiting:
        waiting.wait_closed(WAIT_SECONDS)
    assert host.runtime.status("given-up", bundle).state == "created"
    assert not (host.state / "runtimes/runc" / "given-up").exists()


def test_start_that_is_given_up_ends_a_runtime_that_hangs(host: Host, tmp_path: Path) -> None:
    fifo, runtime = tmp_path / "fifo", tmp_path / "hanging-runtime"
    os.mkfifo(fifo)
    runtime.write_text(
        f"""#!/bin/sh
        case "$*" in
            *" delete "*) echo deleted > {fifo} ;;
            *) echo $$ > {fifo}; exec sleep 1000 ;;
        esac
        """
    )
    runtime.chmod(0o755)
    hanging = Runtime(str(runtime), state=tmp_path / "other")
    bundle = host.prepare("hanging", "true")
    directory = hanging._prepare("hanging", bundle)
    argv = hanging._argv("hanging", bundle, directory, [])
    with Start([os.fsencode(word) for word in argv]):
        pidfd = os.pidfd_open(int(fifo.read_text()))
    assert fifo.read_text() == "deleted\n"
    wait_readable(pidfd, time.monotonic() + WAIT_SECONDS, WAIT_SECONDS, "end of the runtime")
    os.close(pidfd)
    assert hanging.status("hanging", bundle).state == "created"


def test_end_is_known_where_the_runtime_leaves_the_container_to_a_helper_of_its_own(host: Host, tmp_path: Path) -> None:
    runtime = tmp_path / "forking-runtime"
    runtime.write_text(
        f"""#!{sys.executable}
import ctypes, os, subprocess, sys, time
if "run" not in sys.argv:
    os.execvp("runc", ["runc", *sys.argv[1:]])
reading, writing = os.pipe()
if os.fork() == 0:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what runc leaves becomes its child
    os.write(writing, bytes((subprocess.run(["runc", *sys.argv[1:]]).returncode,)))
    time.sleep(0.3)  # by then the container has ended
    os._exit(0)
os._exit(os.read(reading, 1)[0])
"""
    )
    runtime.chmod(0o755)
    forking = Runtime(str(runtime), state=tmp_path / "other")
    bundle = host.prepare("forked", "sh", "-c", "exit 7")
    forking.start("forked", bundle)
    try:
        assert forking.wait("forked", bundle, timeout=WAIT_SECONDS).exit_code == 7
    finally:
        forking.delete("forked", bundle, force=True)


def test_attach_refuses_what_does_not_run_and_tells_what_has_ended(host: Host) -> None:
    bundle = host.prepare("idle", "false")
    with pytest.raises(ConflictError, match="was not started"):
        host.runtime.attach("idle", bundle, stdin=None, stdout=1, stderr=2)
    ended, _ = host.run("idle", "false")
    host.runtime.delete("idle", bundle)
    assert host.runtime.attach("idle", bundle, stdin=None, stdout=1, stderr=2) == ended


def test_ten_containers_start_at_once(host: Host) -> None:
    with ThreadPoolExecutor(10) as pool:
        ends = list(pool.map(lambda n: host.run(f"many-{n}", "sh", "-c", f"echo {n}; exit {n}"), range(10)))
    assert [(ended.exit_code, output) for ended, output in ends] == [(n, f"{n}\n") for n in range(10)]


def test_on_exit_command_runs_after_the_end(host: Host, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    bundle = host.prepare("hooked", "true")
    host.runtime.start("hooked", bundle, on_exit=["sh", "-c", f"echo over > {fifo}"])
    assert fifo.read_text() == "over\n"
    assert not (host.state / "runtimes/runc" / "hooked").exists()


def test_waiters_in_many_threads_hear_of_one_end(host: Host) -> None:
    bundle = host.prepare("watched", "sleep", "1000")
    host.runtime.start("watched", bundle)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(host.runtime.wait("watched", bundle, WAIT_SECONDS).exit_code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    host.runtime.kill("watched", signal.SIGTERM)
    host.runtime.kill("watched", signal.SIGKILL)
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert codes == [137] * 8


def test_shim_stays_within_its_memory(host: Host) -> None:
    bundle = host.prepare("small", "sh", "-c", "seq 200000; echo end; sleep 1000")
    host.runtime.start("small", bundle)
    assert any(line.text == "end\n" for line in host.runtime.logs("small", bundle, follow=True))
    rollup = Path(f"/proc/{state.shim_pid(host.shim_directory('small'))}/smaps_rollup").read_text()
    pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss_kib <= 2048


def test_nothing_of_the_runtime_is_left_when_the_shim_has_ended(host: Host) -> None:
    bundle = host.prepare("gone", "cat")
    host.runtime.start("gone", bundle, stdin=True)
    record = host.state / "runtimes/runc" / "gone"
    groups = {Path(path) for path in json.loads((record / "state.json").read_text())["cgroup_paths"].values()}
    assert groups
    assert all(group.is_dir() for group in groups)
    watching = Connection.open(host.shim_directory("gone"), Mode.CONTROL)
    assert watching is not None
    with watching:
        host.runtime.kill("gone", signal.SIGKILL)
        watching.wait_closed(WAIT_SECONDS)
    assert not record.exists()
    assert not [group for group in groups if group.exists()]


def test_hook_after_the_end_runs(host: Host, tmp_path: Path) -> None:
    bundle, told = host.prepare("hooked", "true"), tmp_path / "told"
    spec = json.loads((bundle / "config.json").read_text())
    spec["hooks"] = {"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {told}"]}]}
    (bundle / "config.json").write_text(json.dumps(spec))
    host.runtime.start("hooked", bundle)
    host.runtime.wait("hooked", bundle, timeout=WAIT_SECONDS)
    host.runtime.delete("hooked", bundle)
    assert json.loads(told.read_text())["id"] == "hooked"


def test_process_that_outlives_init_among_the_hosts_processes_is_ended(host: Host) -> None:
    bundle = host.prepare("outlived", "sh", "-c", "sleep 1000 & echo $!", pid="host")
    host.runtime.start("outlived", bundle)
    host.runtime.wait("outlived", bundle, timeout=WAIT_SECONDS)
    left = int(host.output("outlived"))
    host.runtime.delete("outlived", bundle)
    until(lambda: not Path(f"/proc/{left}").exists())
    assert not list(Path("/sys/fs/cgroup").glob("*/pyctrd/outlived"))
