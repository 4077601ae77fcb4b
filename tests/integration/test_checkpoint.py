"""Checkpoint and restore: what is asked of the runtime, and what is refused.

No kernel here lets CRIU work. A program stands for it and for the two verbs of the runtime: what it is told is looked
at, and the container that it "restores" is a real one of runc's. That processes do go on is not shown.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import ConflictError, NotFoundError, RuncError, UnsupportedError
from tests.children import until
from tests.images import Images
from tests.integration.conftest import Cli
from tests.runtimes import ending

pytestmark = pytest.mark.root
DEADLINE_SECONDS = 60.0
RUNTIME = r"""#!/bin/sh
echo "$*" >> LOG
all="$*"; images=; kept=
for word; do last=$word; done
verb=$(echo "$all" | grep -oE ' (checkpoint|restore) ')
case $verb in
*checkpoint*)
    images=$(echo "$all" | sed 's/.*--image-path \([^ ]*\).*/\1/')
    if [ -e LOG.fail ]; then echo 'criu failed: type NOTIFY errno 0' >&2; exit 1; fi
    echo pages > "$images/pages-1.img"
    case $all in *--leave-running*) ;; *) runc --root "$2" kill "$last" KILL ;; esac ;;
*restore*)
    images=$(echo "$all" | sed 's/.*--image-path \([^ ]*\).*/\1/')
    [ -e "$images/pages-1.img" ] || { echo 'no pages' >&2; exit 1; }
    drop='s/ restore / run /; s/ --(image|work)-path [^ ]*//g; s/ --(tcp-established|file-locks)//g'
    exec runc $(echo "$all" | sed -E "$drop") ;;
*) exec runc "$@" ;;
esac
"""


def script(path: Path, text: str) -> Path:
    """A program of the shell's."""
    path.write_text(text)
    path.chmod(stat.S_IRWXU)
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the runtime was told."""
    return tmp_path / "log"


@pytest.fixture
def engine(state: Path, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pyctrd.Engine]:
    """With a criu and a runtime that say yes; its containers end with the test."""
    del state
    script(tmp_path / "criu", "#!/bin/sh\nexit 0\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = script(tmp_path / "runtime", RUNTIME.replace("LOG", str(log)))
    with ending(runtime=str(program)) as opened:
        yield opened


@pytest.fixture
def sleeper(engine: pyctrd.Engine, images: Images) -> pyctrd.Container:
    """A container that runs."""
    image = engine.images.pull(images.busybox.reference)
    return engine.containers.run(image, ["sleep", "1000"], name="sleeper", restart="always")


def told(log: Path, verb: str) -> list[str]:
    """The words of the runtime's last call with a verb."""
    return next(line for line in reversed(log.read_text().splitlines()) if f" {verb} " in line).split()


def test_a_container_ends_with_its_checkpoint_and_goes_on_from_it(
    engine: pyctrd.Engine, sleeper: pyctrd.Container, log: Path
) -> None:
    bundle = Path(sleeper.inspect()["bundle_path"])
    with pytest.raises(ConflictError, match="it is running"):
        sleeper.restore()
    sleeper.checkpoint(tcp_established=True, file_locks=True)
    words = told(log, "checkpoint")
    assert {"--tcp-established", "--file-locks"} < set(words)
    assert "--leave-running" not in words
    assert sleeper.status.state == "stopped"  # whatever its policy
    assert (bundle / "checkpoint" / "pages-1.img").read_text() == "pages\n"
    assert not (bundle / "checkpoint.new").exists()
    assert not (bundle / "criu").exists()
    with pytest.raises(ConflictError, match="it is stopped"):
        sleeper.checkpoint()
    sleeper.restore(tcp_established=True, keep=True)
    words = told(log, "restore")
    assert words[words.index("--image-path") + 1] == str(bundle / "checkpoint")
    assert {"--detach", "--pid-file", "--tcp-established"} < set(words)
    assert "--file-locks" not in words
    first = sleeper.status
    assert (first.state, (bundle / "checkpoint").exists()) == ("running", True)
    # What its policy starts afterwards begins anew.
    assert sleeper.exec_output(["true"]).exit_code == 0
    runs = log.read_text().count(" run ")
    os.kill(first.pid, 9)

    until(lambda: sleeper.status.pid not in (0, first.pid))
    assert log.read_text().count(" run ") == runs + 1
    sleeper.stop(0)
    sleeper.restore()
    assert not (bundle / "checkpoint").exists()
    sleeper.stop(0)
    with pytest.raises(NotFoundError, match="no checkpoint"):
        sleeper.restore()


def test_a_container_may_run_on(cli: Cli, sleeper: pyctrd.Container, log: Path, engine: pyctrd.Engine) -> None:
    before = sleeper.status.pid
    done = cli("checkpoint", "--leave-running", "--keep", "sleeper")
    assert (done.status, done.out) == (0, "sleeper\n"), done.err
    assert "--leave-running" in told(log, "checkpoint")
    assert (sleeper.status.state, sleeper.status.pid) == ("running", before)
    assert (Path(sleeper.inspect()["bundle_path"]) / "criu").is_dir()
    sleeper.stop(0)
    assert cli("restore", "sleeper").status == 0
    assert sleeper.status.state == "running"
    del engine


def test_a_checkpoint_that_fails_leaves_the_one_before(sleeper: pyctrd.Container, log: Path) -> None:
    sleeper.checkpoint(leave_running=True)
    Path(f"{log}.fail").touch()
    with pytest.raises(RuncError, match="criu failed"):
        sleeper.checkpoint(leave_running=True)
    bundle = Path(sleeper.inspect()["bundle_path"])
    assert (bundle / "checkpoint" / "pages-1.img").exists()
    assert not (bundle / "checkpoint.new").exists()
    assert sleeper.status.state == "running"


def test_what_would_be_deleted_is_not_ended(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(image, ["sleep", "1000"], auto_remove=True)
    with pytest.raises(ConflictError, match="auto-removed"):
        container.checkpoint()
    assert container.status.state == "running"


def test_a_host_without_criu_is_told(sleeper: pyctrd.Container, tmp_path: Path, cli: Cli, log: Path) -> None:
    script(tmp_path / "criu", "#!/bin/sh\necho 'Error: the kernel lacks something' >&2; exit 1\n")
    with pytest.raises(UnsupportedError, match="the kernel lacks something"):
        sleeper.checkpoint()
    (tmp_path / "criu").unlink()
    if shutil.which("criu") is None:
        with pytest.raises(UnsupportedError, match="criu is not installed") as raised:
            sleeper.checkpoint()
        assert "install" in raised.value.hint
        assert "criu is not installed" in cli("checkpoint", "sleeper").err
    assert sleeper.status.state == "running"
    assert " checkpoint " not in log.read_text()
