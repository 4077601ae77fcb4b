"""Hooks of the host, and how long a container may take to end: what is recorded with it when it is made."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import InvalidError, NotFoundError, PyctrdError, UnsupportedError
from tests.children import until
from tests.images import Images
from tests.integration.conftest import Cli

pytestmark = pytest.mark.root
# A hook that lacks its end.
TRUE = '{"version": "1.0.0", "stages": ["prestart"], "hook": {"path": "/bin/true"'
# Who is asked to end takes three seconds for it, and says so by its status.
SLOW = ["sh", "-c", "trap 'sleep 3; exit 7' TERM; touch /ready; while :; do sleep 0.1; done"]


@pytest.fixture
def busybox(engine: pyctrd.Engine, images: Images) -> pyctrd.Image:
    """An image that is in the store already."""
    return engine.images.pull(images.busybox.reference)


def write_hook(
    directory: Path,
    name: str,
    log: Path,
    when: dict[str, Any],
    *,
    stages: tuple[str, ...] = ("prestart",),
    **other: Any,
) -> None:
    """A file whose hook writes its name to a log."""
    program = directory.parent / "hook"
    program.write_text(f'#!/bin/sh\ncat > /dev/null\necho "$1 $WORD" >> {log}\n')
    program.chmod(stat.S_IRWXU)
    directory.mkdir(exist_ok=True)
    hook = {"path": str(program), "args": ["hook", name], "env": ["WORD=of-the-host", "PATH=/bin:/usr/bin"]}
    document = {"version": "1.0.0", "hook": hook, "when": when, "stages": list(stages), **other}
    (directory / f"{name}.json").write_text(json.dumps(document))


def told(log: Path) -> list[str]:
    """Which hooks ran, in their order."""
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def test_hooks_run_for_the_containers_that_they_are_for(
    cli: Cli, engine: pyctrd.Engine, busybox: pyctrd.Image, tmp_path: Path
) -> None:
    hooks, log = tmp_path / "hooks.d", tmp_path / "log"
    write_hook(hooks, "b-always", log, {"always": True}, stages=("createRuntime", "poststop"))
    write_hook(hooks, "a-binds", log, {"hasBindMounts": True})
    write_hook(hooks, "c-command", log, {"commands": ["/(true|false)$"]})
    write_hook(hooks, "d-annotated", log, {"annotations": {"^org\\.example\\.": "^yes$"}})
    write_hook(hooks, "e-both", log, {"commands": ["true"], "hasBindMounts": True})
    write_hook(hooks, "f-never", log, {"always": False})
    (hooks / "README").write_text("not a hook")
    options = ("--rm", "--hooks-dir", str(hooks))
    reference = busybox.name
    assert cli("run", *options, reference, "sh", "-c", ":").status == 0
    assert told(log) == ["b-always", "b-always"]
    assert log.read_text().startswith("b-always of-the-host\n")
    log.unlink()
    assert cli("run", *options, "--annotation", "org.example.x=yes", reference, "/bin/true").status == 0
    assert sorted(told(log)[:-1]) == ["b-always", "c-command", "d-annotated"]
    log.unlink()
    assert (
        cli("run", *options, "--annotation", "org.example.x=no", "-v", f"{tmp_path}:/x", reference, "true").status == 0
    )
    assert sorted(told(log)[:-1]) == ["a-binds", "b-always", "e-both"]
    # The caller's own come after the host's, and a later directory's file takes the place of one of its name.
    others = tmp_path / "others.d"
    write_hook(others, "b-always", log, {"always": False})
    own = {"prestart": [{"path": "/bin/true", "args": ["true", "own"]}]}
    container = engine.containers.create(
        busybox, ["true"], hooks_dirs=[str(hooks), str(others)], binds=[f"{tmp_path}:/x"], hooks=own
    )
    made = json.loads((Path(container.inspect()["bundle_path"]) / "config.json").read_text())["hooks"]
    assert list(made) == ["prestart"]
    assert [hook["args"][1] for hook in made["prestart"]] == ["a-binds", "e-both", "own"]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", InvalidError, "no JSON"),
        ("[]", InvalidError, "expected an object"),
        ('{"version": "0.1.0"}', UnsupportedError, "version '0.1.0'"),
        ('{"version": "1.0.0", "hook": {}}', InvalidError, "stages"),
        ('{"version": "1.0.0", "stages": ["precreate"]}', UnsupportedError, "precreate"),
        ('{"version": "1.0.0", "stages": ["later"]}', InvalidError, "'later'"),
        ('{"version": "1.0.0", "stages": ["prestart"], "hook": {"path": "x"}}', InvalidError, "hook.path"),
        ('{"version": "1.0.0", "stages": ["prestart"], "hook": {"path": "/no/such"}}', NotFoundError, "/no/such"),
        (TRUE + ', "timeout": 0}}', InvalidError, "timeout"),
        (TRUE + ', "args": "x"}}', InvalidError, "args"),
        (TRUE + '}, "when": {}}', InvalidError, "when"),
        (
            TRUE + '}, "when": {"commands": ["("]}}',
            InvalidError,
            r"when\.commands: '\('",
        ),
        (
            TRUE + '}, "when": {"command": ["x"]}}',
            InvalidError,
            r"when\.command: unknown",
        ),
    ],
)  # fmt: skip
def test_what_is_no_hook_is_one_clear_line(
    engine: pyctrd.Engine, busybox: pyctrd.Image, tmp_path: Path, text: str, error: type[PyctrdError], words: str
) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(error, match=words) as raised:
        engine.containers.create(busybox, ["true"], hooks_dirs=[str(tmp_path)])
    assert str(tmp_path / "bad.json") in str(raised.value)
    assert "\n" not in str(raised.value)
    assert engine.containers.list() == []
    with pytest.raises(NotFoundError, match="hooks directory"):
        engine.containers.create(busybox, ["true"], hooks_dirs=[str(tmp_path / "missing")])


def test_stop_waits_as_long_as_the_container_was_made_with(
    cli: Cli, engine: pyctrd.Engine, busybox: pyctrd.Image
) -> None:
    def begin(**options: Any) -> pyctrd.Container:
        container = engine.containers.run(busybox, SLOW, **options)
        until(lambda: container.exec_output(["test", "-e", "/ready"]).exit_code == 0)
        return container

    hasty = begin(stop_timeout=0, name="hasty")
    assert hasty.inspect()["stop_timeout"] == 0
    fork = hasty.fork()
    assert fork.inspect()["stop_timeout"] == 0
    assert hasty.stop().signal == 9
    patient = begin(name="patient")
    assert patient.inspect()["stop_timeout"] == 10
    assert (patient.stop().exit_code, patient.status.exit.signal if patient.status.exit else None) == (7, 0)
    done = cli("create", "--stop-timeout", "0", "--name", "by-command", busybox.name, *SLOW)
    assert done.status == 0, done.err
    named = engine.containers.get("by-command")
    named.start()
    until(lambda: named.exec_output(["test", "-e", "/ready"]).exit_code == 0)
    assert cli("restart", "by-command").status == 0
    assert cli("stop", "by-command").status == 0
    ends = [event.attributes["signal"] for event in engine.events(containers=[named.id], actions=["exited"])]
    assert ends == [9, 9]
    with pytest.raises(InvalidError, match="stop_timeout"):
        engine.containers.create(busybox, stop_timeout=-1)
