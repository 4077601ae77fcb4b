"""Commit and diff: what a container changed is listed, becomes an image, and others take that image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import InvalidError, NotFoundError, UnsupportedError
from tests import syscalls
from tests.children import until
from tests.images import Images
from tests.integration.conftest import Cli
from tests.layers.oracles import missing_programs
from tests.registries import Registry
from tests.syscalls import Watched
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root

WHY_UNWATCHED = syscalls.why_not()
EPOCH = 1_700_000_000
# Of each kind of change one: added, changed, removed, a directory made anew, another kind, other attributes.
SCRIPT = """
set -e
echo new > /etc/new
echo more >> /etc/motd
rm /etc/os-release
rm -r /home/app; mkdir /home/app; echo mine > /home/app/mine
rm /bin/cat; mkdir /bin/cat
chmod 600 /etc/group
ln /etc/new /etc/other-name
"""
CHANGED = {
    ("C", "/bin"),
    ("C", "/bin/cat"),
    ("C", "/etc"),
    ("C", "/etc/group"),
    ("C", "/etc/motd"),
    ("A", "/etc/new"),
    ("D", "/etc/os-release"),
    ("A", "/etc/other-name"),
    ("C", "/home"),
    ("C", "/home/app"),
    ("A", "/home/app/mine"),
}


@pytest.fixture(params=["overlayfs", "native"])
def opened(request: pytest.FixtureRequest, state: Path) -> Iterator[pyctrd.Engine]:
    """An engine with either snapshotter; its containers end with the test."""
    del state
    with pyctrd.Engine(snapshotter=request.param) as engine:
        yield engine
        for container in engine.containers.list():
            container.delete(force=True)


def changed(engine: pyctrd.Engine, images: Images, **options: Any) -> pyctrd.Container:
    """A container that has changed things, and ended."""
    engine.images.pull(images.busybox.reference)
    container = engine.containers.run(images.busybox.reference, ["sh", "-c", SCRIPT], **options)
    ended = container.wait(60)
    assert ended.exit_code == 0, container.logs()
    return container


def mounted(engine: pyctrd.Engine, name: str, target: Path) -> dict[bytes, Any]:
    target.mkdir(exist_ok=True)
    with engine.images.get(name).mounted(target):
        return read_tree(target)


def test_changes_are_listed_as_docker_lists_them(opened: pyctrd.Engine, images: Images) -> None:
    container = changed(opened, images)
    found = {tuple(change) for change in container.diff()}
    # The runtime makes what it mounts over, as any does: /dev, /proc, /sys.
    assert {change for change in found if not change[1].startswith(("/dev", "/proc", "/sys"))} == CHANGED
    kept = [change.path.split("/") for change in container.diff() if change.kind != "D"]
    assert kept == sorted(kept)


def test_a_committed_image_has_what_the_container_had(opened: pyctrd.Engine, images: Images, tmp_path: Path) -> None:
    container = changed(opened, images, env={"SECRET": "of the container alone"})
    image = container.commit("local/changed:1", author="somebody", message="why")
    base = opened.images.get(images.busybox.reference)
    assert image.name == "docker.io/local/changed:1"
    assert opened.images.get("local/changed:1").digest == image.digest
    assert len(image.manifest.layers) == len(base.manifest.layers) + 1
    assert (image.config.env, image.config.cmd, image.config.author) == (base.config.env, base.config.cmd, "somebody")
    history = image.config.raw["history"]
    assert sum(not entry.get("empty_layer") for entry in history) == len(image.manifest.layers)
    assert (history[-1]["comment"], history[-1]["author"]) == ("why", "somebody")
    assert opened.check(digests=True) == []
    again = opened.containers.run(
        image, ["sh", "-c", "echo $(ls /bin/cat) $(ls /home/app); read x < /etc/motd; ls /etc; echo $x; exit 3"]
    )
    assert again.wait(60).exit_code == 3
    words = again.logs().split()
    assert "os-release" not in words
    assert {"mine", "new", "other-name"} <= set(words)
    again.delete()
    # And a container of the new image, made and not started, differs in nothing.
    idle = opened.containers.create(image, ["true"])
    assert [change for change in idle.diff() if not change.path.startswith(("/dev", "/proc", "/sys"))] == []
    tree = mounted(opened, "local/changed:1", tmp_path / "mounted")
    assert tree[b"etc/new"].same_as == tree[b"etc/other-name"].same_as == b"etc/new"
    assert tree[b"etc/group"].mode == 0o600


def test_both_snapshotters_commit_the_same_layer(images: Images, state: Path, tmp_path: Path) -> None:
    del state
    found = []
    for name in ("overlayfs", "native"):
        with pyctrd.Engine(snapshotter=name) as engine:
            container = changed(engine, images)
            image = container.commit(f"local/{name}:1", clamp_mtime=0, compression="none")
            found.append(mounted(engine, image.name, tmp_path / name))
            container.delete()
    overlayfs, native = found
    ignored = frozenset({"mtime_ns"})  # two runs, two times: all but those of the root are clamped
    assert differences(overlayfs, native, ignore=ignored) == []


def test_the_same_changes_give_the_same_image_where_a_time_is_given(opened: pyctrd.Engine, images: Images) -> None:
    container = changed(opened, images)
    first, second = (container.commit(f"local/same:{tag}", clamp_mtime=EPOCH) for tag in ("a", "b"))
    assert first.digest == second.digest
    assert first.config.created == "2023-11-14T22:13:20Z"
    by_form = {form: container.commit(f"local/same:{form}", compression=form) for form in ("gzip", "zstd", "none")}
    assert len({image.config.rootfs.diff_ids for image in by_form.values()}) == 1
    assert len({image.manifest.layers[-1].digest for image in by_form.values()}) == 3
    assert [image.manifest.layers[-1].media_type.rpartition(".")[2] for image in by_form.values()] == [
        "tar+gzip",
        "tar+zstd",
        "tar",
    ]
    for image in (first, second, *by_form.values()):
        opened.images.remove(image.name)
    assert opened.check(digests=True) == []


def test_a_running_container_is_paused_while_it_is_read_and_goes_on(opened: pyctrd.Engine, images: Images) -> None:
    opened.images.pull(images.busybox.reference)
    script = "i=0; while :; do i=$((i+1)); echo $i >> /counting; done"
    container = opened.containers.run(images.busybox.reference, ["sh", "-c", script])
    try:
        for number in range(3):
            image = container.commit(f"local/running:{number}")
            assert container.status.state == "running"
            lines = image.read_file("/counting").splitlines()
            assert lines == [b"%d" % n for n in range(1, len(lines) + 1)]
        container.pause()
        container.commit("local/running:paused")
        assert container.status.state == "paused"
        container.resume()
    finally:
        container.delete(force=True)


FREEZER = """
import sys, pyctrd
with pyctrd.Engine(runtime=sys.argv[1]) as engine:
    engine.containers.get("counting").commit("local/killed:1")
"""
COUNT = "i=0; while :; do i=$((i+1)); echo $i; done"


def state_by_runc(container: pyctrd.Container, state: Path) -> str:
    """What the runtime itself says, which changes nothing."""
    words = ["runc", "--root", str(state / "runtimes/runc"), "state", container.id]
    said: str = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)["status"]
    return said


def kill_in_freeze(container: pyctrd.Container, state: Path) -> None:
    """Commit in a process of its own, and kill it while the container is frozen."""
    with Watched(FREEZER, "runc", calls=["mkdirat", "openat", "write"]) as program:
        for call in program:
            if call.name != "openat" and state_by_runc(container, state) == "paused":
                program.kill()
                break
            call.allow()
        else:
            raise AssertionError("it was never frozen")
    assert state_by_runc(container, state) == "paused"


def open_root() -> None:
    """Somebody else opens the root, and asks for something of their own."""
    with pyctrd.Engine(namespace="another") as other:
        assert other.images.list() == []


@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
def test_what_a_killed_commit_froze_goes_on(engine: pyctrd.Engine, images: Images, state: Path) -> None:
    engine.images.pull(images.busybox.reference)
    container = engine.containers.run(images.busybox.reference, ["sh", "-c", COUNT], name="counting")
    uses: list[Callable[[], object]] = [
        lambda: container.status,
        container.resume,
        lambda: container.commit("local/after:1"),
        open_root,
    ]
    for use in uses:
        kill_in_freeze(container, state)
        assert [finding.problem for finding in engine.check()] == ["is frozen by a process that is gone"]
        use()
        assert state_by_runc(container, state) == "running"
        assert engine.check() == []
    # What its user pauses stays so, whatever a killed process left before.
    kill_in_freeze(container, state)
    container.pause()
    with pyctrd.Engine() as after:
        assert after.containers.get("counting").status.state == "paused"
    assert container.status.state == "paused"
    container.resume()
    assert container.stop(timeout=0).exit_code == 137


def test_a_freeze_that_outlives_its_process_is_undone(images: Images, state: Path, tmp_path: Path) -> None:
    asked, go = tmp_path / "asked", tmp_path / "go"
    runtime = tmp_path / "runc"  # by the same name: the two share their state
    runtime.write_text(
        f'#!/bin/sh\ncase "$*" in *" pause "*) : > {asked}; while [ ! -e {go} ]; do sleep 0.01; done;; esac\n'
        'exec runc "$@"\n'
    )
    runtime.chmod(0o755)
    with pyctrd.Engine(runtime=str(runtime)) as engine:
        engine.images.pull(images.busybox.reference)
        container = engine.containers.run(images.busybox.reference, ["sh", "-c", COUNT], name="counting")
        try:
            with subprocess.Popen([sys.executable, "-c", FREEZER, str(runtime)]) as committing:
                until(asked.exists)
                committing.kill()
            # It is gone, and what it started is not: nobody takes the container for one that goes on.
            with pyctrd.Engine() as after:
                assert after.containers.get("counting").status.state == "running"
            go.touch()
            until(lambda: state_by_runc(container, state) == "paused")
            until(lambda: container.status.state == "running")
            assert engine.check() == []
        finally:
            go.touch()
            container.delete(force=True)


def test_commits_of_one_container_read_it_one_after_the_other(engine: pyctrd.Engine, images: Images) -> None:
    engine.images.pull(images.busybox.reference)
    script = COUNT.replace("echo $i", "echo $i >> /counting")
    container = engine.containers.run(images.busybox.reference, ["sh", "-c", script])
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: container.commit(f"local/one-of:{number}"), range(4)))
    for image in made:
        lines = image.read_file("/counting").splitlines()
        assert lines == [b"%d" % n for n in range(1, len(lines) + 1)]
    assert container.status.state == "running"


def test_a_container_that_never_ran_can_be_committed(opened: pyctrd.Engine, images: Images, tmp_path: Path) -> None:
    opened.images.pull(images.tree.reference)
    container = opened.containers.create(images.tree.reference, ["true"])
    container.commit("local/idle:1")
    base = mounted(opened, images.tree.reference, tmp_path / "mounted")
    made = mounted(opened, "local/idle:1", tmp_path / "mounted")
    assert differences(base, made) == []


def test_changes_of_the_config(engine: pyctrd.Engine, images: Images) -> None:
    engine.images.pull(images.app.reference)
    container = engine.containers.create(images.app.reference)
    lines = [
        'CMD ["echo", "a b"]',
        "ENTRYPOINT echo hello",
        "ENV MODE=mine OTHER='two words'",
        "ENV OLD form with spaces",
        "label a=b",
        "EXPOSE 80 443/tcp",
        'VOLUME ["/data"]',
        "WORKDIR /etc",
        "USER 0:0",
        "STOPSIGNAL SIGINT",
    ]
    config = container.commit("local/app:2", changes=lines).config
    assert (config.cmd, config.entrypoint) == (("echo", "a b"), ("/bin/sh", "-c", "echo hello"))
    assert {"MODE=mine", "OTHER=two words", "OLD=form with spaces"} <= set(config.env)
    assert (config.exposed_ports, config.volumes) == (("80/tcp", "80", "443/tcp"), ("/data",))
    assert (config.working_dir, config.user, config.stop_signal) == ("/etc", "0:0", "SIGINT")
    assert config.labels["a"] == "b"
    for wrong in ("RUN true", "CMD", "ENV a", 'CMD ["a", 1]', 'CMD ["a"', "ENV 'a", "", "LABEL =b"):
        with pytest.raises(InvalidError, match="invalid change"):
            container.commit("local/app:3", changes=[wrong])
    with pytest.raises(InvalidError, match="sequence"):
        container.commit("local/app:3", changes="USER app")
    by_class = container.commit("local/app:4", changes=pyctrd.ConfigChanges(user="app", cmd=()))
    assert (by_class.config.user, by_class.config.cmd) == ("app", ())


def test_what_cannot_be_committed_says_why_and_leaves_nothing(engine: pyctrd.Engine, images: Images) -> None:
    engine.images.pull(images.busybox.reference)
    container = engine.containers.run(images.busybox.reference, ["sh", "-c", "echo > /tmp/.wh.etc"])
    container.wait(60)
    with pytest.raises(UnsupportedError, match=r"tmp/\.wh\.etc"):
        container.commit("local/bad:1")
    with pytest.raises(InvalidError, match="no digest yet"):
        container.commit(f"local/bad@sha256:{'0' * 64}")
    engine.images.remove(images.busybox.reference, force=True)
    with pytest.raises(NotFoundError, match="blobs were removed"):
        container.commit("local/bad:1")
    assert engine.images.list() == []
    assert engine.check() == []
    root = Path(os.environ["PYCTRD_ROOT"])
    assert list((root / "content" / "ingest").iterdir()) == []


def test_commit_and_diff_from_the_command_line(cli: Cli, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("run", "--name", "c", images.busybox.reference, "sh", "-c", SCRIPT).status == 0
    lines = cli("diff", "c").out.splitlines()
    assert "A /etc/new" in lines
    assert "D /etc/os-release" in lines
    assert {"kind": "A", "path": "/etc/new"} in cli("diff", "--json", "c").lines
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    done = cli("commit", "-a", "me", "-m", "why", "-c", "CMD echo hi", "--compression", "zstd", "c", "local/cli:1")
    assert done.status == 0, done.err
    assert (
        cli("commit", "-a", "me", "-m", "why", "-c", "CMD echo hi", "--compression", "zstd", "c", "x").out == done.out
    )
    assert cli("run", "--rm", "local/cli:1").out == "hi\n"
    assert cli("commit", "none", "local/cli:2").status == 1
    assert cli("commit", "c", "UPPER").status == 1
    assert cli("commit", "--compression", "lz4", "c", "local/cli:2").status == 2
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert cli("commit", "c", "local/cli:2").status == 2
    assert cli("rm", "c").status == 0
    assert cli("check").out == "clean\n"


def run(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_layout(image: pyctrd.Image, target: Path) -> None:
    """An OCI layout of an image in the store, tagged ``latest``."""
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    store = Path(os.environ["PYCTRD_ROOT"], "content", "blobs", "sha256")
    needed = [image.manifest_digest, image.manifest.config.digest, *(layer.digest for layer in image.manifest.layers)]
    for digest in map(str, needed):
        shutil.copyfile(store / digest.removeprefix("sha256:"), blobs / digest.removeprefix("sha256:"))
    entry = {
        "mediaType": image.manifest.media_type,
        "digest": image.manifest_digest,
        "size": (blobs / image.manifest_digest.removeprefix("sha256:")).stat().st_size,
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.skipif(missing_programs("skopeo", "umoci") != "", reason=missing_programs("skopeo", "umoci") or "complete")
def test_skopeo_umoci_and_podman_take_the_image(
    engine: pyctrd.Engine, images: Images, registry: Registry, state: Path, tmp_path: Path, compression: str
) -> None:
    container = changed(engine, images)
    image = container.commit("local/shared:1", compression=compression)  # type: ignore[arg-type] # one of the three
    write_layout(image, tmp_path / "layout")
    reference = f"docker://{registry.host}/committed/{compression}:1"
    layout = f"oci:{tmp_path}/layout:latest"
    copy = ["skopeo", "--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"]
    run([*copy, layout, reference])
    inspected = json.loads(run(["skopeo", "inspect", "--tls-verify=false", reference]))
    assert inspected["Digest"] == image.digest
    assert inspected["Layers"] == [str(layer.digest) for layer in image.manifest.layers]
    expected = mounted(engine, "local/shared:1", tmp_path / "mounted")
    if compression == "gzip":  # umoci 0.4 reads no zstd
        run(["umoci", "raw", "unpack", "--image", f"{tmp_path}/layout:latest", str(tmp_path / "umoci")])
        unlisted = frozenset({"mtime_ns"})  # each tool gives its own time to parents that the base does not list
        assert differences(expected, read_tree(tmp_path / "umoci"), ignore=unlisted) == []
    if shutil.which("podman"):
        Path(os.environ["REGISTRY_AUTH_FILE"]).write_text("{}")  # it wants the file that is named
        # Its run directory must have a short path.
        store = ["--root", str(tmp_path / "podman"), "--runroot", str(state / "podman"), "--storage-driver", "vfs"]
        podman = ["podman", *store, "--tmpdir", str(tmp_path / "tmp"), "--events-backend", "none"]
        pulled = run([*podman, "pull", "-q", "--tls-verify=false", reference]).strip()
        target = Path(run([*podman, "image", "mount", pulled]).strip())
        assert differences(expected, read_tree(target), ignore=frozenset({"mtime_ns"})) == []
        run([*podman, "image", "umount", "-a"])
        run([*podman, "rmi", "-af"])
    # And back again, by our own pull.
    with pyctrd.Engine(namespace="other") as other:
        assert other.images.pull(reference.removeprefix("docker://")).digest == image.digest


STEPS = ["fdatasync", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "rmdir", "unlink", "unlinkat", "syncfs"]
PROGRAM = """
import sys, pyctrd
with pyctrd.Engine() as engine:
    container = engine.containers.get("made")
    container.diff()
    print("begin", flush=True)
    container.commit("local/killed:1", clamp_mtime=0)
"""


def kill_before(step: int) -> int:
    """Commit, and kill it before its step of this number; how many there were."""
    done = -1
    with Watched(PROGRAM, calls=[*STEPS, "write"]) as program:
        for call in program:
            if done == step:
                break
            if call.name == "write" and call.path.startswith("pipe:"):
                done = 0
            elif done >= 0 and call.name != "write":
                done += 1
            call.allow()
    return done


@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
def test_a_commit_that_was_killed_is_whole_or_gone(images: Images, state: Path) -> None:
    del state
    root = Path(os.environ["PYCTRD_ROOT"])
    outcomes = set()
    with pyctrd.Engine() as engine:
        container = changed(engine, images, name="made")
        blobs = {path.name for path in (root / "content/blobs/sha256").iterdir()}
        steps = kill_before(10_000)
        assert 10 < steps < 10_000
        for step in [*range(0, steps, 3), steps - 1]:
            with pyctrd.Engine() as after:
                if after.images.find("local/killed:1") is not None:
                    after.images.remove("local/killed:1")
            kill_before(step)
            with pyctrd.Engine() as after:
                assert after.check(digests=True) == [], step
                outcomes.add(after.images.find("local/killed:1") is not None)
            assert list((root / "content/ingest").iterdir()) == []
            assert list((root / "trash").iterdir()) == []
        if engine.images.find("local/killed:1") is not None:
            engine.images.remove("local/killed:1")
        assert {path.name for path in (root / "content/blobs/sha256").iterdir()} == blobs
        container.delete()
    assert outcomes == {True, False}
