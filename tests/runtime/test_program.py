"""The runtime's program: by name, with words of its own, and when it is none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import struct
from contextlib import nullcontext
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import InvalidError, NotFoundError, PyctrdError, UnsupportedError
from pyctrd.runtime.cgroup import CgroupForm, cgroups_path, check_runtime
from pyctrd.runtime.program import named_programs, read_runtimes, read_version
from pyctrd.runtime.runc import Program, find_binary
from pyctrd.runtime.runtime import Runtime
from pyctrd.runtime.systemd import check_systemd, systemd_path
from tests.runtime.conftest import WAIT_SECONDS, Host

E_MACHINE = 18  # where an ELF header has it
AARCH64 = 183
KINDS = (
    *("not executable", "another machine's", "without its interpreter", "something else", "silent", "failing"),
    *("a failing one", "an early one", "an old one"),
)


def script(path: Path, body: str) -> Path:
    """A program of the shell's."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(stat.S_IRWXU)
    return path


def foreign(path: Path) -> Path:
    """A program for another machine: this one's, with another number in its head."""
    body = bytearray(Path("/bin/busybox").read_bytes())
    body[E_MACHINE : E_MACHINE + 2] = struct.pack("<H", AARCH64)
    path.write_bytes(body)
    path.chmod(stat.S_IRWXU)
    return path


def unusable(directory: Path) -> dict[str, tuple[Path, str]]:
    """Programs that are no runtimes, and what is said of each."""
    plain = directory / "plain"
    plain.write_text("not to be executed")
    return {
        "not executable": (plain, "permission denied"),
        "another machine's": (
            foreign(directory / "foreign"),
            f"no program for this machine, which is {os.uname().machine}",
        ),
        "without its interpreter": (_without_loader(directory / "lost"), "its loader or interpreter is missing"),
        "something else": (
            Path(shutil.which("true") or "/bin/true"),
            "it is no OCI runtime: it answers --version with",
        ),
        "silent": (script(directory / "silent", "exit 0"), "it answers --version with ''"),
        "failing": (script(directory / "failing", "echo broken >&2; exit 3"), "'status 3: broken'"),
        "a failing one": (script(directory / "old", "echo 'runc version 1.0.0-rc93'; exit 1"), "status 1"),
        "an early one": (script(directory / "early", "echo 'runc version 1.0.0-rc93'"), "runc 1.0.0-rc93 is too old"),
        "an old one": (script(directory / "older", "echo 'crun version 0.21'"), "expected crun 1.0.0 or later"),
    }


def _without_loader(path: Path) -> Path:
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(stat.S_IRWXU)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_a_program_that_is_no_runtime_is_one_clear_line(host: Host, tmp_path: Path, name: str) -> None:
    program, words = unusable(tmp_path)[name]
    with pytest.raises(UnsupportedError) as raised:
        read_version(find_binary(str(program)))
    assert words in str(raised.value)
    # A container's start says the same, whatever the program did with what it was told.
    bundle = host.prepare("one", "true")
    runtime = Runtime(str(program), state=tmp_path / "other")
    with pytest.raises(UnsupportedError) as raised:
        runtime.start("one", bundle)
    told = str(raised.value)
    assert words in told
    assert str(program) in told
    assert "\n" not in told
    assert raised.value.needs
    assert host.runtime.status("one", bundle).state == "created"


def test_versions_are_read_as_runtimes_say_them(tmp_path: Path) -> None:
    said = {
        "runc version 1.1.5+ds1\ncommit: x\n": ("runc", "1.1.5+ds1"),
        "runc version 1.0.0\n": ("runc", "1.0.0"),
        "crun version 1.8.1\n": ("crun", "1.8.1"),
        "youki version: 0.7.0\ncommit: x\n": ("youki", "0.7.0"),
        "runsc version release-20240102.0\n": ("runsc", "release-20240102.0"),
    }
    for text, found in said.items():
        (tmp_path / "said").write_text(text)
        assert read_version(str(script(tmp_path / "runtime", f"cat {tmp_path}/said"))) == found


def test_a_runtimes_own_words_stand_before_all_others(host: Host, tmp_path: Path) -> None:
    log = tmp_path / "log"
    wrapper = script(tmp_path / "runtime", f'echo "$*" >> {log}; exec runc "$@"')
    program = Program(str(wrapper), ("--debug", "--criu", "with blank"))
    assert Program.parse(program.text) == program
    assert Program.parse("runc") == Program("runc")
    runtime = Runtime(program.text, state=tmp_path / "other")
    bundle = host.prepare("wordy", "sleep", "1000")
    runtime.start("wordy", bundle)
    try:
        spec = json.loads((bundle / "config.json").read_text())["process"] | {"args": ["true"]}
        _, connection = runtime.execs("wordy").start(spec, stdin=False, attached=True, timeout=None)
        assert connection is not None
        with connection:
            connection.wait_exit(WAIT_SECONDS)
        runtime.kill("wordy", signal.SIGWINCH)  # not minded: one that has ended is seldom left to be deleted
    finally:
        runtime.delete("wordy", bundle, force=True)
    verbs = {verb for verb in ("run", "exec", "kill", "delete") if f" {verb} " in log.read_text()}
    assert verbs == {"run", "exec", "kill", "delete"}
    assert all(line.startswith("--debug --criu with blank --root ") for line in log.read_text().splitlines())


def test_names_are_read_in_dockers_form_and_in_ours(tmp_path: Path) -> None:
    file = tmp_path / "runtimes.json"
    file.write_text(json.dumps({"runtimes": {"fast": {"path": "/opt/crun", "runtimeArgs": ["--debug"]}}}))
    assert read_runtimes(file) == {"fast": Program("/opt/crun", ("--debug",))}
    file.write_text(json.dumps({"a": "/opt/a", "b": {"path": "b", "args": ["--x"]}}))
    assert read_runtimes(file) == {"a": Program("/opt/a"), "b": Program("b", ("--x",))}


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", InvalidError, "no JSON"),
        ("[]", InvalidError, "expected an object"),
        ('{"a": {"args": []}}', InvalidError, "a: path"),
        ('{"a": {"path": "x", "args": "--debug"}}', InvalidError, "a: args"),
        ('{"a": {"path": "x", "options": {}}}', InvalidError, "a: expected a path"),
        ('{"/a": "x"}', InvalidError, "/a: expected a name"),
        ("", InvalidError, "no JSON"),
        (None, NotFoundError, "No such file"),
    ],
)
def test_a_file_of_runtimes_that_is_none_is_one_clear_line(
    tmp_path: Path, text: str | None, error: type[PyctrdError], words: str
) -> None:
    file = tmp_path / "runtimes.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=words) as raised:
        read_runtimes(file)
    assert str(file) in str(raised.value)


def test_what_the_engine_is_given_comes_before_the_file(
    host: Host, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del state
    file = tmp_path / "runtimes.json"
    file.write_text(json.dumps({"mine": "/no/such", "other": "runc"}))
    monkeypatch.setenv("PYCTRD_RUNTIMES", str(file))
    wrapper = script(tmp_path / "runtime", f'echo "$*" >> {tmp_path}/log; exec runc "$@"')
    with pyctrd.Engine(runtime="mine", runtimes={"mine": {"path": str(wrapper), "args": ["--debug"]}}) as engine:
        told = engine.info()
        assert (told["runtime"], told["runtime_args"], told["runtime_problem"]) == (str(wrapper), ["--debug"], "")
        assert told["runtime_version"].startswith("runc ")
        assert told["runtimes"] == {"mine": str(wrapper), "other": "runc"}
        container = engine.containers.create(None, ["true"], rootfs=host.rootfs)
    # Another engine, which knows the name otherwise, goes on with the program that the container was made for.
    with pyctrd.Engine(runtime="mine") as engine:
        assert "/no/such" in engine.info()["runtime_problem"]
        same = engine.containers.get(container.id)
        same.start()
        assert same.wait(WAIT_SECONDS).exit_code == 0
        assert same.inspect()["runtime"]["args"] == ["--debug"]
        assert same.inspect()["runtime"]["name"] == str(wrapper)
        same.delete()
    assert "--debug --root" in (tmp_path / "log").read_text()
    for wrong in ({"mine": 3}, {"mine": {"program": "x"}}):
        with pyctrd.Engine(runtimes=wrong) as engine, pytest.raises(InvalidError, match="runtimes: mine"):
            engine.containers.create(None, ["true"], rootfs=host.rootfs)
    with pytest.raises(InvalidError, match="cgroup_manager"):
        pyctrd.Engine(cgroup_manager="cgroupsf")


def test_systemd_is_asked_for_only_where_it_is(host: Host, state: Path, tmp_path: Path) -> None:
    del state
    for name in ("proc/1", "run/systemd/system", "run/dbus"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/1/comm").write_text("init\n")
    with pytest.raises(UnsupportedError, match="process 1 is init"):
        check_systemd(tmp_path)
    (tmp_path / "proc/1/comm").write_text("systemd\n")
    with pytest.raises(UnsupportedError, match="no bus of systemd's at /run/dbus/system_bus_socket"):
        check_systemd(tmp_path)
    with socket.socket(socket.AF_UNIX) as bus:
        beside = os.open(tmp_path / "run/dbus", os.O_PATH)
        bus.bind(f"/proc/self/fd/{beside}/system_bus_socket")  # an address is short
        os.close(beside)
        check_systemd(tmp_path)
    (tmp_path / "run/systemd/system").rmdir()
    with pytest.raises(UnsupportedError, match="process 1 is systemd"):
        check_systemd(tmp_path)
    if Path("/proc/1/comm").read_text() != "systemd\n":
        with pyctrd.Engine(cgroup_manager="systemd") as engine:
            with pytest.raises(UnsupportedError, match="cgroup_manager systemd: process 1 is") as raised:
                engine.containers.create(None, ["true"], rootfs=host.rootfs)
            assert "cgroupfs" in raised.value.hint
            assert engine.containers.list() == []
            assert "process 1 is" in engine.info()["runtime_problem"]


def test_a_runtime_that_asks_systemd_is_told_a_slice_and_a_scope(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert systemd_path("abc", "") == "system.slice:pyctrd:abc"
    assert systemd_path("abc", "machine-mine.slice") == "machine-mine.slice:pyctrd:abc"
    for wrong in ("/machine.slice", "machine", "-.slice", "a--b.slice", "a-.slice", "a:b", "x.slice/y.slice"):
        with pytest.raises(InvalidError, match="expected a slice"):
            systemd_path("abc", wrong)
    with pytest.raises(InvalidError, match="absolute path") as raised:
        cgroups_path("abc", parent="machine.slice")
    assert "systemd" in raised.value.hint
    bundle = host.prepare("sliced", "true", cgroup_manager="systemd", cgroup_parent="machine.slice")
    made = json.loads((bundle / "config.json").read_text())
    assert made["linux"]["cgroupsPath"] == "machine.slice:pyctrd:sliced"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert systemd_path("abc", "") == "user.slice:pyctrd:abc"


def test_the_engines_systemd_is_a_word_of_the_runtimes(
    host: Host, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del state
    monkeypatch.setattr("pyctrd.runtime.systemd.check_systemd", lambda: None)  # there is none here
    with pyctrd.Engine(cgroup_manager="systemd") as engine:
        container = engine.containers.create(None, ["true"], rootfs=host.rootfs, cgroup_parent="machine.slice")
        found = container.inspect()
        assert found["runtime"]["args"] == ["--systemd-cgroup"]
        assert found["cgroup_path"] == f"machine.slice:pyctrd:{container.id}"
        container.delete()
        with pytest.raises(InvalidError, match="expected a slice"):
            engine.containers.create(None, ["true"], rootfs=host.rootfs, cgroup_parent="/machine")
    assert named_programs({"one": {"path": "runc", "args": ["--systemd-cgroup"]}})["one"].uses_systemd


def test_youki_without_the_hosts_form_of_control_groups_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for has_v1, refused in (("false", True), ("true", False)):
        (tmp_path / has_v1).mkdir()
        answer = f'{{"linux": {{"cgroup": {{"v1": {has_v1}, "v2": true}}}}}}'
        youki = str(script(tmp_path / has_v1 / "youki", f"echo '{answer}'"))
        check_runtime(youki, CgroupForm.V2)
        with pytest.raises(UnsupportedError, match="without this host's cgroup v1") if refused else nullcontext():
            check_runtime(youki, CgroupForm.V1)
