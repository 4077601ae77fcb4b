"""Pull: from a reference to an image that is whole, in one process and in several."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import (
    ConflictError,
    DeniedError,
    DiffIDMismatchError,
    DigestMismatchError,
    InvalidError,
    NotFoundError,
    PyctrdError,
    RegistryError,
    UnsafeArchiveError,
)
from tests.archives import Tar
from tests.images import Blob, BuiltImage, Images, build_image
from tests.integration.conftest import Cli, command
from tests.registries import Registry
from tests.registry_faults import Answer, FaultyRegistry
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root

KILLS = int(os.environ.get("PYCTRD_TEST_KILLS", "200"))


def umoci_tree(built: BuiltImage, directory: Path) -> Path:
    """What umoci makes of an image."""
    layout = directory / "layout"
    built.write_layout(layout)
    target = directory / "umoci"
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:latest", str(target)], check=True, capture_output=True
    )
    return target


@pytest.mark.parametrize("name", ["tree", "tree_zstd", "tree_plain", "busybox", "many_layers"])
def test_pull_gives_the_tree_that_umoci_gives(engine: pyctrd.Engine, images: Images, name: str, tmp_path: Path) -> None:
    # umoci reads no zstd and no Docker media types: the same tars, in its form.
    source = images.tree if name.startswith("tree") else getattr(images, name)
    expected = read_tree(umoci_tree(source.built, tmp_path))
    image = engine.images.pull(getattr(images, name).reference)
    target = tmp_path / "mounted"
    target.mkdir()
    with image.mounted(target):
        actual = read_tree(target)
    # A parent that no layer lists has no attributes of its own: each tool gives it its own times.
    implied = {b"."} | {path for path in actual if path.startswith((b"implied", b"long")) and path.count(b"/") < 5}
    for path in implied & expected.keys() & actual.keys():
        if actual[path].type == "directory":
            expected.pop(path)
            actual.pop(path)
    assert differences(expected, actual) == []


def test_native_shows_the_same_tree_as_overlayfs(images: Images, tmp_path: Path) -> None:
    trees = []
    for snapshotter in ("overlayfs", "native"):
        target = tmp_path / snapshotter
        target.mkdir()
        with (
            pyctrd.Engine(snapshotter=snapshotter) as engine,
            engine.images.pull(images.tree.reference).mounted(target),
        ):
            trees.append(read_tree(target))
    assert differences(*trees) == []


def test_image_says_what_it_is(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.app.reference)
    assert image.name == images.app.reference
    assert image.digest == images.app.built.digest
    assert image.config.entrypoint == ("/bin/echo", "entry")
    assert image.read_file("/etc/motd") == b"hello from a layer\n"
    assert image.size_bytes > 0
    assert [found.name for found in engine.images.list()] == [image.name]
    assert engine.images.get(image.digest[7:19]).name == image.name
    with pytest.raises(NotFoundError):
        image.read_file("/etc/nothing")
    assert engine.check(digests=True) == []


def test_pull_again_transfers_nothing(engine: pyctrd.Engine, images: Images) -> None:
    engine.images.pull(images.tree.reference)
    before = engine.stages()["receive"]["bytes"]
    engine.images.pull(images.tree.reference)
    assert engine.stages()["receive"]["bytes"] == before


def test_pull_again_writes_nothing(images: Images, root: Path, state: Path) -> None:
    del state

    def written() -> list[tuple[str, int, int]]:
        """Of the database, its log, and all directories but those of locks."""
        paths = [root / name for name in ("pyctrd.db", "pyctrd.db-wal", "content/ingest", "snapshots", "trash")]
        return [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in paths]

    with pyctrd.Engine(root=root) as engine:
        first = engine.images.pull(images.tree.reference)
        before = written()
        again = engine.images.pull(images.tree.reference)
        assert (again.digest, again.created_ns) == (first.digest, first.created_ns)
        assert written() == before
        # Under another name there is something to record.
        engine.images.pull(f"{images.tree.reference.rpartition(':')[0]}@{first.digest}")
        assert len(engine.images.list()) == 2
        assert written() != before


@pytest.mark.parametrize("damage", ["stack", "layer"])
def test_pull_again_makes_what_is_gone(engine: pyctrd.Engine, images: Images, root: Path, damage: str) -> None:
    image = engine.images.pull(images.tree.reference)
    gone = next(root.glob("snapshots/stack-*" if damage == "stack" else "layers/sha256/*"))
    shutil.rmtree(gone)
    again = engine.images.pull(images.tree.reference)
    assert again.digest == image.digest
    assert gone.is_dir()
    assert engine.check() == []


def test_the_zstd_form_of_a_layer_is_unpacked_once(engine: pyctrd.Engine, images: Images) -> None:
    engine.images.pull(images.tree.reference)
    engine.images.pull(images.tree_zstd.reference)
    assert len(list((Path(os.environ["PYCTRD_ROOT"]) / "layers" / "sha256").iterdir())) == len(images.tree.built.layers)


def test_pull_without_unpacking_keeps_the_blobs_and_a_later_pull_unpacks_them(
    engine: pyctrd.Engine, images: Images
) -> None:
    image = engine.images.pull(images.tree.reference, unpack=False)
    with pytest.raises(NotFoundError, match="layer not unpacked"):
        image.read_file("/a/file")
    image = engine.images.pull(images.tree.reference)
    assert image.read_file("/a/file") == b"second\n"
    assert engine.check(digests=True) == []


def test_the_platform_is_chosen_from_an_index(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.multi_platform.reference, platform="linux/s390x")
    assert image.read_file("/platform") == b"linux/s390x"
    with pytest.raises(NotFoundError, match=r"no matching platform.*windows"):
        engine.images.pull(images.multi_platform.reference, platform="windows/amd64")
    with pytest.raises(NotFoundError, match="no matching platform"):
        engine.images.pull(images.tree.reference, platform="linux/riscv64")


def test_removing_an_image_frees_what_no_other_needs(engine: pyctrd.Engine, images: Images) -> None:
    root = Path(os.environ["PYCTRD_ROOT"])
    engine.images.pull(images.busybox.reference)
    engine.images.pull(images.app.reference)  # the same layer, another config
    engine.images.remove(images.app.reference)
    assert engine.images.get(images.busybox.reference).read_file("/etc/motd")
    engine.images.remove(images.busybox.reference)
    for left in ("content/blobs/sha256", "layers/sha256", "content/ingest", "trash"):
        assert list((root / left).iterdir()) == [], left
    assert engine.check() == []


def test_skopeo_reads_the_blobs(engine: pyctrd.Engine, images: Images, tmp_path: Path) -> None:
    engine.images.pull(images.tree.reference)
    blobs = Path(os.environ["PYCTRD_ROOT"]) / "content" / "blobs"
    layout = tmp_path / "layout"
    images.tree.built.write_layout(layout)
    for blob in (layout / "blobs" / "sha256").iterdir():
        blob.unlink()
    subprocess.run(
        [
            *("skopeo", "--insecure-policy", "copy", "--src-shared-blob-dir", str(blobs)),
            *(f"oci:{layout}:latest", f"dir:{tmp_path / 'copy'}"),
        ],
        check=True,
        capture_output=True,
    )


def test_a_hard_link_that_leads_nowhere_fails_the_pull_and_leaves_no_image(
    engine: pyctrd.Engine, images: Images
) -> None:
    pushed = images.push(build_image([Tar().file("a").build(), Tar().hardlink("b", "missing").build()]))
    with pytest.raises(UnsafeArchiveError, match="missing"):
        engine.images.pull(pushed.reference)
    assert engine.images.list() == []


def test_a_wrong_layer_leaves_nothing_behind(engine: pyctrd.Engine, images: Images) -> None:
    pushed = images.push(build_image([Tar().file("good").build(), Tar().file("/" + "x" * 300).build()]))
    with pytest.raises(UnsafeArchiveError, match="longer than 255") as refused:
        engine.images.pull(pushed.reference)
    assert pushed.built.layers[1].digest in str(refused.value)
    root = Path(os.environ["PYCTRD_ROOT"])
    for left in ("content/blobs/sha256", "layers/sha256", "content/ingest"):
        assert list((root / left).iterdir()) == [], left
    assert engine.images.list() == []
    assert engine.check() == []


def test_two_processes_download_each_blob_once(registry: Registry, images: Images, state: Path) -> None:
    del state
    pushed = images.push(
        build_image([Tar().file(f"random-{i}", random.Random(i).randbytes(3 << 20)).build() for i in range(4)])
    )
    processes = [
        subprocess.Popen(command("--json", "pull", "--stages", pushed.reference), stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    received = 0
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        found = re.search(rb'"receive":\{[^}]*"bytes":(\d+)', out)
        received += int(found[1]) if found else 0
    with pyctrd.Engine() as engine:
        image = engine.images.get(pushed.reference)
        documents = sum(record.size for record in engine.content.list()) - sum(
            layer.size for layer in image.manifest.layers
        )
        assert received == image.size_bytes + documents - image.manifest.config.size
        assert engine.check(digests=True) == []


def test_two_threads_pull_the_same_image(engine: pyctrd.Engine, images: Images) -> None:
    errors: list[BaseException] = []

    def pull() -> None:
        try:
            engine.images.pull(images.tree.reference)
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=pull) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert engine.check(digests=True) == []


@pytest.mark.slow
def test_a_pull_killed_at_any_point_leaves_a_clean_store(images: Images, state: Path) -> None:
    del state
    layers = [
        Tar().file(f"random-{i}", random.Random(i).randbytes(1 << 20)).directory("d").file(f"d/{i}").build()
        for i in range(3)
    ]
    pushed = images.push(build_image(layers))
    chosen = random.Random(7)
    root = Path(os.environ["PYCTRD_ROOT"])
    killed = 0
    for _ in range(KILLS):
        process = subprocess.Popen(command("pull", "-q", pushed.reference), stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=chosen.uniform(0.08, 0.45))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        with pyctrd.Engine() as engine:
            assert engine.check(digests=True) == []
            if (image := engine.images.find(pushed.reference)) is not None:
                engine.images.remove(image.name)
        # Only what a later pull goes on from.
        assert {path.name for path in (root / "content" / "ingest").glob("*/*")} <= {"data", "lock"}
    assert killed > 0
    with pyctrd.Engine() as engine:
        assert engine.images.pull(pushed.reference).read_file("/d/2") == b""
        assert engine.check(digests=True) == []


def test_ctrl_c_in_the_middle_of_a_pull_leaves_the_store_clean(cli: Cli, images: Images) -> None:
    pushed = images.push(build_image([Tar().file("random", random.Random(1).randbytes(30 << 20)).build()]))
    process = subprocess.Popen(
        command("pull", "-q", pushed.reference), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    ingests = Path(os.environ["PYCTRD_ROOT"]) / "content" / "ingest"
    while process.poll() is None and not (ingests.is_dir() and list(ingests.iterdir())):
        pass  # no event tells of it: until the first byte is on its way
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert "Traceback" not in error
    assert {path.name for path in ingests.glob("*/*")} <= {"data", "lock"}  # for a later pull to go on from
    assert cli("check", "--digests").out == "clean\n"


def test_ctrl_c_is_heard_while_a_registry_wants_us_to_wait(cli: Cli, state: Path) -> None:
    del state
    built = build_image([Tar().file("f", b"x").build()])
    with FaultyRegistry() as faulty:
        reference = faulty.add(built, "busy")
        path = f"/v2/busy/blobs/{built.layers[0].digest}"
        faulty.lie(path, *[Answer(status=503, headers={"Retry-After": "59"})] * 9)
        process = subprocess.Popen(
            command("pull", "-q", reference), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and not any(seen.path == path for seen in faulty.seen):
            pass  # until it was told to wait
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)  # far less than what was asked for
    assert process.returncode == 130
    assert "Traceback" not in error
    assert cli("check").out == "clean\n"


def test_a_full_disk_is_one_error_and_nothing_is_left(images: Images, state: Path, tmp_path: Path) -> None:
    del state
    pushed = images.push(build_image([Tar().file("big", random.Random(2).randbytes(8 << 20)).build()]))
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], check=True)
    with pyctrd.Engine(root=disk) as engine:
        with pytest.raises(OSError, match="space"):
            engine.images.pull(pushed.reference)
        assert engine.images.list() == []
        assert list((disk / "content" / "ingest").iterdir()) == []
        assert engine.check() == []


def test_errors_name_what_was_wrong(engine: pyctrd.Engine, registry: Registry) -> None:
    expected: list[tuple[str, type[PyctrdError]]] = [
        (f"{registry.host}/not/there:1", NotFoundError),
        ("127.0.0.1:1/refused", RegistryError),
        ("no-such-host.invalid/x", RegistryError),
        ("Not A Reference", InvalidError),
        (f"{registry.host}/x@sha256:{'0' * 64}", NotFoundError),
    ]
    for reference, kind in expected:
        with pytest.raises(kind):
            engine.images.pull(reference)
    assert issubclass(DeniedError, RegistryError)
    assert issubclass(DigestMismatchError, PyctrdError)


def test_an_image_in_use_is_not_removed_without_force(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.create(image, ["true"])
    with pytest.raises(ConflictError, match="in use"):
        engine.images.remove(image.name)
    engine.images.remove(image.name, force=True)
    container.start()
    assert container.wait(timeout=60).exit_code == 0  # it kept its layers
    container.delete()
    assert engine.check() == []


def test_an_engine_of_another_namespace_sees_nothing(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    with pyctrd.Engine(namespace="other") as other:
        assert other.images.list() == []
        assert other.content.list() == []
        with pytest.raises(NotFoundError):
            other.content.info(image.digest)


@pytest.mark.parametrize("owner", ["default", "another"])
@pytest.mark.parametrize("unpack", [True, False])
def test_a_config_cannot_show_a_layer_that_its_blob_is_not(
    images: Images, state: Path, owner: str, *, unpack: bool
) -> None:
    mine, theirs = (build_image([Tar().file(name, name.encode()).build()]) for name in ("mine", "theirs"))
    secret = Blob("", theirs.tars[0]).digest
    with pyctrd.Engine(namespace=owner) as engine:
        engine.images.pull(images.push(theirs).reference)
    with pyctrd.Engine() as engine:
        image = engine.images.pull(images.push(mine).reference, unpack=unpack)
        once = mine.with_diff_ids([secret])
        own = str(image.config.rootfs.diff_ids[0])
        twice = mine.with_diff_ids([own, secret], layers=mine.layers * 2)
        for liar in (once, twice):
            reference = images.push(liar).reference
            with pytest.raises(DiffIDMismatchError):
                engine.images.pull(reference, unpack=unpack)
            assert engine.images.find(reference) is None
        assert engine.check(digests=True) == []


def test_one_layer_may_stand_in_an_image_twice(engine: pyctrd.Engine, images: Images) -> None:
    tar = Tar().file("file", b"x").build()
    image = engine.images.pull(images.push(build_image([tar, tar])).reference)
    assert image.read_file("/file") == b"x"
    engine.images.remove(image.name)
    assert engine.content.list() == []


def test_an_image_of_more_blobs_than_a_process_may_have_files_open(images: Images, state: Path) -> None:
    del state
    layers = [Tar().file(f"f{i}", b"%d" % i).build() for i in range(250)]
    pushed = images.push(build_image(layers, compression="none"))
    limited = ["prlimit", "--nofile=1024", *command("--json", "pull", pushed.reference)]
    done = subprocess.run(limited, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    with pyctrd.Engine() as engine:
        assert len(engine.images.get(pushed.reference).manifest.layers) == 250
        assert engine.check() == []


def test_the_first_pull_asks_for_each_blob_once(engine: pyctrd.Engine, faulty: FaultyRegistry, images: Images) -> None:
    """The largest layer is asked for while the store is opened, and that answer is the one that is read."""
    engine.images.pull(faulty.add(images.tree.built, "app"))
    asked = [request.path.rpartition("/")[2] for request in faulty.requests("/blobs/")]
    assert sorted(asked) == sorted(blob.digest for blob in images.tree.built.blobs)


def test_a_layer_that_is_not_there_when_it_is_asked_for_first_is_asked_for_again(
    engine: pyctrd.Engine, faulty: FaultyRegistry, images: Images
) -> None:
    built = images.tree.built
    reference = faulty.add(built, "app")
    largest = max(built.layers, key=lambda layer: len(layer.content))
    faulty.lie(f"/blobs/{largest.digest}", Answer(500, b"not now"))
    assert engine.images.pull(reference).digest == built.digest
    assert len(faulty.requests(largest.digest)) == 2


def test_what_was_asked_for_ahead_of_a_store_that_cannot_be_opened_is_closed(
    faulty: FaultyRegistry, images: Images, state: Path
) -> None:
    del state
    built = images.tree.built
    reference = faulty.add(built, "app")
    largest = max(built.layers, key=lambda layer: len(layer.content))
    faulty.lie(f"/blobs/{largest.digest}", Answer(body=None, stall=threading.Event()))
    with pyctrd.Engine(snapshotter="none of ours") as engine:
        with pytest.raises(InvalidError, match="snapshotter"):
            engine.images.pull(reference)
        assert faulty.requests(largest.digest)
        assert count_connections(faulty.host) == 0


def count_connections(host: str) -> int:
    """Sockets of this process that are connected to a host; the ends that a registry in it has accepted are none."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            with socket.socket(fileno=os.dup(int(link.name))) as copy:
                found += copy.getpeername()[:2] == (host.partition(":")[0], int(host.partition(":")[2]))
        except OSError:
            continue  # no socket, or no peer
    return found


def test_content_that_a_descriptor_has_itself_is_not_fetched(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    built = build_image([Tar().file("a", b"a").build()])
    document = json.loads(built.manifest.content)
    config = next(blob for blob in built.blobs if blob.digest == document["config"]["digest"])
    document["config"]["data"] = base64.b64encode(config.content).decode()
    manifest = replace(built.manifest, content=json.dumps(document).encode())
    reference = faulty.add(replace(built, manifest=manifest), "app")
    assert engine.images.pull(reference).config.rootfs.diff_ids
    assert faulty.requests(config.digest) == []
    document["config"]["data"] = base64.b64encode(b"x" * len(config.content)).decode()
    manifest = replace(built.manifest, content=json.dumps(document).encode())
    with pytest.raises(InvalidError, match=r"config\.data"):
        engine.images.pull(faulty.add(replace(built, manifest=manifest), "other"))
