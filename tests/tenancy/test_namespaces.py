"""Tenants made, changed and taken away."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError
from pyctrd.metadata.namespaces import LABEL_MAX_BYTES, NAME_MAX_CHARS
from tests.cli.commands import is_one_error, run
from tests.images import Images

ROOT = pytest.mark.root


def test_a_namespace_has_what_it_was_made_with(a: pyctrd.Engine) -> None:
    made = a.namespaces.create("team", labels={"who": "née", "empty": ""}, policy="shared", quota=5)
    assert made == a.namespaces.get("team")
    assert (made.name, made.labels, made.policy, made.quota_bytes) == (
        "team",
        {"who": "née", "empty": ""},
        "shared",
        5,
    )
    plain = a.namespaces.create("plain")
    assert (plain.labels, plain.policy, plain.quota_bytes) == ({}, "isolated", None)
    assert [known.name for known in a.namespaces.list()] == ["a", "plain", "team"]
    with pytest.raises(AlreadyExistsError, match="team"):
        a.namespaces.create("team")


def test_the_namespace_of_an_engine_is_made_at_its_first_use(a: pyctrd.Engine) -> None:
    with pyctrd.Engine(namespace="b") as b:
        assert [known.name for known in a.namespaces.list()] == ["a"]
        assert b.images.list() == []
    own = a.namespaces.get("b")
    assert (own.labels, own.policy, own.quota_bytes) == ({}, "isolated", None)
    a.namespaces.set("b", quota=7)
    with pyctrd.Engine(namespace="b") as again:
        assert again.images.list() == []
        assert again.namespaces.get("b").quota_bytes == 7  # opening it again changes nothing


def test_set_changes_what_is_given_and_nothing_else(a: pyctrd.Engine) -> None:
    before = a.namespaces.create("team", labels={"one": "1", "two": "2"}, quota=5)
    assert a.namespaces.set("team") == before
    assert a.namespaces.set("team", policy="shared") == before._replace(policy="shared")
    assert a.namespaces.set("team", labels={"three": "3"}).labels == {"three": "3"}
    assert a.namespaces.set("team", quota=0).quota_bytes == 0
    after = a.namespaces.set("team", quota="unlimited", labels={})
    assert after == a.namespaces.get("team") == before._replace(policy="shared", labels={}, quota_bytes=None)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../a", "", "x" * 200, "x" * (NAME_MAX_CHARS + 1), "a\0b", "a\n"])
def test_t10_what_is_no_name_is_refused_wherever_one_is_given(a: pyctrd.Engine, name: str) -> None:
    with pytest.raises(InvalidError, match="invalid namespace"):
        a.namespaces.create(name)
    with pytest.raises(InvalidError, match="invalid namespace"):
        pyctrd.Engine(namespace=name)
    refused: list[Callable[[str], object]] = [a.namespaces.get, a.namespaces.set, a.namespaces.remove]
    for call in refused:
        with pytest.raises(NotFoundError):
            call(name)
    assert [known.name for known in a.namespaces.list()] == ["a"]


def test_t10_upper_and_lower_case_are_two_tenants(a: pyctrd.Engine) -> None:
    a.namespaces.create("A", quota=1)
    assert a.namespaces.get("a").quota_bytes is None
    a.namespaces.remove("A")
    assert [known.name for known in a.namespaces.list()] == ["a"]


@pytest.mark.parametrize(
    "labels",
    [
        {"": "value"},
        {"a\0b": "value"},
        {"key": "a\0b"},
        {"key": "line\nbreak"},
        {"key": "\x1b[31m"},
        {"key": "\udcff"},
        {"key": "x" * (LABEL_MAX_BYTES - 2)},
        {"é" * (LABEL_MAX_BYTES // 2 + 1): ""},
    ],
)
def test_a_label_that_is_none_is_refused_and_changes_nothing(a: pyctrd.Engine, labels: dict[str, str]) -> None:
    with pytest.raises(InvalidError, match="invalid label"):
        a.namespaces.create("team", labels=labels)
    before = a.namespaces.create("team", labels={"key": "x" * (LABEL_MAX_BYTES - 3)})
    with pytest.raises(InvalidError, match="invalid label"):
        a.namespaces.set("team", labels={"good": "one"} | labels, quota=1)
    assert a.namespaces.get("team") == before


@pytest.mark.parametrize("quota", [-1, 2**63])
def test_a_quota_that_no_disk_has_is_refused(a: pyctrd.Engine, quota: int) -> None:
    for call in (a.namespaces.create, a.namespaces.set):
        with pytest.raises(InvalidError, match="invalid quota"):
            call("a", quota=quota)


def test_a_policy_is_one_of_two(a: pyctrd.Engine) -> None:
    for call in (a.namespaces.create, a.namespaces.set):
        with pytest.raises(InvalidError, match="isolated or shared"):
            call("a", policy="open")  # type: ignore[arg-type] # a wrong one on purpose


def test_the_next_namespace_of_a_name_reads_no_events_of_the_one_before(a: pyctrd.Engine, images: Images) -> None:
    with pyctrd.Engine(namespace="again") as first:
        first.images.pull(images.busybox.reference)
        cursor = list(first.events())[-1].cursor
    a.namespaces.remove("again", force=True)
    told = list(a.events(all_namespaces=True, types=["namespace"]))[-1]
    assert (told.namespace, told.action, told.name) == ("", "removed", "again")
    with pyctrd.Engine(namespace="again") as second:
        assert [(event.type, event.action) for event in second.events()] == [("namespace", "created")]
        assert next(iter(second.events())).cursor > cursor


def test_removing_what_is_not_there_says_so(a: pyctrd.Engine) -> None:
    for force in (False, True):
        with pytest.raises(NotFoundError, match="namespace not found: 'nobody'"):
            a.namespaces.remove("nobody", force=force)


@ROOT
def test_a_namespace_with_content_goes_only_by_force_and_takes_all_of_it_along(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images
) -> None:
    name = b.images.pull(images.busybox.reference).name
    kept = a.images.pull(images.app.reference)
    made = b.containers.create(b.images.get(name), ["true"])
    with pytest.raises(ConflictError, match="namespace in use: b: it is not empty: containers: 1, images: 1, blobs: 3"):
        a.namespaces.remove("b")
    assert b.containers.get(made.id).name == made.name
    a.namespaces.remove("b", force=True)
    assert [known.name for known in a.namespaces.list()] == ["a"]
    root = Path(os.environ["PYCTRD_ROOT"])
    assert not (root / "containers" / "b").exists()
    held = {path.name for path in (root / "content" / "blobs" / "sha256").iterdir()}
    assert held == {item.digest.removeprefix("sha256:") for item in a.content.list()}
    assert kept.read_file("/etc/motd") == b"hello from a layer\n"
    assert a.check(digests=True) == []


@ROOT
def test_what_runs_or_is_mounted_keeps_its_namespace_whole(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images, tmp_path: Path
) -> None:
    image = b.images.pull(images.busybox.reference)
    idle = b.containers.create(image, ["true"])
    running = b.containers.run(image, ["sleep", "600"])
    with pytest.raises(ConflictError, match=f"container {running.name} is running"):
        a.namespaces.remove("b", force=True)
    running.pause()
    with pytest.raises(ConflictError, match=f"container {running.name} is paused"):
        a.namespaces.remove("b", force=True)
    running.resume()
    running.delete(force=True)
    target = tmp_path / "mounted"
    target.mkdir()
    with image.mounted(target), pytest.raises(ConflictError, match="an image is mounted"):
        a.namespaces.remove("b", force=True)
    assert [known.id for known in b.containers.list()] == [idle.id]
    a.namespaces.remove("b", force=True)
    assert a.check(digests=True) == []


@ROOT
def test_an_empty_namespace_goes_without_force_and_its_engine_says_that_it_is_gone(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images
) -> None:
    b.images.remove(b.images.pull(images.busybox.reference).name)
    a.namespaces.remove("b")
    assert b.images.list() == []
    with pytest.raises(NotFoundError, match="namespace not found"):
        b.images.pull(images.busybox.reference)
    assert a.check(digests=True) == []
    with pyctrd.Engine(namespace="b") as again:
        again.images.pull(images.busybox.reference)


def test_the_command_line_keeps_tenants(tmp_path: Path) -> None:
    del tmp_path
    assert run("namespace", "create", "team", "--quota", "2g", "--label", "who=us").out == "team\n"
    (made,) = [line for line in run("--json", "namespace", "ls").lines if line["name"] == "team"]
    assert (made["quota_bytes"], made["labels"], made["policy"]) == (2 << 30, {"who": "us"}, "isolated")
    changed = run("namespace", "set", "team", "--quota", "unlimited", "--policy", "shared", "--json").lines[0]
    assert (changed["quota_bytes"], changed["labels"], changed["policy"]) == (None, {"who": "us"}, "shared")
    table = run("namespace", "ls").out.splitlines()
    assert table[0].split() == ["NAME", "POLICY", "QUOTA", "CHARGED", "EXCLUSIVE", "CREATED", "LABELS"]
    assert [line.split()[0] for line in table[1:]] == ["default", "team"]
    assert run("namespace", "rm", "team").out == "team\n"
    assert [line["name"] for line in run("namespace", "ls", "--json").lines] == ["default"]


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["create", ".."], 1, "invalid namespace: '..'"),
        (["create", ""], 1, "invalid namespace: ''"),
        (["create", "default"], 1, "namespace already exists: default"),
        (["create", "x", "--label", "a=\x1b"], 1, "invalid label: 'a'"),
        (["set", "nobody", "--quota", "1"], 1, "namespace not found: 'nobody'"),
        (["rm", "nobody"], 1, "namespace not found: 'nobody'"),
        (["create", "x", "--quota", "lots"], 2, "'lots': expected a number of bytes, also with k, m or g"),
        (["create", "x", "--quota", "-1"], 2, "'-1'"),
        (["set", "x", "--quota", "all"], 2, "or unlimited"),
        (["create", "x", "--label", "word"], 2, "'word': expected KEY=VALUE"),
        (["create", "x", "--policy", "open"], 2, "'open'"),
        (["rm"], 2, "NAME"),
    ],
)
def test_the_command_line_names_what_was_wrong_in_one_line(words: list[str], status: int, told: str) -> None:
    done = run("namespace", *words)
    assert (done.status, done.out) == (status, "")
    assert told in done.err
    assert status != 1 or is_one_error(done.err)
    assert [line["name"] for line in run("namespace", "ls", "--json").lines] == ["default"]
