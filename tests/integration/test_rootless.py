"""An ordinary user's containers: in a user namespace that one process holds for all of that user's programs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import until
from tests.cli.commands import NOBODY, Done, Nobody, as_nobody
from tests.images import Images
from tests.subids import Ranges

MISSING = [name for name in ("newuidmap", "newgidmap", "setpriv", "unshare", "runc") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
    pytest.mark.skipif(not Path("/etc/subuid").exists(), reason="needs /etc/subuid, to mount another over it"),
]

FIRST, COUNT = 2_000_000, 65536
HOLDER = b"--as-holder"
# With an engine of a program's own, after threads and before.
PROGRAM = """
import sys, threading
import pyctrd

if sys.argv[2:] == ["threads"]:
    waiting = threading.Event()
    threading.Thread(target=waiting.wait, daemon=True).start()
print(pyctrd.enter_user_namespace())
with pyctrd.Engine() as engine:
    image = engine.images.pull(sys.argv[1])
    container = engine.containers.run(image, ["sh", "-c", "touch /f; chown app /f; stat -c %U /f"], name="ours")
    print(container.wait(timeout=60).exit_code, "".join(container.logs()))
    print([str(change.path) for change in container.diff()])
    container.delete()
print(pyctrd.enter_user_namespace())
"""


@pytest.fixture
def ranges(tmp_path: Path) -> Iterator[Ranges]:
    """Ids for nobody."""
    with Ranges(tmp_path, f"nobody:{FIRST}:{COUNT}") as made:
        yield made


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    """A user without rights, whose containers and whose holder end with the test."""
    with as_nobody() as user:
        yield user
        for name in user.run("ps", "-aq").out.split():
            user.run("rm", "-f", name)
        for pid in holders(user):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not holders(user))


def holders(user: Nobody) -> list[int]:
    """Those that this test's commands made: what holds the user's namespaces."""
    found = []
    own = f"PYCTRD_STATE={user.home / 'state'}".encode()
    for path in Path("/proc").iterdir():
        try:
            is_one = path.name.isdigit() and HOLDER in (path / "cmdline").read_bytes()
            if is_one and own in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def told(done: Done) -> str:
    """What a command wrote that was content."""
    assert done.status == 0, done.err
    return done.out


@pytest.mark.usefixtures("ranges")
def test_a_life_without_root_rights(nobody: Nobody, images: Images) -> None:
    reference = images.busybox.reference
    show = "id -u; cat /proc/self/uid_map; touch /f; chown app /f; stat -c %U /f"
    out = told(nobody.run("run", "--rm", reference, "sh", "-c", show)).splitlines()
    assert [line.split() for line in out] == [["0"], ["0", str(NOBODY), "1"], ["1", str(FIRST), str(COUNT)], ["app"]]
    told(nobody.run("create", "--name", "a", reference, "sleep", "1000"))
    told(nobody.run("start", "a"))
    assert told(nobody.run("exec", "-u", "app", "a", "sh", "-c", "id -u; touch /tmp/g; stat -c %U /tmp/g")) == (
        "1000\napp\n"
    )
    assert "running" in told(nobody.run("ps"))
    assert "sleep 1000" in told(nobody.run("top", "a"))
    source = nobody.home / "source"
    source.write_text("content")
    told(nobody.run("cp", str(source), "a:/copied"))
    told(nobody.run("cp", "a:/copied", str(nobody.home / "back")))
    assert (nobody.home / "back").read_text() == "content"
    assert (nobody.home / "back").stat().st_uid == NOBODY
    told(nobody.run("commit", "--no-pause", "a", "example.com/made:1"))
    assert (
        told(nobody.run("run", "--rm", "--pull", "never", "example.com/made:1", "stat", "-c", "%U", "/tmp/g"))
        == "app\n"
    )
    told(nobody.run("stop", "-t", "0", "a"))
    told(nobody.run("snapshot", "create", "a"))
    told(nobody.run("rm", "a"))
    assert told(nobody.run("ps", "-a", "-q")) == ""
    assert told(nobody.run("check")) == "clean\n"
    assert len(holders(nobody)) == 1
    assert {path.stat().st_uid for path in (nobody.home / "root").iterdir()} == {NOBODY}


@pytest.mark.usefixtures("ranges")
@pytest.mark.parametrize("snapshotter", ["composefs", "overlayfs", "native"])
def test_each_snapshotter_works(nobody: Nobody, images: Images, snapshotter: str) -> None:
    env = nobody.environment(PYCTRD_SNAPSHOTTER=snapshotter)
    script = "echo more >> /etc/passwd; rm -r /home/app; mkdir /d; chown 5:6 /d; stat -c %u:%g /d /etc/passwd"
    done = nobody.run("run", "--name", "a", images.busybox.reference, "sh", "-e", "-c", script, env=env)
    assert told(done) == "5:6\n0:0\n"
    changes = told(nobody.run("diff", "a", env=env)).splitlines()
    assert {"A /d", "C /etc/passwd", "D /home/app"} <= set(changes), changes


@pytest.mark.usefixtures("ranges")
def test_a_holder_that_was_killed_is_found_by_its_containers(nobody: Nobody, images: Images) -> None:
    told(nobody.run("run", "-d", "--name", "a", images.busybox.reference, "sleep", "1000"))
    before = told(nobody.run("exec", "a", "cat", "/proc/self/mountinfo"))
    (holder,) = holders(nobody)
    os.kill(holder, signal.SIGKILL)
    until(lambda: not holders(nobody))
    assert told(nobody.run("exec", "a", "cat", "/proc/self/mountinfo")) == before
    told(nobody.run("rm", "-f", "a"))
    told(nobody.run("run", "--rm", images.busybox.reference, "true"))
    assert len(holders(nobody)) == 1


@pytest.mark.usefixtures("ranges")
def test_a_program_enters_before_it_has_threads(nobody: Nobody, images: Images) -> None:
    run = [sys.executable, "-P", "-c", PROGRAM, images.busybox.reference]
    expected = "0 app\n\n['/f']\nFalse\n"
    assert told(nobody.execute(*run)) == f"True\n{expected}"
    assert told(nobody.run("unshare", *run)) == f"False\n{expected}"
    assert told(nobody.run("unshare", "id", "-u")) == "0\n"
    assert nobody.run("unshare", "sh", "-c", "exit 3").status == 3
    missing = nobody.run("unshare", "no-such-program")
    assert (missing.status, missing.err) == (127, "pyctrd: no-such-program: No such file or directory\n")
    threaded = nobody.execute(*run, "threads")
    assert "ConflictError: user namespace: cannot be entered: this process has threads" in threaded.err


@pytest.mark.usefixtures("ranges")
@pytest.mark.parametrize("kind", ["none", "host", "path"])
def test_networks_that_a_user_has(nobody: Nobody, images: Images, kind: str) -> None:
    network = kind
    if kind == "path":
        told(nobody.run("run", "-d", "--name", "other", images.busybox.reference, "sleep", "1000"))
        network = "container:other"
    show = "ls /sys/class/net | wc -l"
    found = told(nobody.run("run", "--rm", "--network", network, images.busybox.reference, "sh", "-c", show))
    assert (int(found) > 1) is (kind == "host" and len(list(Path("/sys/class/net").iterdir())) > 1)


@pytest.mark.usefixtures("ranges")
def test_what_takes_a_control_group_or_root_is_refused(nobody: Nobody, images: Images) -> None:
    reference = images.busybox.reference
    told(nobody.run("run", "-d", "--name", "a", reference, "sleep", "1000"))
    for words, said in (
        (("run", "--rm", "-m", "10m", reference, "true"), "limits: needs a control group"),
        (("run", "--rm", "--cpus", "1", reference, "true"), "limits: needs a control group"),
        (("pause", "a"), "pausing: needs a control group"),
        (("commit", "a", "example.com/made:1"), "holding a container still: needs a control group"),
        (("update", "--memory", "10m", "a"), "limits: needs a control group"),
        (("run", "--rm", "--network", "pasta", reference, "true"), "unsupported: network: pasta"),
        (("run", "--rm", "--userns", "auto", reference, "true"), "a user namespace within another: needs root"),
    ):
        done = nobody.run(*words)
        assert done.status in (1, 125), done
        assert said in done.err
        assert len([line for line in done.err.splitlines() if line.startswith("pyctrd: ")]) == 1
    assert told(nobody.run("ps", "-q")).count("\n") == 1


def test_what_is_missing_is_told(nobody: Nobody, images: Images, ranges: Ranges) -> None:
    reference = images.busybox.reference
    ranges.set("somebody:1:2")
    told(nobody.run("pull", "--no-unpack", reference))
    done = nobody.run("run", "--rm", reference, "true")
    assert done.status == 125
    assert "containers without root rights: needs a range of ids for user nobody in /etc/subuid" in done.err
    assert "hint: as root add a line nobody:FIRST:65536 to it, with ids that nobody has\n" in done.err
    program = "import pyctrd; pyctrd.Engine().containers.create(rootfs='/')"
    ranges.set(f"nobody:{FIRST}:{COUNT}")
    told_so = nobody.execute(sys.executable, "-P", "-c", program)
    assert "UnsupportedError: unsupported: containers without root rights: needs a user namespace" in told_so.err
    (nobody.home / "bin").mkdir()
    for name in ("unshare", "sh", "mount", "mkdir", "setpriv", "runc"):
        (nobody.home / "bin" / name).symlink_to(shutil.which(name) or "")
    env = nobody.environment(PATH=str(nobody.home / "bin"))
    missing = nobody.run("run", "--rm", reference, "true", env=env)
    assert "containers without root rights: needs newuidmap, which is not installed" in missing.err
