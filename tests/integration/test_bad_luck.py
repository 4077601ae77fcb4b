"""Bad luck of containers: full disks, engines killed at a step, machines that start anew, directories half gone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import PyctrdError
from tests import syscalls
from tests.children import until
from tests.images import Images
from tests.integration.conftest import Cli
from tests.syscalls import CHANGES, Watched

pytestmark = pytest.mark.root
WHY_UNWATCHED = syscalls.why_not()
WAIT_SECONDS = 60.0
# In ``make test``; ``make soak`` tries all.
SAMPLE = 4


def shim_of(container: pyctrd.Container) -> int:
    directory = Path(os.environ["PYCTRD_STATE"]) / "shims" / container.id
    return int(json.loads((directory / "shim.json").read_text())["shim_pid"])


def has_ended(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return True


def reboot(*engines: pyctrd.Engine) -> None:
    """What a boot takes: processes, mounts and the state directory. Groups go with their processes, by the runtime.

    Args:
        engines: One for each namespace that has containers.
    """
    root, state = Path(os.environ["PYCTRD_ROOT"]), Path(os.environ["PYCTRD_STATE"])
    for container in [one for engine in engines for one in engine.containers.list()]:
        pid = container.status.pid
        if pid:
            shim = shim_of(container)
            os.kill(shim, signal.SIGKILL)
            until(lambda shim=shim: has_ended(shim))  # type: ignore[misc]
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: has_ended(pid))  # type: ignore[misc]
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for target in reversed([one for one in mounted if one.startswith((f"{root}/", f"{state}/"))]):
        subprocess.run(["umount", target], check=True)
    for path in state.iterdir():
        shutil.rmtree(path)


def nothing_is_left(container_id: str) -> bool:
    """No process, mount, group or directory of a container that was deleted."""
    state = Path(os.environ["PYCTRD_STATE"])
    groups = [path for path, _, _ in os.walk("/sys/fs/cgroup") if container_id in Path(path).name]
    left = [*state.glob(f"*/{container_id}"), *state.glob(f"runtimes/*/{container_id}"), *groups]
    return left == [] and container_id not in Path("/proc/self/mounts").read_text()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path) -> Path:
    """A root of its own small file system, so that it can be full."""
    del state
    target = tmp_path / "small"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(target)], check=True)
    monkeypatch.setenv("PYCTRD_ROOT", str(target / "root"))
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", "native")
    return target


def fill(directory: Path) -> Path:
    """Leave no room at all."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return ballast


def test_a_full_disk_takes_lines_of_the_log_which_is_told_and_no_end(small: Path, images: Images) -> None:
    with pyctrd.Engine() as engine:
        image = engine.images.pull(images.busybox.reference)
        script = "echo before; read go; seq 20000; read go; echo after; exit 3"
        container = engine.containers.create(image, ["sh", "-c", script], stdin=True)
        container.start()
        try:
            until(lambda: "before" in container.logs())
            ballast = fill(small)
            from pyctrd.runtime.shim import Connection, Kind, Mode

            directory = Path(os.environ["PYCTRD_STATE"]) / "shims" / container.id
            connection = Connection.open(directory, Mode.STREAMS)
            assert connection is not None
            with connection:
                connection.send(Kind.STDIN, b"go\ngo\n")
                ended = container.wait(WAIT_SECONDS)
            assert ended.exit_code == 3
            assert ended.error.startswith("log incomplete: ")
            status = container.status
            assert (status.state, status.exit) == ("stopped", ended)
            ballast.unlink()
            assert container.status.exit == ended
            assert engine.check(repair=True) is not None
            assert (small / "root/containers/default" / container.id / "exit.json").exists()
            assert container.status.exit == ended
        finally:
            (small / "ballast").unlink(missing_ok=True)
            container.delete(force=True)
        assert nothing_is_left(container.id)
        assert engine.check() == []


def test_on_a_full_disk_containers_are_refused_in_one_line_ended_and_deleted(
    small: Path, images: Images, cli: Cli
) -> None:
    with pyctrd.Engine() as engine:
        image = engine.images.pull(images.busybox.reference)
        lives = engine.containers.run(image, ["sleep", "600"], name="lives", restart="always")
        try:
            fill(small)
            with pytest.raises((PyctrdError, OSError)):
                engine.containers.create(image, ["true"], name="new")
            assert cli("create", "--name", "newer", image.name, "true").status == 125
            # What a process in it is told of is in memory.
            assert lives.exec_output(["echo", "there"]).stdout == b"there\n"
            assert lives.stop(0).exit_code == 137
            assert lives.status.state == "stopped"
            lives.delete()
        finally:
            (small / "ballast").unlink(missing_ok=True)
        assert [one.name for one in engine.containers.list()] == []
        assert engine.check() == []


def test_after_a_reboot_policies_of_all_namespaces_run_and_names_and_volumes_stay(
    engine: pyctrd.Engine, images: Images
) -> None:
    image = engine.images.pull(images.busybox.reference)
    made = {}
    for policy in ("no", "always", "unless-stopped"):
        made[policy] = engine.containers.run(
            image, ["sh", "-c", "echo kept >> /data/f; sleep 600"], name=policy, restart=policy, binds=["data:/data"]
        )
    with pyctrd.Engine(namespace="other") as other:
        other.images.pull(images.busybox.reference)
        theirs = other.containers.run(images.busybox.reference, ["sleep", "600"], name="theirs", restart="always")
        reboot(other, engine)
        with pyctrd.Engine() as after:
            assert after.check(repair=True) == []
            assert {one.status.state for one in after.containers.list()} <= {"created", "stopped"}
            restored = after.containers.restore_policies(all_namespaces=True)
            assert (sorted(restored.started), restored.failed) == (["always", "other/theirs", "unless-stopped"], {})
            assert after.containers.restore_policies(all_namespaces=True) == ([], {})
            volume = after.volumes.find("data")
            assert volume is not None
            until(lambda: (volume.path / "f").read_text().count("kept") == 5)
            assert after.check() == []
        assert theirs.status.state == "running"
        theirs.delete(force=True)
        assert nothing_is_left(theirs.id)


@pytest.mark.parametrize("gone", ["shims", "runtimes", "shim.json", "lock"])
def test_a_state_directory_that_is_half_gone_is_put_right(
    engine: pyctrd.Engine, images: Images, state: Path, gone: str
) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(image, ["sleep", "600"], name="it")
    pid = container.status.pid
    os.kill(shim_of(container), signal.SIGKILL)
    until(lambda: container._runtime.is_orphan(container.id, Path("/none")))
    path = state / gone if gone in ("shims", "runtimes") else state / "shims" / container.id / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pyctrd.Engine() as after:
        after.check(repair=True)
        assert after.check() == []
        again = after.containers.get("it")
        assert again.status.state in ("created", "stopped")
        if gone != "runtimes":
            until(lambda: has_ended(pid))
        again.start()
        assert after.containers.get("it").status.state == "running"
        again.delete(force=True)
    if not has_ended(pid):
        os.kill(pid, signal.SIGKILL)
        until(lambda: has_ended(pid))


PROGRAM = """
import os, sys, pyctrd
what, point = sys.argv[1], int(sys.argv[2])
count = 0

def step(frame, event, argument):
    # Before each call, of Python's and of C's: the kernel's are among the latter.
    global count
    if event in ("call", "c_call"):
        count += 1
        if count == point:
            os.kill(os.getpid(), 9)

def begin():
    if point >= 0:
        sys.setprofile(step)

with pyctrd.Engine() as engine:
    it = engine.containers.get("it")
    os.write(1, b"begin")
    begin()
    if what == "start":
        it.start()
    elif what == "exec":
        it.exec(["sleep", "600"], detach=True)
    elif what == "delete":
        it.delete(force=True)
    elif what == "fork":
        it.fork(name="forked")
    elif what == "snapshot":
        it.snapshot("kept")
    elif what == "rename":
        it.rename("other")
    else:
        it.update(pids=50)
    sys.setprofile(None)
    os.write(2, str(count).encode())
"""
WORKS = ("start", "exec", "delete", "fork", "snapshot", "rename", "update")


def run_until(point: int | None, what: str) -> int:
    """Run it, and kill it before its call of this number: how many it made."""
    if what in ("start", "exec"):
        # What is started there lives on, and would stand at the same door as its engine.
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, what, str(point or 0)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=WAIT_SECONDS,
            check=False,
        )
        assert done.returncode == (-signal.SIGKILL if point else 0)
        return int(done.stderr or 0)
    made = -1
    with Watched(PROGRAM, what, "-1", calls=CHANGES) as program:
        for call in program:
            if made >= 0 or (call.name == "write" and call.path.startswith("pipe:")):
                made += 1
            if made == point:
                program.kill()
                return made
            call.allow()
        status, said = program.finish()
    assert status == 0, said
    return made


def play(engine: pyctrd.Engine, image: pyctrd.Image, what: str, point: int | None) -> int:
    """One try, with a container that runs (that is made, for "start"), and what has to be so after it."""
    it = engine.containers.create(image, ["sleep", "600"], name="it")
    if what != "start":
        it.start()
    made = run_until(point, what)
    with pyctrd.Engine() as after:
        after.check(repair=True)
        assert after.check() == []
        for container in after.containers.list():
            status = container.status
            assert (status.state == "running") == bool(status.pid and not has_ended(status.pid))
            assert status.state in ("running", "created", *(("stopped",) if what == "delete" else ()))
            if status.state == "running":
                assert container.exec_output(["true"]).exit_code == 0
            elif container.name == "it":
                container.start()
                assert container.status.state == "running"
            container.delete(force=True)
            assert nothing_is_left(container.id)
        assert after.containers.list() == []
        assert nothing_is_left(it.id)
    return made


@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
@pytest.mark.parametrize("what", WORKS)
def test_an_engine_killed_at_some_steps_leaves_nothing_wrong(engine: pyctrd.Engine, images: Images, what: str) -> None:
    image = engine.images.pull(images.busybox.reference)
    calls = play(engine, image, what, None)
    assert calls > 0
    for point in random.Random(what).sample(range(1, calls + 1), min(SAMPLE, calls)):
        play(engine, image, what, point)


@pytest.mark.soak
@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
@pytest.mark.parametrize("what", WORKS)
def test_an_engine_killed_at_any_step_leaves_nothing_wrong(engine: pyctrd.Engine, images: Images, what: str) -> None:
    image = engine.images.pull(images.busybox.reference)
    for point in range(1, play(engine, image, what, None) + 1):
        play(engine, image, what, point)
