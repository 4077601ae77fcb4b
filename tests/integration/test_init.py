"""``--init``: pyctrd's own first process in a container."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import UnsupportedError
from pyctrd.runtime.init import INIT, find_init, is_static
from pyctrd.runtime.shim import SHIM
from tests.children import until
from tests.images import Images
from tests.integration.conftest import Cli, command

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not is_static(SHIM), reason="this build's shim is not static: build it by make develop"),
]

WAIT_SECONDS = 60.0


@pytest.fixture
def busybox(cli: Cli, images: Images) -> str:
    assert cli("pull", images.busybox.reference).status == 0
    return images.busybox.reference


def test_the_commands_status_is_the_containers(cli: Cli, busybox: str) -> None:
    assert cli("run", "--rm", "--init", busybox, "sh", "-c", "echo $$; exit 7").status == 7
    done = cli("run", "--rm", "--init", busybox, "sh", "-c", "kill -9 $$")
    assert done.status == 137
    assert cli("run", "--rm", "--init", busybox, "no-such-command").status == 127
    assert cli("run", "--rm", "--init", busybox, "/etc/passwd").status == 126


def test_nothing_of_it_is_in_the_root_file_system(cli: Cli, busybox: str) -> None:
    script = (
        "tr '\\0' ' ' < /proc/1/cmdline; echo; ls -l /dev/pyctrd-init | cut -c1-10; "
        "echo x > /dev/pyctrd-init || echo no"
    )
    done = cli("run", "--name", "looked", "--init", "--read-only", "-u", "1000", busybox, "sh", "-c", script)
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{INIT} --as-init -- sh -c")
    assert lines[1:] == ["-rwxr-xr-x", "no"]


def test_orphans_are_reaped(cli: Cli, busybox: str) -> None:
    """Each child of the subshell outlives it, and ends as a child of process 1."""
    script = (
        "for n in 1 2 3 4 5; do (true & exec true) ; done; sleep 0.2; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"
    )
    assert cli("run", "--rm", "--init", busybox, "sh", "-c", script).out == "0\n"


def test_signals_reach_the_command(engine: pyctrd.Engine, images: Images) -> None:
    """A command that is process 1 without a handler ignores SIGTERM; under an init it ends by it."""
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(image, ["sh", "-c", "echo ready; exec sleep 600"], init=True)
    # The runtime ends before its child has become the init: until then, process 1 loses what it has no handler for.
    until(lambda: container.logs() == "ready\n")
    ended = container.stop(timeout=WAIT_SECONDS)
    assert (ended.exit_code, ended.signal) == (143, 0)


def test_a_key_interrupts_the_command_on_a_terminal(busybox: str) -> None:
    ours, theirs = pty.openpty()
    script = "trap 'echo caught; exit 9' INT; echo ready; while true; do sleep 0.05; done"
    process = subprocess.Popen(
        command("run", "--rm", "--init", "-it", busybox, "sh", "-c", script), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    while b"ready\r\n" not in seen:
        seen += os.read(ours, 1024)
    os.write(ours, b"\x03")
    try:
        while data := os.read(ours, 1024):
            seen += data
    except OSError:
        pass  # EIO: nobody holds the other side any more
    assert process.wait(WAIT_SECONDS) == 9
    os.close(ours)
    assert seen.count(b"caught") == 1


def test_its_memory_is_small(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(image, ["sleep", "600"], init=True)
    for pid in (container.status.pid, _shim_of(container)):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        (pss,) = (int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        assert pss <= 2048


def _shim_of(container: pyctrd.Container) -> int:
    import json

    directory = Path(os.environ["PYCTRD_STATE"]) / "shims" / container.id
    return int(json.loads((directory / "shim.json").read_text())["shim_pid"])


def test_a_shim_that_needs_a_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("pyctrd.runtime.init.DIRECTORIES", ())
    for program in (Path(os.path.realpath("/bin/sh")), tmp_path / "script", tmp_path / "none"):
        assert not is_static(program)
        monkeypatch.setattr("pyctrd.runtime.init.SHIM", program)
        with pytest.raises(UnsupportedError, match="init"):
            find_init()
