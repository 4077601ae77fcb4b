"""Load: what other tools write, from directories, files and streams, gives what a pull gives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

import pyctrd
from pyctrd.errors import (
    DiffIDMismatchError,
    DigestMismatchError,
    InvalidError,
    NotFoundError,
    PyctrdError,
    UnsafeArchiveError,
)
from pyctrd.oci.platform import Platform
from tests.archives import Tar, compress_zstd
from tests.content.stores import files_below
from tests.images import BuiltImage, Images, Pushed, build_image, build_index, busybox_tar
from tests.integration.conftest import Cli, command

pytestmark = pytest.mark.root

HOST = str(Platform.host())
DEADLINE_SECONDS = 60.0
# The budget of a process (rule R11).
MEMORY_MAX_KIB = 150 << 10


def run(*words: str) -> str:
    """A program's output."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def skopeo(source: str, target: str) -> None:
    run("skopeo", "--insecure-policy", "copy", "-q", source, target)


@pytest.fixture(name="podman")
def _podman(tmp_path: Path, state: Path) -> Iterator[Callable[..., str]]:
    """Podman over a store of its own."""
    if not shutil.which("podman"):
        pytest.skip("podman is not installed")
    Path(os.environ["REGISTRY_AUTH_FILE"]).write_text("{}")  # it wants the file that is named
    # Its run directory must have a short path.
    store = ["--root", str(tmp_path / "podman"), "--runroot", str(state / "podman"), "--storage-driver", "vfs"]
    words = ["podman", *store, "--tmpdir", str(tmp_path / "tmp"), "--events-backend", "none"]
    yield lambda *more: run(*words, *more)
    run(*words, "rmi", "-af")


@pytest.fixture(name="built")
def _built(images: Images) -> Pushed:
    return images.tree


@pytest.fixture(name="layout")
def _layout(built: Pushed, tmp_path: Path) -> Path:
    return written(built, tmp_path / "layout")


def written(image: Pushed, directory: Path) -> Path:
    """An image as an OCI layout."""
    image.built.write_layout(directory)
    return directory


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A tar of files."""
    tar = Tar()
    for name, content in files.items():
        tar.file(name, content)
    path.write_bytes(tar.build())
    return path


def docker_files(image: BuiltImage, tags: Sequence[str], *, layers: Sequence[bytes] | None = None) -> dict[str, bytes]:
    """An image's files as ``docker save`` lays them out."""
    config = image.blobs[0].content
    named = {f"{position}/layer.tar": tar for position, tar in enumerate(layers or image.tars)}
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    entry = {"Config": name, "RepoTags": list(tags), "Layers": list(named)}
    return {name: config, **named, "manifest.json": json.dumps([entry]).encode()}


def assert_like_pulled(loaded: pyctrd.Image, built: Pushed, *, same_digest: bool) -> None:
    """Fail where a pull of the image, into another namespace, gives something else."""
    with pyctrd.Engine(namespace="pulled") as other:
        pulled = other.images.pull(built.reference)
        entries = list(pulled.walk())
        assert list(loaded.walk()) == entries
        files = [entry.path for entry in entries if entry.kind == "file"]
        assert [loaded.read_file(path) for path in files] == [pulled.read_file(path) for path in files]
        assert loaded.config.rootfs == pulled.config.rootfs
        assert (loaded.digest == pulled.digest) == same_digest


def nothing_is_left(engine: pyctrd.Engine) -> None:
    root = Path(os.environ["PYCTRD_ROOT"])
    assert engine.images.list() == []
    assert engine.content.list() == []
    assert engine.check(digests=True) == []
    assert files_below(root / "content") == []
    assert list((root / "content/ingest").glob("*")) == []


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive", "dir.tar"])
def test_what_skopeo_writes_is_loaded_as_it_was_pulled(
    engine: pyctrd.Engine, built: Pushed, layout: Path, tmp_path: Path, form: str
) -> None:
    target = tmp_path / "made"
    if form == "dir.tar":  # names begin with ./ there
        run("tar", "-C", str(layout), "-cf", str(target), ".")
        loaded = engine.images.load(target, name="local/tree:1")
    else:
        skopeo(f"oci:{layout}:latest", f"{form}:{target}:local/tree:1")
        loaded = engine.images.load(target)
    assert [image.name for image in loaded] == ["docker.io/local/tree:1"]
    assert_like_pulled(loaded[0], built, same_digest=form != "docker-archive")
    assert engine.images.get("local/tree:1").digest == loaded[0].digest
    assert engine.check(digests=True) == []
    container = engine.containers.create(loaded[0], ["true"])
    container.delete()
    engine.images.remove("local/tree:1")
    assert engine.images.list() == []


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_what_podman_saves_is_loaded_as_it_was_pulled(
    engine: pyctrd.Engine, images: Images, tmp_path: Path, podman: Callable[..., str], form: str
) -> None:
    # Podman keeps no layer as it came, and of one with a sparse file it writes other bytes than the digest names.
    layout = written(images.busybox, tmp_path / "layout")
    image = podman("pull", "-q", f"oci:{layout}:latest").strip()
    podman("tag", image, "local/busybox:1")
    podman("save", "-q", "--format", form, "-o", str(tmp_path / "saved"), "localhost/local/busybox:1")
    (loaded,) = engine.images.load(tmp_path / "saved")
    assert loaded.name == "localhost/local/busybox:1"
    assert_like_pulled(loaded, images.busybox, same_digest=False)  # its layers are compressed anew, or not at all
    assert engine.check(digests=True) == []


def test_several_images_with_several_tags_come_in_together(
    engine: pyctrd.Engine, images: Images, tmp_path: Path, podman: Callable[..., str]
) -> None:
    layout, other = written(images.busybox, tmp_path / "layout"), tmp_path / "other"
    build_image([busybox_tar(), Tar().file("only", b"here").build()]).write_layout(other)
    first, second = (podman("pull", "-q", f"oci:{path}:latest").strip() for path in (layout, other))
    podman("tag", first, "local/first:1", "local/first:2")
    podman("tag", second, "local/second:1")
    saved = tmp_path / "saved.tar"
    podman("save", "-q", "-m", "-o", str(saved), "local/first:1", "local/first:2", "local/second:1")
    loaded = engine.images.load(saved)
    assert sorted(image.name for image in loaded) == [
        "localhost/local/first:1",
        "localhost/local/first:2",
        "localhost/local/second:1",
    ]
    assert len({image.digest for image in loaded}) == 2
    assert engine.images.get("localhost/local/second:1").read_file("/only") == b"here"
    with pytest.raises(InvalidError, match="several images"):
        engine.images.load(saved, name="local/one:1")


def test_the_tags_of_a_layout_that_umoci_wrote_are_kept_under_a_repository(engine: pyctrd.Engine, layout: Path) -> None:
    run("umoci", "config", "--image", f"{layout}:latest", "--tag", "worker", "--config.user", "app")
    run("umoci", "tag", "--image", f"{layout}:latest", "stable")
    with pytest.raises(InvalidError, match="only the tag") as caught:
        engine.images.load(layout)
    assert "--name" in caught.value.hint
    nothing_is_left(engine)
    loaded = {image.name: image for image in engine.images.load(layout, name="local/app")}
    assert sorted(loaded) == [f"docker.io/local/app:{tag}" for tag in ("latest", "stable", "worker")]
    assert loaded["docker.io/local/app:worker"].config.user == "app"
    assert loaded["docker.io/local/app:stable"].digest == loaded["docker.io/local/app:latest"].digest
    assert loaded["docker.io/local/app:worker"].digest != loaded["docker.io/local/app:latest"].digest
    with pytest.raises(InvalidError, match="several images"):
        engine.images.load(layout, name="local/app:one")


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_files_and_streams_plain_or_compressed_give_the_same(
    engine: pyctrd.Engine, built: Pushed, layout: Path, tmp_path: Path, form: str, compression: str
) -> None:
    archive = tmp_path / "archive"
    skopeo(f"oci:{layout}:latest", f"{form}:{archive}:local/tree:1")
    plain = archive.read_bytes()
    content = {"none": plain, "gzip": gzip.compress(plain), "zstd": compress_zstd(plain)}[compression]
    archive.write_bytes(content)
    (from_file,) = engine.images.load(archive)
    with pyctrd.Engine(namespace="streamed") as other, piped(content) as stream:
        (from_stream,) = other.images.load(stream)
        assert from_stream.digest == from_file.digest
        assert list(from_stream.walk()) == list(from_file.walk())
    assert_like_pulled(from_file, built, same_digest=form == "oci-archive")
    assert files_below(Path(os.environ["PYCTRD_ROOT"]) / "content/ingest") == []


class piped:  # noqa: N801 - read as a verb
    """Bytes that come through a pipe, once, while somebody reads."""

    def __init__(self, content: bytes) -> None:
        reader, writer = os.pipe()
        self._reader: IO[bytes] = os.fdopen(reader, "rb", buffering=0)
        self._thread = threading.Thread(target=self._write, args=(writer, content))

    def _write(self, writer: int, content: bytes) -> None:
        try:
            with os.fdopen(writer, "wb", buffering=0) as file:
                for start in range(0, len(content), 3000):
                    file.write(content[start : start + 3000])
        except BrokenPipeError:
            pass  # the reader gave up

    def __enter__(self) -> IO[bytes]:
        self._thread.start()
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._thread.join()


def test_an_index_gives_the_platform_that_is_wanted(engine: pyctrd.Engine, images: Images, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    images.multi_platform.built.write_layout(layout)
    (image,) = engine.images.load(layout, name="local/multi:1")
    assert image.read_file("/platform") == HOST.encode()
    assert image.digest == images.multi_platform.built.digest
    (other,) = engine.images.load(layout, name="local/multi:2", platform="linux/s390x")
    assert other.read_file("/platform") == b"linux/s390x"
    with pytest.raises(NotFoundError, match="linux/mips"):
        engine.images.load(layout, name="local/multi:3", platform="linux/mips")


def test_an_index_file_with_an_entry_for_each_platform_is_one_image(engine: pyctrd.Engine, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    made = {
        name: build_image([Tar().file("platform", name.encode()).build()], platform=name)
        for name in ("linux/s390x", HOST)
    }
    top = build_index(made)
    top.write_layout(layout)
    (layout / "index.json").write_bytes(top.manifest.content)
    (image,) = engine.images.load(layout, name="local/multi")
    assert (image.name, image.read_file("/platform")) == ("docker.io/local/multi:latest", HOST.encode())
    assert image.digest == made[HOST].digest
    with pytest.raises(NotFoundError, match=f"there are .*{HOST}"):
        engine.images.load(layout, name="local/multi:3", platform="linux/mips")


def test_an_archive_of_a_current_docker_has_both_forms_and_the_layout_counts(
    engine: pyctrd.Engine, layout: Path, built: Pushed, tmp_path: Path
) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0]["annotations"] = {
        "io.containerd.image.name": "registry.example/tree:1",
        "org.opencontainers.image.ref.name": "1",
    }
    (layout / "index.json").write_text(json.dumps(index))
    blobs = [f"blobs/sha256/{layer.digest[7:]}" for layer in built.built.layers]
    entry = {"Config": "blobs/sha256/x", "RepoTags": ["registry.example/tree:1"], "Layers": blobs}
    (layout / "manifest.json").write_text(json.dumps([entry]))
    run("tar", "-C", str(layout), "-cf", str(tmp_path / "saved"), *sorted(path.name for path in layout.iterdir()))
    (image,) = engine.images.load(tmp_path / "saved")
    assert (image.name, image.digest) == ("registry.example/tree:1", built.built.digest)


def test_compressed_layers_and_links_among_the_layers_are_read(engine: pyctrd.Engine, tmp_path: Path) -> None:
    shared = Tar().file("shared", b"by both").build()
    image = build_image([shared, Tar().file("own", b"by one").build(), shared])
    files = docker_files(image, ["local/linked:1"], layers=[shared, gzip.compress(image.tars[1]), b""])
    tar = Tar()
    for name, content in files.items():
        if name == "2/layer.tar":
            tar.symlink(name, "../0/layer.tar")
        else:
            tar.file(name, content)
    (tmp_path / "saved").write_bytes(tar.build())
    (loaded,) = engine.images.load(tmp_path / "saved")
    assert loaded.read_file("/own") == b"by one"
    assert [layer.media_type.rpartition(".")[2] for layer in loaded.manifest.layers] == ["tar", "tar+gzip", "tar"]
    assert engine.check(digests=True) == []


@pytest.mark.parametrize("content", [b"root:x:0:0:root\n" * 99, b"short"], ids=["text", "short"])
def test_a_file_that_is_no_archive_is_told_from_one(engine: pyctrd.Engine, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises(UnsafeArchiveError, match="notes") as caught:
        engine.images.load(tmp_path / "notes")
    assert "OCI layout" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"manifest.json": None}, InvalidError, "neither index.json nor manifest.json"),
        ({"manifest.json": None, "repositories": b"{}"}, NotFoundError, "it has none"),
        ({"manifest.json": b"[]"}, NotFoundError, "it has none"),
        ({"manifest.json": b"{}"}, InvalidError, "a list"),
        ({"0/layer.tar": None}, NotFoundError, "0/layer.tar"),
        ({"0/layer.tar": Tar().file("else").build()}, DigestMismatchError, "sha256:"),
        ({"0/layer.tar": gzip.compress(Tar().file("else").build())}, DiffIDMismatchError, "sha256:"),
        ({"CONFIG": b"{}"}, DigestMismatchError, ".json"),
    ],
)
def test_an_archive_that_is_wrong_is_refused_whole(
    engine: pyctrd.Engine, tmp_path: Path, change: dict[str, bytes | None], error: type[PyctrdError], told: str
) -> None:
    image = build_image([Tar().file("f", b"content").build()])
    files = docker_files(image, ["local/wrong:1"])
    config = next(name for name in files if name.endswith(".json"))
    changed = {**files, **{config if name == "CONFIG" else name: content for name, content in change.items()}}
    archive = write_tar(tmp_path / "wrong", {name: content for name, content in changed.items() if content is not None})
    with pytest.raises(error) as caught:
        engine.images.load(archive)
    assert told in str(caught.value)
    nothing_is_left(engine)
    with pytest.raises(error), piped(compress_zstd(archive.read_bytes())) as stream:
        engine.images.load(stream)
    nothing_is_left(engine)
    (loaded,) = engine.images.load(write_tar(tmp_path / "right", files))
    assert loaded.read_file("/f") == b"content"


def test_if_one_of_several_images_is_bad_none_comes_in(engine: pyctrd.Engine, tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    entries = []
    for number in range(3):
        image = build_image([Tar().file("f", b"%d" % number).build()])
        layers = [image.tars[0] if number < 2 else image.tars[0][:-512] + b"x" * 512]
        one = docker_files(image, [f"local/image-{number}:1"], layers=layers)
        entries += json.loads(one.pop("manifest.json"))
        entries[-1]["Layers"] = [f"{number}.tar"]
        files[f"{number}.tar"] = one.pop("0/layer.tar")
        files |= one
    archive = write_tar(tmp_path / "archive", files | {"manifest.json": json.dumps(entries).encode()})
    with pytest.raises(DigestMismatchError):
        engine.images.load(archive)
    nothing_is_left(engine)


@pytest.mark.parametrize("tags", [["local/a:1", "local/b:1"], []])
def test_names_are_those_of_the_archive_or_the_users(engine: pyctrd.Engine, tmp_path: Path, tags: list[str]) -> None:
    archive = write_tar(tmp_path / "archive", docker_files(build_image([Tar().file("f").build()]), tags))
    if tags:
        assert [image.name for image in engine.images.load(archive)] == [f"docker.io/{tag}" for tag in tags]
    else:
        with pytest.raises(InvalidError, match="nameless"):
            engine.images.load(archive)
    assert [image.name for image in engine.images.load(archive, name="local/c")] == [
        "docker.io/local/c:1" if tags else "docker.io/local/c:latest"
    ]
    with pytest.raises(InvalidError, match="the image is sha256"):
        engine.images.load(archive, name=f"local/c@sha256:{'0' * 64}")


def test_two_images_of_one_name_are_refused(engine: pyctrd.Engine, tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    entries = []
    for number in range(2):
        one = docker_files(build_image([Tar().file("f", b"%d" % number).build()]), ["local/same:1"])
        entries += json.loads(one.pop("manifest.json"))
        entries[-1]["Layers"] = [f"{number}.tar"]
        files |= {f"{number}.tar": one.pop("0/layer.tar")} | one
    archive = write_tar(tmp_path / "archive", files | {"manifest.json": json.dumps(entries).encode()})
    with pytest.raises(InvalidError, match=r"ambiguous name: docker\.io/local/same:1"):
        engine.images.load(archive)
    nothing_is_left(engine)


def test_what_is_no_file_or_not_there_is_said(engine: pyctrd.Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        engine.images.load(tmp_path / "absent")
    with pytest.raises(InvalidError, match=r"has no index.json"):
        engine.images.load(tmp_path)
    (tmp_path / "text").write_bytes(b"no archive at all " * 100)
    with pytest.raises(PyctrdError, match="text"):
        engine.images.load(tmp_path / "text")
    with pytest.raises(io.UnsupportedOperation):
        engine.images.load(io.BytesIO(b""))
    nothing_is_left(engine)


def test_an_artifact_is_stored_and_not_unpacked(engine: pyctrd.Engine, layout: Path) -> None:
    (image,) = engine.images.load(layout, name="local/stored:1", unpack=False)
    with pytest.raises(NotFoundError, match="not unpacked"):
        image.read_file("/a/file")
    assert engine.images.load(layout, name="local/stored:1")[0].read_file("/a/file") == b"second\n"


def test_the_command_loads_from_files_directories_and_standard_input(cli: Cli, layout: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    skopeo(f"oci:{layout}:latest", f"docker-archive:{archive}:local/tree:1")
    done = cli("load", "-i", str(archive))
    assert (done.status, done.out) == (0, "docker.io/local/tree:1\n")
    assert cli("load", "-q", "-i", str(layout), "--name", "local/tree:2").out == "docker.io/local/tree:2\n"
    with archive.open("rb") as file:
        said = subprocess.run(command("load", "--json"), stdin=file, check=True, capture_output=True).stdout
    assert json.loads(said)["name"] == "docker.io/local/tree:1"
    said = subprocess.run(
        command("load", "-q", "--name", "local/tree:3"),
        input=gzip.compress(archive.read_bytes()),
        check=True,
        capture_output=True,
    ).stdout
    assert said == b"docker.io/local/tree:3\n"
    refused = cli("load", "-i", str(layout))
    assert (refused.status, refused.out) == (1, "")
    assert "hint: give it one: --name REFERENCE" in refused.err


def test_progress_names_the_source(engine: pyctrd.Engine, layout: Path) -> None:
    seen: list[pyctrd.PullProgress] = []
    engine.images.load(layout, name="local/tree:1", progress=seen.append)
    assert {progress.reference for progress in seen} == {str(layout)}
    assert {(progress.phase, len(progress.layers)) for progress in seen} <= {
        ("resolving", 0),
        ("transferring", 3),
        ("done", 3),
    }


def test_a_load_that_waits_for_bytes_is_interrupted_and_leaves_nothing(
    engine: pyctrd.Engine, state: Path, layout: Path, tmp_path: Path
) -> None:
    del state
    archive = tmp_path / "archive"
    skopeo(f"oci:{layout}:latest", f"oci-archive:{archive}:local/tree:1")
    ingests = Path(os.environ["PYCTRD_ROOT"]) / "content/ingest"
    with subprocess.Popen(command("load"), stdin=subprocess.PIPE, stderr=subprocess.PIPE) as waiting:
        assert waiting.stdin is not None
        try:
            waiting.stdin.write(archive.read_bytes()[:-2048])
            waiting.stdin.flush()
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not list(ingests.glob("*/member-*")):
                assert time.monotonic() < deadline
                time.sleep(0.01)  # its copies are the only sign that it reads
            waiting.send_signal(signal.SIGINT)
            assert waiting.wait(DEADLINE_SECONDS) == 130
            assert waiting.stderr is not None
            assert waiting.stderr.read().strip() == b""
        finally:
            waiting.kill()
            waiting.stdin.close()
    nothing_is_left(engine)


# A child's resource usage would begin with its parent's: the kernel is asked for the peak of the program itself.
PEAK = """
import sys, pyctrd
with pyctrd.Engine() as engine:
    engine.images.load(open(0, "rb", buffering=0, closefd=False))
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


def test_large_blobs_are_never_in_memory(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    zeros = tmp_path / "zeros"
    with zeros.open("wb") as file:
        file.truncate(300 << 20)
    run("tar", "-C", str(tmp_path), "-cf", str(layer), "zeros")
    with layer.open("rb") as file:
        diff_id = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    config = build_image([b""]).with_diff_ids([diff_id]).blobs[0].content
    (tmp_path / "config").write_bytes(config)
    listed = [{"Config": "config", "RepoTags": ["local/large:1"], "Layers": ["layer.tar"]}]
    (tmp_path / "manifest.json").write_text(json.dumps(listed))
    archive = tmp_path / "archive"
    run("tar", "-C", str(tmp_path), "-cf", str(archive), "layer.tar", "config", "manifest.json")
    run("gzip", "-1", "-k", str(archive))
    for stdin in (archive, archive.with_suffix(".gz")):
        with stdin.open("rb") as file:
            told = subprocess.run([sys.executable, "-c", PEAK], stdin=file, check=True, capture_output=True).stdout
        assert int(told) < MEMORY_MAX_KIB
        run(*command("rmi", "local/large:1"))
