"""Global options and their variables, and JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from tests.cli.commands import environment, run
from tests.images import Images

IMAGE = {"name", "digest", "manifest_digest", "platform", "platforms", "pulled_ns", "size_bytes", "layers"}
LAYER = {"digest", "size_bytes", "media_type"}
CONTAINER = {
    *("id", "name", "image", "command", "labels", "created_ns"),
    *("state", "pid", "started_ns", "restart_policy", "restart_count", "exit_code", "exited_ns", "oom", "reason"),
    "health",
}
INFO = {
    *("version", "root", "state", "namespace", "content_digests", "durability", "platform", "kernel"),
    *("snapshotter", "snapshotters_not_usable", "runtime", "images", "inflate", "containers", "runtimes", "cgroup"),
    *("runtime_version", "runtime_args", "runtime_features", "runtime_problem", "cgroup_manager"),
}


def info(*words: str, **changes: str) -> dict[str, Any]:
    """What ``info`` says, with these options and variables."""
    done = run("--json", *words, "info", env=environment(**changes))
    assert (done.status, done.err) == (0, "")
    (facts,) = done.lines
    assert isinstance(facts, dict)
    return facts


@pytest.mark.parametrize("name", ["root", "state"])
def test_a_directory_comes_from_the_option_before_the_variable(tmp_path: Path, name: str) -> None:
    by_variable, by_option = str(tmp_path / "variable"), str(tmp_path / "option")
    variable = {f"PYCTRD_{name.upper()}": by_variable}
    assert info(**variable)[name] == by_variable
    assert info(f"--{name}", by_option, **variable)[name] == by_option
    assert Path(by_option).is_dir()


def test_a_namespace_comes_from_the_option_before_the_variable_before_the_default() -> None:
    assert info()["namespace"] == "default"
    assert info(PYCTRD_NAMESPACE="")["namespace"] == "default"
    assert info(PYCTRD_NAMESPACE="variable")["namespace"] == "variable"
    for option in ("-n", "--namespace"):
        assert info(option, "option", PYCTRD_NAMESPACE="variable")["namespace"] == "option"


def test_a_relative_root_is_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert info("--root", "here")["root"] == str(tmp_path / "here")


def test_the_root_decides_which_images_there_are(stored: str, tmp_path: Path) -> None:
    assert run("images", "-q").out == f"{stored}\n"
    assert run("--root", str(tmp_path / "empty"), "images", "-q").out == ""
    assert run("--root", os.environ["PYCTRD_ROOT"], "images", "-q").out == f"{stored}\n"


def test_a_namespace_has_its_own_images(stored: str) -> None:
    assert run("-n", "other", "images", "-q").out == ""
    assert run("images", "-q", env=environment(PYCTRD_NAMESPACE="other")).out == ""
    done = run("-n", "other", "rmi", stored)
    assert (done.status, stored in done.err) == (1, True)
    assert run("images", "-q").out == f"{stored}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-n", "not a name", "images"], "'not a name'"),
        (["-n", "../up", "images"], "'../up'"),
        (["-n", "x" * 77, "images"], "at most 76"),
    ],
)
def test_a_wrong_namespace_is_named(words: list[str], told: str) -> None:
    done = run(*words)
    assert (done.status, done.out) == (1, "")
    assert told in done.err
    assert not Path(os.environ["PYCTRD_ROOT"]).exists()


def keys_of(words: list[str], *, reference: str) -> list[set[str]]:
    """The keys of each object that a command prints with --json, before and after it."""
    named = [reference if word == "IMAGE" else word for word in words]
    before, after = run("--json", *named), run(named[0], "--json", *named[1:])
    assert (before.status, before.err, after.status, after.err) == (0, "", 0, "")
    found = [[set(line) for line in done.lines] for done in (before, after)]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["version"], [{"pyctrd", "core"}]),
        (["info"], [INFO]),
        (["images"], [IMAGE]),
        (["pull", "--no-unpack", "IMAGE"], [IMAGE]),
        (["inspect", "IMAGE"], [{*IMAGE, "kind", "config"}]),
        (["inspect", "IMAGE", "IMAGE"], [{*IMAGE, "kind", "config"}] * 2),
        (["check"], []),
        (["ps", "-a"], []),
    ],
)
def test_json_is_an_object_on_a_line_with_the_same_keys_before_and_after_the_command(
    stored: str, words: list[str], expected: list[set[str]]
) -> None:
    assert keys_of(words, reference=stored) == expected


def test_json_says_what_the_image_is(stored: str, images: Images) -> None:
    (shown,) = run("images", "--json").lines
    assert (shown["name"], shown["digest"]) == (stored, images.multi_platform.built.digest)
    assert [set(layer) for layer in shown["layers"]] == [LAYER]
    (inspected,) = run("inspect", stored).lines
    assert inspected["kind"] == "image"
    assert inspected["config"]["rootfs"]["type"] == "layers"
    (facts,) = run("--json", "info").lines
    assert (facts["version"], facts["images"], facts["containers"]) == (pyctrd.__version__, 1, 0)


@pytest.mark.root
def test_json_of_a_container_has_the_same_keys_in_each_of_its_states(images: Images, state: Path) -> None:
    del state
    with pyctrd.Engine() as engine:
        image = engine.images.pull(images.busybox.reference)
        created = engine.containers.create(image, ["true"], name="created", labels={"a": "b"})
        stopped = engine.containers.run(image, ["sh", "-c", "exit 3"], name="stopped")
        stopped.wait(timeout=60)
        try:
            assert keys_of(["ps", "-a"], reference="") == [CONTAINER] * 2
            (inspected,) = keys_of(["inspect", "created"], reference="")
            assert inspected >= {*CONTAINER, "kind"}  # tests/integration/test_observe.py has the whole list
            facts = {line["name"]: line for line in run("inspect", "created", "stopped").lines}
            assert (facts["created"]["state"], facts["created"]["labels"]) == ("created", {"a": "b"})
            assert facts["created"]["command"] == ["true"]
            assert (facts["stopped"]["state"], facts["stopped"]["exit_code"]) == ("stopped", 3)
            assert run("ps", "--json").lines == []  # those that run
        finally:
            created.delete()
            stopped.delete()


def test_a_root_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    done = run("--root", f"{tmp_path}/\udcff", "info")
    assert done.status == 1
    assert "root" in done.err
    assert "UTF-8" in done.err
    assert list(tmp_path.iterdir()) == []


def test_check_exits_1_and_names_what_it_finds(stored: str) -> None:
    assert (run("check").out, run("check").status) == ("clean\n", 0)
    (shown,) = run("inspect", stored).lines
    digest = shown["layers"][0]["digest"]
    blob = Path(os.environ["PYCTRD_ROOT"], "content/blobs", *digest.split(":"))
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run("check").status == 0  # the size is right
    done = run("check", "--digests")
    assert (done.status, done.err) == (1, "")
    assert digest in done.out
    blob.unlink()
    done = run("check", "--json")
    assert (done.status, done.err) == (1, "")
    (finding,) = done.lines
    assert set(finding) == {"kind", "name", "problem", "cause", "repair", "repaired", "namespace"}
    assert (finding["kind"], finding["name"]) == ("blob", digest)
    assert run("check").out == f"blob {digest}: {finding['problem']}\n  repair: {finding['repair']}\n"
