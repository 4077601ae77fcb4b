"""Save as a process of its own: the command, what stops it, and the memory that it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pyctrd
from tests.archives import Tar
from tests.cli.commands import Terminal, is_one_error, shell
from tests.images import build_image, busybox_tar
from tests.integration.conftest import Cli, command
from tests.integration.saves import FORMS, TREE, put, save_to, tree_of

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 60.0
# The budget of a process (rule R11).
MEMORY_MAX_KIB = 150 << 10


@pytest.fixture(name="tree")
def _tree(engine: pyctrd.Engine, tmp_path: Path) -> pyctrd.Image:
    return put(engine, TREE, "local/tree:1", tmp_path)


def test_the_command_writes_to_files_directories_and_standard_output(
    engine: pyctrd.Engine, cli: Cli, tree: pyctrd.Image, tmp_path: Path
) -> None:
    wanted = {form: save_to(engine, tree.name, form, tmp_path / form) for form in FORMS}
    done = cli("save", "-o", str(tmp_path / "made"), "local/tree:1")
    assert (done.status, done.out) == (0, "")
    assert (tmp_path / "made").read_bytes() == wanted["docker-archive"].read_bytes()
    said = subprocess.run(
        command("save", "-q", "--format", "oci-archive", "local/tree:1"), capture_output=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, b"")
    assert said.stdout == wanted["oci-archive"].read_bytes()
    assert cli("save", "--format", "oci-dir", "-o", str(tmp_path / "dir"), "local/tree:1").status == 0
    assert tree_of(tmp_path / "dir") == tree_of(wanted["oci"])
    told = cli("save", "--json", "-o", str(tmp_path / "made"), "local/tree:1")
    assert told.lines[0]["digest"] == tree.digest
    piped = shell(f'"$@" save -q local/tree:1 | {" ".join(command("-n", "other", "load", "-q"))}')
    assert (piped.status, piped.out, piped.err) == (0, "docker.io/local/tree:1\n", "")


def test_the_command_refuses_what_would_be_lost(cli: Cli, tree: pyctrd.Image, tmp_path: Path) -> None:
    for words in (("--format", "oci"), ("--json",), ("--format", "zip")):
        done = cli("save", *words, "local/tree:1")
        assert (done.status, done.out) == (2, "")
    assert is_one_error(cli("save", "-o", str(tmp_path / "no/such"), "local/tree:1").err)
    with Terminal("save", "local/tree:1") as terminal:
        assert terminal.finish() == 2
    assert "is a terminal" in terminal.seen


def test_a_reader_that_leaves_is_told_of(cli: Cli, engine: pyctrd.Engine, tmp_path: Path) -> None:
    put(engine, build_image([Tar().file("large", os.urandom(1 << 20)).build()]), "local/large:1", tmp_path)
    for form in ("docker-archive", "oci-archive"):
        with subprocess.Popen(
            command("save", "-q", "--format", form, "local/large:1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(1)
            process.stdout.close()
            err = process.stderr.read().decode()
            assert process.wait(DEADLINE_SECONDS) == 1
        assert is_one_error(err)
        assert "broken pipe" in err


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_save_that_is_stopped_leaves_nothing_at_its_destination(
    engine: pyctrd.Engine, tmp_path: Path, form: str, how: signal.Signals
) -> None:
    put(engine, build_image([Tar().file("large", os.urandom(2 << 20)).build()]), "local/large:1", tmp_path)
    place = tmp_path / "place"
    place.mkdir()
    # It stops itself where the first bytes are told, and waits there for what comes.
    program = f"""
import sys, time, pyctrd
def stop(progress):
    if any(layer.received_bytes for layer in progress.layers):
        print("now", flush=True)
        time.sleep(600)
with pyctrd.Engine() as engine:
    engine.images.save("local/large:1", sys.argv[1], format={form!r}, progress=stop)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(place / "saved")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"now\n"
            process.send_signal(how)
            process.wait(DEADLINE_SECONDS)
        finally:
            process.kill()
    left = [path.name for path in place.iterdir()]
    # Of a directory that was killed, one that begins with a dot is left.
    assert [name for name in left if not (how == signal.SIGKILL and form == "oci" and name.startswith(".saved."))] == []
    save_to(engine, "local/large:1", form, place / "saved")
    assert [path.name for path in place.iterdir()] == ["saved"]  # which took away what was left
    with pyctrd.Engine(namespace="other") as other:
        assert other.images.load(place / "saved")[0].name == "docker.io/local/large:1"
    assert engine.check() == []


# A child's resource usage would begin with its parent's: the kernel is asked for the peak of the program itself.
PEAK = """
import sys, pyctrd
with pyctrd.Engine() as engine:
    engine.images.save("local/large:1", sys.argv[2], format=sys.argv[1])
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


def test_large_blobs_are_never_in_memory(engine: pyctrd.Engine, tmp_path: Path) -> None:
    zeros = b"".join(bytes([number % 251]) * 4096 for number in range(200 << 8))
    put(engine, build_image([Tar().file("large", zeros).build()], compression="zstd"), "local/large:1", tmp_path)
    put(engine, build_image([Tar().file("large", zeros).build()], compression="none"), "local/plain:1", tmp_path)
    for form in FORMS:
        for name in ("local/large:1", "local/plain:1"):
            program = PEAK.replace("local/large:1", name)
            said = subprocess.run(
                [sys.executable, "-c", program, form, str(tmp_path / f"{form}-{name[6:11]}")],
                check=True,
                capture_output=True,
            ).stdout
            assert int(said) < MEMORY_MAX_KIB


def test_the_image_runs_after_the_way_through_an_archive(engine: pyctrd.Engine, tmp_path: Path) -> None:
    put(engine, build_image([busybox_tar()], config={"Cmd": ["/bin/true"]}), "local/busybox:1", tmp_path)
    saved = save_to(engine, "local/busybox:1", "docker-archive", tmp_path / "saved")
    engine.images.remove("local/busybox:1")
    (image,) = engine.images.load(saved)
    container = engine.containers.run(image, ["/bin/echo", "out of an archive"])
    assert container.wait(timeout=DEADLINE_SECONDS).exit_code == 0
    assert container.logs() == "out of an archive\n"
