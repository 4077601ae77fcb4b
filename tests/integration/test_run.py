"""Containers from the command line and from Python, as users of Docker and Podman expect them."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import (
    AlreadyExistsError,
    CommandNotExecutableError,
    CommandNotFoundError,
    ConflictError,
    DeadlineError,
    InvalidError,
    NotFoundError,
)
from tests.images import Images
from tests.integration.conftest import Cli, command

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 60.0


@pytest.fixture
def busybox(cli: Cli, images: Images) -> str:
    """An image that is in the store already."""
    assert cli("pull", images.busybox.reference).status == 0
    return images.busybox.reference


def nothing_is_left(cli: Cli) -> None:
    """No container, no mount, no finding."""
    root = os.environ["PYCTRD_ROOT"]
    assert cli("ps", "-aq").out == ""
    assert cli("check").out == "clean\n"
    assert not any(line.split()[1].startswith(root) for line in Path("/proc/self/mounts").read_text().splitlines())
    assert list((Path(os.environ["PYCTRD_STATE"]) / "shims").iterdir()) == []


def test_run_pulls_what_is_missing_and_passes_the_status_on(cli: Cli, images: Images) -> None:
    done = cli("run", "--rm", images.busybox.reference, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert done.status == 7
    assert done.out == "out\n"
    assert done.err.endswith("err\n")
    nothing_is_left(cli)


def test_the_image_says_what_runs_and_options_say_otherwise(cli: Cli, images: Images) -> None:
    app = images.app.reference
    assert cli("run", "--rm", app).out == "entry argument\n"
    assert cli("run", "--rm", app, "mine").out == "entry mine\n"
    script = "echo $MODE; pwd; id -un; id -u"
    done = cli("run", "--rm", "--entrypoint", "/bin/sh", app, "-c", script)
    assert done.out == "image\n/home/app\napp\n1000\n"
    done = cli(
        *("run", "--rm", "--entrypoint", "sh", "-e", "MODE=mine", "-w", "/etc", "-u", "0:29", app),
        *("-c", "echo $MODE; pwd; id -u; id -g"),
    )
    assert done.out == "mine\n/etc\n0\n29\n"


def test_volumes_hostname_and_read_only_root(cli: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "in").write_text("from the host\n")
    script = "cat /mnt/in; echo back > /mnt/out; hostname; touch /x || echo refused"
    done = cli(
        *("run", "--rm", "-v", f"{tmp_path}/shared:/mnt", "--hostname", "named", "--read-only", busybox),
        *("sh", "-c", script),
    )
    assert done.out == "from the host\nnamed\nrefused\n"
    assert (tmp_path / "shared" / "out").read_text() == "back\n"
    done = cli("run", "--rm", "-v", f"{tmp_path}/shared:/mnt:ro", busybox, "sh", "-c", "touch /mnt/x || echo refused")
    assert done.out == "refused\n"


def test_network_none_has_loopback_only_and_host_is_the_hosts(cli: Cli, busybox: str) -> None:
    count = "cat /proc/net/dev | tail -n +3 | wc -l"
    assert cli("run", "--rm", busybox, "sh", "-c", count).out.strip() == "1"
    hosts = len(Path("/proc/net/dev").read_text().splitlines()) - 2
    assert cli("run", "--rm", "--network", "host", busybox, "sh", "-c", count).out.strip() == str(hosts)


def test_input_goes_in_only_when_asked_for(cli: Cli, busybox: str) -> None:
    assert cli("run", "--rm", "-i", busybox, "cat", text="one\ntwo\n").out == "one\ntwo\n"
    assert cli("run", "--rm", busybox, "cat", text="unread").out == ""
    big = "0123456789abcdef" * (1 << 16)
    assert cli("run", "--rm", "-i", busybox, "cat", text=big).out == big


def test_a_terminal_is_one(busybox: str, cli: Cli) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("run", "--rm", "-it", busybox, "sh", "-c", "test -t 0 && test -t 1 && echo yes; read line; exit 5"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while b"yes" not in seen:
        seen += os.read(ours, 1024)
    os.write(ours, b"typed\n")
    try:
        while os.read(ours, 1024):
            pass
    except OSError:
        pass  # EIO: nobody holds the other side any more
    assert process.wait(DEADLINE_SECONDS) == 5
    os.close(ours)
    nothing_is_left(cli)


def test_detached_containers_are_listed_logged_stopped_and_removed(cli: Cli, busybox: str) -> None:
    script = "trap 'echo got it; exit 3' TERM; echo out; echo err >&2; while true; do sleep 0.05; done"
    identity = cli("run", "-d", "--name", "one", "--label", "a=b", busybox, "sh", "-c", script).out.strip()
    assert len(identity) == 64
    (facts,) = cli("--json", "ps").lines
    assert (facts["id"], facts["name"], facts["state"], facts["labels"]) == (identity, "one", "running", {"a": "b"})
    follower = subprocess.Popen(command("logs", "-f", "one"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    assert follower.stdout.readline() == "out\n"
    assert cli("rm", "one").status == 1
    assert cli("stop", "-t", "30", "one").status == 0
    out, err = follower.communicate(timeout=DEADLINE_SECONDS)
    assert (out, err) == ("got it\n", "err\n")
    assert cli("ps", "-q").out == ""
    assert cli("--json", "ps", "-a").lines[0]["exit_code"] == 3
    assert cli("logs", "--tail", "1", "one").out == "got it\n"
    assert cli("rm", "one").status == 0
    nothing_is_left(cli)


def test_kill_gives_128_plus_the_signal(cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--name", "victim", busybox, "sleep", "600")
    assert cli("kill", "victim").status == 0
    assert cli("wait", "victim").out == "137\n"
    assert cli("kill", "victim").status == 1
    assert cli("rm", "victim").status == 0


def test_a_detached_container_with_rm_removes_itself(cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--rm", "--name", "brief", busybox, "true")
    deadline = time.monotonic() + DEADLINE_SECONDS
    while cli("ps", "-aq").out and time.monotonic() < deadline:
        pass  # each look takes a fraction of a second
    nothing_is_left(cli)


def test_signals_reach_a_container_in_the_foreground(busybox: str, cli: Cli) -> None:
    script = "trap 'echo caught; exit 9' TERM; echo ready; while true; do sleep 0.05; done"
    process = subprocess.Popen(command("run", "--rm", busybox, "sh", "-c", script), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert (out, process.returncode) == ("caught\n", 9)
    nothing_is_left(cli)


def test_a_container_outlives_the_process_that_started_it(busybox: str, cli: Cli) -> None:
    process = subprocess.Popen(
        command("run", "--name", "orphan", busybox, "sh", "-c", "echo ready; sleep 600"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate()
    assert cli("--json", "ps").lines[0]["state"] == "running"
    assert cli("rm", "-f", "orphan").status == 0
    nothing_is_left(cli)


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["IMAGE", "no-such-command"], 127, "no-such-command"),
        (["IMAGE", "/bin/not-executable"], 126, "/bin/not-executable"),
        (["IMAGE", "/etc"], 126, "/etc"),
        (["-w", "relative", "IMAGE", "true"], 125, "relative"),
        (["-w", "/etc/passwd", "IMAGE", "true"], 125, "/etc/passwd"),
        (["-u", "nobody-knows", "IMAGE", "true"], 125, "nobody-knows"),
        (["-v", "/not/there:/x", "IMAGE", "true"], 125, "/not/there"),
        (["-v", "rela/tive:/x", "IMAGE", "true"], 125, "rela/tive"),
        (["--network", "bridge", "IMAGE", "true"], 125, "bridge"),
        (["--runtime", "no-such-runtime", "IMAGE", "true"], 125, "no-such-runtime"),
        (["--memory", "lots", "IMAGE", "true"], 125, "lots"),
        (["--snapshotter", "zfs", "IMAGE", "true"], 125, "zfs"),
        (["-t", "-i", "IMAGE", "true"], 125, "terminal"),
        (["--pull", "never", "not-here", "true"], 125, "not-here"),
        (["--no-such-option", "IMAGE"], 2, "--no-such-option"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_leaves_nothing(
    cli: Cli, busybox: str, words: list[str], status: int, told: str
) -> None:
    done = cli("run", *(busybox if word == "IMAGE" else word for word in words))
    assert done.status == status
    assert told in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert cli("ps", "-aq").out == ""


def test_python_runs_waits_and_reads_the_log(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(image, ["sh", "-c", "echo hello; echo oops >&2; exit 4"], network="none")
    status = container.wait(timeout=DEADLINE_SECONDS)
    assert status.exit_code == 4
    assert container.logs(stream="stdout") == "hello\n"
    assert container.logs(stream="stderr") == "oops\n"
    assert container.status.state == "stopped"
    assert engine.containers.get(container.id[:12]).name == container.name
    container.delete()
    container.delete()
    assert engine.containers.list() == []
    assert engine.check() == []


def test_python_errors_have_classes(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    with pytest.raises(CommandNotFoundError):
        engine.containers.run(image, ["no-such-command"])
    with pytest.raises(CommandNotExecutableError):
        engine.containers.run(image, ["/etc"])
    with pytest.raises(InvalidError, match="sequence of words"):
        engine.containers.run(image, "echo hello")
    with pytest.raises(InvalidError, match="network"):
        engine.containers.run(image, ["true"], network="bridge")
    with pytest.raises(NotFoundError, match="image"):
        engine.containers.run("not-here", ["true"])
    assert engine.containers.list() == []
    running = engine.containers.run(image, ["sleep", "600"], name="named")
    with pytest.raises(AlreadyExistsError, match="named"):
        engine.containers.run(image, ["true"], name="named")
    with pytest.raises(ConflictError):
        running.delete()
    with pytest.raises(DeadlineError):
        running.wait(timeout=0.01)
    running.pause()
    assert running.status.state == "paused"
    running.resume()
    assert running.stop(timeout=0.2).exit_code == 137
    created = engine.containers.create(image, ["true"])
    with pytest.raises(ConflictError):
        created.wait(timeout=1)
    assert created.status.state == "created"


def test_a_stopped_container_starts_again_with_what_it_wrote(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(image, ["sh", "-c", "test -e /was || { touch /was; exit 1; }"])
    assert container.wait(timeout=DEADLINE_SECONDS).exit_code == 1
    container.start()
    assert container.wait(timeout=DEADLINE_SECONDS).exit_code == 0


def test_many_threads_run_containers_at_once(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    codes: list[int] = []

    def run(number: int) -> None:
        container = engine.containers.run(image, ["sh", "-c", f"exit {number}"])
        codes.append(container.wait(timeout=DEADLINE_SECONDS).exit_code)
        container.delete()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == list(range(8))
    assert engine.containers.list() == []


def test_limits_reach_the_cgroup_and_the_process(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(
        image,
        ["sh", "-c", "ulimit -n; cat /proc/self/status | head -0; cat /proc/self/oom_score_adj"],
        rlimits=["nofile=64"],
        oom_score_adj=500,
        memory_bytes=64 << 20,
        pids=20,
        cpus=0.5,
    )
    assert container.wait(timeout=DEADLINE_SECONDS).exit_code == 0
    assert container.logs() == "64\n500\n"


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native", "composefs", "erofs"])
def test_all_snapshotters_run_containers(images: Images, state: Path, snapshotter: str) -> None:
    del state
    with pyctrd.Engine(snapshotter=snapshotter) as engine:
        image = engine.images.pull(images.busybox.reference)
        container = engine.containers.run(image, ["cat", "/etc/motd"])
        assert container.wait(timeout=DEADLINE_SECONDS).exit_code == 0
        assert container.logs() == "hello from a layer\n"
        container.delete()
        assert engine.check() == []


def test_a_container_keeps_its_runtime_and_snapshotter_whatever_the_engine_has(
    cli: Cli, busybox: str, tmp_path: Path
) -> None:
    """A runtime of its own: runc under another name, which keeps its state elsewhere."""
    runtime = tmp_path / "my-runc"
    runtime.write_text('#!/bin/sh\nexec runc "$@"\n')
    runtime.chmod(0o755)
    made = cli(
        *("run", "-d", "--name", "own", "--runtime", str(runtime), "--snapshotter", "native", busybox),
        *("sh", "-c", "echo once >> /log; cat /log; exec sleep 600"),
    )
    assert made.status == 0
    for verb in ("pause", "unpause"):
        assert cli(verb, "own").status == 0
    assert cli("stop", "-t", "0", "own").status == 0
    assert cli("start", "own").status == 0
    assert cli("--json", "ps").lines[0]["state"] == "running"
    assert cli("rm", "-f", "own").status == 0
    nothing_is_left(cli)
